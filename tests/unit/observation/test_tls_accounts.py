"""Connections under TLS: what the limits cost, what was lost or is only counted, and the records that tell of it."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest

from agentwatch.config import Config
from agentwatch.kernel import abi
from agentwatch.observation import ties
from agentwatch.observation.observer import Observer
from agentwatch.observation.ties import MAX_WAITING_BYTES, WAIT_NS
from agentwatch.streams import secured
from agentwatch.streams.flow import Interest, Missing
from tests.unit.observation.fix_tls_events import AT, TGID, Link, Recorder, asked, expected, header, untied
from tests.unit.protocols.fix_wire import HELLO, query, simple
from tests.unit.streams.fix_tls import IN, OUT, Peers, record, stream
from tests.unit.streams.fix_tls_flow import say

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from agentwatch.records.encoding import Record
    from tests.unit.streams.fix_tls import Certificate

PEER = "192.0.2.1:5432"
HTTP = (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n")


# -- limits


def test_plaintext_beyond_the_limit_is_told_without_its_socket() -> None:
    link = Link(9, session=77, in_memory=True)
    size = MAX_WAITING_BYTES // 4
    recorder = Recorder().take_all(untied(link, HELLO))
    for _ in range(5):
        recorder.take(link.call(OUT, query(b"select 1" + b" " * size), AT))
    recorder.tick(AT)
    recorder.take(link.freed(AT))
    assert [(connection, s.text_length) for connection, s in recorder.statements] == [("tls-77", size + 8)] * 5


def test_sessions_beyond_the_limit_are_told_without_their_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ties, "MAX_SESSIONS", 10)
    recorder = Recorder()
    links = [Link(number, session=number, in_memory=True) for number in range(1, 14)]
    for link in links:
        recorder.take_all(untied(link, asked(link.cookie)))
    recorder.tick(AT)
    assert recorder.short == [one for link in links[:3] for one in expected(f"tls-{link.session}", link.cookie)]
    for link in links[:3]:
        recorder.take_all(untied(link, simple(100 + link.cookie)))
    recorder.tick(AT)
    recorder.tick(AT + WAIT_NS + 1)
    heard = [(connection, s.text) for connection, s in recorder.statements]
    assert sorted(heard) == sorted(
        [(f"tls-{link.session}", b"select %d" % link.cookie) for link in links]
        + [(f"tls-{link.session}", b"select %d" % (100 + link.cookie)) for link in links[:3]]
    )
    assert [missing for _, missing in recorder.missing] == []


def test_records_beyond_the_limit_cost_a_socket_and_no_statement(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ties, "MAX_RECORDS", 2)
    link = Link(9, in_memory=True)
    events = link.conversation(certificate, asked(1))
    recorder = Recorder()
    for event in events:
        recorder.take(event)
        if isinstance(event, abi.TlsRecord):
            for number in range(2):
                other = Link(1000 + number, in_memory=True)
                recorder.take_all(other.made(record(23, number.to_bytes(30, "little")), event.h.boottime))
    recorder.tick(AT)
    assert recorder.short == expected(f"tls-{link.session}", 1)
    flow = recorder.flow("tcp", 9)
    assert flow is not None
    sent = [event for event in events if isinstance(event, abi.Wire)]
    assert flow.totals() == tuple(sum(e.payload for e in sent if e.direction == way) for way in (0, 1))
    assert flow.secured is not None
    assert flow.secured.about()["cause"] == secured.NO_LIBRARY


# -- what is lost


def test_what_was_lost_last_is_a_gap_when_the_connection_is_freed(certificate: Certificate) -> None:
    link = Link(9)
    recorder = Recorder().take_all(link.conversation(certificate, asked(1)))
    lost = query(b"select 2")
    link.call(OUT, lost, 5000)
    recorder.take(link.freed(6000))
    assert recorder.missing == [("tcp-9", Missing(OUT, len(lost), "tls-hole"))]
    recorder.take(link.freed(6000))
    assert len(recorder.missing) == 1


def test_a_connection_that_was_freed_after_its_socket_was_forgotten_makes_no_new_one(certificate: Certificate) -> None:
    link = Link(9)
    recorder = Recorder().take_all(link.conversation(certificate, asked(1))).take_all(link.closed(AT))
    recorder.tick(AT)
    assert len(recorder.table) == 0
    link.call(IN, b"counted and not told of", AT)
    recorder.take(link.freed(AT))
    assert len(recorder.table) == 0


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_lost_call_of_many_connections_pairs_nothing_wrongly(certificate: Certificate, *, in_memory: bool) -> None:
    link = Link(9, in_memory=in_memory)
    events = link.conversation(certificate, asked(1, 2, 3))
    for number, event in enumerate(events):
        if isinstance(event, abi.Tls) and event.total:
            recorder = Recorder().take_all(events[:number] + events[number + 1 :])
            recorder.take_all([link.freed(AT), *link.closed(AT)])
            assert recorder.missing == [("tcp-9", Missing((OUT, IN)[event.direction], event.total, "tls-hole"))]
            for _, statement in recorder.statements:
                said = int((statement.text or b"select 0").split()[1])
                assert statement.command_tag in (None, f"SELECT {said}")


# -- what one thread reads while another writes


def test_an_answer_that_was_read_before_its_question_was_told_of_is_its_answer(certificate: Certificate) -> None:
    link = Link(9)
    recorder = Recorder().take_all(link.conversation(certificate, asked(1)))
    question, answer = simple(2)
    recorder.take(link.call(IN, answer[1], AT + 5, writing=AT))
    recorder.take(link.call(OUT, question[1], AT))
    assert recorder.short == expected("tcp-9", 1, 2)


def test_an_answer_to_a_question_that_is_never_told_of_is_not_lost(certificate: Certificate) -> None:
    link = Link(9)
    recorder = Recorder().take_all(link.conversation(certificate, asked(1)))
    question, answer = simple(2)
    link.position[OUT] += len(question[1])
    recorder.take(link.call(IN, answer[1], AT + 5, writing=AT))
    recorder.tick(AT + 6 + WAIT_NS)
    recorder.take_all([*untied(link, simple(3) + simple(4)), link.freed(AT)])
    assert recorder.missing == [("tcp-9", Missing(OUT, len(question[1]), "tls-hole"))]
    assert recorder.short[-1:] == expected("tcp-9", 4)


# -- verdicts


def told_of(recorder: Recorder, transport: str) -> list[tuple[int, Interest]]:
    return [(one.identity, one.interest) for one in recorder.table.verdicts if one.transport == transport]


def test_plaintext_that_nobody_reads_is_only_counted(certificate: Certificate) -> None:
    link = Link(9, session=77)
    recorder = Recorder().take_all(link.conversation(certificate, [(OUT, HTTP[0]), (IN, HTTP[1]), (OUT, HTTP[0])]))
    assert told_of(recorder, "tls") == [(77, Interest.ALL), (77, Interest.COUNT)]
    assert told_of(recorder, "tcp") == [(9, Interest.TLS), (9, Interest.COUNT)]
    recorder.take_all(link.closed(AT))
    due = recorder.tick(AT)
    assert [(flow.connection, flow.why_unread) for flow in due] == [("tcp-9", "unknown-protocol")]
    assert told_of(recorder, "tcp")[-1] == (9, Interest.ALL)


def test_plaintext_without_a_socket_that_nobody_reads_is_only_counted() -> None:
    link = Link(9, session=77, in_memory=True)
    recorder = Recorder().take_all(untied(link, [(OUT, HTTP[0]), (IN, HTTP[1])]))
    recorder.tick(AT + WAIT_NS + 1)
    assert set(told_of(recorder, "tls")) == {(77, Interest.COUNT)}
    assert told_of(recorder, "tcp") == told_of(recorder, "unix") == []
    recorder.take(link.freed(AT + WAIT_NS + 1))
    due = recorder.tick(AT + WAIT_NS + 1)
    assert [(flow.connection, flow.totals()) for flow in due] == [("tls-77", (len(HTTP[0]), len(HTTP[1])))]
    assert told_of(recorder, "unix") == []


def test_a_session_that_was_only_counted_is_read_on_another_socket(certificate: Certificate) -> None:
    first, second = Link(9, session=77), Link(10, session=77)
    recorder = Recorder().take_all(first.conversation(certificate, [(OUT, HTTP[0]), (IN, HTTP[1])]))
    second.position = first.position
    recorder.take_all(second.conversation(certificate, asked(1)))
    assert told_of(recorder, "tls") == [(77, Interest.ALL), (77, Interest.COUNT), (77, Interest.ALL)]
    assert recorder.short == expected("tcp-10", 1)


def test_much_ciphertext_of_no_library_is_only_counted(certificate: Certificate) -> None:
    link = Link(9, in_memory=True)
    peers = Peers(certificate).handshake().write(2 * secured.MAX_UNTIED_BYTES, told=False)
    recorder = Recorder().take_all([*link.opened(), *(e for e in link.events(peers.events) if isinstance(e, abi.Wire))])
    assert told_of(recorder, "tcp") == [(9, Interest.TLS), (9, Interest.COUNT)]
    flow = recorder.flow("tcp", 9)
    assert flow is not None
    assert flow.totals() == (len(stream(peers.events, OUT)), len(stream(peers.events, IN)))


# -- records


@pytest.fixture
def observer(tmp_path: Path) -> Observer:
    config = Config(run_dir=tmp_path / "run", cgroup_root=tmp_path, watch="lead.slice")
    return Observer(config, "host", "boot")


def observe(observer: Observer, events: Iterable[abi.Event]) -> list[Record]:
    return [one for number, event in enumerate(events) for one in observer.handle(number, event)]


def test_records_of_statements_and_unread_bytes_tell_of_the_tls(observer: Observer, certificate: Certificate) -> None:
    link = Link(9)
    peers = say(Peers(certificate, name="db.example.org", protocols=("postgresql",)).handshake(), asked(1))
    peers.write(5000, told=False).write(query(b"select 2"))
    records = observe(observer, [*link.opened(), *link.events(peers.events)])
    records += observe(observer, link.closed(AT)) + observer.tick(AT)
    said = [r for r in records if r["kind"] == "statement"]
    assert [(r["connection"], r["peer"], r["seen_by"], r["db.query.text"], r["outcome"], r["pid"]) for r in said] == [
        ("tcp-9", PEER, "tls-uprobe", "select 1", "ok", TGID),
        ("tcp-9", PEER, "tls-uprobe", "select 2", "unknown", TGID),
    ]
    (opaque,) = [r for r in records if r["kind"] == "opaque"]
    assert (opaque["reason"], opaque["bytes_out"], opaque["bytes_in"], opaque["final"]) == ("tls", 5000, 0, True)
    assert opaque["tls"] == {
        "version": "1.3",
        "cipher": "TLS_AES_256_GCM_SHA384",
        "server_name": "db.example.org",
        "alpn": ["postgresql"],
        "cause": "surplus",
    }


def test_a_lost_call_is_a_gap_record(observer: Observer, certificate: Certificate) -> None:
    link = Link(9)
    records = observe(observer, link.conversation(certificate, asked(1)))
    link.call(OUT, query(b"select 2"), 5000)
    records += observe(observer, [link.freed(6000)])
    (gap,) = [r for r in records if r["kind"] == "gap"]
    assert (gap["cause"], gap["bytes"], gap["direction"]) == ("tls-hole", len(query(b"select 2")), "out")
    assert (gap["connection"], gap["protocol"], gap["peer"]) == ("tcp-9", "postgresql", PEER)


def test_a_process_that_ends_tells_what_waits(observer: Observer) -> None:
    link = Link(9, session=77, in_memory=True)
    records = observe(observer, untied(link, asked(1)))
    assert records == []
    records = observe(observer, [abi.Exit(header(AT), 0, 1)])
    assert [(r["kind"], r.get("connection")) for r in records] == [("exit", None), ("statement", "tls-77")]


def test_a_file_that_was_mapped_is_no_record_by_itself(observer: Observer) -> None:
    assert observe(observer, [abi.Mapped(header(AT), 5, 4096, 1, stopped=False, path=b"/usr/lib/libx.so")]) == []


def test_a_restart_at_any_event_changes_nothing(observer: Observer, certificate: Certificate) -> None:
    links = [Link(9), Link(10, in_memory=True)]
    events = [event for link in links for event in link.conversation(certificate, asked(1, 2))]
    restarted = pickle.loads(pickle.dumps(observer))  # noqa: S301 -- our own bytes
    whole = observe(observer, events)
    again: list[Record] = []
    for number, event in enumerate(events):
        restarted = pickle.loads(pickle.dumps(restarted))  # noqa: S301 -- our own bytes
        again += restarted.handle(number, event)
    assert again == whole
    assert len([r for r in whole if r["kind"] == "statement"]) == 4


def test_what_is_in_the_ring_is_waited_for_however_late_it_is_read(
    observer: Observer, certificate: Certificate
) -> None:
    link = Link(9, in_memory=True)
    records = []
    events = link.conversation(certificate, asked(1))
    begun = next(number for number, event in enumerate(events) if isinstance(event, abi.Tls)) - 1
    hooked_late = [event for event in events[:begun] if isinstance(event, abi.Wire)] + events[begun:]
    for number, event in enumerate(hooked_late):
        records += observer.handle(number, event)
        records += observer.tick(AT, drained=False)
    assert [(r["kind"], r["connection"]) for r in records] == [("statement", "tcp-9")]
