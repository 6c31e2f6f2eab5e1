"""A flow beside a conversation under TLS: packets and calls into a library in, what was made of them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentwatch.protocols.base import Statement
from agentwatch.streams.flow import (
    TCP_ACK,
    TCP_FIN,
    TCP_SYN,
    Author,
    Flow,
    Interest,
    Missing,
    Said,
    Segment,
)
from agentwatch.streams.secured import Plaintext
from tests.unit.protocols.fix_wire import (
    packet,
)
from tests.unit.streams.fix_tls import IN, OUT, Peers, Wire, Wrote, as_told

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agentwatch.protocols.base import Direction, Instant
    from agentwatch.streams.flow import Item
    from tests.unit.protocols.fix_wire import Turn
    from tests.unit.streams.fix_tls import Certificate, Event

PEER = "192.0.2.1:5432"
SENDER, CALLER = Author(7, 70), Author(7, 71)
"""Who wrote to the socket, and who called the library."""
SSL_REQUEST = packet(80877103)
LATER = 1 << 50
HTTP = (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(1000))


class Beside:
    """A recorder beside the client: what it is told of a conversation, and what its flow makes of that."""

    def __init__(self, flow: Flow | None = None, *, joined: bool = False, counted: bool = False) -> None:
        self.flow = flow or Flow("tcp-9", "tcp", PEER, started=1)
        self.flow.author = SENDER
        self.items: list[Item] = []
        self.counted = counted
        """Whether the kernel heeds what is not worth copying."""
        self.sequence = [1000, 5000]
        self.position = [0, 0]
        self.now = 2
        if not joined and (self.flow.transport, self.flow.seen_by) == ("tcp", "wire"):
            self.segment(OUT, b"", TCP_SYN)
            self.segment(IN, b"", TCP_SYN | TCP_ACK)

    def segment(self, direction: Direction, data: bytes, flags: int = TCP_ACK, *, told: bool = True) -> list[Item]:
        sequence = self.sequence[direction]
        self.sequence[direction] += len(data) + bool(flags & (TCP_SYN | TCP_FIN))
        if not told:
            return []
        interest = self.flow.interest() if self.counted else Interest.ALL
        shown = b"" if interest is Interest.COUNT or (interest is Interest.TLS and direction is IN) else data
        segment = Segment(sequence, self.sequence[1 - direction], flags, shown, len(data))
        items = self.flow.tcp(direction, segment, self.now)
        self.items += items
        return items

    def call(self, direction: Direction, data: bytes, at: Instant, *, told: bool = True, size: int = 0) -> list[Item]:
        """Take note of a call; ``size``: bytes of each of its pieces, which a lost event may be one of."""
        before = self.position[direction]
        self.position[direction] += len(data)
        items: list[Item] = []
        step = size or len(data)
        for begin in range(0, len(data) if told else 0, step):
            piece, total = data[begin : begin + step], None if begin else len(data)
            items += self.piece(Plaintext(1, direction, before + begin, piece, len(piece), total, CALLER, at))
        return items

    def piece(self, piece: Plaintext) -> list[Item]:
        items = self.flow.plaintext(piece)
        self.items += items
        return items

    def tell(self, event: Event, *, told: bool = True, size: int = 0) -> list[Item]:
        self.now = max(self.now, event.at)
        if isinstance(event, Wire):
            return self.segment(event.direction, event.data, told=told)
        return self.call(OUT if isinstance(event, Wrote) else IN, event.data, event.at, told=told, size=size)

    def tell_all(self, events: Iterable[Event], *, size: int = 0) -> Beside:
        for event in events:
            self.tell(event, size=size)
        return self

    def session_ends(self) -> Beside:
        """Tell where the plaintext of both directions ended."""
        for direction, position in zip((OUT, IN), self.position, strict=True):
            self.piece(Plaintext(1, direction, position, b"", 0, None, CALLER, self.now))
        return self

    def close(self) -> Beside:
        for direction in (OUT, IN):
            self.segment(direction, b"", TCP_FIN | TCP_ACK)
        return self

    @property
    def statements(self) -> list[Statement]:
        return [i.message for i in self.items if isinstance(i, Said) and isinstance(i.message, Statement)]

    @property
    def short(self) -> list[tuple[bytes | None, str, str | None]]:
        return [(s.text, str(s.outcome), s.command_tag or s.status_code) for s in self.statements]

    @property
    def missing(self) -> list[Missing]:
        return [item for item in self.items if isinstance(item, Missing)]

    @property
    def cause(self) -> object:
        assert self.flow.secured is not None
        return self.flow.secured.about()["cause"]


def say(peers: Peers, turns: Sequence[Turn], *, told: bool = True) -> Peers:
    """Have a conversation under TLS."""
    for direction, data in turns:
        if direction is OUT:
            peers.write(data, told=told)
        else:
            peers.answer(data, told=told)
    return peers


def starttls(files: Certificate, suite: tuple[str, str], turns: Sequence[Turn]) -> list[Event]:
    """Return a connection of a PostgreSQL client that asks for TLS, and what it says under it."""
    peers = Peers(files, suite, name="db.example.org").plainly(OUT, SSL_REQUEST).plainly(IN, b"S").handshake()
    return as_told(say(peers, turns).close().events)


def without_tls(turns: Sequence[Turn]) -> Beside:
    """Return what is recorded of the same conversation on a connection without TLS."""
    plain = Beside()
    for direction, data in turns:
        plain.segment(direction, data)
    return plain.close()


def texts(found: Iterable[Statement]) -> list[bytes | None]:
    return [s.text for s in found]
