"""Flows whose bytes are under TLS: real handshakes as packets, and what is said under them as calls into a library."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest

from agentwatch.observation import make
from agentwatch.protocols.base import Opened, Outcome, Statement
from agentwatch.streams import secured, tls
from agentwatch.streams.flow import (
    FROM_LIBRARY,
    TCP_ACK,
    TCP_FIN,
    TCP_RST,
    TCP_SYN,
    TCP_URG,
    Author,
    Flow,
    Interest,
    Missing,
    Said,
    Segment,
)
from agentwatch.streams.secured import SETTLE_NS, Plaintext
from tests.unit.protocols.fix_wire import (
    HELLO,
    conversation,
    extended,
    failing,
    packet,
    pipelined,
    query,
    simple,
    wrongly_paired,
)
from tests.unit.streams.fix_tls import IN, OUT, Peers, Read, Wire, Wrote, as_told, both_versions, cut, record, stream

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
        if not joined and self.flow.transport == "tcp":
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

    def call(self, direction: Direction, data: bytes, at: Instant, *, told: bool = True, cut: int = 0) -> list[Item]:
        """Take note of a call; ``cut``: bytes of each of its pieces, which a lost event may be one of."""
        before = self.position[direction]
        self.position[direction] += len(data)
        items: list[Item] = []
        size = cut or len(data)
        for begin in range(0, len(data) if told else 0, size):
            piece, total = data[begin : begin + size], None if begin else len(data)
            items += self.piece(Plaintext(1, direction, before + begin, piece, len(piece), total, CALLER, at))
        return items

    def piece(self, piece: Plaintext) -> list[Item]:
        items = self.flow.plaintext(piece)
        self.items += items
        return items

    def tell(self, event: Event, *, told: bool = True, cut: int = 0) -> list[Item]:
        self.now = max(self.now, event.at)
        if isinstance(event, Wire):
            return self.segment(event.direction, event.data, told=told)
        return self.call(OUT if isinstance(event, Wrote) else IN, event.data, event.at, told=told, cut=cut)

    def tell_all(self, events: Iterable[Event], *, cut: int = 0) -> Beside:
        for event in events:
            self.tell(event, cut=cut)
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


# -- statements under TLS


@both_versions
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("turns", [conversation(), pipelined()], ids=["in turns", "pipelined"])
def test_statements_under_tls_are_those_without_it(
    certificate: Certificate, suite: tuple[str, str], turns: list[Turn], *, counted: bool
) -> None:
    beside = Beside(counted=counted).tell_all(starttls(certificate, suite, turns)).close()
    expected = without_tls(turns)
    assert beside.short == expected.short
    assert [(s.params, s.rows, s.error, s.user, s.namespace) for s in beside.statements] == [
        (s.params, s.rows, s.error, s.user, s.namespace) for s in expected.statements
    ]
    assert {i.author for i in beside.items if isinstance(i, Said)} == {CALLER}
    assert beside.missing == []
    assert beside.flow.totals() == (0, 0)


@both_versions
def test_records_of_statements_name_the_connection_under_which_they_are_said(
    certificate: Certificate, suite: tuple[str, str]
) -> None:
    beside = Beside().tell_all(starttls(certificate, suite, HELLO + simple(1) + failing(2))).close()
    made = [one for item in beside.items if (one := make.item(beside.flow, item)) is not None]
    assert [(kind, fields["db.query.text"], fields["outcome"]) for kind, _, _, fields in made] == [
        ("statement", "select 1", "ok"),
        ("statement", "fail 2", "error"),
    ]
    for _, _, author, fields in made:
        assert author == CALLER
        assert (fields["connection"], fields["transport"], fields["peer"]) == ("tcp-9", "tcp", PEER)
        assert (fields["seen_by"], fields["protocol"]) == (FROM_LIBRARY, "postgresql") == ("tls-uprobe", "postgresql")
        assert (fields["db.system.name"], fields["db.user"], fields["db.namespace"]) == ("postgresql", "bob", "shop")


def test_pieces_of_calls_do_not_change_what_was_said(certificate: Certificate) -> None:
    events = starttls(certificate, ("1.3", "ALL"), conversation())
    whole = Beside().tell_all(events).close()
    for size in (1, 7, 100):
        assert Beside().tell_all(events, cut=size).close().items == whole.items


def test_a_call_told_of_before_its_packets_says_the_same(certificate: Certificate) -> None:
    peers = say(Peers(certificate).plainly(OUT, SSL_REQUEST).plainly(IN, b"S").handshake(), conversation())
    beside = Beside().tell_all(peers.events).close()
    assert beside.short == without_tls(conversation()).short
    assert beside.flow.totals() == (0, 0)


@both_versions
def test_saved_at_every_event_says_the_same(certificate: Certificate, suite: tuple[str, str]) -> None:
    events = starttls(certificate, suite, conversation())
    whole = Beside().tell_all(events).close()
    saved = Beside()
    for event in events:
        saved.flow = pickle.loads(pickle.dumps(saved.flow))  # noqa: S301 -- our own bytes
        saved.tell(event)
    assert saved.close().items == whole.items
    assert saved.flow.totals() == whole.flow.totals()


def test_tls_from_the_first_byte_is_read_whatever_its_alpn_says(certificate: Certificate) -> None:
    peers = say(Peers(certificate, protocols=("postgresql",)).handshake(), conversation())
    beside = Beside().tell_all(as_told(peers.close().events)).close()
    assert beside.short == without_tls(conversation()).short
    assert beside.flow.reading.detected == "postgresql"
    assert beside.flow.totals() == (0, 0)
    assert beside.flow.secured is not None
    assert beside.flow.secured.about()["alpn"] == ["postgresql"]


def test_a_server_that_refuses_tls_is_read_from_its_packets(certificate: Certificate) -> None:
    del certificate
    beside = without_tls([(OUT, SSL_REQUEST), (IN, b"N"), *HELLO, *simple(1)])
    assert beside.flow.secured is None
    assert beside.short == [(b"select 1", "ok", "SELECT 1")]
    assert {i.author for i in beside.items if isinstance(i, Said)} == {SENDER}


def test_tls_in_tls_is_unread_within_what_is_read(certificate: Certificate) -> None:
    inner = Peers(certificate).handshake().write(100, told=False)
    outer = Peers(certificate).handshake()
    for event in inner.events:
        assert isinstance(event, Wire)
        (outer.write if event.direction is OUT else outer.answer)(event.data)
    beside = Beside().tell_all(as_told(outer.events)).close()
    assert beside.flow.totals() == (len(stream(inner.events, OUT)), len(stream(inner.events, IN)))
    assert beside.flow.why_unread == "tls"
    assert beside.statements == []


# -- what is lost


def lose(events: Sequence[Event], number: int, *, cut: int = 0) -> tuple[Beside, int]:
    """Tell everything but one event; return what became of it, and how many bytes that were."""
    beside = Beside()
    for at, event in enumerate(events):
        beside.tell(event, told=at != number, cut=cut)
    return beside.session_ends().close(), len(events[number].data)


@both_versions
@pytest.mark.parametrize("turns", [conversation(), pipelined()], ids=["in turns", "pipelined"])
def test_a_lost_call_is_a_gap_of_its_bytes_and_pairs_nothing_wrongly(
    certificate: Certificate, suite: tuple[str, str], turns: list[Turn]
) -> None:
    events = starttls(certificate, suite, turns)
    calls = [number for number, event in enumerate(events) if not isinstance(event, Wire)]
    everything = set(texts(without_tls(turns).statements))
    for number in calls:
        beside, size = lose(events, number)
        direction = OUT if isinstance(events[number], Wrote) else IN
        assert beside.missing == [Missing(direction, size, "tls-hole")]
        assert wrongly_paired(beside.statements) == []
        if direction is IN:
            assert everything - set(texts(beside.statements)) <= {None}
        out, into = beside.flow.totals()
        begun = number > calls[0]
        assert (out, into) == (0, 0) or not begun


def test_a_lost_piece_of_a_call_is_a_gap_of_its_bytes(certificate: Certificate) -> None:
    events = starttls(certificate, ("1.3", "ALL"), HELLO + simple(1) + extended(2) + simple(3) + simple(4))
    last = [event for event in events if isinstance(event, Wrote)][-3]
    for lost in range(0, len(last.data), 10):
        beside = Beside()
        for event in events:
            if event is not last:
                beside.tell(event)
                continue
            before = beside.position[OUT]
            beside.position[OUT] += len(event.data)
            for begin in range(0, len(event.data), 10):
                piece = event.data[begin : begin + 10]
                if begin != lost:
                    total = None if begin else len(event.data)
                    beside.piece(Plaintext(1, OUT, before + begin, piece, len(piece), total, CALLER, event.at))
        beside.session_ends().close()
        assert beside.missing == [Missing(OUT, min(10, len(last.data) - lost), "tls-hole")]
        assert wrongly_paired(beside.statements) == []
        assert beside.flow.totals() == (0, 0)


def test_a_call_whose_bytes_were_not_copied_is_a_gap_of_them(certificate: Certificate) -> None:
    peers = say(Peers(certificate).handshake(), HELLO)
    beside = Beside().tell_all(as_told(peers.events))
    size = len(query(b"select 1"))
    before = len(peers.events)
    beside.tell_all(event for event in peers.write(size).events[before:] if isinstance(event, Wire))
    beside.piece(Plaintext(1, OUT, beside.position[OUT], b"", size, size, CALLER, beside.now))
    assert beside.close().missing == [Missing(OUT, size, "user-memory")]
    assert beside.flow.totals() == (0, 0)


def test_lost_packets_of_ciphertext_lose_no_statement(certificate: Certificate) -> None:
    events = starttls(certificate, ("1.3", "ALL"), conversation())
    expected = without_tls(conversation()).short
    begun = next(number for number, event in enumerate(events) if isinstance(event, Wrote))
    for number, event in enumerate(events):
        if isinstance(event, Wire) and number >= begun:
            beside, _ = lose(events, number)
            assert beside.short == expected
            assert beside.missing == []


@pytest.mark.parametrize("flags", [TCP_RST, TCP_FIN])
def test_what_is_told_of_after_the_end_of_its_connection_is_not_lost(certificate: Certificate, flags: int) -> None:
    peers = say(Peers(certificate).handshake(), HELLO + simple(1))
    beside = Beside().tell_all(as_told(peers.events))
    before = len(peers.events)
    call, *wire = peers.write(query(b"select 2")).events[before:]
    beside.tell_all(wire)
    for direction in (IN, OUT):
        beside.segment(direction, b"", flags | TCP_ACK)
    assert beside.flow.closed
    beside.tell(call)
    assert beside.short == [(b"select 1", "ok", "SELECT 1"), (b"select 2", "unknown", None)]
    beside.session_ends()
    assert beside.missing == []


def test_what_was_lost_last_is_a_gap_also_after_the_end_of_its_connection(certificate: Certificate) -> None:
    peers = say(Peers(certificate).handshake(), HELLO + simple(1))
    beside = Beside().tell_all(as_told(peers.events))
    beside.call(OUT, query(b"select 2"), beside.now, told=False)
    beside.close().session_ends()
    assert beside.missing == [Missing(OUT, len(query(b"select 2")), "tls-hole")]


# -- what is unread


def test_tls_of_no_library_is_unread_to_the_byte(certificate: Certificate) -> None:
    peers = say(Peers(certificate).plainly(OUT, SSL_REQUEST).plainly(IN, b"S").handshake(), conversation(), told=False)
    beside = Beside().tell_all(peers.close().events)
    whole = len(stream(peers.events, OUT)) - len(SSL_REQUEST), len(stream(peers.events, IN)) - 1
    assert beside.flow.totals() == whole
    assert beside.flow.undecided()
    beside.close()
    assert (beside.flow.totals(), beside.flow.why_unread, beside.cause) == (whole, "tls", secured.NO_LIBRARY)
    assert beside.items == []


@both_versions
def test_what_is_hidden_beside_the_library_is_unread_and_statements_go_on(
    certificate: Certificate, suite: tuple[str, str]
) -> None:
    peers = say(Peers(certificate, suite).handshake(), HELLO + simple(1))
    say(peers, [(OUT, query(b"select 666" + b" " * 5000))], told=False)
    beside = Beside().tell_all(as_told(say(peers, simple(2)).events)).close()
    assert beside.flow.totals() == (5016, 0)
    assert (beside.flow.why_unread, beside.cause) == ("tls", secured.SURPLUS)
    assert beside.short == [(b"select 1", "ok", "SELECT 1"), (b"select 2", "ok", "SELECT 2")]


def test_what_is_sent_beside_tls_is_unread(certificate: Certificate) -> None:
    beside = Beside().tell_all(as_told(say(Peers(certificate).handshake(), HELLO + simple(1)).events))
    beside.segment(OUT, b"not TLS" * 1000)
    beside.now += 2 * SETTLE_NS
    beside.close()
    out, _ = beside.flow.totals()
    assert 7000 - tls.MAX_TRIFLES_BYTES - 500 < out <= 7000
    assert beside.cause == secured.SURPLUS


@both_versions
@pytest.mark.parametrize("counted", [False, True])
def test_what_no_decoder_reads_under_tls_is_unread_and_not_counted_twice(
    certificate: Certificate, suite: tuple[str, str], *, counted: bool
) -> None:
    peers = Peers(certificate, suite).handshake()
    for _ in range(20):
        peers.write(HTTP[0]).answer(HTTP[1])
    beside = Beside(counted=counted).tell_all(as_told(peers.close().events)).close()
    assert beside.items == []
    assert beside.flow.why_unread == "unknown-protocol"
    said = [20 * len(data) for data in HTTP]
    for total, plain, direction in zip(beside.flow.totals(), said, (OUT, IN), strict=True):
        assert plain <= total <= len(stream(peers.events, direction))


def test_calls_that_are_counted_together_are_not_counted_twice(certificate: Certificate) -> None:
    peers = Peers(certificate).handshake().write(HTTP[0]).answer(HTTP[1])
    beside = Beside(counted=True).tell_all(as_told(peers.events))
    assert beside.flow.interest() is Interest.COUNT
    before = len(peers.events)
    for _ in range(100):
        peers.answer(16_000)
    beside.tell_all(event for event in peers.events[before:] if isinstance(event, Wire))
    beside.piece(Plaintext(1, IN, beside.position[IN], b"", 1_600_000, 16_000, CALLER, beside.now))
    total = beside.close().flow.totals()[1]
    assert 1_600_000 + len(HTTP[1]) <= total <= len(stream(peers.events, IN))


def test_a_connection_that_may_wait_to_be_read_hides_nothing(certificate: Certificate) -> None:
    peers = say(Peers(certificate).handshake(), HELLO + simple(1)[:1])
    beside = Beside(counted=True).tell_all(as_told(peers.events))
    before = len(peers.events)
    rows = bytes(6) * 100_000
    answer = as_told(peers.answer(rows).events[before:])
    beside.tell_all(event for event in answer if isinstance(event, Wire))
    assert beside.flow.secured is not None
    beside.flow.secured.settle(beside.now + 60 * SETTLE_NS, closed=False)
    assert beside.flow.totals() == (0, 0)
    beside.tell_all(event for event in answer if isinstance(event, Read))
    assert beside.close().flow.totals()[1] == 0 or beside.flow.plain is None


# -- begun in the middle


def late(files: Certificate, turns: Sequence[Turn], before: Sequence[Turn]) -> tuple[list[Event], list[Event]]:
    """Return the events before capture began and those after it."""
    peers = say(Peers(files).plainly(OUT, SSL_REQUEST).plainly(IN, b"S").handshake(), before)
    known = len(peers.events)
    events = as_told(say(peers, turns).events)
    return events[:known], events[known:]


@pytest.mark.parametrize("skip", range(4), ids=["question", "answer on the wire", "answer read", "next question"])
def test_a_connection_joined_at_any_event_gives_its_statements(certificate: Certificate, skip: int) -> None:
    turns = [turn for number in range(2, 9) for turn in simple(number)]
    _, events = late(certificate, turns, HELLO + simple(1))
    first = [n for n, e in enumerate(events) if isinstance(e, (Wire, Read))][skip]
    beside = Beside(joined=True).tell_all(events[first:])
    assert set(texts(beside.statements)) >= {b"select %d" % number for number in range(4, 9)}
    assert wrongly_paired(beside.statements) == []
    assert any(s.outcome is Outcome.OK for s in beside.statements)
    assert beside.close().flow.totals()[1] == 0 or skip > 0
    assert beside.flow.reading.detected == "postgresql"


def test_a_library_that_is_hooked_late_leaves_what_passed_before_unread(certificate: Certificate) -> None:
    before, events = late(certificate, simple(2) + simple(3), HELLO + simple(1))
    passed = [event for event in before if isinstance(event, Wire)]
    beside = Beside().tell_all(passed).tell_all(events).close()
    assert texts(beside.statements) == [b"select 2", b"select 3"]
    out, into = beside.flow.totals()
    assert out in range(len(stream(passed, OUT)) - len(SSL_REQUEST), len(stream(passed, OUT)) + 30)
    assert into == len(stream(passed, IN)) - 1
    assert (beside.flow.why_unread, beside.cause) == ("tls", secured.BEFORE_PROBES)


def test_a_library_that_is_hooked_in_the_middle_of_a_message_is_believed_to_speak_what_asked_for_tls(
    certificate: Certificate,
) -> None:
    before, events = late(certificate, simple(2) + simple(3) + simple(4), HELLO)
    beside = Beside().tell_all(event for event in before if isinstance(event, Wire))
    first = next(event for event in events if isinstance(event, Wrote))
    for event in events:
        beside.tell(first._replace(data=b"elect 2\0") if event is first else event)
    assert beside.flow.reading.detected == "postgresql"
    assert texts(beside.statements) == [b"select 3", b"select 4"]
    assert wrongly_paired(beside.statements) == []


def test_a_joined_connection_that_begins_with_rows_is_known_by_them(certificate: Certificate) -> None:
    _, events = late(certificate, simple(2) + simple(3) + simple(4), HELLO)
    first = next(number for number, event in enumerate(events) if isinstance(event, Read))
    beside = Beside(joined=True).tell_all(events[first:])
    assert beside.flow.reading.detected == "postgresql"
    assert wrongly_paired(beside.statements) == []
    assert texts(beside.statements) == [b"select 3", b"select 4"]


# -- whose bytes the wire's are


def test_a_call_into_a_library_does_not_blind_the_reader_of_a_connection_without_tls() -> None:
    plain = Beside()
    for direction, data in HELLO + simple(1):
        plain.segment(direction, data)
    plain.call(OUT, query(b"select 'harmless'"), plain.now)
    for direction, data in simple(2) + failing(3):
        plain.segment(direction, data)
    found = plain.close().short
    assert (b"select 2", "ok", "SELECT 2") in found
    assert (b"fail 3", "error", "22012") in found
