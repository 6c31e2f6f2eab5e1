"""Flows whose bytes are under TLS: real handshakes as packets, and what is said under them as calls into a library."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest

from agentwatch.observation import make
from agentwatch.protocols.base import Outcome, Statement
from agentwatch.streams import secured
from agentwatch.streams.flow import (
    FROM_LIBRARY,
    Author,
    Flow,
    Interest,
    Said,
)
from agentwatch.streams.secured import Plaintext
from tests.unit.protocols.fix_wire import (
    HELLO,
    conversation,
    failing,
    pipelined,
    query,
    simple,
    wrongly_paired,
)
from tests.unit.streams.fix_tls import IN, OUT, Peers, Read, Wire, Wrote, as_told, both_versions, stream
from tests.unit.streams.fix_tls_flow import (
    CALLER,
    HTTP,
    LATER,
    PEER,
    SENDER,
    SSL_REQUEST,
    Beside,
    say,
    starttls,
    texts,
    without_tls,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.unit.protocols.fix_wire import Turn
    from tests.unit.streams.fix_tls import Certificate, Event


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
        assert Beside().tell_all(events, size=size).close().items == whole.items


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
    assert beside.flow.reading.detected == "postgresql"
    out, into = beside.close().flow.totals()
    assert out <= 5 + 17  # of the record whose call is the first that is known
    assert into <= (5 + 17 + len(simple(2)[1][1]) if skip == 1 else 0)


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


def test_packets_that_a_decoder_reads_are_in_plain_view_until_tls_begins(certificate: Certificate) -> None:
    beside = Beside()
    assert not beside.flow.in_plain_view
    for event in starttls(certificate, ("1.3", "ALL"), HELLO):
        beside.tell(event)
        assert beside.flow.in_plain_view == (beside.flow.secured is None)


def test_packets_that_no_decoder_reads_may_be_a_librarys(certificate: Certificate) -> None:
    peers = Peers(certificate).plainly(OUT, b"CONNECT db.example.org:5432 HTTP/1.1\r\n\r\n").plainly(IN, b"OK\r\n\r\n")
    beside = Beside().tell_all(as_told(say(peers.handshake(), HELLO + simple(1)).close().events)).close()
    assert beside.short == [(b"select 1", "ok", "SELECT 1")]
    assert beside.flow.why_unread == "tls"


# -- what is worth copying


@both_versions
def test_ciphertext_that_comes_in_is_not_worth_copying_once_the_servers_choice_is_known(
    certificate: Certificate, suite: tuple[str, str]
) -> None:
    beside = Beside()
    seen = []
    for event in starttls(certificate, suite, conversation()):
        beside.tell(event)
        seen.append(beside.flow.interest())
    server_hello = 3  # behind the request, its answer and the client's hello
    assert seen == [Interest.ROWS, *[Interest.ALL] * (server_hello - 1), *[Interest.TLS] * (len(seen) - server_hello)]


def test_what_no_decoder_reads_under_tls_is_not_worth_copying(certificate: Certificate) -> None:
    peers = Peers(certificate).handshake()
    before = len(peers.events)
    events = as_told(peers.write(HTTP[0]).answer(HTTP[1]).events)
    beside = Beside().tell_all(events[: before + 1])
    assert beside.flow.interest() is Interest.TLS
    beside.tell(events[before + 1])
    assert beside.flow.interest() is Interest.COUNT


def test_much_ciphertext_is_worth_copying_again_once_a_library_says_it(certificate: Certificate) -> None:
    peers = say(Peers(certificate).handshake(), HELLO)
    before = len(peers.events)
    say(peers, [(OUT, query(b"x" * secured.MAX_UNTIED_BYTES))])
    events = as_told(peers.events)
    beside = Beside().tell_all(event for event in events[:before] if isinstance(event, Wire))
    assert beside.flow.interest() is Interest.TLS
    beside.tell_all(event for event in events[before:] if isinstance(event, Wire))
    assert beside.flow.interest() is Interest.COUNT
    beside.tell(events[-1])
    assert beside.flow.interest() is Interest.TLS


# -- other sockets


def over_calls(flow: Flow, events: Iterable[Event]) -> Beside:
    """Tell of a conversation on a socket whose bytes are those of the calls on it."""
    beside = Beside(flow)
    for event in events:
        if isinstance(event, Wire):
            flow.author = SENDER
            beside.items += flow.unix(event.direction, event.data, len(event.data), event.at)
        else:
            beside.tell(event)
    beside.items += flow.close(LATER)
    return beside


def test_tls_on_a_unix_socket_is_read(certificate: Certificate) -> None:
    flow = Flow("unix-5", "unix", "unix:/run/postgresql/.s.PGSQL.5432", started=1, seen_by="unix")
    beside = over_calls(flow, starttls(certificate, ("1.3", "ALL"), conversation()))
    assert beside.short == without_tls(conversation()).short
    assert flow.totals() == (0, 0)
    made = [one for item in beside.items if (one := make.item(flow, item)) is not None]
    assert {(f["connection"], f["transport"], f["seen_by"]) for _, _, _, f in made} == {
        ("unix-5", "unix", "tls-uprobe")
    }


def test_tls_on_a_socket_from_outside_is_read_from_its_beginning_and_joined(certificate: Certificate) -> None:
    events = starttls(certificate, ("1.3", "ALL"), HELLO + simple(1) + simple(2) + simple(3))
    flow = Flow("tcp-5", "tcp", PEER, started=1, seen_by="task")
    beside = over_calls(flow, events)
    assert texts(beside.statements) == [b"select 1", b"select 2", b"select 3"]
    assert flow.totals() == (0, 0)
    joined = Flow("tcp-6", "tcp", PEER, started=1, seen_by="task")
    joined.joined = True
    first = next(number for number, event in enumerate(events) if isinstance(event, Read)) + 1
    after = over_calls(joined, events[first:])
    assert texts(after.statements)[-2:] == [b"select 2", b"select 3"]
    assert wrongly_paired(after.statements) == []
    assert joined.why_unread == "tls"


def test_what_a_peer_has_read_of_a_unix_socket_may_be_tls(certificate: Certificate) -> None:
    flow = Flow("unix-5", "unix", None, started=1, seen_by="receiver")
    beside = Beside(flow)
    for event in starttls(certificate, ("1.3", "ALL"), conversation()):
        if isinstance(event, Wire) and event.direction is OUT:
            position = beside.sequence[OUT]
            beside.sequence[OUT] += len(event.data)
            flow.author = SENDER
            beside.items += flow.read(position - 1000, event.data, len(event.data), event.at)
            beside.items += flow.sent(position - 1000, len(event.data), event.at)
        elif isinstance(event, Wire):
            beside.items += flow.unix(IN, event.data, len(event.data), event.at)
        else:
            beside.tell(event)
    beside.items += flow.close(LATER)
    assert beside.short == without_tls(conversation()).short
    assert flow.totals() == (0, 0)


def test_each_statement_under_tls_has_the_thread_that_called_the_library(certificate: Certificate) -> None:
    peers = say(Peers(certificate).handshake(), HELLO)
    beside = Beside().tell_all(as_told(peers.events))
    for number in range(1, 6):
        before = len(peers.events)
        author = Author(7, 100 + number)
        for event in as_told(say(peers, simple(number)).events[before:]):
            if isinstance(event, Wrote):
                position = beside.position[OUT]
                beside.position[OUT] += len(event.data)
                beside.piece(
                    Plaintext(1, OUT, position, event.data, len(event.data), len(event.data), author, event.at)
                )
            else:
                beside.tell(event)
    said = [item for item in beside.items if isinstance(item, Said) and isinstance(item.message, Statement)]
    assert [(one.author.tid, one.message.text) for one in said if isinstance(one.message, Statement)] == [
        (100 + number, b"select %d" % number) for number in range(1, 6)
    ]


def test_two_processes_that_speak_on_one_connection_are_both_heard(certificate: Certificate) -> None:
    peers = say(Peers(certificate).handshake(), HELLO + simple(1) + simple(2))
    beside = Beside()
    heard = {1: [0, 0], 2: [0, 0]}
    calls = 0
    for event in as_told(peers.events):
        if isinstance(event, Wire):
            beside.tell(event)
            continue
        calls += 1
        session = 2 if calls > len(HELLO) + 2 else 1
        direction = OUT if isinstance(event, Wrote) else IN
        length = len(event.data)
        author = Author(session, session)
        beside.piece(
            Plaintext(session, direction, heard[session][direction], event.data, length, length, author, event.at)
        )
        heard[session][direction] += length
    assert beside.close().short == [(b"select 1", "ok", "SELECT 1"), (b"select 2", "ok", "SELECT 2")]
    assert [item.author.tgid for item in beside.items if isinstance(item, Said)] == [1, 1, 2]
    assert beside.missing == []
    assert beside.flow.totals() == (0, 0)
