"""Clocks that jump: a wall clock that is set, a host that sleeps. None of it may look like an attack, or hide one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from agentwatch.log import folder, segment
from agentwatch.log.keys import KeyFolder
from agentwatch.log.verify import verify
from agentwatch.records.completeness import Completeness

HERE = Path(__file__).parent
YEAR_S = 365 * 24 * 3600
HOUR_S = 3600
JUMPS = [
    pytest.param([0, YEAR_S, 0], id="ahead-and-back"),
    pytest.param([0, -YEAR_S, 0], id="behind-and-back"),
    pytest.param([YEAR_S, -YEAR_S, YEAR_S, -YEAR_S], id="to-and-fro"),
]


def record(root: Path, offsets: list[int], *prefix: str, epoch_s: int = HOUR_S) -> None:
    worker = [sys.executable, "-B", str(HERE / "clock_worker.py"), str(root), str(epoch_s * 10**9)]
    argv = [*prefix, *worker, *map(str, offsets)]
    done = subprocess.run(argv, capture_output=True, check=False, text=True)
    if prefix and "unshare" in done.stderr:
        pytest.skip(f"no time namespaces here: {done.stderr}")
    assert done.returncode == 0, done.stderr


def created_ns(log_dir: Path) -> list[int]:
    return [segment.Header.parse(item.path.read_bytes()).created_ns for item in folder.list_segments(log_dir)]


@pytest.mark.parametrize("epoch_s", [0, HOUR_S])
@pytest.mark.parametrize("offsets", JUMPS)
def test_wall_clock_that_is_set_raises_no_alarm(tmp_path: Path, offsets: list[int], epoch_s: int) -> None:
    record(tmp_path, offsets, epoch_s=epoch_s)
    jumps = [abs(later - earlier) for earlier, later in pairwise(created_ns(tmp_path / "log"))]
    assert max(jumps) > 300 * 24 * HOUR_S * 10**9
    report = verify(tmp_path / "log", make_examiner=Completeness)
    assert (report.problems, report.unsigned) == ([], 0)
    seen = report.examined
    assert isinstance(seen, Completeness)
    # Keys live by a clock that nobody sets.
    assert report.epochs == seen.kinds["epoch"]
    assert report.epochs == 1 if epoch_s else report.epochs > len(offsets)
    assert seen.complete
    assert seen.ended
    assert seen.kinds["observer_start"] == len(offsets)


@pytest.mark.parametrize("offsets", JUMPS)
def test_records_that_are_asked_for_by_time_are_read_whatever_the_clock_did(tmp_path: Path, offsets: list[int]) -> None:
    # What was recorded at a time that the clock showed only for a while is not passed over.
    record(tmp_path, offsets)
    log_dir = tmp_path / "log"
    created = created_ns(log_dir)
    for since_ns in created:
        report = verify(log_dir, since_ns=since_ns)
        assert report.ok
        assert all(following <= since_ns for following in created[1 : report.unread + 1])


@pytest.mark.parametrize("offsets", JUMPS)
def test_alteration_is_found_whatever_the_clock_did(tmp_path: Path, offsets: list[int]) -> None:
    record(tmp_path, offsets)
    for item in folder.list_segments(tmp_path / "log"):
        data = item.path.read_bytes()
        item.path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        report = verify(tmp_path / "log")
        assert report.broken_at is not None
        assert report.broken_at >= item.first_seq
        item.path.write_bytes(data)


def test_suspended_host_begins_an_epoch_and_raises_no_alarm(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    # CLOCK_BOOTTIME counts while a host sleeps, CLOCK_MONOTONIC does not: as after two hours of sleep.
    record(tmp_path, [0])
    before = KeyFolder(tmp_path / "keys").load()
    record(tmp_path, [0], "unshare", "--fork", "--time", "--boottime", str(2 * HOUR_S))
    after = KeyFolder(tmp_path / "keys").load()
    assert before is not None
    assert after is not None
    assert after.began_ns - before.began_ns > HOUR_S * 10**9
    # And back: the key says that it began in the future.
    record(tmp_path, [0])
    report = verify(tmp_path / "log", make_examiner=Completeness)
    assert (report.problems, report.epochs) == ([], 3)
    assert isinstance(report.examined, Completeness)
    assert report.examined.complete
