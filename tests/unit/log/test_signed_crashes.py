"""A signed writer that is killed, or refused by the disk, at every system call that touches a file.

What is asked for each time: nothing that was acknowledged is lost, the log is never set aside, it goes on under the
same identity, and all of it verifies.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from agentwatch.log import epochs, folder, note, segment
from agentwatch.log.reader import LogReader
from agentwatch.log.signed import Options, SignedLog
from agentwatch.log.verify import verify
from tests.unit.extent import FULL, sample
from tests.unit.log.signed_worker import payload

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.timeout(1800)

WORKER = Path(__file__).with_name("signed_worker.py")
CALLS = (
    "open,openat,write,pwrite64,fdatasync,fsync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "fallocate,ftruncate,fchmod,fchmodat,chmod,fchown,fchownat,chown,lchown,flock"
)
WRITES = {"write", "pwrite64"}
ARGS = (12, 3, 1500)
"""Records, records in a commit, bytes in a segment: two segments, two epochs, one compressed segment."""
AT_A_TIME = 2
HUNG_S = 60
NAMES_NO_FILE_OF_OURS = re.compile(r'\.py|write\(1,|"/proc/|"/usr/|"/etc/')


class Call(NamedTuple):
    """A system call of a run without a fault: its name, and how many of that name there were up to it."""

    name: str
    nth: int
    line: str


def last_acked(said: list[dict[str, Any]]) -> int:
    acked: list[int] = [line["acked"] for line in said if "acked" in line]
    return max([0, *acked])


class Done(NamedTuple):
    status: int
    said: list[dict[str, Any]]
    trace: str

    @property
    def acked(self) -> int:
        return last_acked(self.said)


def argv(root: Path, *args: int) -> list[str]:
    return [sys.executable, "-B", str(WORKER), str(root), *map(str, args)]


def run(root: Path, *inject: str, args: tuple[int, ...] = ARGS) -> Done:
    strace = shutil.which("strace")
    assert strace, "these tests need strace (apt install strace)"
    root.mkdir(exist_ok=True)
    trace = root.with_suffix(".strace")
    tracer = [strace, "-f", "-qq", "-o", str(trace), "-e", f"trace={CALLS}"]
    done = subprocess.run(
        [*tracer, *inject, *argv(root, *args)], capture_output=True, check=False, text=True, timeout=HUNG_S
    )
    said = [json.loads(line) for line in done.stdout.splitlines() if line.endswith("}")]
    assert "Traceback" not in done.stderr, (inject, done.stderr)
    return Done(done.returncode, said, trace.read_text())


def calls_of(trace: str, until: str) -> list[Call]:
    """Return the calls of a run, from where the writer begins to where it says this."""
    counts: dict[str, int] = {}
    calls: list[Call] = []
    begun = False
    for line in trace.splitlines():
        found = re.match(r"\d+ +(\w+)\(", line)
        if found is None:
            continue
        if until in line:
            break
        name = found[1]
        counts[name] = counts.get(name, 0) + 1
        if begun:
            calls.append(Call(name, counts[name], line))
        begun = begun or "begin" in line
    return calls


def check_records(log_dir: Path, acked: int) -> int:
    records = list(LogReader(log_dir).records()) if log_dir.exists() else []
    assert [seq for seq, _ in records] == list(range(len(records)))
    assert all(stored == payload(seq) or epochs.looks_like(stored) for seq, stored in records)
    assert len(records) >= acked
    return len(records)


def check_it_goes_on(root: Path, acked: int) -> None:
    """Open the log again as the next recorder would, and have it verified by who knows its identity."""
    log_dir = root / "log"
    found = check_records(log_dir, acked)
    path = log_dir / epochs.IDENTITY_FILE
    identity = note.Key.parse(path.read_text()) if acked else None
    with SignedLog(log_dir, root / "keys", Options("host")) as log:
        assert log.set_aside is None
        assert log.writer.damage == []
        assert log.writer.next_seq >= found
        log.writer.append(payload(log.writer.next_seq))
    end = check_records(log_dir, found + 1)
    report = verify(log_dir, identity=identity)
    assert report.problems == []
    assert (report.signed and report.signed.size, report.unsigned, report.skipped) == (end, 0, 0)
    assert not list(log_dir.glob("broken-*"))


Prepare = Callable[[Path], str]
"""Makes what the writer finds; returns what it says when it has done what is of interest."""


def nothing(_: Path) -> str:
    return "that is never said"


def torn(root: Path) -> str:
    """Leave a log of one compressed segment and a second one, whose last record was not finished."""
    subprocess.run(argv(root, *ARGS), check=True, capture_output=True)
    with folder.list_segments(root / "log")[-1].path.open("ab") as f:
        f.write(segment.frame(b"never acknowledged", 1, 1)[:-3])
    return "opened"


def at_each(
    tmp_path: Path, prepare: Prepare, count: int, inject: Callable[[Call], str | None]
) -> list[tuple[Call, Path, Done]]:
    """Run the writer once for each call with that fault at it; return what came of it."""
    clean = tmp_path / "clean"
    clean.mkdir()
    until = prepare(clean)
    shutil.copytree(clean, tmp_path / "start")
    first = run(clean)
    assert first.status == 0, first.said
    wanted = [(call, how) for call in calls_of(first.trace, until) if (how := inject(call)) is not None]
    chosen = sample(wanted, count)

    def one(number: int) -> tuple[Call, Path, Done]:
        call, how = chosen[number]
        root = tmp_path / f"run{number}"
        shutil.copytree(tmp_path / "start", root)
        return call, root, run(root, "-e", f"inject={call.name}:{how}:when={call.nth}")

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return list(pool.map(one, range(len(chosen))))


def check_all(results: Iterable[tuple[Call, Path, Done]], statuses: set[int]) -> None:
    failures = []
    for call, root, done in results:
        try:
            assert done.status in statuses, done
            check_it_goes_on(root, done.acked)
        except Exception as e:  # noqa: BLE001 -- one run is to tell all places
            failures.append(f"a fault at {call.line}, number {call.nth} of its name, in {root}: {e!r}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(("prepare", "count"), [(nothing, 20), (torn, 8)], ids=["new", "torn"])
def test_writer_killed_at_every_system_call_loses_nothing_and_the_chain_goes_on(
    tmp_path: Path, prepare: Prepare, count: int
) -> None:
    results = at_each(tmp_path, prepare, count, lambda _: "signal=KILL")
    assert [call for call, _, done in results if "killed by SIGKILL" not in done.trace] == []
    check_all(results, {-signal.SIGKILL})


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize(("prepare", "count"), [(nothing, 8), (torn, 5)], ids=["new", "torn"])
def test_error_of_any_system_call_loses_nothing_and_the_chain_goes_on(
    tmp_path: Path, prepare: Prepare, count: int, error: str
) -> None:
    def inject(call: Call) -> str | None:
        return None if NAMES_NO_FILE_OF_OURS.search(call.line) else f"error={error}"

    results = at_each(tmp_path, prepare, count, inject)
    assert [call for call, _, done in results if "(INJECTED)" not in done.trace] == []
    check_all(results, {0, 3})


def test_log_is_signed_after_its_records_and_tiles_are_written(tmp_path: Path) -> None:
    done = run(tmp_path / "run", "-y")
    assert done.status == 0
    steps = re.findall(
        r"(pwrite64|fdatasync)\(\d+<[^>]*/(\d+\.segment)>|rename\([^)]*, \"[^)]*/log/([^)]*)\"\)", done.trace
    )
    waiting = False
    tiles_written = checkpoints = 0
    for call, _, renamed in steps:
        if call:
            waiting = call == "pwrite64"
        elif renamed.startswith("tile/"):
            assert not waiting
            tiles_written += 1
        elif renamed == "checkpoint":
            assert not waiting
            assert tiles_written
            tiles_written = 0
            checkpoints += 1
    assert checkpoints >= ARGS[0] // ARGS[1]
    # And the one before is removed after that.
    assert re.search(r'/log/checkpoint"\) += 0\n\d+ +unlink\("[^"]*/log/tile/', done.trace)


def test_log_whose_setting_aside_is_killed_at_every_call_is_kept_whole(tmp_path: Path) -> None:
    def without_key(root: Path) -> str:
        subprocess.run(argv(root, *ARGS), check=True, capture_output=True)
        (root / "keys" / "epoch").unlink()
        return "opened"

    results = at_each(tmp_path, without_key, 12, lambda _: "signal=KILL")
    records = list(LogReader(tmp_path / "start" / "log").records())
    for call, root, _ in results:
        with SignedLog(root / "log", root / "keys", Options("host")) as log:
            log.writer.append(b"another log")
        assert verify(root / "log").problems == [], call
        kept: dict[int, bytes] = {}
        for aside in (root / "log").glob("broken-*"):
            # Its parts may be in several folders. Of a new log that was set aside again only the first record is there.
            kept |= {seq: payload for seq, payload in LogReader(aside).records(on_damage=lambda _: None) if seq}
        assert kept == dict(records[1:]), call


def test_verification_beside_a_busy_writer_finds_nothing(tmp_path: Path) -> None:
    looks = 0
    with subprocess.Popen(argv(tmp_path, 3000, 20, 30_000), stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            if '"signed"' in line:
                assert verify(tmp_path / "log").problems == []
                looks += 1
    assert worker.returncode == 0
    assert looks
    assert verify(tmp_path / "log").problems == []


def test_write_that_takes_nothing_is_tried_again(tmp_path: Path) -> None:
    def inject(call: Call) -> str | None:
        ours = call.name in WRITES and not NAMES_NO_FILE_OF_OURS.search(call.line)
        return "retval=0" if ours else None

    check_all(at_each(tmp_path, nothing, 6, inject), {0})


def test_short_writes_of_every_length_lose_nothing(tmp_path: Path) -> None:
    # The limit on the size of files lets the kernel write a part, and refuse the rest.
    largest = 1600
    for limit in sample(range(0, largest, 23), 8):
        root = tmp_path / f"limit{limit}"
        root.mkdir()
        done = subprocess.run(argv(root, *ARGS, limit), capture_output=True, check=False, text=True, timeout=HUNG_S)
        assert done.returncode in (0, 3), done.stderr
        said = [json.loads(line) for line in done.stdout.splitlines()]
        check_it_goes_on(root, last_acked(said))


def test_writer_killed_at_any_moment_goes_on_under_the_same_identity(tmp_path: Path) -> None:
    identities = set()
    for turn in range(40 if FULL else 8):
        with subprocess.Popen(argv(tmp_path, 10**6, 20, 20_000), stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            said = [json.loads(worker.stdout.readline()) for _ in range(2)]
            assert said[1]["set_aside"] is None
            time.sleep(0.003 + 0.017 * turn % 0.06)
            worker.send_signal(signal.SIGKILL)
            said += [json.loads(line) for line in worker.stdout.read().splitlines() if line.endswith("}")]
        check_it_goes_on(tmp_path, last_acked(said))
        identities.add((tmp_path / "log" / epochs.IDENTITY_FILE).read_text())
    assert len(identities) == 1
