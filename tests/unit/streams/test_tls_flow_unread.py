"""What was lost or hidden under TLS, or that nobody read: it is missing or unread to the byte, and once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agentwatch.streams import secured, tls
from agentwatch.streams.flow import (
    TCP_ACK,
    TCP_FIN,
    TCP_RST,
    TCP_URG,
    Interest,
    Missing,
)
from agentwatch.streams.secured import SETTLE_NS, Plaintext
from tests.unit.protocols.fix_wire import (
    HELLO,
    ROW,
    complete,
    conversation,
    extended,
    pipelined,
    query,
    ready,
    simple,
    wrongly_paired,
)
from tests.unit.streams.fix_tls import IN, OUT, Peers, Read, Wire, Wrote, as_told, both_versions, record, stream
from tests.unit.streams.fix_tls_flow import (
    CALLER,
    HTTP,
    SSL_REQUEST,
    Beside,
    say,
    starttls,
    texts,
    without_tls,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.unit.protocols.fix_wire import Turn
    from tests.unit.streams.fix_tls import Certificate, Event


# -- what is lost


def lose(events: Sequence[Event], number: int) -> tuple[Beside, int]:
    """Tell everything but one event; return what became of it, and how many bytes that were."""
    beside = Beside()
    for at, event in enumerate(events):
        beside.tell(event, told=at != number)
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
    assert 7000 <= out <= 7100
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
    answer = as_told(peers.answer(ROW * 100_000 + complete(b"SELECT 100000") + ready()).events[before:])
    beside.tell_all(event for event in answer if isinstance(event, Wire))
    assert beside.flow.secured is not None
    beside.flow.secured.settle(beside.now + 60 * SETTLE_NS, closed=False)
    assert beside.flow.totals() == (0, 0)
    beside.tell_all(event for event in answer if isinstance(event, Read)).close()
    assert beside.flow.totals() == (0, 0)
    assert [s.rows for s in beside.statements] == [100_000]


def test_bytes_of_a_connection_that_is_not_framed_do_not_pass_uncounted() -> None:
    beside = Beside()
    beside.segment(OUT, b"neither a protocol nor TLS")
    beside.segment(OUT, b"and then" + record(23, bytes(100)))
    beside.call(OUT, bytes(83), beside.now)
    for _ in range(10):
        beside.segment(OUT, b"hidden" * 1000)
        beside.segment(IN, b"answer" * 1000)
    beside.now += 2 * SETTLE_NS
    out, into = beside.close().flow.totals()
    assert out > 60_000 - tls.FLIGHT_BYTES[OUT]
    assert into > 60_000 - tls.TICKET_BYTES - 100  # and what the overhead of one record may be


def test_a_lost_answer_to_the_request_for_tls_loses_no_statement(certificate: Certificate) -> None:
    beside, _ = lose(starttls(certificate, ("1.3", "ALL"), HELLO + simple(1)), 1)
    assert beside.short == [(b"select 1", "ok", "SELECT 1")]


def test_a_lost_answer_to_the_request_for_tls_loses_no_byte(certificate: Certificate) -> None:
    events = starttls(certificate, ("1.3", "ALL"), HELLO + simple(1))
    untied = Beside()
    wire = [event for event in events if isinstance(event, Wire)]
    for number, event in enumerate(wire):
        untied.tell(event, told=number != 1)
    assert untied.close().flow.totals()[0] == len(stream(wire, OUT)) - len(SSL_REQUEST)


def test_bytes_behind_the_answer_to_the_request_for_tls_are_counted() -> None:
    beside = Beside()
    beside.segment(OUT, SSL_REQUEST)
    beside.segment(IN, b"S" + b"stuffed")
    assert beside.close().flow.totals() == (0, 7)


def test_urgent_bytes_end_what_is_said_under_tls_too(certificate: Certificate) -> None:
    beside = Beside().tell_all(starttls(certificate, ("1.3", "ALL"), HELLO + simple(1)))
    beside.segment(OUT, record(23, bytes(1000)), TCP_ACK | TCP_URG)
    assert beside.flow.why_unread == "urgent-data"
    assert beside.close().flow.totals()[0] >= 1005
