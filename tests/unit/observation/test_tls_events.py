"""Events about connections under TLS become statements on the connection that they were said on, and on no other."""

from __future__ import annotations

import pickle
import random
import socket
from typing import TYPE_CHECKING

import pytest

from agentwatch.kernel import abi
from agentwatch.observation.flows import UDP_IDLE_NS, Verdict
from agentwatch.observation.ties import WAIT_NS
from agentwatch.streams.flow import FROM_LIBRARY, Interest
from tests.unit.observation.fix_tls_events import AT, SECOND, TGID, Link, Recorder, asked, expected, header, untied
from tests.unit.protocols.fix_wire import HELLO, failing, query, simple
from tests.unit.streams.fix_tls import OUT, Peers, Wire, record
from tests.unit.streams.fix_tls_flow import say

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.unit.streams.fix_tls import Certificate

PEER = "192.0.2.1:5432"
CONNECTIONS = 50
STATEMENTS = 6
HTTP = (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n")


# -- by the socket that the library has


def test_statements_of_a_library_with_a_socket_are_on_its_connection(certificate: Certificate) -> None:
    link = Link(9)
    recorder = Recorder().take_all(link.conversation(certificate, asked(1, 2)))
    assert recorder.short == expected("tcp-9", 1, 2)
    assert {flow.peer for flow, _ in recorder.told} == {PEER}
    assert [flow.totals() for flow, _ in recorder.told][-1] == (0, 0)
    assert recorder.table.verdicts[:2] == [Verdict("tcp", 9, Interest.TLS), Verdict("tls", link.session, Interest.ALL)]


def test_a_call_may_tell_the_socket_itself(certificate: Certificate) -> None:
    link = Link(9)
    events = [event for event in link.conversation(certificate, asked(1)) if not _ties_only(event)]
    recorder = Recorder().take_all(events)
    assert recorder.short == expected("tcp-9", 1)
    assert Verdict("tls", link.session, Interest.ALL) in recorder.table.verdicts


def _ties_only(event: abi.Event) -> bool:
    return isinstance(event, abi.Tls) and not event.total


def question(events: Sequence[abi.Event], number: int) -> int:
    """Return which event is the call that asks ``select number``."""
    return next(n for n, e in enumerate(events) if isinstance(e, abi.Tls) and e.data == query(b"select %d" % number))


def test_packets_join_the_flow_of_a_call_that_was_seen_before_them(certificate: Certificate) -> None:
    link = Link(9)
    events = link.conversation(certificate, asked(1, 2, 3, 4))
    recorder = Recorder().take_all(events[question(events, 2) :])
    assert recorder.short[-1:] == expected("tcp-9", 4)
    assert {flow.peer for flow, _ in recorder.told} == {PEER}
    assert len(recorder.table) == 1


def test_the_address_of_a_freed_connection_may_be_anothers(certificate: Certificate) -> None:
    # The kernel gives it a new number; what is left of the old one must not be taken for it.
    first, second = Link(9, session=1), Link(10, session=2)
    events = first.conversation(certificate, asked(1))
    recorder = Recorder().take_all(events).take_all([first.freed(AT), *first.closed(AT)])
    recorder.take_all(second.conversation(certificate, asked(2)))
    assert recorder.short == expected("tcp-9", 1) + expected("tcp-10", 2)
    assert recorder.missing == []


def test_a_library_that_goes_on_on_another_socket_has_no_hole(certificate: Certificate) -> None:
    first, second = Link(9, session=1), Link(10, session=1)
    recorder = Recorder().take_all(first.conversation(certificate, asked(1, 2))).take_all(first.closed(AT))
    second.position = first.position
    recorder.take_all(second.conversation(certificate, asked(3, 4)))
    assert recorder.short == expected("tcp-9", 1, 2) + expected("tcp-10", 3, 4)
    assert recorder.missing == []
    assert all(flow.secured is not None and flow.totals() == (0, 0) for flow, _ in recorder.told)


def test_a_call_into_a_library_does_not_blind_the_reader_of_a_connection_without_tls() -> None:
    # What it sends while it runs may begin as a record does, within a long message for instance.
    link = Link(9)
    recorder = Recorder().take_all(link.opened())
    for direction, data in asked(1):
        recorder.take(link.packet(direction, data, 10))
    recorder.take(link.tie(11))
    recorder.take(link.call(OUT, query(b"select 'harmless'"), 12))
    for direction, data in simple(2) + failing(3):
        recorder.take(link.packet(direction, data, 13))
    read = [*expected("tcp-9", 1, 2), ("tcp-9", b"fail 3", "error")]
    assert recorder.short == read
    recorder.tick(12 + WAIT_NS + 1)
    recorder.note(recorder.table.tls_end(link.freed(AT)))
    assert recorder.short == [*read, (f"tls-{link.session}", b"select 'harmless'", "unknown")]


# -- by the records that it makes


def test_statements_of_a_library_without_a_socket_are_on_the_connection_of_its_records(
    certificate: Certificate,
) -> None:
    link = Link(9, in_memory=True)
    recorder = Recorder().take_all(link.conversation(certificate, asked(1, 2)))
    assert recorder.short == expected("tcp-9", 1, 2)
    assert [flow.totals() for flow, _ in recorder.told][-1] == (0, 0)
    assert Verdict("tls", link.session, Interest.ALL) in recorder.table.verdicts


def test_a_record_may_be_told_of_after_it_was_seen_on_the_wire(certificate: Certificate) -> None:
    link = Link(9, in_memory=True)
    events = link.conversation(certificate, asked(1, 2))
    made = [event for event in events if isinstance(event, abi.TlsRecord)]
    others = [event for event in events if not isinstance(event, abi.TlsRecord)]
    hello = next(n for n, e in enumerate(others) if isinstance(e, abi.Wire) and e.direction == 0 and e.payload)
    recorder = Recorder().take_all([*others[: hello + 1], made[0], *others[hello + 1 :]])
    assert recorder.short == expected("tcp-9", 1, 2)


def test_records_that_leave_together_are_each_looked_for(certificate: Certificate) -> None:
    # Two connections' sessions are told of by the second record of a flight alone.
    peers = say(Peers(certificate).handshake(), HELLO)
    link = Link(9, in_memory=True)
    recorder = Recorder().take_all(link.opened())
    hello = next(event for event in peers.events if isinstance(event, Wire))
    recorder.take(link.packet(OUT, hello.data, 2))
    link.call(OUT, b"", 3)
    first, second = record(23, b"first" * 20), record(23, b"second" * 20)
    recorder.take_all(link.made(second, 4))
    recorder.take(link.call(OUT, HELLO[0][1], 5))
    recorder.take(link.packet(OUT, first + second, 6))
    flow = recorder.flow("tcp", 9)
    assert flow is not None
    assert flow.plain is not None
    assert flow.reading.detected == "postgresql"


def test_a_record_whose_beginning_comes_in_two_packets_is_found(certificate: Certificate) -> None:
    for cut in (1, 4, 5, 20, 31):
        link = Link(9, in_memory=True)
        events: list[abi.Event] = []
        for event in link.conversation(certificate, asked(1)):
            if isinstance(event, abi.Wire) and event.payload > cut:
                rest = event._replace(seq=event.seq + cut, payload=event.payload - cut, data=event.data[cut:])
                events += [event._replace(payload=cut, data=event.data[:cut]), rest]
            else:
                events.append(event)
        assert Recorder().take_all(events).short == expected("tcp-9", 1)


def test_records_that_are_too_short_tie_nothing() -> None:
    one, other = Link(9, in_memory=True), Link(10, in_memory=True)
    recorder = Recorder()
    change = record(20, b"\1")
    for link in (one, other):
        recorder.take_all(link.opened())
        recorder.take(link.packet(OUT, record(22, b"\1" + bytes(30) + bytes([link.cookie]) * 30), 2))
    recorder.take_all(one.made(change, 3))
    recorder.take(one.call(OUT, query(b"select 1"), 4))
    recorder.take(other.packet(OUT, change, 5))
    recorder.take(one.packet(OUT, change, 5))
    assert [f.plain for f in (recorder.flow("tcp", 9), recorder.flow("tcp", 10)) if f is not None] == [None, None]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("in_memory", [True, False])
def test_no_statement_of_many_connections_at_once_is_on_another(
    certificate: Certificate, seed: int, *, in_memory: bool
) -> None:
    choice = random.Random(seed)  # noqa: S311 -- an order
    queues = []
    for number in range(1, 1 + CONNECTIONS):
        link = Link(number, in_memory=in_memory, tgid=TGID + number % 3)
        events = link.conversation(certificate, asked(*range(1000 * number, 1000 * number + STATEMENTS)))
        queues.append(events[::-1])
    recorder = Recorder()
    while queues:
        queue = choice.choice(queues)
        for _ in range(min(len(queue), choice.randint(1, 4))):
            recorder.take(queue.pop())
        if choice.random() < 0.02:
            recorder.table = pickle.loads(pickle.dumps(recorder.table))  # noqa: S301 -- our own bytes
        queues = [queue for queue in queues if queue]
    assert len(recorder.statements) == CONNECTIONS * STATEMENTS
    for connection, statement in recorder.statements:
        number = int((statement.text or b"").split()[1])
        assert connection == f"tcp-{number // 1000}"
        assert (str(statement.outcome), statement.command_tag) == ("ok", f"SELECT {number}")
    assert recorder.missing == []
    assert all(flow.totals() == (0, 0) for flow in recorder.table._flows.values())


def test_records_of_connections_that_ended_do_not_tie_later_ones(certificate: Certificate) -> None:
    recorder = Recorder()
    for number in range(1, 20):
        link = Link(number, in_memory=True, session=number)
        recorder.take_all(link.conversation(certificate, asked(number)))
        recorder.take_all([*link.closed(number * SECOND), link.freed(number * SECOND)])
        recorder.tick(number * SECOND)
    assert recorder.short == [one for number in range(1, 20) for one in expected(f"tcp-{number}", number)]
    assert len(recorder.table) == 0
    assert not recorder.table.ties._sessions
    assert not recorder.table.ties._sent


# -- other sockets


def over_unix(link: Link, events: Iterable[abi.Event], flags: int = 0) -> list[abi.Event]:
    """Return the same events with calls on a socket (its inode is the cookie plus 5000) in the place of packets."""
    found: list[abi.Event] = []
    for event in events:
        if not isinstance(event, abi.Wire):
            found.append(event)
        elif event.payload:
            h = header(event.h.boottime, tgid=link.tgid, flags=flags)
            size = event.payload
            inode = link.cookie + 5000
            found.append(
                abi.Unix(h, inode, size, 0, size, event.direction, by_reader=False, position=0, data=event.data)
            )
    return found


def test_statements_over_a_unix_socket_are_on_the_connection_of_their_records(certificate: Certificate) -> None:
    links = [Link(number, in_memory=True) for number in (9, 10)]
    events = [over_unix(link, link.conversation(certificate, asked(link.cookie))) for link in links]
    recorder = Recorder().take_all(one for pair in zip(*events, strict=True) for one in pair)
    assert sorted(recorder.short) == sorted(expected("unix-5009", 9) + expected("unix-5010", 10))


def test_statements_over_a_socket_from_outside_are_on_its_connection(certificate: Certificate) -> None:
    link = Link(9)
    h = header(1)
    address = bytes([192, 0, 2, 1]).ljust(16, b"\0")
    ports = 5432, 40000
    connect = abi.Connect(h, 9, 5009, 0, 0, -1, socket.AF_INET, socket.IPPROTO_TCP, *ports, address, address, b"")
    recorder = Recorder()
    recorder.table.outside(connect)
    events = link.conversation(certificate, asked(1, 2, 3))
    recorder.take_all(over_unix(link, events, abi.Flag.F_OUTSIDE))
    assert recorder.short == expected("tcp-9", 1, 2, 3)
    assert {flow.peer for flow, _ in recorder.told} == {PEER}
    assert len(recorder.table) == 1


# -- without a socket


def test_what_waits_too_long_for_its_socket_is_on_a_connection_of_its_own() -> None:
    link = Link(9, session=77, in_memory=True)
    recorder = Recorder().take_all(untied(link, asked(1)))
    recorder.tick(AT + WAIT_NS)
    assert recorder.short == []
    recorder.tick(AT + WAIT_NS + 1)
    assert recorder.short == expected("tls-77", 1)
    recorder.take_all(untied(link, simple(2), AT + 2 * WAIT_NS))
    assert recorder.short == expected("tls-77", 1, 2)
    flow, _ = recorder.told[-1]
    assert (flow.transport, flow.peer, flow.seen_by, flow.reading.seen_by) == ("tls", None, FROM_LIBRARY, FROM_LIBRARY)
    assert flow.totals() == (0, 0)


def test_a_connection_of_its_own_goes_on_after_it_was_idle() -> None:
    link = Link(9, session=77, in_memory=True)
    recorder = Recorder().take_all(untied(link, asked(1, 2)))
    recorder.tick(AT + WAIT_NS + 1)
    later = AT + 2 * UDP_IDLE_NS
    recorder.tick(later)
    assert len(recorder.table) == 0
    recorder.take_all(untied(link, simple(3) + simple(4), later))
    recorder.tick(later + WAIT_NS + 1)
    assert recorder.missing == []
    assert recorder.short[-1:] == expected("tls-77", 4)


def test_a_connection_of_its_own_ends_when_it_is_freed() -> None:
    link = Link(9, session=77, in_memory=True)
    recorder = Recorder().take_all(untied(link, asked(1)))
    recorder.take(link.call(OUT, query(b"select 2"), AT))
    recorder.take(link.freed(AT))
    assert recorder.short == [*expected("tls-77", 1), ("tls-77", b"select 2", "unknown")]
    recorder.tick(AT)
    assert len(recorder.table) == 0


def test_what_waits_is_told_when_its_process_ends() -> None:
    link, other = Link(9, session=77, in_memory=True), Link(10, session=78, in_memory=True, tgid=TGID + 1)
    recorder = Recorder().take_all(untied(link, asked(1)) + untied(other, asked(2)))
    recorder.note(recorder.table.process_ended(TGID, AT))
    assert recorder.short == expected("tls-77", 1)
    recorder.tick(AT)
    assert len(recorder.table) == 0
    recorder.note(recorder.table.process_ended(TGID + 1, AT))
    assert recorder.short == expected("tls-77", 1) + expected("tls-78", 2)


def test_a_socket_that_is_found_late_goes_on_without_a_hole(certificate: Certificate) -> None:
    link = Link(9)
    events = link.conversation(certificate, asked(1, 2, 3, 4))
    middle = question(events, 3)
    early = [event._replace(cookie=0) if isinstance(event, abi.Tls) else event for event in events[:middle]]
    recorder = Recorder().take_all(early)
    recorder.tick(max(event.h.boottime for event in early) + WAIT_NS + 1)
    recorder.take_all(events[middle:])
    assert recorder.missing == []
    assert {connection for connection, _ in recorder.statements} == {f"tls-{link.session}", "tcp-9"}
    assert recorder.short[-1:] == expected("tcp-9", 4)
