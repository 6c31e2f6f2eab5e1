"""Ciphertext and plaintext of one connection held against each other: what is missing, what nobody read, and why."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest

from agentwatch.streams import secured, tls
from agentwatch.streams.flow import Author
from agentwatch.streams.secured import MAX_SESSIONS, SETTLE_NS, Plaintext, Secured
from tests.unit.streams.fix_tls import IN, OUT, Peers, Read, Wire, Wrote, as_told, both_versions, record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentwatch.protocols.base import Direction, Instant
    from tests.unit.streams.fix_tls import Certificate, Event

WE = Author(10, 11)
LATER = 1 << 40


def piece(  # noqa: PLR0913 -- each says one thing about a piece
    position: int,
    length: int,
    direction: Direction = OUT,
    *,
    session: int = 1,
    total: int | None = -1,
    at: Instant = 50,
    known: int = 0,
) -> Plaintext:
    """Return a piece, which is a whole call unless it is said otherwise."""
    return Plaintext(
        session, direction, position, bytes(length), length, length if total == -1 else total, WE, at, known
    )


class Connection:
    """What is told of a conversation, each call with its position."""

    def __init__(self, *, joined: bool = False) -> None:
        self.secured = Secured(joined=joined)
        self.at = [0, 0]
        self.now = 0

    def tell(self, events: Iterable[Event]) -> Connection:
        for event in as_told(events):
            self.now = event.at
            if isinstance(event, Wire):
                self.secured.feed(*event)
                continue
            self.secured.tied = True
            direction = OUT if isinstance(event, Wrote) else IN
            length = len(event.data)
            assert self.secured.hole(piece(self.at[direction], length, direction, at=event.at)) == 0
            self.at[direction] += length
        return self

    def unread(self, *, closed: bool = True) -> tuple[int, int]:
        self.secured.settle(self.now, closed=closed)
        return self.secured.unread()

    @property
    def cause(self) -> object:
        return self.secured.about()["cause"]


# -- holes


def test_pieces_that_follow_each_other_have_no_hole() -> None:
    found = Secured(joined=False)
    assert [found.hole(piece(at, 10)) for at in (0, 10, 20)] == [0, 0, 0]


def test_a_hole_is_told_once_with_its_exact_length() -> None:
    found = Secured(joined=False)
    found.hole(piece(0, 10))
    assert [found.hole(piece(at, 10)) for at in (17, 27, 1000)] == [7, 0, 963]


def test_a_hole_at_the_beginning_is_one() -> None:
    assert Secured(joined=False).hole(piece(100, 10)) == 100


def test_directions_and_sessions_have_positions_of_their_own() -> None:
    found = Secured(joined=False)
    pieces = [piece(0, 10), piece(0, 30, IN), piece(0, 5, session=2), piece(0, 7, IN, session=2)]
    more = [piece(10, 1), piece(31, 1, IN), piece(5, 1, session=2), piece(10, 1, IN, session=2)]
    assert [found.hole(one) for one in pieces] == [0, 0, 0, 0]
    assert [found.hole(one) for one in more] == [0, 1, 0, 3]


def test_pieces_of_one_call_are_no_hole_and_a_lost_one_is() -> None:
    found = Secured(joined=False)
    assert found.hole(piece(0, 100, total=300)) == 0
    assert found.hole(piece(200, 100, total=None)) == 100
    assert found.hole(piece(300, 10)) == 0


def test_a_piece_that_is_told_of_late_makes_no_hole_behind_it() -> None:
    found = Secured(joined=False)
    assert [found.hole(piece(at, 100)) for at in (0, 200, 100, 300)] == [0, 100, 0, 0]


def test_what_another_socket_has_heard_of_a_session_is_no_hole() -> None:
    found = Secured(joined=True)
    assert found.hole(piece(5000, 10, known=5000)) == 0
    assert found.hole(piece(7000, 10, IN, known=6990)) == 10
    assert found.hole(piece(5010, 10, known=5010)) == 0


def test_the_end_of_a_session_tells_of_what_was_lost_last() -> None:
    found = Secured(joined=False)
    found.hole(piece(0, 10))
    assert found.hole(piece(25, 0, total=None)) == 15
    assert found.hole(piece(25, 0, total=None)) == 0


def test_sessions_that_speak_are_not_forgotten_for_many_that_are_quiet() -> None:
    found = Secured(joined=False)
    found.hole(piece(0, 100))
    found.hole(piece(0, 100, IN))
    for number in range(2, 10 * MAX_SESSIONS):
        found.hole(piece(0, 1, session=number))
        assert found.hole(piece(50 * number, 50, known=-1)) == 0
    assert len(pickle.dumps(found)) < 4000


def test_a_session_that_was_forgotten_goes_on_where_it_is_known_to_be() -> None:
    found = Secured(joined=False)
    found.hole(piece(0, 100))
    for number in range(2, 2 + 2 * MAX_SESSIONS):
        found.hole(piece(0, 1, session=number))
    assert found.hole(piece(100, 10, known=100)) == 0


# -- what nobody read


def test_without_plaintext_everything_is_unread_for_want_of_a_library(certificate: Certificate) -> None:
    peers = Peers(certificate, name="db.example.org", protocols=("postgresql",)).handshake()
    peers.write(100, told=False).answer(200, told=False)
    connection = Connection().tell(peers.events)
    sizes = [sum(len(e.data) for e in peers.events if isinstance(e, Wire) and e.direction is way) for way in (OUT, IN)]
    assert connection.unread() == tuple(sizes)
    assert connection.secured.about() == {
        "version": "1.3",
        "cipher": "TLS_AES_256_GCM_SHA384",
        "server_name": "db.example.org",
        "alpn": ["postgresql"],
        "cause": secured.NO_LIBRARY,
    }


@both_versions
def test_a_connection_that_was_read_leaves_nothing(certificate: Certificate, suite: tuple[str, str]) -> None:
    peers = Peers(certificate, suite).handshake()
    for length in (1, 100, 16384, 100_000):
        peers.write(length).answer(length)
    assert Connection().tell(peers.close().events).unread() == (0, 0)


@both_versions
def test_what_left_without_the_library_is_the_surplus(certificate: Certificate, suite: tuple[str, str]) -> None:
    peers = Peers(certificate, suite).handshake().write(100).answer(100).write(5000, told=False).write(10)
    connection = Connection().tell(peers.events)
    assert connection.unread() == (5000, 0)
    assert connection.cause == secured.SURPLUS


@both_versions
def test_what_came_in_and_was_not_read_is_the_surplus_when_it_ends(
    certificate: Certificate, suite: tuple[str, str]
) -> None:
    peers = Peers(certificate, suite).handshake().write(100).answer(100).answer(50_000, told=False).answer(10)
    connection = Connection().tell(peers.events)
    out, into = connection.unread()
    assert out == 0
    assert 50_000 - tls.TICKET_BYTES - 100 <= into <= 50_000
    assert connection.cause == secured.SURPLUS


def test_nothing_is_compared_before_it_was_quiet(certificate: Certificate) -> None:
    peers = Peers(certificate).handshake().write(100).answer(100)
    connection = Connection().tell(peers.events)
    before = len(peers.events)
    connection.tell(event for event in peers.write(5000).events[before:] if isinstance(event, Wire))
    for wait in (0, SETTLE_NS):
        connection.secured.settle(connection.now + wait, closed=False)
        assert connection.secured.unread() == (0, 0)
    connection.secured.settle(connection.now + SETTLE_NS + 1, closed=False)
    assert connection.secured.unread() == (5000, 0)


def test_a_call_that_takes_long_is_not_held_against_the_connection_for_ever(certificate: Certificate) -> None:
    peers = Peers(certificate).handshake().write(100).answer(100)
    connection = Connection().tell(peers.events)
    before = len(peers.events)
    call, *wire = peers.write(100_000).events[before:]
    connection.tell(wire)
    connection.secured.settle(connection.now + 2 * SETTLE_NS, closed=False)
    connection.tell([call])
    assert connection.unread() == (0, 0)


def test_what_came_in_may_wait_to_be_read(certificate: Certificate) -> None:
    peers = Peers(certificate).handshake().write(100).answer(100)
    connection = Connection().tell(peers.events)
    before = len(peers.events)
    peers.answer(1_000_000)
    connection.tell(event for event in peers.events[before:] if isinstance(event, Wire))
    connection.secured.settle(connection.now + 60 * SETTLE_NS, closed=False)
    assert connection.secured.unread() == (0, 0)
    connection.tell(event for event in peers.events[before:] if isinstance(event, Read))
    assert connection.unread() == (0, 0)


def test_plaintext_of_an_event_that_was_lost_is_no_surplus(certificate: Certificate) -> None:
    peers = Peers(certificate).handshake().write(100).answer(100)
    connection = Connection().tell(peers.events)
    before = len(peers.events)
    peers.write(50_000).answer(60_000)
    connection.tell(event for event in peers.events[before:] if isinstance(event, Wire))
    assert connection.secured.hole(piece(100 + 50_000, 0, total=None)) == 50_000
    assert connection.secured.hole(piece(100 + 60_000, 0, IN, total=None)) == 60_000
    assert connection.unread() == (0, 0)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_lost_piece_of_a_long_call_is_no_surplus(certificate: Certificate, lost: int) -> None:
    peers = Peers(certificate).handshake().write(100).answer(100)
    connection = Connection().tell(peers.events)
    before = len(peers.events)
    peers.write(180_000)
    connection.tell(event for event in peers.events[before:] if isinstance(event, Wire))
    missing = 0
    for number in range(3):
        at = 100 + 60_000 * number
        if number != lost:
            missing += connection.secured.hole(piece(at, 60_000, total=None if number else 180_000))
    missing += connection.secured.hole(piece(100 + 180_000, 0, total=None))
    assert missing == 60_000
    assert connection.unread() == (0, 0)


def test_calls_that_are_told_of_as_one_explain_what_all_of_them_said(certificate: Certificate) -> None:
    peers = Peers(certificate).handshake().write(100).answer(100)
    connection = Connection().tell(peers.events)
    before = len(peers.events)
    for _ in range(50):
        peers.answer(16_000)
    connection.tell(event for event in peers.events[before:] if isinstance(event, Wire))
    assert connection.secured.hole(piece(100, 800_000, IN, total=16_000)) == 0
    assert connection.unread() == (0, 0)


# -- begun late


def test_what_passed_before_the_first_plaintext_is_unread_where_that_is_not_the_beginning(
    certificate: Certificate,
) -> None:
    peers = Peers(certificate).handshake().write(100_000, told=False).answer(200_000, told=False)
    passed = [sum(len(e.data) for e in peers.events if isinstance(e, Wire) and e.direction is way) for way in (OUT, IN)]
    connection = Connection().tell(peers.write(100).answer(100).write(3000).events)
    connection.secured.late = True
    out, into = connection.unread()
    assert passed[0] <= out <= passed[0] + 5 + 17
    assert passed[1] == into
    assert connection.cause == secured.BEFORE_PROBES
    before = len(peers.events)
    connection.tell(peers.write(7000, told=False).write(10).events[before:])
    assert connection.unread()[0] == out + 7000
    assert connection.cause == secured.SURPLUS


def test_what_passed_before_a_beginning_is_its_surplus(certificate: Certificate) -> None:
    hidden = 300_000
    peers = Peers(certificate).handshake().write(hidden, told=False).write(100).answer(100)
    connection = Connection().tell(peers.events)
    assert hidden - tls.FLIGHT_BYTES[OUT] < connection.unread()[0] <= hidden
    assert connection.cause == secured.SURPLUS


def test_the_first_calls_own_ciphertext_was_read(certificate: Certificate) -> None:
    peers = Peers(certificate).handshake()
    before = len(peers.events)
    call, *wire = peers.write(30_000).events[before:]
    connection = Connection(joined=True).tell([*wire, call])
    connection.secured.late = True
    assert connection.unread()[0] <= 2 * (5 + 17)


# -- looking for the library


def test_outgoing_records_wait_to_be_looked_for_until_the_library_is_found(certificate: Certificate) -> None:
    peers = Peers(certificate).handshake().write(100, told=False)
    connection = Connection().tell(peers.events)
    fresh = connection.secured.fresh
    assert {one.direction for one in fresh} == {OUT}
    assert [one.type for one in fresh] == [22, 20, 23, 23]
    connection.secured.fresh, connection.secured.tied = [], True
    before = len(peers.events)
    connection.tell(event for event in peers.write(100).events[before:] if isinstance(event, Wire))
    assert connection.secured.fresh == []


def test_records_beyond_the_limit_are_not_looked_for_and_are_counted() -> None:
    found = Secured(joined=False)
    data = b"".join(record(23, number.to_bytes(4, "big") * 8) for number in range(2 * secured.MAX_FRESH))
    found.feed(OUT, data, 1)
    assert [one.prefix[5:9] for one in found.fresh] == [
        number.to_bytes(4, "big") for number in range(secured.MAX_FRESH, 2 * secured.MAX_FRESH)
    ]
    assert found.unread() == (len(data), 0)


def test_much_ciphertext_of_no_library_is_too_much_and_of_one_is_not() -> None:
    found = Secured(joined=False)
    found.feed(IN, bytes(2 * secured.MAX_UNTIED_BYTES), 1)
    found.feed(OUT, bytes(secured.MAX_UNTIED_BYTES), 1)
    assert not found.too_much()
    found.missed(OUT, 1)
    assert found.too_much()
    assert found.unread() == (secured.MAX_UNTIED_BYTES + 1, 2 * secured.MAX_UNTIED_BYTES)
    found.tied = True
    assert not found.too_much()


def test_saved_at_every_event_is_the_same(certificate: Certificate) -> None:
    events = Peers(certificate).handshake().write(100).answer(100).write(900, told=False).write(7).close().events
    whole = Connection().tell(events)
    saved = Connection()
    for event in as_told(events):
        saved.secured = pickle.loads(pickle.dumps(saved.secured))  # noqa: S301 -- our own bytes
        saved.tell([event])
    assert saved.unread() == whole.unread() == (900, 0)
    assert pickle.dumps(saved.secured) == pickle.dumps(whole.secured)


# -- when it is compared


def test_what_is_hidden_in_a_connection_that_does_not_rest_is_seen_too(certificate: Certificate) -> None:
    peers = Peers(certificate).handshake().write(100).write(5000, told=False)
    connection = Connection().tell(peers.events)
    told = []
    for _ in range(secured.SAMPLES):
        before = len(peers.events)
        connection.tell(peers.write(200).answer(300).events[before:])
        connection.secured.settle(connection.now, closed=False)
        told.append(connection.secured.unread())
    assert told == [(0, 0)] * (secured.SAMPLES - 1) + [(5000, 0)]


def test_a_connection_that_rests_is_compared_once(certificate: Certificate) -> None:
    connection = Connection().tell(Peers(certificate).handshake().write(100).write(700, told=False).events)
    connection.secured.settle(LATER, closed=False)
    assert connection.secured.unread() == (700, 0)
    rested = pickle.dumps(connection.secured)
    connection.secured.settle(2 * LATER, closed=False)
    assert pickle.dumps(connection.secured) == rested
    assert connection.secured.hole(piece(100, 700)) == 0
    connection.secured.settle(2 * LATER, closed=False)
    assert connection.secured.unread() == (0, 0)
