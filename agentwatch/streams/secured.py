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
"""Connections of libraries on one socket, each in a process of its own; of one that is quiet for longer than so many
others it is forgotten what this socket heard of it."""
SAMPLES = 8
"""Moments that are looked at of a connection that does not rest."""
SETTLE_NS = 500_000_000
"""Ciphertext and plaintext of one call are told of at different moments: they are compared after so much quiet. What
came in may wait for its call as long as the application likes: it is compared when the connection has ended."""

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
    known: int = 0
    """Where what was told of this session and direction before it ended, on whichever socket that was."""


class Secured:
    """What is known of the TLS of one connection."""

    __slots__ = (
        "_before",
        "_changed_at",
        "_early",
        "_ends",
        "_samples",
        "_settled",
        "_told",
        "fresh",
        "late",
        "records",
        "tied",
    )

    def __init__(self, *, joined: bool) -> None:
        self.records = TlsRecords(joined=joined)
        self.tied = False
        """Whether a library's connection was found to be on this socket."""
        self.late = False
        """Whether the first plaintext was not the beginning: what had passed by then was not read."""
        self.fresh: list[Record] = []
        """Outgoing records that were not compared with what libraries made."""
        self._ends: dict[tuple[int, Direction], tuple[int, int]] = {}
        """Session of the library and direction -> where the plaintext ends that is known, and that of which calls are
        known. More than one session: the process has forked."""
        self._before: tuple[int, int] | None = None
        """Bytes out and in that had passed when the first plaintext was told of, without those that it explains."""
        self._early = (0, 0)
        """What was left over then, and is among these."""
        self._changed_at: Instant = 0
        self._samples: list[tuple[int, int]] = []
        self._settled: bool | None = None
        """Whether the connection was closed when it was last compared at rest; None: it has changed since."""
        self._told = (0, 0)

    def feed(self, direction: Direction, data: bytes, at: Instant) -> None:
        """Take ciphertext."""
        self._changed_at, self._settled = at, None
        records = self.records.feed(direction, data, at)
        if not self.tied and direction is Direction.OUT:
            self.fresh += records
            del self.fresh[:-MAX_FRESH]

    def missed(self, direction: Direction, length: int) -> None:
        """Take note of ciphertext that was not copied."""
        self._settled = None
        self.records.missed(direction, length)

    def hole(self, piece: Plaintext) -> int:
        """Take note of a piece; return how many bytes of plaintext are missing before it."""
        way = piece.session, piece.direction
        heard, called = self._ends.pop(way, (piece.known, piece.known))
        end = piece.position + piece.length
        # Of a call that is lost in part the rest is known, of calls that are told of as one (they are counted) the sum.
        explained = max(0, end - called, piece.position + (piece.total or 0) - called)
        self._ends[way] = max(heard, end), called + explained
        if len(self._ends) > len(Direction) * MAX_SESSIONS:
            del self._ends[next(iter(self._ends))]
        self._changed_at, self._settled = max(self._changed_at, piece.at), None
        if piece.direction is Direction.OUT and explained:
            self.records.wrote(explained, piece.at)
        elif explained:
            self.records.read(explained)
        if self._before is None:
            self._begins(piece.direction, explained)
        return max(0, piece.position - heard)

    def _begins(self, direction: Direction, explained: int) -> None:
        """Take note of what had passed when the first plaintext was told of."""
        out, into = self.records.totals()
        if direction is Direction.OUT:
            out = max(0, out - explained)
        else:
            into = max(0, into - explained)
        self._before = out, into
        self._early = self.records.surplus(Direction.OUT), self.records.surplus(Direction.IN)

    def settle(self, now: Instant, *, closed: bool) -> None:
        """Compare ciphertext and plaintext; to be called several times a second.

        What is on its way is no surplus: at rest there is nothing, and of a connection that does not rest the least of
        some moments counts. A call that waits for a slow server looks like one, until it returns.
        """
        rests = closed or now - self._changed_at > SETTLE_NS
        if not self.tied or (rests and self._settled is closed):
            return
        surplus = self.records.surplus(Direction.OUT), self.records.surplus(Direction.IN) if closed else 0
        self._samples = [*self._samples[1 - SAMPLES :], surplus]
        if rests:
            self._told, self._settled = surplus, closed
        elif len(self._samples) == SAMPLES:
            self._told = min(out for out, _ in self._samples), min(into for _, into in self._samples)

    def unread(self) -> tuple[int, int]:
        """Return the bytes out and in that nobody could read, as of the last time that they were compared."""
        if not self.tied:
            return self.records.totals()
        out, into = self._surplus()
        before = self._before if self.late and self._before is not None else (0, 0)
        return before[0] + out, before[1] + into

    def _surplus(self) -> tuple[int, int]:
        early = self._early if self.late else (0, 0)
        return max(0, self._told[0] - early[0]), max(0, self._told[1] - early[1])

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
            "cause": NO_LIBRARY if not self.tied else SURPLUS if any(self._surplus()) else BEFORE_PROBES,
        }
