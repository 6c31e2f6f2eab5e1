"""Which socket a TLS library's connection is on: events of libraries and records on the wire in, the flow out.

The kernel knows it where the library does its own I/O: what a call sends while it runs. A library that only turns
plaintext into records in memory leaves the sending to somebody else. Then the record that it made is looked for on the
wire of the same agent: its first bytes are ciphertext (of a ClientHello: its random number), which no other
connection has. Nothing is ever tied because it is near: not by thread, not by time, not by descriptor.

What a library says before its socket is known waits here; after a while it is told without one. So does what one
thread has read while another one's write, which it answers, has not returned: a call is told of when it returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from agentwatch.protocols.base import Direction
from agentwatch.streams.tls import HEADER_BYTES, PREFIX_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.kernel import abi
    from agentwatch.streams.secured import Plaintext

MAX_SESSIONS = 65536
"""Connections of libraries; beyond it the one that was quiet for longest is forgotten, and told without its socket."""
MAX_RECORDS = 16384
"""Beginnings of records that were made and not seen on the wire, or the other way round; the oldest are forgotten."""
MAX_WAITING_BYTES = 16 * 1024 * 1024
"""Plaintext that waits for its socket, of one connection."""
WAIT_NS = 1_000_000_000
"""How long it waits at most."""
LEAST_PREFIX = HEADER_BYTES + 16
"""Bytes that no two connections have in common: the header of a record, and 16 bytes of ciphertext."""

Key = tuple[str, int, bytes, int]
V = TypeVar("V")


class Session:
    """One connection of a library."""

    __slots__ = (
        "awaited",
        "behind",
        "behind_bytes",
        "cgroup",
        "given_up",
        "key",
        "number",
        "since",
        "tgid",
        "told",
        "waiting",
        "waiting_bytes",
    )

    def __init__(self, number: int, h: abi.Header) -> None:
        self.number = number
        self.tgid = h.tgid
        self.cgroup = h.cgroup
        self.key: Key | None = None
        """Of its flow, once that is known."""
        self.waiting: list[Plaintext] = []
        self.waiting_bytes = 0
        self.since = h.boottime
        """Of what has waited for longest."""
        self.told = [0, 0]
        """Where the plaintext ends that was told of, out and in."""
        self.behind: list[Plaintext] = []
        """What was read while a write call had not returned."""
        self.behind_bytes = 0
        self.awaited = self.given_up = 0
        """When that call began; and the one that was waited for in vain."""


class Tied(NamedTuple):
    """A session whose flow is known from now on, and what waited for that."""

    session: Session
    waiting: list[Plaintext]


def prefix(data: bytes) -> bytes | None:
    """Return what a record is known by, from its first bytes; None if that is too little."""
    if len(data) < LEAST_PREFIX:
        return None
    end = HEADER_BYTES + int.from_bytes(data[3:HEADER_BYTES], "big")
    found = data[: min(PREFIX_BYTES, end)]
    return found if len(found) >= LEAST_PREFIX else None


def _known(data: bytes, cgroup: int) -> bytes | None:
    found = prefix(data)
    return None if found is None else cgroup.to_bytes(8, "little") + found


class Ties:
    """Sessions of libraries, and the records that they are looked for by."""

    def __init__(self) -> None:
        self._sessions: dict[int, Session] = {}
        self._made: dict[bytes, int] = {}
        """Record that a library made -> session."""
        self._sent: dict[bytes, Key] = {}
        """Record that was seen on the wire -> flow."""

    def session(self, number: int, h: abi.Header) -> Session:
        """Return a session, which may be new."""
        found = self._sessions.pop(number, None)
        if found is None:
            found = Session(number, h)
        self._sessions[number] = found  # behind all that were quiet for longer
        return found

    def in_order(self, session: Session, piece: Plaintext, *, writing: int, whole: bool) -> list[Plaintext]:
        """Return what can be told of now. ``writing``: as in abi.Tls; ``whole``: the piece is its call's last."""
        if piece.direction is Direction.IN and (session.behind or writing > session.given_up):
            session.awaited = session.awaited if session.behind else writing
            session.behind.append(piece)
            session.behind_bytes += len(piece.data)
            return []
        told = [piece] if piece.length else []
        if whole and piece.at == session.awaited:
            told += self.overtaken(session)
        return told

    @staticmethod
    def overtaken(session: Session) -> list[Plaintext]:
        """Return what was read while a write call had not returned, and wait for that call no longer."""
        behind, session.behind, session.behind_bytes = session.behind, [], 0
        session.given_up = max(session.given_up, session.awaited)
        return behind

    def wait(self, session: Session, piece: Plaintext) -> None:
        """Keep plaintext until the session's flow is known."""
        if not session.waiting:
            session.since = piece.at
        session.waiting.append(piece)
        session.waiting_bytes += len(piece.data)

    def tie(self, session: Session, key: Key) -> Tied:
        """Take note of a session's flow; return what waited."""
        session.key = key
        waiting, session.waiting, session.waiting_bytes = session.waiting, [], 0
        return Tied(session, waiting)

    def made(self, session: Session, data: bytes) -> Tied | None:
        """Take note of a record that a library made; return the session if that record was seen on the wire."""
        known = _known(data, session.cgroup)
        if known is None or session.key is not None:
            return None
        key = self._sent.pop(known, None)
        if key is not None:
            return self.tie(session, key)
        _remember(self._made, known, session.number)
        return None

    def sent(self, key: Key, data: bytes, cgroup: int) -> Tied | None:
        """Take note of a record on the wire; return the session if a library made that record.

        ``cgroup``: the flow's. Two agents can agree on what their ciphertext looks like, but not on whose it is.
        """
        known = _known(data, cgroup)
        if known is None:
            return None
        number = self._made.pop(known, None)
        session = None if number is None else self._sessions.get(number)
        if session is not None and session.key is None:
            return self.tie(session, key)
        _remember(self._sent, known, key)
        return None

    def overdue(self, now: int) -> Iterator[Session]:
        """Yield sessions whose plaintext has waited for too long, or is too much, or that are too many."""
        surplus = len(self._sessions) - MAX_SESSIONS
        for session in list(self._sessions.values()):
            if surplus > 0 or _is_overdue(session, now):
                yield session
            if surplus > 0:
                del self._sessions[session.number]
                surplus -= 1

    def ended(self, number: int) -> Session | None:
        """Forget a session that was freed; return it."""
        return self._sessions.pop(number, None)

    def process_ended(self, tgid: int) -> list[Session]:
        """Forget the sessions of a process; return them."""
        gone = [session for session in self._sessions.values() if session.tgid == tgid]
        for session in gone:
            del self._sessions[session.number]
        return gone

    def flows_ended(self, keys: set[Key]) -> None:
        """Forget what was seen of connections that have ended."""
        for known in [known for known, key in self._sent.items() if key in keys]:
            del self._sent[known]


def _is_overdue(session: Session, now: int) -> bool:
    if session.behind and (now - session.behind[0].at > WAIT_NS or session.behind_bytes > MAX_WAITING_BYTES):
        return True
    return bool(session.waiting) and (now - session.since > WAIT_NS or session.waiting_bytes > MAX_WAITING_BYTES)


def _remember(known: dict[bytes, V], key: bytes, value: V) -> None:
    known[key] = value
    if len(known) > MAX_RECORDS:
        del known[next(iter(known))]
