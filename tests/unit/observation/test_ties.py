"""Which socket a library's connection is on: only what is proven, in either order; nothing is lost at the limits."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest

from agentwatch.observation.ties import (
    LEAST_PREFIX,
    MAX_RECORDS,
    MAX_SESSIONS,
    MAX_WAITING_BYTES,
    WAIT_NS,
    Ties,
    prefix,
)
from agentwatch.streams.flow import Author
from agentwatch.streams.secured import Plaintext
from agentwatch.streams.tls import PREFIX_BYTES
from tests.unit.observation.fix_tls_events import SECOND, TGID, header
from tests.unit.streams.fix_tls import IN, OUT, record

if TYPE_CHECKING:
    from agentwatch.observation.ties import Key
    from agentwatch.protocols.base import Direction

AT = 5 * SECOND
CGROUP = 0
"""As in header()."""


def key(cookie: int) -> Key:
    return ("tcp", cookie, b"", 0)


def unlike(number: int, length: int = 100) -> bytes:
    """Return a record that is like no other's."""
    return record(23, number.to_bytes(8, "big") * (length // 8 + 1))[: 5 + length]


def piece(data: bytes, *, session: int = 1, direction: Direction = OUT, at: int = AT, position: int = 0) -> Plaintext:
    return Plaintext(session, direction, position, data, len(data), len(data), Author(TGID, TGID), at)


def test_a_record_that_was_made_is_found_when_it_is_sent() -> None:
    found = Ties()
    session = found.session(1, header(AT))
    assert found.made(session, unlike(1)) is None
    found.wait(session, piece(b"asked"))
    assert found.sent(key(9), unlike(2), CGROUP) is None
    tied = found.sent(key(7), unlike(1)[:PREFIX_BYTES], CGROUP)
    assert tied is not None
    assert (tied.session, tied.session.key, tied.waiting) == (session, key(7), [piece(b"asked")])
    assert session.waiting == []


def test_a_record_of_another_agent_ties_nothing() -> None:
    found = Ties()
    found.made(found.session(1, header(AT)), unlike(1))
    assert found.sent(key(9), unlike(1), CGROUP + 1) is None
    assert found.sent(key(7), unlike(1), CGROUP) is not None


def test_a_record_that_was_sent_is_found_when_it_is_told_of() -> None:
    found = Ties()
    assert found.sent(key(7), unlike(1), CGROUP) is None
    session = found.session(1, header(AT))
    tied = found.made(session, unlike(1)[:PREFIX_BYTES])
    assert tied is not None
    assert (tied.session, tied.session.key, tied.waiting) == (session, key(7), [])


@pytest.mark.parametrize("length", [LEAST_PREFIX - 5, PREFIX_BYTES - 5, 5000])
def test_as_much_of_a_record_as_there_is_ties(length: int) -> None:
    data = record(23, bytes(range(100)) * 50)[: 5 + length]
    data = data[:3] + length.to_bytes(2, "big") + data[5:]
    found = Ties()
    found.sent(key(7), data + b"\x17\x03\x03 and the next", CGROUP)
    assert found.made(found.session(1, header(AT)), data) is not None


@pytest.mark.parametrize("length", range(LEAST_PREFIX - 5))
def test_too_short_records_tie_nothing(length: int) -> None:
    data = record(20, bytes(length))
    assert prefix(data) is None
    assert prefix(data + unlike(1)) is None  # what comes behind it in the same packet is not its own
    found = Ties()
    assert found.sent(key(7), data + unlike(1), CGROUP) is None
    assert found.made(found.session(1, header(AT)), data + unlike(1)) is None


def test_the_beginning_of_a_record_that_was_cut_ties_nothing() -> None:
    for length in range(LEAST_PREFIX):
        assert prefix(unlike(1)[:length]) is None


def test_a_record_ties_once() -> None:
    found = Ties()
    found.made(found.session(1, header(AT)), unlike(1))
    assert found.sent(key(7), unlike(1), CGROUP) is not None
    assert found.sent(key(8), unlike(1), CGROUP) is None
    assert found.session(1, header(AT)).key == key(7)


def test_a_session_whose_socket_is_known_is_not_looked_for() -> None:
    found = Ties()
    session = found.session(1, header(AT))
    found.made(session, unlike(1))
    found.tie(session, key(7))
    assert found.sent(key(8), unlike(1), CGROUP) is None
    found.sent(key(8), unlike(2), CGROUP)
    assert found.made(session, unlike(2)) is None
    assert session.key == key(7)


def test_records_of_a_session_that_has_ended_tie_nothing() -> None:
    found = Ties()
    found.made(found.session(1, header(AT)), unlike(1))
    found.ended(1)
    assert found.sent(key(7), unlike(1), CGROUP) is None


def test_records_of_a_flow_that_has_ended_tie_nothing() -> None:
    found = Ties()
    for number in range(5):
        found.sent(key(7 + number % 2), unlike(number), CGROUP)
    found.flows_ended({key(7)})
    sessions = [found.session(number, header(AT)) for number in range(5)]
    tied = [found.made(session, unlike(number)) is not None for number, session in enumerate(sessions)]
    assert tied == [False, True, False, True, False]


def test_plaintext_is_overdue_after_its_time_and_not_before() -> None:
    found = Ties()
    session = found.session(1, header(AT - 100 * SECOND))
    assert list(found.overdue(AT)) == []
    found.wait(session, piece(b"first"))
    found.wait(session, piece(b"second", at=AT + SECOND))
    assert list(found.overdue(AT + WAIT_NS)) == []
    assert list(found.overdue(AT + WAIT_NS + 1)) == [session]
    found.tie(session, key(7))
    found.wait(session, piece(b"third", at=AT + 9 * SECOND))
    assert list(found.overdue(AT + 9 * SECOND + WAIT_NS)) == []


def test_much_plaintext_does_not_wait() -> None:
    found = Ties()
    session = found.session(1, header(AT))
    found.wait(session, piece(bytes(MAX_WAITING_BYTES)))
    assert list(found.overdue(AT)) == []
    found.wait(session, piece(b"."))
    assert list(found.overdue(AT)) == [session]
    assert len(found.tie(session, key(7)).waiting) == 2
    assert list(found.overdue(AT)) == []


def test_sessions_beyond_the_limit_are_given_back_before_they_are_forgotten() -> None:
    found = Ties()
    for number in range(MAX_SESSIONS + 3):
        session = found.session(number, header(AT))
        if number < 4:
            found.wait(session, piece(b"%d" % number))
    given = [session.number for session in found.overdue(AT)]
    assert given == [0, 1, 2]
    assert list(found.overdue(AT)) == []
    assert found.session(3, header(AT)).waiting == [piece(b"3")]
    assert found.session(0, header(AT)).waiting == []


def test_sessions_that_speak_are_not_forgotten_for_many_that_are_quiet() -> None:
    found = Ties()
    speaking = found.session(1, header(AT))
    found.tie(speaking, key(7))
    for number in range(2, MAX_SESSIONS + 10):
        found.session(number, header(AT))
    assert found.session(1, header(AT)) is speaking
    list(found.overdue(AT))
    assert found.session(1, header(AT)) is speaking


def test_records_that_were_made_are_forgotten_beyond_the_limit_oldest_first() -> None:
    found = Ties()
    session = found.session(1, header(AT))
    for number in range(MAX_RECORDS + 1):
        found.made(session, unlike(number))
    assert found.sent(key(7), unlike(0), CGROUP) is None
    assert found.sent(key(7), unlike(1), CGROUP) is not None


def test_records_that_were_sent_are_forgotten_beyond_the_limit_oldest_first() -> None:
    found = Ties()
    for number in range(MAX_RECORDS + 1):
        found.sent(key(7), unlike(number), CGROUP)
    session = found.session(1, header(AT))
    assert found.made(session, unlike(0)) is None
    assert found.made(session, unlike(1)) is not None


def test_sessions_of_a_process_end_with_it() -> None:
    found = Ties()
    sessions = [found.session(number, header(AT, tgid=100 + number % 2)) for number in range(6)]
    assert found.process_ended(101) == sessions[1::2]
    assert found.process_ended(101) == []
    assert found.ended(1) is None
    assert found.ended(2) is sessions[2]


# -- what one thread reads while another writes


def test_what_was_read_before_its_question_was_told_of_waits_for_it() -> None:
    found = Ties()
    session = found.session(1, header(AT))
    answer, more = piece(b"answer", direction=IN, at=AT + 5), piece(b"more", direction=IN, at=AT + 6)
    question = piece(b"question", at=AT)
    assert found.in_order(session, answer, writing=AT, whole=True) == []
    assert found.in_order(session, more, writing=0, whole=True) == []
    assert found.in_order(session, question, writing=0, whole=False) == [question]
    end = piece(b"!", at=AT, position=8)
    assert found.in_order(session, end, writing=0, whole=True) == [end, answer, more]
    assert found.in_order(session, more, writing=0, whole=True) == [more]


def test_a_write_that_took_nothing_lets_what_was_read_go_on() -> None:
    found = Ties()
    session = found.session(1, header(AT))
    answer = piece(b"answer", direction=IN, at=AT + 5)
    assert found.in_order(session, answer, writing=AT, whole=True) == []
    assert found.in_order(session, piece(b""), writing=0, whole=True) == [answer]


def test_a_write_is_not_waited_for_again_that_was_waited_for_in_vain() -> None:
    found = Ties()
    session = found.session(1, header(AT))
    answer, more = piece(b"answer", direction=IN, at=AT + 5), piece(b"more", direction=IN, at=AT + 6)
    found.in_order(session, answer, writing=AT, whole=True)
    assert list(found.overdue(AT + 5 + WAIT_NS)) == []
    assert list(found.overdue(AT + 6 + WAIT_NS)) == [session]
    assert found.overtaken(session) == [answer]
    assert found.in_order(session, more, writing=AT, whole=True) == [more]
    assert found.in_order(session, more, writing=AT + 1, whole=True) == []


def test_much_that_was_read_does_not_wait() -> None:
    found = Ties()
    session = found.session(1, header(AT))
    found.in_order(session, piece(bytes(MAX_WAITING_BYTES), direction=IN), writing=AT, whole=True)
    assert list(found.overdue(AT)) == []
    found.in_order(session, piece(b".", direction=IN), writing=AT, whole=True)
    assert list(found.overdue(AT)) == [session]


def test_saved_and_restored_it_goes_on() -> None:
    found = Ties()
    session = found.session(1, header(AT))
    found.made(session, unlike(1))
    found.sent(key(8), unlike(2), CGROUP)
    found.wait(session, piece(b"asked"))
    found = pickle.loads(pickle.dumps(found))  # noqa: S301 -- our own bytes
    tied = found.sent(key(7), unlike(1), CGROUP)
    assert tied is not None
    assert (tied.session.number, tied.waiting) == (1, [piece(b"asked")])
    other = found.made(found.session(2, header(AT)), unlike(2))
    assert other is not None
    assert other.session.key == key(8)
