"""A collector among hosts that are silent, slow, hostile or killed."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from agentwatch.collector import connection, server, service
from agentwatch.collector.frames import Alive, Commit, Refused, encode
from agentwatch.collector.link import RefusedError
from agentwatch.collector.source import Source
from agentwatch.errors import BusyError
from agentwatch.log.verify import verify
from tests.unit.collector.fix_collector import (
    AGENTWATCH,
    Authority,
    Client,
    Collector,
    Credentials,
    assert_mirrored,
    client,
    wait_for,
)
from tests.unit.collector.log_maker import HostLog
from tests.unit.collector.test_refusals import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def pushing(host: HostLog, authority: Authority, stopped_collector: Collector) -> Client:
    return client(host, authority.issue("host-a"), stopped_collector.port)


@pytest.fixture
def watchful(tmp_path: Path, authority: Authority) -> Iterator[Collector]:
    made = Collector(tmp_path / "watchful", authority.issue("collector-2"), silent_seconds=1)
    made.start()
    yield made
    made.stop()


def test_silent_host_raises_one_alarm_and_its_return_is_recorded(
    host: HostLog, authority: Authority, watchful: Collector
) -> None:
    pushing = client(host, authority.issue("host-a"), watchful.port)
    size = host.write(3).size
    pushing.push()
    wait_for(lambda: watchful.records("host_silent"), "the alarm")
    # To connect, and to push nothing new, is no sign of life of what records.
    pushing.push()
    watchful.stop()
    watchful.start()
    time.sleep(2)
    (silent,) = watchful.records("host_silent")
    assert (silent["name"], silent["size"]) == ("host-a", size)
    assert silent["silent_ns"] >= 10**9
    assert not watchful.records("host_back")
    host.write()
    pushing.push()
    (back,) = watchful.records("host_back")
    assert (back["name"], back["size"]) == ("host-a", host.signed().size)
    wait_for(lambda: len(watchful.records("host_silent")) == 2, "the next alarm")


def test_its_own_log_is_signed(collector: Collector, pushing: Client) -> None:
    pushing.log.write()
    pushing.push()
    collector.stop()
    report = verify(collector.root / "log")
    assert report.ok
    assert report.signed is not None
    assert report.unsigned == 0


def test_slow_and_silent_peers_hold_nobody_up(
    monkeypatch: pytest.MonkeyPatch, pushing: Client, authority: Authority, collector: Collector
) -> None:
    monkeypatch.setattr(connection, "FRAME_SECONDS", 1)
    dumb = [socket.create_connection(("127.0.0.1", collector.port)) for _ in range(4)]
    slow = connect(authority.issue("host-s"), collector.port)
    slow._tls.sendall(encode(Alive())[:9])
    pushing.log.write(100)
    pushing.push()
    assert_mirrored(collector, "host-a", pushing.log)
    # The frame that does not come to its end is not waited for; in bytes it is ever so close.
    with pytest.raises(connection.LinkError):
        slow.receive(30)
    for item in dumb:
        item.close()
    slow.close()


def test_unknown_peers_do_not_take_all_places(
    monkeypatch: pytest.MonkeyPatch, pushing: Client, collector: Collector
) -> None:
    monkeypatch.setattr(server, "HANDSHAKE_SECONDS", 1)
    flood = [socket.create_connection(("127.0.0.1", collector.port)) for _ in range(40)]
    pushing.log.write(10)

    def pushed() -> bool:
        try:
            return pushing.push() > 0
        except connection.LinkError:
            return False

    wait_for(pushed, "a place")
    for item in flood:
        item.close()


@pytest.mark.parametrize(
    "garbage",
    [b"\0" * 100, b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n", encode(Alive())[:-1] + b"\xc1", encode(Refused("x", "y"))],
    ids=["zeros", "ones", "http", "no message", "a collector's"],
)
def test_garbage_ends_that_connection_alone(
    pushing: Client, authority: Authority, collector: Collector, garbage: bytes
) -> None:
    link = connect(authority.issue("host-g"), collector.port)
    link._tls.sendall(garbage)
    with pytest.raises(connection.LinkError):
        link.receive(30)
    link.close()
    with socket.create_connection(("127.0.0.1", collector.port), 30) as raw:
        raw.sendall(garbage)
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(1000):
                pass
    pushing.log.write(10)
    pushing.push()
    assert_mirrored(collector, "host-a", pushing.log)


def test_newer_connection_of_a_host_ends_the_one_before(
    pushing: Client, authority: Authority, collector: Collector
) -> None:
    pushing.log.write()
    before = connect(authority.issue("host-a"), collector.port)
    before.send(Source(pushing.log.log_dir).hello())
    assert isinstance(before.receive(30), Commit)
    pushing.push()
    with pytest.raises(connection.LinkError):
        before.receive(30)
    before.close()


def test_large_records_wait_for_their_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: Authority, collector: Collector
) -> None:
    monkeypatch.setattr(connection, "LARGE_SECONDS", 60)
    logs = [HostLog(tmp_path / f"log-{number}", f"host-{number}") for number in range(4)]
    pushers = [client(log, authority.issue(f"host-{at}"), collector.port) for at, log in enumerate(logs)]
    for log in logs:
        log.write_payloads(*(os.urandom(5 << 20) for _ in range(3)))
    threads = [threading.Thread(target=pusher.push) for pusher in pushers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at, log in enumerate(logs):
        assert_mirrored(collector, f"host-{at}", log)


def test_repeated_refusals_do_not_fill_the_log(
    tmp_path: Path, pushing: Client, authority: Authority, collector: Collector
) -> None:
    pushing.log.write()
    pushing.push()
    other = client(HostLog(tmp_path / "other"), authority.issue("host-a"), collector.port)
    other.log.write()
    for _ in range(5):
        with pytest.raises(RefusedError):
            other.push()
    assert len(collector.records("host_refused")) == 1


def test_second_collector_is_refused(collector: Collector) -> None:
    with pytest.raises(BusyError):
        service.run(collector.config, lambda: True, lambda: None)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_killed_collector_and_killed_pusher_lose_nothing(pushing: Client, stopped_collector: Collector) -> None:
    collector, log = stopped_collector, pushing.log
    dice = random.Random()  # noqa: S311 -- moments of kills, not secrets
    log.write(2000, size=2000)
    collector.start_process()
    pusher = pushing.start_process()
    try:
        for turn in range(12):
            log.write(200, size=2000)
            time.sleep(dice.uniform(0, 0.7))
            if turn % 2:
                collector.kill()
                collector.start_process()
            else:
                end(pusher)
                pusher = pushing.start_process()
        wait_for(lambda: collector.size("host-a") == log.signed().size, "everything to arrive")
    finally:
        end(pusher)
    collector.stop()
    assert_mirrored(collector, "host-a", log)
    assert not collector.records("host_refused")
    assert len(collector.records("host_enrolled")) in (1, 2)
    assert verify(collector.root / "log").ok


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*AGENTWATCH, *words], capture_output=True, text=True, check=False, timeout=120)


def test_commands_end_as_their_help_says(pushing: Client, stopped_collector: Collector, tmp_path: Path) -> None:
    collector = stopped_collector
    once = ("push", "--once", "--config", str(pushing.file))
    assert run(*once).returncode == 74
    assert run("collector", "--key", "--config", str(collector.file)).stdout == f"{collector.vkey}\n"
    assert run("collector", "--config", str(pushing.file)).returncode == 78
    assert run("push", "--once", "--config", str(collector.file)).returncode == 78
    collector.start_process()
    assert run(*once).returncode == 66
    pushing.log.write(5)
    done = run(*once)
    assert (done.returncode, done.stdout) == (0, "the collector has the checkpoint of 6 records\n")
    older = pushing.log.copy(tmp_path / "older")
    pushing.log.write(5)
    assert run(*once).returncode == 0
    pushing.log.root.rename(tmp_path / "gone")
    older.root.rename(pushing.log.root)
    done = run(*once)
    assert (done.returncode, "rollback" in done.stderr) == (65, True)
    pusher = pushing.start_process()
    wait_for(lambda: "rollback" in (pushing.log.root / "stderr").read_text(), "the refusal")
    pusher.terminate()
    assert pusher.wait(60) == 0
    collector.stop()


def test_credentials_that_cannot_be_used(pushing: Client, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    wrong = client(pushing.log, Credentials(empty, empty, empty), 1)
    done = run("push", "--once", "--config", str(wrong.file))
    assert done.returncode == 78
    assert "cannot use the certificates" in done.stderr
