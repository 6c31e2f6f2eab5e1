"""When the ring is full: every loss is declared, and what is recorded is true."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.kernel.fix_watch import Watch

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.kernel.fix_postgres import PostgresServer

pytestmark = pytest.mark.kernel

SMALL_RING = 256 * 1024
STOPPED_SECONDS = 5


@pytest.fixture
def counting(agent_user: str) -> Iterator[Watch]:
    instance = Watch(agent_user, ring_bytes=SMALL_RING)
    try:
        instance.start()
        yield instance
    finally:
        instance.stop()


def test_every_loss_is_declared_and_the_session_still_ends(counting: Watch, postgres: PostgresServer) -> None:
    position = postgres.log_position()
    process = _pgbench(counting, postgres)
    _stand_still(counting)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    session = counting.ended_session(set())
    status = counting.status()
    assert status["lost"] > 0, "the ring was never full: the test proves nothing"
    declared = sum(r["count"] or 0 for r in counting.records("gap") if r["cause"] == "ring-full")
    assert declared == status["lost"]
    assert status["seen"] == status["submitted"] + status["lost"]
    logged = [e.text for entries in postgres.logged_since(position).values() for e in entries]
    recorded = [r["db.query.text"] for r in counting.statements(session)]
    assert len(recorded) < len(logged)
    assert set(recorded) <= set(logged), "what is recorded was really sent"
    assert counting.session(session)["gaps"] > 0


def _pgbench(watch: Watch, postgres: PostgresServer) -> subprocess.Popen[str]:
    return watch.start_agent(
        str(postgres.bin / "pgbench"),
        "-n",
        "-c",
        "2",
        "-T",
        str(STOPPED_SECONDS + 4),
        "-f",
        str(_script(watch)),
        env=postgres.environment("tcp"),
    )


def _script(watch: Watch) -> str:
    path = watch.root / "script.sql"
    path.write_text("\\set n random(1, 1000000000)\nSELECT :n, 'a statement that no other is like';\n")
    path.chmod(0o644)
    return str(path)


def _stand_still(watch: Watch) -> None:
    """Stop the recorder for some seconds in the middle of the run."""
    assert watch.recorder is not None
    time.sleep(2)
    os.kill(watch.recorder.pid, signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    os.kill(watch.recorder.pid, signal.SIGCONT)
