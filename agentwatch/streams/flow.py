"""One connection of a watched process: captured pieces in, decoded messages with their author out.

A flow puts bytes in order (TCP by sequence number, a Unix socket in the order of its calls), recognises the
protocol by content, feeds the decoder, and remembers which task wrote which bytes. Bytes that no decoder
reads are counted; nothing is silently dropped. Sans-IO, plain attributes: ``pickle`` at any time.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.protocols import detect
from agentwatch.protocols.base import Delegated, Direction, Omitted, Opaque, Opened, Request, Skipped, Statement
from agentwatch.protocols.dbus import DbusDecoder
from agentwatch.protocols.docker import DockerDecoder
from agentwatch.protocols.postgres import PostgresDecoder
from agentwatch.streams.secured import Secured
from agentwatch.streams.tcp import Data, Gap, Reassembler, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentwatch.protocols.base import Decoder, Instant, Message
    from agentwatch.streams.secured import Plaintext

MAX_UNDECIDED_BYTES = 64 * 1024
"""Bytes kept while the protocol is not known; beyond it the flow is one that no decoder knows."""
MAX_WRITERS = 256
"""Changes of the writing task that are remembered; beyond it the oldest bytes lose their thread, not their process."""

PROOF_NS = 2_000_000_000
"""What a server sent and the client acknowledged, but nobody told of, is missing after this long: a run of rows that
the kernel stepped over may be told of a moment after its acknowledgement."""

AUTHOR_NS = 1_000_000_000
"""Bytes that the other end of a Unix connection has read wait so long for the end of the call that sent them, which
says who it was."""
MAX_WAITING_BYTES = 8 * 1024 * 1024

TCP_FIN, TCP_SYN, TCP_RST, TCP_ACK, TCP_URG = 1, 2, 4, 16, 32

_MASK = 0xFFFF_FFFF
DECODERS: dict[str, type[PostgresDecoder | DbusDecoder | DockerDecoder]] = {
    detect.POSTGRESQL: PostgresDecoder,
    detect.DBUS: DbusDecoder,
    detect.DOCKER: DockerDecoder,
}
_UNREAD = {detect.SSH: "ssh"}
"""Protocols that are recognised and cannot be read, and the reason that is told."""
TLS = "tls"
"""What a decoder says where TLS begins on a connection; and the reason of bytes under it that were not read."""
FROM_LIBRARY = "tls-uprobe"


class Author(NamedTuple):
    """The task that wrote."""

    tgid: int
    tid: int


class Segment(NamedTuple):
    """One TCP segment as it was captured; ``length``: payload bytes on the wire."""

    seq: int
    ack: int
    flags: int
    data: bytes
    length: int


class Said(NamedTuple):
    """A decoded message and who sent what it is about."""

    message: Statement | Opened | Request | Delegated | Omitted
    author: Author


class Missing(NamedTuple):
    """Bytes of one direction that were not captured."""

    direction: Direction
    length: int
    cause: str


class Read(NamedTuple):
    """Bytes of a Unix connection that the other end has read; ``length`` > len(data): the rest was not readable."""

    position: int
    data: bytes
    length: int
    at: Instant


Item = Said | Missing


class Interest(IntEnum):
    """What of a connection is worth copying; the kernel's FLOW_ modes."""

    ALL = 0
    COUNT = 1
    """Nobody reads it: the bytes are only counted."""
    ROWS = 2
    """Rows of results are stepped over."""
    TLS = 3
    """What comes in is ciphertext whose plaintext comes from elsewhere: the bytes are only counted."""


class Flow:
    """One connection."""

    __slots__ = (
        "_acknowledged",
        "_chunks",
        "_decoder",
        "_kept",
        "_offset",
        "_sent",
        "_streams",
        "_waiting",
        "_writers",
        "author",
        "bytes",
        "cgroup",
        "closed",
        "connection",
        "container_daemon",
        "detected",
        "joined",
        "local",
        "peer",
        "plain",
        "reason",
        "released",
        "reported",
        "reported_at",
        "secured",
        "seen_by",
        "session",
        "started",
        "touched",
        "transport",
        "users",
        "verdict",
    )

    def __init__(
        self,
        connection: str,
        transport: str,
        peer: str | None,
        *,
        started: Instant,
        seen_by: str = "wire",
    ) -> None:
        self.connection = connection
        self.transport = transport
        self.peer = peer
        self.local: str | None = None
        self.started = started
        self.touched = started
        self.session: str | None = None
        self.cgroup = 0
        self.author = Author(0, 0)
        self.users: set[int] = set()
        self.bytes = [0, 0]
        """Bytes that no decoder read, by direction."""
        self.detected: str | None = None
        """The protocol, once it is known."""
        self.reason: str | None = None
        """Why the flow is opaque, once it is."""
        self.reported: tuple[int, int] | None = None
        self.reported_at: Instant = 0
        self.joined = False
        self.container_daemon = False
        """Whether the peer is the socket of a daemon that speaks Docker's API."""
        self.released: Instant | None = None
        """When the application closed the socket."""
        self.closed = False
        self.seen_by = seen_by
        """``wire``: packets. ``unix``, ``task``: the calls of the watched tasks, whose bytes come from their memory.
        ``tls-uprobe``: plaintext from the calls into a TLS library."""
        self.secured: Secured | None = None
        """The TLS of the connection, from where it begins."""
        self.plain: Flow | None = None
        """What is said under it."""
        self.verdict = Interest.ALL
        """What the kernel was told of this connection."""
        self._acknowledged: tuple[int, Instant] | None = None
        """What the client acknowledged beyond what is known of the server, and when."""
        self._streams: tuple[Reassembler, Reassembler] | None = (
            (Reassembler(), Reassembler()) if transport == "tcp" and seen_by == "wire" else None
        )
        self._decoder: Decoder | None = None
        self._chunks: list[tuple[Direction, bytes, Instant]] = []
        self._kept = 0
        self._offset = 0
        """Bytes of the OUT direction that were delivered or declared missing."""
        self._writers: list[tuple[int, Author]] = []
        self._sent: int | None = None
        """Where the sends end that are known, if the bytes are those that the other end has read."""
        self._waiting: list[Read] = []
        """Bytes whose author is not known yet."""

    def tcp(self, direction: Direction, segment: Segment, at: Instant) -> list[Item]:
        """Take one captured segment."""
        assert self._streams is not None  # noqa: S101 -- only TCP flows are given segments
        self.touched = at
        items: list[Item] = []
        seq, ack, flags, data, length = segment
        if flags & TCP_ACK:
            self._acked(Direction(1 - direction), ack, at, items, syn=bool(flags & TCP_SYN))
        if self._acknowledged is not None:
            self._prove(at, items)
        if flags & TCP_URG and direction is Direction.OUT:
            self.urgent(at, items)
        stream = self._streams[direction]
        pieces = stream.segment(seq, data, length, syn=bool(flags & TCP_SYN), fin=bool(flags & TCP_FIN))
        counted = self.reason is not None or (self.secured is not None and direction is Direction.IN)
        if counted and length > len(data):
            pieces = pieces + stream.acked((seq + length) & _MASK)  # not every packet is told of, but each has passed
        if pieces:
            self._pieces(direction, pieces, at, items)
        if flags & (TCP_RST | TCP_FIN) and (flags & TCP_RST or all(s.closed for s in self._streams)):
            items.extend(self.close(at))
        return items

    def skipped(self, seq: int, run: Skipped, partial: bytes, at: Instant) -> list[Item]:
        """Take a run of messages of the server that the kernel stepped over, and the bytes behind it."""
        assert self._streams is not None  # noqa: S101 -- only TCP flows are followed
        self.touched = at
        items: list[Item] = []
        stream = self._streams[Direction.IN]
        pieces = stream.skipped(seq, run)
        if partial:
            pieces += stream.segment((seq + run.length) & _MASK, partial, len(partial))
        self._pieces(Direction.IN, pieces, at, items)
        return items

    def overdue(self, now: Instant) -> list[Item]:
        """Return what is proven to be missing by time alone."""
        items = self._authored(now) if self._waiting else []
        if self._acknowledged is not None:
            self._prove(now, items)
        return items

    def interest(self) -> Interest:
        """Return what of this connection is worth copying."""
        if self.reason is not None:
            return Interest.COUNT
        if self.secured is not None:
            said = self.plain.interest() if self.plain is not None else Interest.ALL
            if said is Interest.COUNT or self.secured.too_much():
                return Interest.COUNT
            return Interest.TLS if self.joined or self.secured.records.answered else Interest.ALL
        return Interest.ROWS if isinstance(self._decoder, PostgresDecoder) else Interest.ALL

    def _acked(self, direction: Direction, ack: int, at: Instant, items: list[Item], *, syn: bool) -> None:
        assert self._streams is not None  # noqa: S101 -- only TCP flows are given segments
        stream = self._streams[direction]
        if direction is Direction.IN and self._decoder is not None and stream.is_behind(ack):
            if self._acknowledged is None:
                self._acknowledged = ack, at
            return
        missed = stream.acked(ack, syn=syn)
        if missed:
            self._pieces(direction, missed, at, items)

    def _prove(self, at: Instant, items: list[Item]) -> None:
        assert self._streams is not None  # noqa: S101 -- only TCP flows have acknowledgements
        assert self._acknowledged is not None  # noqa: S101 -- asked by the callers
        ack, since = self._acknowledged
        if at - since < PROOF_NS and self._streams[Direction.IN].is_behind(ack):
            return
        self._acknowledged = None
        missed = self._streams[Direction.IN].acked(ack)
        if missed:
            self._pieces(Direction.IN, missed, at, items)

    def unix(self, direction: Direction, data: bytes, length: int, at: Instant) -> list[Item]:
        """Take a piece of a call on a Unix socket; ``length`` > len(data): the rest was not readable."""
        self.touched = at
        items = self._authored(at, everything=True) if self._waiting else []
        if data:
            self._deliver(direction, data, at, items)
        if length > len(data):
            self._miss(direction, length - len(data), at, "user-memory", items)
        return items

    def sent(self, position: int, total: int, at: Instant) -> list[Item]:
        """Take note of a send of ``author`` on a Unix socket whose bytes come when the other end reads them.

        ``position``: of its first byte in the stream, the low 32 bits.
        """
        self.touched = at
        start = self._near(position, self._sent or 0)
        self._wrote(start)
        self._sent = start + total
        return self._authored(at)

    def read(self, position: int, data: bytes, length: int, at: Instant) -> list[Item]:
        """Take bytes that the other end of a Unix connection has read."""
        self.touched = at
        behind = self._waiting[-1].position + self._waiting[-1].length if self._waiting else self._offset
        self._waiting.append(Read(self._near(position, behind), data, length, at))
        return self._authored(at)

    def unread(self) -> int:
        """Return how many bytes were sent that the other end has not read."""
        if self._sent is None:
            return 0
        return max(0, self._sent - self._offset - sum(read.length for read in self._waiting))

    @staticmethod
    def _near(position: int, expected: int) -> int:
        """Return the position whose low 32 bits are known and that is the nearest to the expected one."""
        ahead = (position - expected) & _MASK
        return expected + (ahead if ahead <= _MASK >> 1 else ahead - _MASK - 1)

    def _authored(self, now: Instant, *, everything: bool = False) -> list[Item]:
        """Deliver what was read and whose author is known, or will not be known any more."""
        items: list[Item] = []
        waiting = self._waiting
        while waiting:
            position, data, length, at = waiting[0]
            known = self._sent is not None and position + length <= self._sent
            overdue = now - at > AUTHOR_NS or sum(len(read.data) for read in waiting) > MAX_WAITING_BYTES
            if not (known or overdue or everything):
                break
            del waiting[0]
            if position > self._offset:
                self._miss(Direction.OUT, position - self._offset, at, "unix-hole", items)
            if data:
                self._deliver(Direction.OUT, data, at, items)
            if length > len(data):
                self._miss(Direction.OUT, length - len(data), at, "user-memory", items)
        return items

    def urgent(self, at: Instant, items: list[Item]) -> None:
        """Take note of out-of-band bytes: the server may never read what the decoder would, reading ends."""
        if self.reason is not None:
            return
        if self._decoder is not None:
            self._take(self._decoder.close(at), items)
        self._give_up("urgent-data")

    def elsewhere(self) -> None:
        """Take note that what comes in is told of at the other end, which is watched too."""
        if self.reason is None:
            self._give_up("read-at-peer")

    def close(self, at: Instant) -> list[Item]:
        """Take note that the connection ended."""
        if self.closed:
            return []
        items = self._authored(at, everything=True)
        if unread := self.unread():
            self._miss(Direction.OUT, unread, at, "not-received", items)
        if self._streams is not None:
            for direction, stream in zip(Direction, self._streams, strict=True):
                self._pieces(direction, stream.finish(), at, items)
        if self._decoder is not None and self.reason is None:
            self._take(self._decoder.close(at), items)
        elif self.reason is None and self._kept:
            self._give_up("unknown-protocol")
        if self.plain is not None:
            items += self.plain.close(at)
        if self.secured is not None:
            self.secured.settle(at, closed=True)
        self.closed = True
        return items

    def undecided(self) -> bool:
        """Whether bytes wait for a decision about the protocol, or for the library that says them."""
        if self.secured is not None and self.reason is None:
            return not self.secured.tied if self.plain is None else self.plain.undecided()
        return self._kept > 0 and self._decoder is None and self.reason is None

    def totals(self) -> tuple[int, int]:
        """Return the bytes out and in that no decoder read, those that wait for a decision included."""
        out = sum(len(data) for direction, data, _ in self._chunks if direction is Direction.OUT)
        total = self.bytes[0] + out, self.bytes[1] + self._kept - out
        for more in (self.secured and self.secured.unread(), self.plain and self.plain.totals()):
            if more:
                total = total[0] + more[0], total[1] + more[1]
        return total

    @property
    def why_unread(self) -> str:
        """The reason why bytes of this connection were not read."""
        if self.reason is not None or self.secured is None:
            return self.reason or "unknown-protocol"
        return (self.plain and self.plain.reason) or TLS

    def _pieces(self, direction: Direction, pieces: Sequence[Data | Gap | Run], at: Instant, items: list[Item]) -> None:
        for piece in pieces:
            if type(piece) is Data:
                self._deliver(direction, piece.data, at, items)
            elif type(piece) is Run:
                self._step_over(piece.what, at, items)
            else:
                self._miss(direction, piece.length, at, "tcp-hole", items)  # type: ignore[union-attr] # it is a Gap

    def _deliver(self, direction: Direction, data: bytes, at: Instant, items: list[Item]) -> None:
        if direction is Direction.OUT:
            if self._sent is None:
                self._wrote(self._offset)
            self._offset += len(data)
        if self.reason is not None:
            self.bytes[direction] += len(data)
        elif self.secured is not None:
            self.secured.feed(direction, data, at)
        elif self._decoder is not None:
            messages = self._decoder.feed(direction, data, at)
            if messages:
                self._take(messages, items)
        else:
            self._chunks.append((direction, data, at))
            self._kept += len(data)
            self._decide(items)

    def _wrote(self, start: int) -> None:
        """Remember that ``author`` wrote what begins at ``start``, if that is somebody else than before."""
        if not self._writers or self._writers[-1][1] != self.author:
            self._writers.append((start, self.author))
            if len(self._writers) > MAX_WRITERS:
                del self._writers[0]

    def _step_over(self, run: Skipped, at: Instant, items: list[Item]) -> None:
        messages = None
        if isinstance(self._decoder, PostgresDecoder):
            messages = self._decoder.skipped(run, at)
        if messages is None:
            self._miss(Direction.IN, run.length, at, "rows-not-followed", items)
        else:
            self._take(messages, items)

    def _miss(self, direction: Direction, length: int, at: Instant, cause: str, items: list[Item]) -> None:
        if direction is Direction.OUT:
            self._offset += length
        if self.reason is not None:
            self.bytes[direction] += length
            return
        if self.secured is not None:
            self.secured.missed(direction, length)
            return
        items.append(Missing(direction, length, cause))
        if self._decoder is not None:
            self._take(self._decoder.gap(direction, length, at), items)
        else:
            self.joined = True
            self._decide(items)

    def _decide(self, items: list[Item]) -> None:
        """Recognise the protocol from what was kept, and hand that to its decoder."""
        found = self._recognise()
        if found == detect.NEED_MORE:
            if self._kept > MAX_UNDECIDED_BYTES:
                self._give_up("unknown-protocol")
        elif found == detect.TLS:
            self._secure(joined=self._joins())
        elif found in DECODERS:
            self._read_as(found, items)
        else:
            if found == detect.SSH:
                # Opaque, and a login of somebody who may run programs: whoever knows the peer tells whether it is here.
                begun = Delegated("ssh", "login", None, {}, self._chunks[0][2], 0)
                items.append(Said(begun, self._author_of(0)))
            self._give_up(_UNREAD.get(found, "unknown-protocol"))

    def _joins(self) -> bool:
        return self.joined or (self._streams is not None and self._streams[0].joined)

    def _recognise(self) -> detect.Detection:
        out = b"".join(data for direction, data, _ in self._chunks if direction is Direction.OUT)
        into = b"".join(data for direction, data, _ in self._chunks if direction is Direction.IN)
        found = detect.detect(out, into, joined=self._joins(), docker=self.container_daemon)
        if self.seen_by == FROM_LIBRARY and not self.joined and (found == detect.UNKNOWN or not out):
            # A library that was hooked in the middle of a connection says nothing of it.
            again = detect.detect(out, into, joined=True)
            self.joined = again not in (detect.UNKNOWN, detect.NEED_MORE) or self.detected is not None
            found = again
        if self.detected is not None and self.joined and found in (detect.UNKNOWN, detect.NEED_MORE):
            return self.detected
        return found

    def _read_as(self, protocol: str, items: list[Item]) -> None:
        self.detected = protocol
        self._decoder = DECODERS[protocol](joined=self._joins())
        chunks, self._chunks, self._kept = self._chunks, [], 0
        for direction, data, at in chunks:
            if self.reason is not None:
                self.bytes[direction] += len(data)
            elif self.secured is not None:
                self.secured.feed(direction, data, at)
            else:
                self._take(self._decoder.feed(direction, data, at), items)

    # -- under TLS

    def _secure(self, *, joined: bool) -> None:
        """Take note that TLS begins here."""
        self._decoder = None
        self.reason = None
        self.secured = Secured(joined=joined)
        chunks, self._chunks, self._kept = self._chunks, [], 0
        for direction, data, at in chunks:
            self.secured.feed(direction, data, at)

    def tie(self, at: Instant) -> None:
        """Take note that a library's connection is on this socket."""
        self.touched = at
        if self.secured is None:
            self._secure(joined=True)
        assert self.secured is not None  # noqa: S101 -- as just made
        if not self.secured.tied:
            self.secured.tied = True
            self.secured.fresh = []

    def plaintext(self, piece: Plaintext) -> list[Item]:
        """Take what a call into a TLS library handed over."""
        self.tie(piece.at)
        assert self.secured is not None  # noqa: S101 -- tie has made it
        plain = self.plain
        if plain is None or (plain.closed and plain.reason is None):
            plain = self._begin_plain(piece)
        if piece.direction is Direction.OUT:
            plain.author = piece.author
        items: list[Item] = []
        if missing := self.secured.hole(piece):
            plain._miss(piece.direction, missing, piece.at, "tls-hole", items)  # noqa: SLF001 -- another of us
        items += plain.unix(piece.direction, piece.data, piece.length, piece.at)
        self.secured.late = self.secured.late or plain.joined
        if self.closed:
            items += plain.close(piece.at)  # what it says was told of after its packets
        return items

    def _begin_plain(self, piece: Plaintext) -> Flow:
        plain = Flow(self.connection, self.transport, self.peer, started=piece.at, seen_by=FROM_LIBRARY)
        plain.local, plain.cgroup = self.local, self.cgroup
        plain.joined = piece.position > piece.known or self._joins()
        plain.detected = self.detected  # what has asked for TLS goes on under it
        if self.plain is not None:
            plain.joined, plain.detected, plain.bytes = True, self.plain.detected, self.plain.bytes
        self.plain = plain
        return plain

    @property
    def in_plain_view(self) -> bool:
        """Whether a decoder reads the packets themselves: whatever a library says, it is not said under them."""
        return self._decoder is not None

    @property
    def reading(self) -> Flow:
        """The flow that gives the messages: what is said under TLS, or this one."""
        return self.plain or self

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        for direction, data, _ in self._chunks:
            self.bytes[direction] += len(data)
        self._chunks, self._kept = [], 0
        self._decoder = None

    def _take(self, messages: list[Message], items: list[Item]) -> None:
        for message in messages:
            if type(message) is Opaque and message.reason == TLS:
                self._secure(joined=False)
                for direction, length in zip(Direction, message.undecoded, strict=True):
                    self._miss(direction, length, message.at, "", [])
            elif type(message) is Opaque:
                self._give_up(message.reason)
                for direction, length in zip(Direction, message.undecoded, strict=True):
                    self.bytes[direction] += length
            else:
                offset = message.offset if not isinstance(message, Opened | Opaque) else 0
                items.append(Said(message, self._author_of(offset)))  # type: ignore[arg-type] # not Opaque, see above

    def _author_of(self, offset: int) -> Author:
        writers = self._writers
        if len(writers) == 1:
            return writers[0][1]
        for start, author in reversed(writers):
            if start <= offset:
                return author
        return writers[0][1] if writers else self.author
