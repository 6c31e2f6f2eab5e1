"""A real disk that is full under a real recorder: what each policy of ``[log] disk_full`` comes to.

The log is on an ext4 of its own (a tmpfs as well in a full run), filled to the last block by another file. The recorder
has lower limits than usual (``LIMITS``), so that megabytes do what would otherwise take hundreds.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from agentwatch import journal, state
from agentwatch.errors import RecordsPruned
from agentwatch.log.reader import LogReader
from agentwatch.log.writer import SEGMENT_BYTES
from agentwatch.records.encoding import decode
from tests.kernel.compare import differences
from tests.kernel.extent import FULL, short
from tests.kernel.fix_watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agentwatch.errors import SegmentDamaged
    from agentwatch.records.encoding import Record
    from tests.kernel.fix_postgres import PostgresServer

pytestmark = pytest.mark.kernel

DISK = "48M"
PATIENCE_SECONDS = 120
LIMITS = """
import sys
from agentwatch.log import writer
writer.SEGMENT_BYTES = {segment}
from agentwatch import journal, state
journal.MAX_WAITING_BYTES = {waiting}
from agentwatch.cli import main
main(prog_name="agentwatch")
"""
SMALL_RING, LARGE_RING = 256 * 1024, 16 * 1024 * 1024
SMALL_SEGMENT = 1024 * 1024
LITERAL_BYTES = 16 * 1024
FAULTS = ["no space", "space again"]
MUCH, LITTLE = 500, 280
"""Statements: so many do not find room in a segment that was begun, with 5 MiB allocated; so many only in its reserve,
the last of these."""


class Disk:
    """A file system of its own, which can be filled and emptied."""

    def __init__(self, root: Path, kind: str) -> None:
        self.path = root / "disk"
        self.path.mkdir()
        self._filler = self.path / "filler"
        self._closing = threading.Event()
        self._hog: threading.Thread | None = None
        if kind == "ext4":
            image = root / "disk.img"
            subprocess.run(["truncate", "-s", DISK, image], check=True)
            # No blocks that only root may use: the recorder is root.
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
            subprocess.run(["mount", "-o", "loop", image, self.path], check=True)
        else:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", self.path], check=True)

    def fill(self, size: int = 1024 * 1024) -> None:
        """Take what is free, to the last byte that a file can have, ``size`` at a time to begin with."""
        with self._filler.open("ab", buffering=0) as file:
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2

    def keep_full(self) -> None:
        """Fill it, and take whatever becomes free from now on, until ``free``."""
        self.fill()
        self._closing.clear()
        self._hog = threading.Thread(target=self._take)
        self._hog.start()

    def free(self) -> None:
        """Give everything back."""
        self._let_go()
        self._filler.unlink()

    def close(self) -> None:
        """Unmount it, whoever still uses it."""
        self._let_go()
        subprocess.run(["umount", "-l", self.path], check=True)

    def _let_go(self) -> None:
        self._closing.set()
        if self._hog is not None:
            self._hog.join()
            self._hog = None

    def _take(self) -> None:
        while not self._closing.wait(0.005):
            self.fill(4096)


class Limited(Watch):
    """An instance with probes that are loaded once, and a recorder for each test, with a log on such a disk."""

    def __init__(self, user: str, ring_bytes: int) -> None:
        super().__init__(user, ring_bytes=ring_bytes)
        self._template = self.config.read_text()
        self._limits: dict[str, int] = {}

    def begin(self, disk: Disk, policy: str, limits: dict[str, int]) -> None:
        """Start a recorder that knows of none before it."""
        self._limits = limits
        self.log_dir = disk.path / "log"
        configured = self._template.replace(str(self.root / "log"), str(self.log_dir))
        configured = configured.replace(str(self.root / "state"), str(disk.path.parent / "state"))
        self.config.write_text(f'{configured}[log]\ndisk_full = "{policy}"\n')
        self.start_recorder()

    def end(self) -> None:
        """Stop it, and the agents."""
        for pid in self.agent_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.recorder is not None and self.recorder.poll() is None:
            self.signal_recorder(signal.SIGKILL)
        (self.run_dir / state.FILE).unlink(missing_ok=True)

    def command(self, *args: str) -> list[str]:
        """Return the words that run agentwatch, the recorder with lower limits."""
        if args != ("record",):
            return super().command(*args)
        return [sys.executable, "-c", LIMITS.format(**self._limits), "--config", str(self.config), *args]

    def payloads(self) -> list[bytes]:
        """Return the records of the log, in order, as they are stored; what was pruned may be missing."""
        return [payload for _, payload in LogReader(self.log_dir).records(on_damage=_only_pruned)]

    def everything(self) -> list[Record]:
        """Return the records of the log, in order."""
        return [decode(payload) for payload in self.payloads()]

    def records(self, kind: str) -> list[Record]:
        """Return the records of one kind as they stand in the log."""
        return [record for record in self.everything() if record["kind"] == kind]


class Starter:
    """Starts a recorder on a new disk, and clears both away."""

    def __init__(self, loaded: Limited, root: Path, kind: str, stack: contextlib.ExitStack) -> None:
        self._loaded = loaded
        self._root = root
        self._kind = kind
        self._stack = stack

    def start(
        self,
        policy: str,
        *,
        waiting: int = journal.MAX_WAITING_BYTES,
        segment: int = SEGMENT_BYTES,
        ring_bytes: int | None = None,
    ) -> tuple[Limited, Disk]:
        """Start one. ``waiting`` bytes are kept in memory at the most, ``segment`` is what a segment has.

        With ``ring_bytes`` it has probes of its own.
        """
        disk = Disk(self._root, self._kind)
        self._stack.callback(disk.close)
        watch = self._loaded
        if ring_bytes is not None:
            watch = Limited(watch.user, ring_bytes)
            self._stack.callback(watch.stop)
            watch.cli("probes", "load")
        self._stack.callback(watch.end)
        watch.begin(disk, policy, {"waiting": waiting, "segment": segment})
        return watch, disk


@pytest.fixture(scope="module")
def loaded(agent_user: str) -> Iterator[Limited]:
    instance = Limited(agent_user, LARGE_RING)
    try:
        instance.cli("probes", "load")
        yield instance
    finally:
        instance.stop()


@pytest.fixture(params=short(["ext4"], ["tmpfs"]))
def starter(loaded: Limited, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Starter]:
    with contextlib.ExitStack() as stack:
        yield Starter(loaded, tmp_path, request.param, stack)


def test_wait_records_everything_once_there_is_space(starter: Starter, postgres: PostgresServer) -> None:
    watch, disk = starter.start("wait")
    watch.run("/bin/true")
    known = {row["session"] for row in watch.rows("sessions")}
    before = watch.payloads()
    start = postgres.log_position()
    disk.keep_full()
    process = psql(watch, postgres, MUCH)
    await_full(watch)
    assert [r["operation"] for r in watch.records("fault")] == FAULTS[:1]
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    time.sleep(2)  # while it is full nothing says that it is over, however often the disk is asked
    assert "the disk is full" in watch.status()["fault"]
    assert [r["operation"] for r in watch.records("fault")] == FAULTS[:1]
    disk.free()
    session = watch.ended_session(known)
    assert differences(postgres.logged_since(start), watch.statements(session)) == []
    assert watch.payloads()[: len(before)] == before
    assert_recorded_without_omission(watch, session)
    faults = watch.records("fault")
    assert [r["operation"] for r in faults] == FAULTS
    assert {r["policy"] for r in faults} == {"wait"}
    assert watch.records("gap") == []
    assert watch.status()["fault"] is None
    await_signed(watch)


def test_a_recorder_that_has_nothing_to_write_finds_the_space_that_is_free_again(
    starter: Starter, postgres: PostgresServer
) -> None:
    watch, disk = starter.start("wait")
    disk.fill()
    psql_ends(watch, postgres, LITTLE)
    await_full(watch)
    time.sleep(2)
    assert [r["operation"] for r in watch.records("fault")] == FAULTS[:1]
    disk.free()
    await_true(lambda: watch.status()["fault"] is None, "the fault is over")
    assert [r["operation"] for r in watch.records("fault")] == FAULTS


@pytest.mark.skipif(not FULL, reason="in a full run")
def test_wait_counts_what_found_no_room_in_the_ring(starter: Starter, postgres: PostgresServer) -> None:
    watch, disk = starter.start("wait", waiting=SMALL_RING, ring_bytes=SMALL_RING)
    disk.fill()
    process = psql(watch, postgres, MUCH)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    assert watch.status()["lost"] > 0
    disk.free()
    watch.wait_drained()
    status = watch.status()
    lost = [r for r in watch.records("gap") if r["cause"] == "ring-full"]
    assert sum(r["count"] for r in lost) == status["lost"]
    assert (status["seen"], status["unaccounted"]) == (status["submitted"] + status["lost"], 0)
    await_signed(watch)


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed"])
def test_hold_lets_agents_wait_and_loses_nothing(starter: Starter, postgres: PostgresServer, *, killed: bool) -> None:
    watch, disk = starter.start("hold", waiting=SMALL_RING)
    start = postgres.log_position()
    disk.keep_full()
    psql_ends(watch, postgres, LITTLE)
    await_full(watch)
    process = pgbench(watch, postgres)
    await_true(lambda: watch.status()["held"] > 0, "the agent waits")
    time.sleep(1)
    assert process.poll() is None
    if killed:
        watch.signal_recorder(signal.SIGKILL)
    disk.free()
    if killed:
        watch.start_recorder()
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    sessions = recorded_to_their_end(watch, 2)
    statements = [row for session in sessions for row in watch.statements(session)]
    assert differences(postgres.logged_since(start), statements) == []
    for session in sessions:
        assert_recorded_without_omission(watch, session)
    assert watch.status()["lost"] == 0
    assert watch.records("gap") == []
    await_signed(watch)


def test_drop_oldest_prunes_what_nobody_holds(starter: Starter, postgres: PostgresServer) -> None:
    watch, disk = starter.start("drop-oldest", segment=SMALL_SEGMENT)
    start = postgres.log_position()
    psql_ends(watch, postgres, 100)
    (held,) = recorded_to_their_end(watch, 1)
    watch.cli("hold", held, "--reason", "case 7")
    psql_ends(watch, postgres, 600)
    old = set(recorded_to_their_end(watch, 2))
    assert differences(postgres.logged_since(start), [row for s in old for row in watch.statements(s)]) == []
    start = postgres.log_position()
    disk.fill()
    psql_ends(watch, postgres, 400)
    (session,) = set(recorded_to_their_end(watch, 3)) - old
    assert differences(postgres.logged_since(start), watch.statements(session)) == []
    assert_recorded_without_omission(watch, session)
    assert_recorded_without_omission(watch, held)
    await_signed(watch)
    pruned = watch.records("prune")
    assert {r["reason"] for r in pruned} == {"disk-full"}
    (verdict,) = watch.rows("verify", "--log", str(watch.log_dir))
    assert verdict["pruned"] == sum(end - first for first, end in pruned[-1]["pruned"]) > 0
    assert [r["operation"] for r in watch.records("fault")][:2] == FAULTS
    assert watch.records("gap") == []


def test_stop_says_so_in_the_log_and_the_next_recorder_has_the_rest(starter: Starter, postgres: PostgresServer) -> None:
    watch, disk = starter.start("stop")
    watch.run("/bin/true")
    known = {row["session"] for row in watch.rows("sessions")}
    before = watch.payloads()
    start = postgres.log_position()
    disk.keep_full()
    process = psql(watch, postgres, MUCH)
    assert watch.recorder is not None
    assert watch.recorder.stdout is not None
    with watch.recorder.stdout:
        assert watch.recorder.wait(PATIENCE_SECONDS) == 74
    assert "make space" in watch.recorder_errors()
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    stopped = watch.everything()
    assert [r["operation"] for r in stopped if r["kind"] == "fault"] == FAULTS[:1]
    assert [(r["kind"], r.get("cause")) for r in stopped[-2:]] == [("gap", "disk-full"), ("observer_stop", None)]
    assert watch.payloads()[: len(before)] == before
    assert watch.status()["recorder"] == "stopped"
    assert watch.cli("record", check=False).returncode == 74  # still full
    assert watch.everything() == stopped
    disk.free()
    watch.start_recorder()
    session = watch.ended_session(known)
    assert differences(postgres.logged_since(start), watch.statements(session)) == []
    assert watch.everything()[: len(stopped)] == stopped
    assert_recorded_without_omission(watch, session)
    assert watch.status()["lost"] == 0
    assert {r["cause"] for r in watch.records("gap")} == {"disk-full"}
    await_signed(watch)


def _only_pruned(damage: SegmentDamaged) -> None:
    if not isinstance(damage, RecordsPruned):
        raise damage


def psql(watch: Watch, postgres: PostgresServer, statements: int) -> subprocess.Popen[str]:
    """Start an agent that runs this many statements of LITERAL_BYTES, which hardly compress."""
    script = watch.root / "script.sql"
    chance = random.Random(statements)  # noqa: S311 -- bytes that do not compress
    literals = (chance.randbytes(LITERAL_BYTES // 2).hex() for _ in range(statements))
    script.write_text("".join(f"SELECT length('{literal}');\n" for literal in literals))
    script.chmod(0o644)
    words = [str(postgres.bin / "psql"), "-Xqo", "/dev/null", "-f", str(script)]
    return watch.start_agent(*words, env=postgres.environment("unix"))


def pgbench(watch: Watch, postgres: PostgresServer) -> subprocess.Popen[str]:
    """Start an agent that runs statements for five seconds, more than half of a LARGE_RING."""
    script = watch.root / "script.sql"
    script.write_text(f"\\set n random(1, 1000000000)\nSELECT :n, length('{'x' * LITERAL_BYTES}');\n")
    script.chmod(0o644)
    words = [str(postgres.bin / "pgbench"), "-n", "-t", "1000", "--rate", "200", "-f", str(script)]
    return watch.start_agent(*words, env=postgres.environment("unix"))


def psql_ends(watch: Watch, postgres: PostgresServer, statements: int) -> None:
    """Run such an agent to its end, which need not be recorded."""
    process = psql(watch, postgres, statements)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors


def recorded_to_their_end(watch: Watch, number: int) -> list[str]:
    """Return the sessions, once so many are recorded to their end and indexed."""
    ended: list[str] = []

    def found() -> bool:
        watch.check_recorder()
        watch.cli("index")
        ended[:] = [row["session"] for row in watch.rows("sessions") if row["ended"]]
        return len(ended) == number

    await_true(found, f"{number} sessions end")
    return ended


def await_true(condition: Callable[[], bool], what: str) -> None:
    """Return once it is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.1)


def await_full(watch: Watch) -> None:
    """Return once ``agentwatch status`` says that the disk is full."""
    await_true(lambda: "the disk is full" in str(watch.status()["fault"]), "status tells of the full disk")


def await_signed(watch: Watch) -> None:
    """Return once the log is whole and all of it is signed.

    On a full disk a segment is removed half a second before the record that says so is signed.
    """

    def signed() -> bool:
        (verdict,) = watch.rows("verify", "--log", str(watch.log_dir))
        assert (verdict["epochs"], verdict["foreign"]) == (1, [])
        return bool(verdict["intact"] and verdict["unsigned"] == 0)

    await_true(signed, "all is signed, and intact")
    assert [path.name for path in watch.log_dir.iterdir() if path.name.startswith("broken-")] == []


def assert_recorded_without_omission(watch: Limited, session: str) -> None:
    """Every record of the session is in the log, in its order."""
    numbers = [r["session_seq"] for r in watch.everything() if r.get("session") == session]
    assert numbers == list(range(len(numbers)))
