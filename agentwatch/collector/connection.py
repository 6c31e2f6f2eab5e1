"""Messages over a connected TLS socket, with a time limit on everything. Used by both sides.

What always holds: a peer that sends nothing, slowly, or too much costs one thread for a limited time, and memory for
one ordinary frame; larger frames need one of a few places that all connections share.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

from agentwatch.collector import frames
from agentwatch.errors import ConfigError, StoreError

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from agentwatch.collector.frames import Message

READ_BYTES = 256 * 1024
FRAME_SECONDS = 30
"""For a frame from its first byte on, and in addition:"""
LEAST_BYTES_A_SECOND = 64 * 1024
"""A line that is slower is not waited for: an ordinary frame may take a minute."""
SEND_SECONDS = 120
"""Without one byte of progress."""
ORDINARY_BYTES = 2 * 1024 * 1024
"""Larger frames hold one record that is larger than a batch; they are rare."""
LARGE_SECONDS = 60
"""To wait for a place for a larger frame."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?\Z")


class LinkError(StoreError):
    """The connection failed: it ended, was too slow, or what came over it is no message."""


class Connection:
    """One connection. For one thread, but for ``abort``."""

    def __init__(self, tls: ssl.SSLSocket, places: threading.Semaphore | None = None) -> None:
        """``places`` are those for larger frames; without them any frame is taken."""
        self._tls = tls
        self._decoder = frames.Decoder()
        self._places = places
        self._has_place = False

    def send(self, message: Message) -> None:
        """Send a message. Raises LinkError."""
        try:
            self._tls.settimeout(SEND_SECONDS)
            self._tls.sendall(frames.encode(message))
        except OSError as e:
            raise LinkError(f"cannot send to the other side: {describe(e)}") from e

    def receive(self, idle_seconds: float) -> Message:
        """Return the next message; wait so long for it to begin. Raises LinkError."""
        self._leave_place()
        start = time.monotonic()
        limit = start + idle_seconds
        try:
            while (message := self._decoder.take()) is None:
                if (announced := self._decoder.announced) > ORDINARY_BYTES:
                    self._take_place()
                if not self._read(limit - time.monotonic()):
                    raise LinkError("the other side ended the connection")
                if announced == 0 and self._decoder.begun:
                    limit = time.monotonic() + FRAME_SECONDS + self._decoder.announced / LEAST_BYTES_A_SECOND
        except frames.FrameError as e:
            raise LinkError(f"the other side does not speak this protocol: {e}") from e
        return message

    def abort(self) -> None:
        """End the connection from another thread, or from a signal handler: whoever reads gets its end."""
        # Not the method of SSLSocket, which goes on without TLS.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._tls, socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the socket."""
        self._leave_place()
        with contextlib.suppress(OSError):
            self._tls.close()

    def _read(self, seconds: float) -> bool:
        if seconds <= 0:
            raise LinkError("the other side is too slow or silent")
        try:
            self._tls.settimeout(seconds)
            data = self._tls.recv(READ_BYTES)
        except TimeoutError as e:
            raise LinkError("the other side is too slow or silent") from e
        except OSError as e:
            raise LinkError(f"cannot receive from the other side: {describe(e)}") from e
        self._decoder.feed(data)
        return bool(data)

    def _take_place(self) -> None:
        if self._places is None or self._has_place:
            return
        if not self._places.acquire(timeout=LARGE_SECONDS):
            raise LinkError("too many large records come at once")
        self._has_place = True

    def _leave_place(self) -> None:
        if self._has_place and self._places is not None:
            self._has_place = False
            self._places.release()


def context(protocol: int, ca: Path, cert: Path, key: Path) -> ssl.SSLContext:
    """Return the TLS settings of one side: TLS 1.3, both sides with a certificate of ``ca``. Raises ConfigError."""
    made = ssl.SSLContext(protocol)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_mode = ssl.CERT_REQUIRED
    try:
        made.load_verify_locations(ca)
        made.load_cert_chain(cert, key, password=_refuse_password)
    except (OSError, ValueError) as e:
        raise ConfigError(f"cannot use the certificates {ca}, {cert} and the key {key}: {describe(e)}") from e
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        made.num_tickets = 0  # every connection shows its certificate
    return made


def name_in(certificate: dict[str, Any] | None) -> str | None:
    """Return the host that a verified certificate names, in lower case; None where that is no safe file name."""
    subject = dict(pair for pairs in (certificate or {}).get("subject", ()) for pair in pairs)
    alternatives = [value for kind, value in (certificate or {}).get("subjectAltName", ()) if kind == "DNS"]
    name = str(subject.get("commonName") or (alternatives or [""])[0]).lower()
    return name if _NAME.match(name) and ".." not in name else None


def describe(error: Exception) -> str:
    """Return one line about an error of a socket or of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return "it ended the connection, as it does where it takes no certificate of ours; see its log"
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error).lower().replace("_", " ")
    if isinstance(error, TimeoutError):
        return "it took too long"
    return str(getattr(error, "strerror", None) or error)


def _refuse_password() -> str:
    # OpenSSL would ask on the terminal, and a service would hang.
    raise ValueError("the key is encrypted; store it without a password, readable by its owner alone")
