"""Events of the kernel about connections under TLS, made by hand from conversations in memory."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from agentwatch.kernel import abi
from agentwatch.observation.flows import FlowTable
from agentwatch.protocols.base import Statement
from agentwatch.streams.flow import TCP_ACK, TCP_FIN, TCP_SYN, Missing, Said
from tests.unit.protocols.fix_wire import HELLO, simple
from tests.unit.streams.fix_tls import IN, OUT, Peers, Wire, Wrote, cut
from tests.unit.streams.fix_tls_flow import say

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agentwatch.protocols.base import Direction, Instant
    from agentwatch.streams.flow import Flow, Item
    from tests.unit.protocols.fix_wire import Turn
    from tests.unit.streams.fix_tls import Certificate, Event

TGID = 100
SECOND = 1_000_000_000
AT = 5 * SECOND
"""When something happens behind a conversation."""


def header(at: Instant, *, tgid: int = TGID, tid: int = 0, flags: int = 0) -> abi.Header:
    return abi.Header(0, 0, flags, at, 0, tgid, tid or tgid, 0, 0, 0, 0)


class Recorder:
    """A table of flows, and what came of the events that it was given."""

    def __init__(self) -> None:
        self.table = FlowTable()
        self.told: list[tuple[Flow, Item]] = []

    def take(self, event: abi.Event) -> None:
        if isinstance(event, abi.Wire):
            self.note([self.table.wire(event)])
        elif isinstance(event, abi.Unix):
            self.note([self.table.unix(event)])
        elif isinstance(event, abi.Tls):
            self.note(self.table.tls(event))
        elif isinstance(event, abi.TlsRecord):
            self.note(self.table.tls_record(event))
        elif isinstance(event, abi.TlsEnd):
            self.note(self.table.tls_end(event))
        else:
            raise TypeError(event)

    def take_all(self, events: Iterable[abi.Event]) -> Recorder:
        for event in events:
            self.take(event)
        return self

    def note(self, told: Iterable[tuple[Flow, list[Item]]]) -> None:
        self.told += [(flow, item) for flow, items in told for item in items]

    def tick(self, now: Instant) -> list[Flow]:
        """Do what time does; return the flows that a record of unread bytes is due for."""
        self.note(self.table.tls_overdue(now))
        self.note(self.table.expire(now))
        due = self.table.due(now)
        self.table.drop_closed()
        return due

    @property
    def statements(self) -> list[tuple[str, Statement]]:
        """Return each statement and the name of its connection."""
        return [
            (flow.connection, item.message)
            for flow, item in self.told
            if isinstance(item, Said) and isinstance(item.message, Statement)
        ]

    @property
    def short(self) -> list[tuple[str, bytes | None, str]]:
        return [(connection, s.text, str(s.outcome)) for connection, s in self.statements]

    @property
    def missing(self) -> list[tuple[str, Missing]]:
        return [(flow.connection, item) for flow, item in self.told if isinstance(item, Missing)]

    def flow(self, kind: str, identity: int) -> Flow | None:
        return self.table._flows.get((kind, identity, b"", 0))


class Link:
    """One connection: its socket, and the object of the library that speaks on it."""

    def __init__(self, cookie: int, *, session: int = 0, tgid: int = TGID, in_memory: bool = False) -> None:
        self.cookie = cookie
        self.session = session or cookie + 1_000_000
        self.tgid = tgid
        self.in_memory = in_memory
        """Whether the library makes records and somebody else sends them."""
        self.sequence = [1000, 5000]
        self.position = [0, 0]

    def packet(self, direction: Direction, data: bytes, at: Instant, flags: int = TCP_ACK) -> abi.Wire:
        sequence = self.sequence[direction]
        self.sequence[direction] += len(data) + bool(flags & (TCP_SYN | TCP_FIN))
        acknowledged = self.sequence[1 - direction]
        addresses = (bytes([192, 0, 2, 1]).ljust(16, b"\0"), bytes([192, 0, 2, 9]).ljust(16, b"\0"))
        h = header(at, tgid=self.tgid if direction is OUT else 0)
        ports = 5432, 40000
        kind = socket.AF_INET, socket.IPPROTO_TCP, flags, int(direction)
        return abi.Wire(h, self.cookie, sequence, acknowledged, len(data), *addresses, *ports, *kind, data)

    def opened(self, at: Instant = 1) -> list[abi.Event]:
        return [self.packet(OUT, b"", at, TCP_SYN), self.packet(IN, b"", at, TCP_SYN | TCP_ACK)]

    def closed(self, at: Instant) -> list[abi.Event]:
        return [self.packet(OUT, b"", at, TCP_FIN | TCP_ACK), self.packet(IN, b"", at, TCP_FIN | TCP_ACK)]

    def call(self, direction: Direction, data: bytes, at: Instant, *, writing: int = 0) -> abi.Tls:
        position = self.position[direction]
        self.position[direction] += len(data)
        size = len(data)
        cookie = 0 if self.in_memory else self.cookie
        h = header(at, tgid=self.tgid)
        return abi.Tls(h, self.session, cookie, position, size, 0, size, int(direction), data, writing)

    def tie(self, at: Instant) -> abi.Tls:
        """Return what tells nothing but the socket."""
        return abi.Tls(header(at, tgid=self.tgid), self.session, self.cookie, self.position[OUT], 0, 0, 0, 0, b"")

    def made(self, data: bytes, at: Instant) -> list[abi.TlsRecord]:
        """Return what tells of the records in what the library gives to be sent."""
        h = header(at, tgid=self.tgid)
        return [
            abi.TlsRecord(h, self.session, end - begin, data[begin:end][: min(32, end - begin)])
            for begin, end in cut(data)
        ]

    def freed(self, at: Instant) -> abi.TlsEnd:
        out, into = self.position
        return abi.TlsEnd(header(at, tgid=self.tgid), self.session, (out, into))

    def events(self, events: Iterable[Event]) -> list[abi.Event]:
        """Return what the kernel tells of a conversation.

        A library with a socket has sent when its call returns; one without gives the record away, returns, and then it
        is sent.
        """
        found: list[abi.Event] = []
        calls: list[abi.Event] = []
        for event in events:
            sends = isinstance(event, Wire) and event.direction is OUT
            if not sends:
                found += calls
                calls = []
            if isinstance(event, Wrote):
                calls.append(self.call(OUT, event.data, event.at))
            elif not isinstance(event, Wire):
                found.append(self.call(IN, event.data, event.at))
            elif sends and self.in_memory:
                found += [*self.made(event.data, event.at), *calls, self.packet(OUT, event.data, event.at)]
                calls = []
            else:
                found.append(self.packet(event.direction, event.data, event.at))
        return found + calls

    def conversation(self, files: Certificate, turns: Sequence[Turn]) -> list[abi.Event]:
        """Return what the kernel tells of a connection that says something under TLS, up to its end."""
        peers = Peers(files).handshake()
        handshake = len(peers.events)
        events = say(peers, turns).close().events
        tied = [] if self.in_memory else [self.tie(peers.now)]
        return [*self.opened(), *self.events(events[:handshake]), *tied, *self.events(events[handshake:])]


def asked(*numbers: int) -> list[Turn]:
    return HELLO + [turn for number in numbers for turn in simple(number)]


def expected(connection: str, *numbers: int) -> list[tuple[str, bytes, str]]:
    return [(connection, b"select %d" % number, "ok") for number in numbers]


def untied(link: Link, turns: Sequence[Turn], at: int = AT) -> list[abi.Event]:
    return [link.call(direction, data, at) for direction, data in turns]
