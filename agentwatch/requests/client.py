"""The command line's end of ``requests.sock``: ask this host's recorder to write something down, wait until it has.

Imports neither the recorder nor the kernel side: a responder's machine has neither. What always holds: ``report_read``
never raises for what goes wrong and never takes longer than READ_SECONDS; ``request_hold`` says that it is done only
when the recorder said so.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from typing import TYPE_CHECKING

from agentwatch.errors import PrivilegeError, StoreError
from agentwatch.requests import wire
from agentwatch.requests.place import socket_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentwatch.config import Config

READ_SECONDS = 2.0
"""A reader is not kept waiting for a recorder that hangs."""
HOLD_SECONDS = 8.0
"""Less than the recorder keeps a connection (``server.LIFETIME_NS``)."""
_MAX_ANSWER_BYTES = 16 * 1024
_TIMEVAL = struct.Struct("ll")


def report_read(config: Config, command: str, argv: Sequence[str]) -> str | None:
    """Have it recorded that this process reads the log, and what it asked. Return None, or why it is not recorded.

    None also for a log that no recorder of this host writes, a copy: where there is no ``run_dir``, or the recorder
    says that its log is another one.
    """
    try:
        log = wire.log_identity(config.log_dir)
        config.run_dir.stat()
    except FileNotFoundError:
        return None
    except OSError as e:
        return _reason(e, config)
    answer = _ask(config, wire.read_request(log, command, argv), READ_SECONDS)
    return None if answer.other_log else answer.error


def request_hold(config: Config, session: str, reason: str, *, held: bool) -> int:
    """Have a session held, or released; return the number of the record. Raises PrivilegeError, StoreError."""
    what = f"cannot {'hold' if held else 'release'} {session}"
    if os.geteuid() != 0:
        raise PrivilegeError(f"{what}: only root may")
    try:
        log = wire.log_identity(config.log_dir)
    except OSError as e:
        raise StoreError(f"{what}: cannot look at the log {config.log_dir}: {e.strerror}") from e
    answer = _ask(config, wire.hold_request(log, session, reason, held=held), HOLD_SECONDS)
    if answer.seq is None:
        raise StoreError(f"{what}: {answer.error}")
    return answer.seq


def _ask(config: Config, message: bytes, seconds: float) -> wire.Answer:
    """Return the recorder's answer, or one that says why there is none."""
    deadline = time.monotonic() + seconds
    try:
        with (
            socket_address(config.run_dir) as address,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
        ):
            _limit(connection, socket.SO_SNDTIMEO, deadline)
            connection.connect(address)
            return wire.parse_answer(_exchange(connection, message, deadline))
    except BlockingIOError:
        return wire.Answer(None, f"the recorder did not confirm it within {seconds:g} s")
    except (OSError, ValueError) as e:
        return wire.Answer(None, _reason(e, config))


def _reason(error: OSError | ValueError, config: Config) -> str:
    """Return what kept us from the recorder, in words."""
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        return "no recorder runs; start it (agentwatch record)"
    if isinstance(error, PermissionError):
        return f"this user may not speak to the recorder at {config.run_dir}; root and the reader_group may"
    if isinstance(error, ConnectionError):
        return "the recorder ended the connection without an answer"
    if isinstance(error, OSError):
        return f"cannot speak to the recorder: {error.strerror or error}"
    return f"the recorder's answer was not understood: {error}"


def _exchange(connection: socket.socket, message: bytes, deadline: float) -> bytes:
    with contextlib.suppress(ConnectionError):  # refused before it was asked: the answer is there already
        connection.send(message, socket.MSG_NOSIGNAL)
    _limit(connection, socket.SO_RCVTIMEO, deadline)
    try:
        answer = connection.recv(_MAX_ANSWER_BYTES)
    except ConnectionResetError:  # told once, before an answer that came in time
        answer = connection.recv(_MAX_ANSWER_BYTES)
    if not answer:
        raise ConnectionResetError
    return answer


def _limit(connection: socket.socket, option: int, deadline: float) -> None:
    # Not settimeout: a connect to a queue that is full would fail at once instead of waiting in line.
    microseconds = max(1, int((deadline - time.monotonic()) * 1_000_000))
    connection.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(*divmod(microseconds, 1_000_000)))
