"""Peers that mean harm: the recorder neither waits, nor falls, nor lets one user keep another out."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from agentwatch.requests import server, wire
from agentwatch.requests.client import report_read
from tests.unit.requests.fix_host import MEMBER, OTHER_MEMBER, Child, Host, connected, needs_root, read_message, say
from tests.unit.requests.test_requests_wire import GARBAGE


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("data", [data for data in GARBAGE.values() if data] + [b"x" * 100_000])
def test_garbage_is_answered_and_the_connection_closed(host: Host, data: bytes) -> None:
    def ask() -> tuple[str, int]:
        with connected(host.config) as connection:
            connection.send(data)
            error = wire.parse_answer(connection.recv(65536)).error or ""
            return error, len(connection.recv(65536))

    before = descriptors()
    error, rest = host.serve(ask)
    assert (error[:40], rest) == ("the recorder did not understand the requ", 0)
    assert host.records() == []
    assert host.serve(lambda: report_read(host.config, "sessions", [])) is None
    assert descriptors() <= before + 1  # the log's segment is open by now


def test_a_message_that_just_fits_is_read_and_one_byte_more_is_not(host: Host) -> None:
    message = read_message(host.config)
    fits = message + b" " * (wire.MAX_MESSAGE_BYTES - len(message))
    assert host.serve(lambda: say(host.config, fits)) == {"seq": 0}
    assert "more than" in host.serve(lambda: say(host.config, fits + b" "))["error"]


def test_empty_messages_and_hangups_leave_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SECOND_NS", 0)
    before = descriptors()
    for _ in range(20):
        with connected(host.config) as connection:
            connection.send(b"")
        connected(host.config).close()
        with connected(host.config) as connection:
            connection.shutdown(socket.SHUT_WR)
        host.step()
    host.step()
    assert descriptors() == before
    assert host.records() == []


def test_who_asks_and_leaves_is_recorded_all_the_same(host: Host) -> None:
    with connected(host.config) as connection:
        connection.send(read_message(host.config, "gone"))
    host.step()
    assert [record["question"] for record in host.records()] == [["gone"]]


def test_only_the_first_message_of_a_connection_counts(host: Host) -> None:
    with connected(host.config) as connection:
        for word in ("first", "second", "third"):
            connection.send(read_message(host.config, word))
        for _ in range(3):
            host.step()
    assert [record["question"] for record in host.records()] == [["first"]]


def test_descriptors_that_are_sent_along_are_not_kept(host: Host) -> None:
    with connected(host.config) as connection:
        before = descriptors()
        with Path("/dev/null").open() as null:
            socket.send_fds(connection, [read_message(host.config)], [null.fileno()] * 50)
        host.desk.take(None)
        assert descriptors() <= before + 1  # the connection's other end
        host.step()
        assert wire.parse_answer(connection.recv(100)) == wire.Answer(0)


@needs_root
def test_a_process_that_has_ended_lends_its_number_to_nobody(host: Host) -> None:
    # The reader ends, and another process gets its number, before the recorder looks: that one did not ask.
    last_pid = Path("/proc/sys/kernel/ns_last_pid")
    if not last_pid.exists():
        pytest.skip("this kernel lets nobody choose the next number (CONFIG_CHECKPOINT_RESTORE)")

    def ask() -> None:
        with connected(host.config) as connection:
            connection.send(read_message(host.config))

    reader = Child(ask, MEMBER)
    reader.result()
    for _ in range(1000):  # others may be faster
        last_pid.write_text(str(reader.pid - 1))
        other = Child(lambda: time.sleep(60))
        if other.pid == reader.pid:
            break
        os.kill(other.pid, 9)
        os.waitpid(other.pid, 0)
    host.step()
    os.kill(other.pid, 9)
    os.waitpid(other.pid, 0)
    assert other.pid == reader.pid
    (record,) = host.records()
    assert (record["uid"], record["exe"], record["login_uid"]) == (MEMBER, None, None)


@needs_root
def test_a_user_with_too_many_connections_is_told_so_and_keeps_nobody_out(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_PER_UID", 4)
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 6)

    def hoard(count: int) -> list[socket.socket]:
        return [connected(host.config) for _ in range(count)]

    def flood() -> str:
        held = hoard(4)
        error = say(host.config, read_message(host.config))["error"]
        time.sleep(60)
        return f"{error} {len(held)}"

    def told() -> str:
        held = hoard(4)
        return f"{say(host.config, read_message(host.config))['error']} {len(held)}"

    assert "too many requests at the same time" in host.serve(told, MEMBER)
    hoarders = [Child(flood, uid) for uid in (MEMBER, OTHER_MEMBER)]
    host.until(lambda: host.desk._requests._of_uid.total() == 6)
    assert set(host.desk._requests._of_uid.values()) in ({4, 2}, {3})
    assert host.serve(lambda: report_read(host.config, "show", [])) is None  # root's own places
    for hoarder in hoarders:
        os.kill(hoarder.pid, 9)
    host.until(lambda: all(hoarder.ended for hoarder in hoarders))
    host.step()
    assert not host.desk._requests._of_uid
    assert host.serve(lambda: report_read(host.config, "show", []), OTHER_MEMBER) is None


@needs_root
def test_a_user_who_asks_without_end_waits_and_others_do_not(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SECOND_NS", 3600 * 10**9)
    host.step()  # this second has begun

    def flood() -> int:
        held = [connected(host.config) for _ in range(server.MAX_RATE + 5)]
        for connection in held:
            connection.send(read_message(host.config, "flood"))
        time.sleep(60)
        return 0

    flooder = Child(flood, MEMBER)
    host.until(lambda: len(host.records()) == server.MAX_RATE)
    assert host.serve(lambda: report_read(host.config, "show", []), OTHER_MEMBER) is None
    assert [record["uid"] for record in host.records()] == [MEMBER] * server.MAX_RATE + [OTHER_MEMBER]
    monkeypatch.setattr(server, "SECOND_NS", 0)
    host.until(lambda: len(host.records()) == server.MAX_RATE + 6)
    os.kill(flooder.pid, 9)
    host.until(lambda: flooder.ended)


def test_a_peer_that_says_nothing_is_put_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SECOND_NS", 0)
    with connected(host.config) as silent:
        host.step()
        assert len(host.desk._requests._connections) == 1
        monkeypatch.setattr(server, "LIFETIME_NS", 0)
        host.step()
        assert silent.recv(100) == b""
        assert not host.desk._requests._connections


def test_an_answer_to_who_was_put_out_goes_nowhere(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SECOND_NS", 0)
    with connected(host.config) as slow:
        slow.send(read_message(host.config))
        host.desk.take(None)
        monkeypatch.setattr(server, "LIFETIME_NS", 0)
        host.desk.take(None)
        assert slow.recv(100) == b""
        host.step()
    assert len(host.records()) == 1


def test_a_flood_of_connections_costs_one_look_a_bounded_number(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_AT_ONCE", 5)
    peers = [connected(host.config) for _ in range(12)]
    seen = []
    for _ in range(3):
        host.desk.take(None)
        seen.append(len(host.desk._requests._connections))
    assert seen == [5, 10, 12]
    for peer in peers:
        peer.send(read_message(host.config))
    host.desk.take(None)
    assert host.writer.next_seq == 5
    for peer in peers:
        peer.close()
