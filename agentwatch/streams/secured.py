"""A connection under TLS: ciphertext from the wire and plaintext from the library in, what is not explained out.

The ciphertext (``tls.TlsRecords``) proves how much was said; the plaintext, which calls into a TLS library handed over,
says what. Where the first is more than the second there were bytes that nobody could read: before the library was
hooked, through a copy of it that is not, or made by hand. A connection without any plaintext is opaque as a whole.
Sans-IO, plain attributes: ``pickle`` at any time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agentwatch.protocols.base import Direction
from agentwatch.streams.tls import TlsRecords

if TYPE_CHECKING:
    from agentwatch.protocols.base import Instant
    from agentwatch.streams.flow import Author
    from agentwatch.streams.tls import Record

MAX_UNTIED_BYTES = 1 << 20
"""Outgoing ciphertext that is copied in the hope of finding its library; beyond it the connection is only counted."""
MAX_FRESH = 256
"""Records that wait to be compared with what libraries made; beyond it the oldest are not looked for."""
MAX_SESSIONS = 16
"""Connections of libraries on one socket, each in a process of its own; the oldest is forgotten."""
SETTLE_NS = 1_000_000_000
"""Ciphertext and plaintext of one call are told of at different moments: they are compared after so much quiet."""

NO_LIBRARY, BEFORE_PROBES, SURPLUS = "no-library", "before-probes", "surplus"
"""Why bytes were not read: no hooked library said them, they passed before it was hooked, or it did not say them."""


class Plaintext(NamedTuple):
    """A piece of what one call into a library handed over; ``length`` > len(data): the rest was not copied."""

    session: int
    direction: Direction
    position: int
    """Of the piece in the plaintext of its direction."""
    data: bytes
    length: int
    total: int | None
    """Of the whole call, with its first piece; None with the others."""
    author: Author
    at: Instant
    """When the call began (OUT) or ended (IN)."""


class Secured:
    """What is known of the TLS of one connection."""

    __slots__ = ("_changed_at", "_positions", "_told", "before", "fresh", "records", "tied")

    def __init__(self, *, joined: bool) -> None:
        self.records = TlsRecords(joined=joined)
        self.tied = False
        """Whether a library's connection was found to be on this socket."""
        self.before = (0, 0)
        """Bytes out and in that passed before the first plaintext, where that was not the beginning."""
        self.fresh: list[Record] = []
        """Outgoing records that were not compared with what libraries made."""
        self._positions: dict[int, list[int]] = {}
        """Session of the library -> bytes of plaintext known, out and in. More than one: the process has forked."""
        self._changed_at: Instant = 0
        self._told = (0, 0)

    def feed(self, direction: Direction, data: bytes, at: Instant) -> None:
        """Take ciphertext."""
        self._changed_at = at
        records = self.records.feed(direction, data, at)
        if not self.tied and direction is Direction.OUT:
            self.fresh += records
            del self.fresh[:-MAX_FRESH]

    def missed(self, direction: Direction, length: int) -> None:
        """Take note of ciphertext that was not copied."""
        self.records.missed(direction, length)

    def hole(self, piece: Plaintext) -> int:
        """Take note of a piece; return how many bytes of plaintext are missing before it."""
        positions = self._positions.setdefault(piece.session, [0, 0])
        if len(self._positions) > MAX_SESSIONS:
            del self._positions[next(iter(self._positions))]
        self._changed_at = max(self._changed_at, piece.at)
        expected = positions[piece.direction]
        positions[piece.direction] = piece.position + piece.length
        if piece.total is not None:
            if piece.direction is Direction.OUT:
                self.records.wrote(piece.total, piece.at)
            else:
                self.records.read(piece.total)
        return max(0, piece.position - expected)

    def begins_late(self) -> None:
        """Take note that the first plaintext is not the beginning: what went by until then was not read."""
        self.before = self.records.totals()

    def settle(self, now: Instant, *, closed: bool) -> None:
        """Compare ciphertext and plaintext, if nothing is on its way."""
        if self.tied and (closed or now - self._changed_at > SETTLE_NS):
            surplus = self.records.surplus(Direction.OUT), self.records.surplus(Direction.IN)
            self._told = max(self._told[0], surplus[0]), max(self._told[1], surplus[1])

    def unread(self) -> tuple[int, int]:
        """Return the bytes out and in that nobody could read, as of the last time that they were compared."""
        if not self.tied:
            return self.records.totals()
        return self.before[0] + self._told[0], self.before[1] + self._told[1]

    def too_much(self) -> bool:
        """Whether copying the ciphertext has become pointless: it is much, and no library has said any of it."""
        return not self.tied and self.records.totals()[0] > MAX_UNTIED_BYTES

    def about(self) -> dict[str, object]:
        """Return what the connection says about itself, and why bytes of it were not read."""
        hello, chosen = self.records.hello, self.records.chosen
        return {
            "version": chosen.version if chosen else None,
            "cipher": chosen.cipher if chosen else None,
            "server_name": hello.server_name if hello else None,
            "alpn": list(hello.alpn) if hello else [],
            "cause": NO_LIBRARY if not self.tied else SURPLUS if any(self._told) else BEFORE_PROBES,
        }
