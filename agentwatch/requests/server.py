"""The recorder's end of ``requests.sock``: connections of others in, requests that were checked out.

For the recorder's one thread: nothing here waits. What always holds, whatever peers do:

* who asks is what the kernel says (``peer``), never what the message says;
* a connection brings one request, gets one answer and is closed, after LIFETIME_NS in any case. Anything that is not a
  request is answered with what is wrong with it, and closed;
* a user has at the most MAX_PER_UID connections, and root has its own beside all others'; who has more is told so. A
  user who asks more often than MAX_RATE waits, unread, while others do not;
* one ``poll`` takes at the most MAX_AT_ONCE connections and reads as many messages.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentwatch.errors import StoreError
from agentwatch.requests import peer, wire
from agentwatch.requests.place import socket_address

if TYPE_CHECKING:
    from agentwatch.config import Config

MAX_CONNECTIONS = 256
"""Of all users but root: as many descriptors of the recorder's."""
MAX_PER_UID = 32
MAX_RATE = 20
"""Requests of one user in a second: about what three processors can start of ``agentwatch``."""
MAX_AT_ONCE = 32
"""In one ``poll``: some milliseconds of the recorder's time."""
LIFETIME_NS = 10_000_000_000
"""How long a connection may last: as long as a client waits for an answer (``client``)."""
SECOND_NS = 1_000_000_000
ROOT_ONLY = frozenset({"hold"})


@dataclass(frozen=True, slots=True)
class Request:
    """Something that is to be written into the log. ``record``: all fields of the record but the envelope."""

    kind: str
    fields: dict[str, Any]
    peer: peer.Peer
    number: int
    """The connection that waits for the answer."""

    @property
    def record(self) -> dict[str, Any]:
        """What was asked, and who asked."""
        who = self.peer
        return self.fields | {
            "uid": who.uid,
            "user": who.user,
            "login_uid": who.login_uid,
            "pid": who.pid,
            "exe": who.exe,
        }


class Requests:
    """Listens in ``run_dir``, which ``place.prepare_run_dir`` made. Raises StoreError if it cannot."""

    def __init__(self, config: Config) -> None:
        self._config = config
        try:
            self._listener = _listen(config)
        except OSError as e:
            raise StoreError(f"cannot listen at {config.run_dir / wire.SOCKET_NAME}: {e.strerror or e}") from e
        self._connections: dict[int, _Connection] = {}
        self._of_uid: Counter[int] = Counter()
        self._asked: Counter[int] = Counter()
        """Messages of each user within this second."""
        self._second = 0
        self._number = 0
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)

    def poll(self) -> list[Request]:
        """Return what was asked since the last time; each must be answered."""
        now = time.monotonic_ns()
        if now - self._second >= SECOND_NS:
            self._second = now
            self._asked.clear()
            self._close_old(now)
        ready = self._epoll.poll(0)
        if any(descriptor == self._listener.fileno() for descriptor, _ in ready):
            self._accept(now)
            ready = self._epoll.poll(0)  # who has just come has mostly spoken already
        by_descriptor = {connection.fd: connection for connection in self._connections.values()} if ready else {}
        found: list[Request] = []
        room = MAX_AT_ONCE
        for descriptor, _ in ready:
            connection = by_descriptor.get(descriptor)
            if connection is not None and room and self._asked[connection.who.uid] < MAX_RATE:
                room -= 1
                self._asked[connection.who.uid] += 1
                request = self._read(connection)
                found += [request] if request is not None else []
        return found

    def answer(self, request: Request, seq: int) -> None:
        """Tell the peer that its record is in the log, durably, with this number."""
        self._end(request.number, wire.Answer(seq))

    def refuse(self, request: Request, reason: str) -> None:
        """Tell the peer that there is no record, and why."""
        self._end(request.number, wire.Answer(None, reason))

    def close(self) -> None:
        """Stop listening. Who waits still sees the end of its connection, and knows that there is no answer."""
        for number in list(self._connections):
            self._end(number, None)
        self._epoll.close()
        self._listener.close()
        (self._config.run_dir / wire.SOCKET_NAME).unlink(missing_ok=True)

    def _accept(self, now: int) -> None:
        for _ in range(MAX_AT_ONCE):
            try:
                accepted, _ = self._listener.accept()
            except OSError:  # nobody more, or no descriptors: then they wait
                return
            try:
                accepted.setblocking(False)  # noqa: FBT003 -- its only argument
                who = peer.credentials(accepted)
            except OSError:
                accepted.close()
                continue
            if self._has_room(who.uid):
                self._number += 1
                self._connections[self._number] = _Connection(self._number, accepted, accepted.fileno(), who, now)
                self._of_uid[who.uid] += 1
                self._epoll.register(accepted, select.EPOLLIN)
            else:
                _say(accepted, wire.Answer(None, "too many requests at the same time; try again"))

    def _has_room(self, uid: int) -> bool:
        others = len(self._connections) - self._of_uid[0]
        return self._of_uid[uid] < MAX_PER_UID and (uid == 0 or others < MAX_CONNECTIONS)

    def _read(self, connection: _Connection) -> Request | None:
        try:
            data = connection.socket.recv(wire.MAX_MESSAGE_BYTES + 1)
        except OSError:
            data = b""
        if not data:
            self._end(connection.number, None)
            return None
        try:
            asked = self._check(data, connection.who)
        except ValueError as e:
            self._end(connection.number, wire.Answer(None, f"the recorder did not understand the request: {e}"))
            return None
        if isinstance(asked, wire.Answer):
            self._end(connection.number, asked)
            return None
        self._epoll.unregister(connection.socket)  # there is nothing more to hear
        return Request(asked.kind, asked.fields, peer.describe(connection.socket, connection.who), connection.number)

    def _check(self, data: bytes, who: peer.Credentials) -> wire.Asked | wire.Answer:
        """Return what is asked, or the answer that it gets at once. Raises ValueError."""
        if len(data) > wire.MAX_MESSAGE_BYTES:
            raise ValueError(f"more than {wire.MAX_MESSAGE_BYTES} bytes")
        asked = wire.parse_request(data)
        if asked.kind in ROOT_ONLY and who.uid != 0:
            return wire.Answer(None, f"only root may ask for a {asked.kind}, not user {who.uid}")
        try:
            ours = wire.log_identity(self._config.log_dir)
        except OSError as e:
            return wire.Answer(None, f"the recorder cannot see its log {self._config.log_dir}: {e.strerror}")
        if asked.log != ours:
            return wire.Answer(None, f"the recorder writes {self._config.log_dir}, not that log", other_log=True)
        return asked

    def _close_old(self, now: int) -> None:
        for number in [c.number for c in self._connections.values() if now - c.since > LIFETIME_NS]:
            self._end(number, None)

    def _end(self, number: int, answer: wire.Answer | None) -> None:
        connection = self._connections.pop(number, None)
        if connection is None:  # it was too old
            return
        self._of_uid[connection.who.uid] -= 1
        if not self._of_uid[connection.who.uid]:
            del self._of_uid[connection.who.uid]
        _say(connection.socket, answer)


@dataclass(frozen=True, slots=True)
class _Connection:
    number: int
    socket: socket.socket
    fd: int
    who: peer.Credentials
    since: int


def _say(connection: socket.socket, answer: wire.Answer | None) -> None:
    """Send an answer, if it fits without waiting, and close."""
    with connection, contextlib.suppress(OSError):
        if answer is not None:
            connection.send(wire.encode_answer(answer), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            connection.recv(1)  # what is unread at the close resets the connection, and the answer may be lost


def _listen(config: Config) -> socket.socket:
    path = config.run_dir / wire.SOCKET_NAME
    reader_gid = config.reader_gid()
    path.unlink(missing_ok=True)  # of a recorder that was killed; another one that runs would hold the lock
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(listener.fileno(), 0o600)  # what bind gives to the file, whatever the umask: it is never open to all
        with socket_address(config.run_dir) as address:
            listener.bind(address)
        listener.listen(MAX_CONNECTIONS)
        if reader_gid is not None:
            os.chown(path, -1, reader_gid, follow_symlinks=False)
            path.chmod(0o660)
    except BaseException:
        listener.close()
        raise
    return listener
