"""What happens when the ring is full: ``overflow = "hold"`` loses nothing, and a flood costs its neighbours nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.kernel.compare import differences
from tests.kernel.fix_watch import Watch

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.kernel.fix_postgres import PostgresServer

pytestmark = pytest.mark.kernel

SMALL_RING = 256 * 1024
STOPPED_SECONDS = 5
WAIT_SECONDS = 60


@pytest.fixture
def holding(agent_user: str) -> Iterator[Watch]:
    instance = Watch(agent_user, ring_bytes=SMALL_RING, overflow="hold")
    try:
        instance.start()
        yield instance
    finally:
        instance.stop()


@pytest.fixture
def crowded(agent_user: str) -> Iterator[Watch]:
    instance = Watch(agent_user, ring_bytes=1024 * 1024)
    try:
        instance.start()
        yield instance
    finally:
        instance.stop()


def test_with_hold_nothing_is_lost_while_the_recorder_stands_still(
    holding: Watch, server: tuple[PostgresServer, str]
) -> None:
    postgres, transport = server
    start = postgres.log_position()
    process = _pgbench(holding, postgres, transport, seconds=STOPPED_SECONDS + 4)
    time.sleep(2)
    with stopped(holding):
        _wait_until_held(holding)
        time.sleep(STOPPED_SECONDS)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    session = holding.ended_session(set())
    status = holding.status()
    assert status["held"] > 0
    assert (status["lost"], status["unaccounted"]) == (0, 0)
    assert differences(postgres.logged_since(start), holding.statements(session)) == []
    assert holding.session(session)["gaps"] == 0


def test_with_hold_commands_wait_too(holding: Watch) -> None:
    """An exec is no packet: the process that makes them is stopped."""
    script = "i=0; while [ $i -lt 3000 ]; do /bin/true $i; i=$((i+1)); done"
    process = holding.start_agent("/bin/sh", "-c", script)
    holding.wait_agent_pid()
    with stopped(holding):
        _wait_until_held(holding)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    session = holding.ended_session(set())
    argv = [row["argv"] for row in holding.commands(session)]
    assert argv[1:] == [["/bin/true", str(n)] for n in range(3000)]
    assert holding.status()["lost"] == 0


def test_unloading_lets_held_processes_go_on(holding: Watch) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do /bin/true; i=$((i+1)); done"
    process = holding.start_agent("/bin/sh", "-c", script)
    holding.wait_agent_pid()
    with stopped(holding):
        _wait_until_held(holding)
        holding.cli("probes", "unload")
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def test_a_flood_does_not_cost_its_neighbour_a_record(crowded: Watch, postgres: PostgresServer) -> None:
    flood = _pgbench(crowded, postgres, "tcp", seconds=30)
    crowded.wait_agent_pid()
    try:
        with stopped(crowded):
            _wait_until(lambda: crowded.counters()["lost"] > 0)
            neighbour = crowded.start_agent(
                str(postgres.bin / "psql"), "-c", "SELECT 'of the neighbour'", env=postgres.environment("tcp")
            )
            _, errors = neighbour.communicate(timeout=60)
            assert neighbour.returncode == 0, errors
    finally:
        for pid in crowded.agent_pids():
            os.kill(pid, signal.SIGTERM)
        flood.communicate(timeout=60)
    crowded.wait_drained()
    crowded.cli("index")
    sessions = crowded.rows("sessions")
    quiet, loud = sorted(sessions, key=lambda row: int(row["gaps"]))
    texts = [row["db.query.text"] for row in crowded.statements(quiet["session"])]
    assert (quiet["gaps"], texts) == (0, ["SELECT 'of the neighbour'"])
    lost = [r for r in crowded.records("gap") if r["cause"] == "ring-full"]
    assert {r.get("session") for r in lost} == {loud["session"]}
    assert sum(r["count"] for r in lost) == crowded.status()["lost"]
    assert all(r["since"] <= r["boottime"] for r in lost)


@contextlib.contextmanager
def stopped(watch: Watch) -> Iterator[None]:
    """Have the recorder stand still."""
    assert watch.recorder is not None
    os.kill(watch.recorder.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(watch.recorder.pid, signal.SIGCONT)


def _pgbench(watch: Watch, postgres: PostgresServer, transport: str, *, seconds: int) -> subprocess.Popen[str]:
    script = watch.root / "script.sql"
    script.write_text("\\set n random(1, 1000000000)\nSELECT :n, 'a statement that no other is like';\n")
    script.chmod(0o644)
    words = [str(postgres.bin / "pgbench"), "-n", "-c", "2", "-T", str(seconds), "-f", str(script)]
    return watch.start_agent(*words, env=postgres.environment(transport))


def _wait_until_held(watch: Watch) -> None:
    _wait_until(lambda: watch.status()["held"] > 0)


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
