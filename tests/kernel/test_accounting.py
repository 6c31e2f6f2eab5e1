"""Everything that the probes saw is recorded or declared as lost, however little room there is.

AGENTWATCH_TEST_EVENTS is about how many events the storm makes ('make acceptance': 1,000,000).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentwatch import config as configuration
from agentwatch.kernel import pins
from agentwatch.kernel.ring import Ring
from tests.kernel.fix_watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

EVENTS = int(os.environ.get("AGENTWATCH_TEST_EVENTS", "60000"))
WORKERS = 8
EVENTS_A_ROUND = 45
SMALL_RING = 128 * 1024
WAIT_SECONDS = 60
SOURCE = Path(__file__).parent / "clients" / "storm.c"


@pytest.fixture(scope="module")
def storm() -> Iterator[Path]:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    # Not below pytest's own folder: every other run of pytest closes that to the agent's user again.
    root = Path(tempfile.mkdtemp(prefix="agentwatch-storm-"))
    try:
        root.chmod(0o755)
        program = root / "storm"
        subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", str(program), str(SOURCE)], check=True)
        yield program
    finally:
        shutil.rmtree(root)


@pytest.fixture(params=[SMALL_RING, None], ids=["small-ring", "default-ring"])
def crowded(agent_user: str, request: pytest.FixtureRequest) -> Iterator[Watch]:
    instance = Watch(agent_user, ring_bytes=request.param)
    try:
        instance.start()
        yield instance
    finally:
        instance.stop()


def test_a_storm_is_recorded_or_declared(crowded: Watch, storm: Path, request: pytest.FixtureRequest) -> None:
    rounds = max(EVENTS // (WORKERS * EVENTS_A_ROUND), 1)
    run = crowded.run(str(storm), str(WORKERS), str(rounds), timeout=1500)
    crowded.wait_drained()
    status = _settled(crowded)
    gaps = [r for r in crowded.records("gap") if r["cause"] in ("ring-full", "limit", "user-memory")]
    declared = sum(r["count"] for r in gaps)
    account = f"{status['seen']} seen, {status['received']} received, {declared} declared lost in {len(gaps)} gaps"
    sys.stderr.write(f"{account}\n")  # what -s shows of a run at full size
    if "small-ring" in request.node.name:
        assert status["lost"] > 0, "the ring was never full: the test proves nothing"
    assert declared == status["lost"]
    assert status["seen"] == status["received"] + status["undecodable"] + declared
    assert status["unaccounted"] == 0
    assert {r.get("session") for r in gaps} <= {run.session}
    assert crowded.cli("verify").returncode == 0


def test_events_taken_out_of_the_ring_are_declared(own_watch: Watch) -> None:
    """Root reads the ring besides the recorder, which never sees those events."""
    own_watch.run("/bin/true")
    assert own_watch.recorder is not None
    own_watch.signal_recorder()
    process = own_watch.start_agent("/bin/true")
    process.communicate(timeout=60)
    _steal(own_watch)
    own_watch.start_recorder()
    deadline = time.monotonic() + WAIT_SECONDS
    while not (gaps := [r for r in own_watch.records("gap") if r["cause"] == "unaccounted"]):
        assert time.monotonic() < deadline, own_watch.status()
        time.sleep(0.1)
    assert sum(r["count"] for r in gaps) == own_watch.status()["unaccounted"] > 0


def _settled(watch: Watch) -> dict[str, int]:
    """Return the status once every loss is declared."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        status = watch.status()
        if sum(r["count"] or 0 for r in watch.records("gap")) >= status["lost"]:
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.1)


def _steal(watch: Watch) -> None:
    fd = pins.open_map(configuration.load(watch.config), "ring")
    ring = Ring(fd)
    ring.release(ring.position + ring.backlog)
    ring.close()
    os.close(fd)
