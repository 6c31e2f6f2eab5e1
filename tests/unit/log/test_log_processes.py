"""A real writer process: killed at any moment, and with system calls that fail (strace's fault injection)."""

from __future__ import annotations

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentwatch.log import folder, segment
from agentwatch.log.framing import check as verify
from agentwatch.log.reader import LogReader
from tests.unit.modules import load

if TYPE_CHECKING:
    from collections.abc import Callable

WORKER = Path(__file__).with_name("log_worker.py")
STORE_CALLS = "mkdir,fchmod,fchown,flock,pwrite64,fdatasync,fsync,ftruncate,rename,renameat,renameat2,unlinkat"


payload: Callable[[int], bytes] = load(WORKER).payload


def worker_argv(log_dir: Path, *args: int) -> list[str]:
    return [sys.executable, "-B", str(WORKER), str(log_dir), *map(str, args)]


def run_under_strace(log_dir: Path, inject: str, *args: int) -> tuple[int, list[dict[str, Any]], str]:
    strace = shutil.which("strace")
    assert strace, "these tests need strace (apt install strace)"
    trace = log_dir.with_suffix(".strace")
    argv = [strace, "-f", "-qq", "-y", "-o", str(trace), "-e", f"trace={STORE_CALLS},write", *inject.split()]
    done = subprocess.run(argv + worker_argv(log_dir, *args), capture_output=True, check=False, text=True)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.endswith("}")]
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, said, trace.read_text()


def last_acked(said: list[dict[str, Any]]) -> int:
    acked: list[int] = [line.get("acked", line.get("durable", 0)) for line in said]
    return max([0, *acked])


def check_everything_acknowledged_is_there(log_dir: Path, acked: int) -> int:
    log = LogReader(log_dir)
    records = list(log.records())
    assert records == [(seq, payload(seq)) for seq in range(len(records))]
    assert len(records) >= acked
    report = verify(log_dir)
    assert (report.ok, report.next_seq) == (True, len(records))
    return len(records)


def test_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    log_dir = tmp_path / "log"
    for turn in range(12):
        with subprocess.Popen(worker_argv(log_dir, 10**6, 50, 40_000), stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            opened = json.loads(worker.stdout.readline())
            assert opened["damage"] == 0
            time.sleep(0.003 + 0.017 * turn % 0.06)
            worker.send_signal(signal.SIGKILL)
            lines = worker.stdout.read().splitlines()
        acked = last_acked([json.loads(line) for line in lines if line.endswith("}")])
        check_everything_acknowledged_is_there(log_dir, acked)


def kill_at_each_call(tmp_path: Path, prepare: Callable[[Path], None], *args: int) -> list[Path]:
    """Kill the worker at its first store call, in another log at its second, ...; return the logs, written on."""
    clean = tmp_path / "clean"
    prepare(clean)
    status, _, trace = run_under_strace(clean, "", *args)
    assert status == 0
    calls = [name for name in re.findall(r"^\d+ +(\w+)\(", trace, re.MULTILINE) if name != "write"]
    log_dirs = [tmp_path / f"log{number}" for number in range(len(calls))]
    for number, (name, log_dir) in enumerate(zip(calls, log_dirs, strict=True)):
        prepare(log_dir)
        nth = calls[: number + 1].count(name)
        _, said, trace = run_under_strace(log_dir, f"-e inject={name}:signal=KILL:when={nth}", *args)
        assert "killed by SIGKILL" in trace
        acked = last_acked(said)
        if log_dir.exists():
            check_everything_acknowledged_is_there(log_dir, acked)
        done = subprocess.run(worker_argv(log_dir, 3, 1, 10**6), check=True, capture_output=True, text=True)
        opened = json.loads(done.stdout.splitlines()[0])
        assert opened["damage"] == 0
        assert opened["opened"] >= acked
        assert check_everything_acknowledged_is_there(log_dir, acked) == opened["opened"] + 3
    return log_dirs


def test_writer_killed_at_every_system_call_loses_nothing(tmp_path: Path) -> None:
    assert kill_at_each_call(tmp_path, lambda _: None, 12, 3, 1500)


def test_recovery_killed_at_every_system_call_loses_nothing(tmp_path: Path) -> None:
    def torn(log_dir: Path) -> None:
        subprocess.run(worker_argv(log_dir, 6, 3, 10**6), check=True, capture_output=True)
        with folder.list_segments(log_dir)[-1].path.open("ab") as f:
            f.write(segment.frame(payload(6), 6, 1)[:-3])

    for log_dir in kill_at_each_call(tmp_path, torn, 1, 1, 10**6):
        kept = {path.read_bytes() for path in log_dir.glob("*.torn*")}
        assert segment.frame(payload(6), 6, 1)[:-3] in kept


@pytest.mark.parametrize("when", [1, 2, 4])
def test_failed_fdatasync_is_never_tried_again_on_that_file(tmp_path: Path, when: int) -> None:
    log_dir = tmp_path / "log"
    status, said, trace = run_under_strace(log_dir, f"-e inject=fdatasync:error=EIO:when={when}", 30, 5, 10**6)
    assert status == 0
    failed = re.search(r"fdatasync\(\d+<([^>]*)>\) += -1 EIO", trace)
    assert failed
    after = trace[failed.end() :]
    name = re.escape(failed[1])
    assert not re.search(rf"(fdatasync|fsync|pwrite64)\(\d+<{name}>", after.replace("(deleted)", "")) or when == 1
    first = (when - 1) * 5
    assert {"faults": [["fdatasync", errno.EIO, first, 5]]} in said
    assert check_everything_acknowledged_is_there(log_dir, last_acked(said)) == 30
    # The file that failed is kept.
    if when == 1:
        assert len(list(log_dir.glob("*.unsynced"))) == 1
    else:
        assert [item.first_seq for item in folder.list_segments(log_dir)] == [0, first]
        assert verify(log_dir).superseded_bytes > 0


def test_failed_fsync_of_the_folder_is_a_fault_too(tmp_path: Path) -> None:
    log_dir = tmp_path / "log"
    # The first fsync is of the parent folder, when the log's folder is made.
    status, said, _ = run_under_strace(log_dir, "-e inject=fsync:error=EIO:when=2", 10, 5, 10**6)
    assert status == 0
    assert {"faults": [["fsync of the folder", errno.EIO, 0, 5]]} in said
    assert check_everything_acknowledged_is_there(log_dir, last_acked(said)) == 10


def test_disk_that_fails_every_fdatasync_acknowledges_nothing(tmp_path: Path) -> None:
    log_dir = tmp_path / "log"
    status, said, _ = run_under_strace(log_dir, "-e inject=fdatasync:error=EIO:when=3+", 30, 5, 10**6)
    assert status == 3
    errors = [line for line in said if "store_error" in line]
    assert len(errors) == 5
    assert all(line["durable"] == 10 for line in errors)
    assert "the disk fails" in errors[0]["store_error"]
    check_everything_acknowledged_is_there(log_dir, 10)


def test_disk_that_recovers_after_a_store_error_takes_everything(tmp_path: Path) -> None:
    log_dir = tmp_path / "log"
    status, said, _ = run_under_strace(log_dir, "-e inject=fdatasync:error=EIO:when=3..5", 30, 5, 10**6)
    assert status == 0
    assert sum("store_error" in line for line in said) == 1
    assert check_everything_acknowledged_is_there(log_dir, last_acked(said)) == 30


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
@pytest.mark.parametrize("first", [1, 3])
def test_full_disk_is_said_and_writing_goes_on_when_there_is_space(tmp_path: Path, first: int, error: str) -> None:
    log_dir = tmp_path / "log"
    inject = f"-e inject=pwrite64:error={error}:when={first}..{first + 2}"
    status, said, _ = run_under_strace(log_dir, inject, 30, 5, 10**6)
    assert status == 0
    errors = [line["store_error"] for line in said if "store_error" in line]
    assert len(errors) == 3
    assert "the disk is full" in errors[0]
    # A full disk is no fault of a file: it is used on.
    assert {"faults": []} in said
    assert len(folder.list_segments(log_dir)) == 1
    assert check_everything_acknowledged_is_there(log_dir, last_acked(said)) == 30


def test_write_that_fails_otherwise_seals_the_segment(tmp_path: Path) -> None:
    log_dir = tmp_path / "log"
    status, said, _ = run_under_strace(log_dir, "-e inject=pwrite64:error=EIO:when=3", 30, 5, 10**6)
    assert status == 0
    assert {"faults": [["pwrite", errno.EIO, 10, 5]]} in said
    assert check_everything_acknowledged_is_there(log_dir, last_acked(said)) == 30


def test_interrupted_and_short_writes_are_continued(tmp_path: Path) -> None:
    # The limit on file size makes the kernel write only a part, and then refuse.
    log_dir = tmp_path / "log"
    done = subprocess.run(worker_argv(log_dir, 60, 5, 10**6, 4000), capture_output=True, check=True, text=True)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    faults = next(line["faults"] for line in said if "faults" in line)
    assert faults
    assert {fault[1] for fault in faults} == {errno.EFBIG}
    assert check_everything_acknowledged_is_there(log_dir, last_acked(said)) == 60
    assert all(item.path.stat().st_size <= 4000 for item in folder.list_segments(log_dir))


def test_file_size_limit_below_one_record_is_a_store_error(tmp_path: Path) -> None:
    argv = worker_argv(tmp_path / "log", 5, 5, 10**6, 70)
    done = subprocess.run(argv, capture_output=True, check=False, text=True)
    assert done.returncode == 3
    assert done.stdout.count("store_error") == 5


def test_acknowledgement_comes_after_file_and_folder_are_synced(tmp_path: Path) -> None:
    status, _, trace = run_under_strace(tmp_path / "log", "", 4, 2, 10**6)
    assert status == 0
    order = re.findall(r"(pwrite64|fdatasync|fsync|write)\(\d+<([^>]*)>", trace)
    short = [(call, "stdout" if call == "write" else Path(where).name) for call, where in order]
    name = segment.segment_name(0)
    begin = short.index(("pwrite64", name))
    assert short[begin:][:7] == [
        ("pwrite64", name),
        ("fdatasync", name),
        ("fsync", "log"),
        ("write", "stdout"),
        ("pwrite64", name),
        ("fdatasync", name),
        ("write", "stdout"),
    ]


def test_reader_beside_a_busy_writer_never_sees_damage(tmp_path: Path) -> None:
    log_dir = tmp_path / "log"
    log_dir.mkdir(mode=0o700)
    log = LogReader(log_dir)
    seen = 0
    with subprocess.Popen(worker_argv(log_dir, 6000, 20, 30_000), stdout=subprocess.DEVNULL) as worker:
        while worker.poll() is None:
            for seq, got in log.records(seen):
                assert (seq, got) == (seen, payload(seen))
                seen += 1
            assert verify(log_dir).ok
    assert worker.returncode == 0
    assert seen + len(list(log.records(seen))) == 6000
