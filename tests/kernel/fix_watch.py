"""A whole agentwatch under a temporary root: configuration, probes, recorder, agents.

Everything is done through the command line, as a user would. Each instance has its own pins, its own watch root
in the cgroup tree and its own log, so instances do not see each other.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import psycopg
import psycopg_binary
import pytest
import typing_extensions

from agentwatch.config import find_cgroup2_mount
from agentwatch.log.reader import LogReader
from agentwatch.log.sealing import set_append_only
from agentwatch.records.encoding import decode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agentwatch.records.encoding import Record

READY_SECONDS = 60
STOP_SECONDS = 30
SETTLE_SECONDS = 600
AGENT = "agent-test"
SCANNED = ("/usr/lib/x86_64-linux-gnu",)
"""Where TLS libraries are looked for when the probes are loaded: less than by default, which takes seconds."""

Row = dict[str, Any]


class Run(NamedTuple):
    """What a command under ``agentwatch run`` did, and the session that it was."""

    session: str
    returncode: int
    stdout: str
    stderr: str


class Watch:
    """One instance. ``start`` loads the probes and starts the recorder, ``stop`` undoes it."""

    def __init__(  # noqa: PLR0913 -- each a line of the configuration
        self,
        user: str,
        *,
        ring_bytes: int | None = None,
        overflow: str = "count",
        canary_seconds: int = 0,
        first_use: str = "declare",
        scan: Sequence[str] = SCANNED,
    ) -> None:
        self.user = user
        self.root = Path(tempfile.mkdtemp(prefix="agentwatch-test-"))
        self.root.chmod(0o755)  # what refuses the agent's user must be the log's own permissions
        name = self.root.name
        self.config = self.root / "agentwatch.toml"
        self.log_dir = self.root / "log"
        self.run_dir = self.root / "run"
        self.pin_dir = Path("/sys/fs/bpf") / name
        self.slice = f"{name}.slice"
        self.cgroup = find_cgroup2_mount() / self.slice
        self.recorder: subprocess.Popen[str] | None = None
        ring = "" if ring_bytes is None else f"ring_bytes = {ring_bytes}\n"
        self.config.write_text(
            f'log_dir = "{self.log_dir}"\nstate_dir = "{self.root}/state"\nrun_dir = "{self.run_dir}"\n'
            f'pin_dir = "{self.pin_dir}"\nwatch = "{self.slice}"\n{ring}'
            f"canary_seconds = {canary_seconds}\n"  # off: tests count events and look for processes in the cgroups
            f'[[agent]]\nname = "{AGENT}"\ncgroup = "{self.slice}/{AGENT}*"\noverflow = "{overflow}"\n'
            f'[tls]\nfirst_use = "{first_use}"\nscan = {json.dumps(list(scan))}\n'
        )

    # The command line

    def command(self, *args: str) -> list[str]:
        """Return the words that run agentwatch on this instance."""
        return [str(Path(sys.executable).with_name("agentwatch")), "--config", str(self.config), *args]

    def cli(self, *args: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command of agentwatch to its end."""
        done = subprocess.run(self.command(*args), capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode != 0:
            pytest.fail(f"agentwatch {' '.join(args)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def rows(self, *args: str) -> list[Row]:
        """Run a command with --json and return its objects (an answer with reservations is an answer)."""
        done = self.cli(*args, "--json", check=False)
        try:
            return [json.loads(line) for line in done.stdout.splitlines()]
        except ValueError as e:
            pytest.fail(f"agentwatch {' '.join(args)} --json: {e}\n{done.stdout[:2000]}{done.stderr[:2000]}")

    def status(self) -> Row:
        """Return the counters and the recorder's state."""
        return self.rows("status")[0]

    def counters(self) -> dict[str, int]:
        """Return the counters of ``status --json``."""
        status = self.status()
        return {
            name: int(status[name]) for name in ("seen", "submitted", "lost", "received", "undecodable", "recorded")
        }

    def wait_drained(self) -> None:
        """Return when the recorder has received all that the kernel submitted and no longer writes."""
        deadline = time.monotonic() + SETTLE_SECONDS
        recorded = -1
        while time.monotonic() < deadline:
            self.check_recorder()
            now = self.counters()
            if now["submitted"] == now["received"] + now["undecodable"] and now["recorded"] == recorded:
                return
            recorded = now["recorded"]
            time.sleep(0.1)
        pytest.fail(f"the recorder is behind after {SETTLE_SECONDS} s: {self.status()}")

    # Life

    def start(self) -> None:
        """Load the probes and start the recorder."""
        self.cli("probes", "load")
        self.start_recorder()

    def start_recorder(self) -> None:
        """Start ``agentwatch record`` and wait until it says that it is ready."""
        with (self.root / "recorder.err").open("a") as errors:
            self.recorder = subprocess.Popen(
                self.command("record"), stdout=subprocess.PIPE, stderr=errors, text=True, stdin=subprocess.DEVNULL
            )
        assert self.recorder.stdout is not None
        deadline = time.monotonic() + READY_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self.recorder.stdout, selectors.EVENT_READ)
            while time.monotonic() < deadline:
                if selector.select(0.5):
                    line = self.recorder.stdout.readline()
                    if "ready" in line:
                        return
                    if not line:
                        break
        pytest.fail(f"the recorder did not become ready:\n{self.recorder_errors()}")

    def recorder_errors(self) -> str:
        """Return the end of what the recorder wrote on stderr."""
        path = self.root / "recorder.err"
        return path.read_text()[-4000:] if path.exists() else ""

    def signal_recorder(self, number: int = signal.SIGTERM) -> int:
        """Send the recorder a signal that ends it, wait, return its exit status."""
        assert self.recorder is not None
        self.recorder.send_signal(number)
        status = self.recorder.wait(STOP_SECONDS)
        assert self.recorder.stdout is not None
        self.recorder.stdout.close()
        return status

    def stop(self) -> None:
        """End what was started, by process id, and remove the pins, the cgroups and the files."""
        for pid in self.agent_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.recorder is not None and self.recorder.poll() is None:
            try:
                self.signal_recorder()
            except subprocess.TimeoutExpired:
                self.signal_recorder(signal.SIGKILL)
        self.cli("probes", "unload", check=False)
        shutil.rmtree(self.pin_dir, ignore_errors=True)
        deadline = time.monotonic() + STOP_SECONDS
        while self.agent_pids() and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.cgroup.exists():
            for directory in sorted(self.cgroup.rglob("*/"), reverse=True):
                directory.rmdir()
            self.cgroup.rmdir()
        for sealed in self.root.rglob("*.segment.zst"):
            set_append_only(sealed, on=False)
        shutil.rmtree(self.root, ignore_errors=True)

    def agent_pids(self) -> list[int]:
        """Return the processes in the cgroups of the watch."""
        return [int(pid) for path in self.cgroup.rglob("cgroup.procs") for pid in path.read_text().split()]

    # Agents

    def wait_agent_pid(self) -> int:
        """Return the first process that is in an agent's cgroup."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if pids := self.agent_pids():
                return pids[0]
            time.sleep(0.02)
        pytest.fail("no process appeared in the agent's cgroup")

    def start_agent(self, *command: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command as the agent's user in a session of its own and return at once."""
        words = self.command("run", "--agent", AGENT, "--user", self.user, "--", *command)
        return subprocess.Popen(
            words,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd=self.root,
            env={**_PLAIN_ENVIRONMENT, **(env or {})},
        )

    def run(self, *command: str, env: Mapping[str, str] | None = None, timeout: float = 240, check: bool = True) -> Run:
        """Run a command as the agent's user; return when its session is wholly recorded and indexed."""
        before = {row["session"] for row in self.rows("sessions")}
        process = self.start_agent(*command, env=env)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        if check and process.returncode != 0:
            pytest.fail(
                f"{' '.join(command)[:500]}: exit status {process.returncode}\n{stdout[-2000:]}{stderr[-2000:]}"
            )
        return Run(self.ended_session(before), process.returncode, stdout, stderr)

    def ended_session(self, before: set[str]) -> str:
        """Return the session that is not in ``before``, once it is recorded to its end and indexed."""
        deadline = time.monotonic() + SETTLE_SECONDS
        new: list[Row] = []
        while time.monotonic() < deadline:
            self.check_recorder()
            self.cli("index")
            new = [row for row in self.rows("sessions") if row["session"] not in before]
            if new and all(row["ended"] for row in new):
                assert len(new) == 1, f"one run gave {len(new)} sessions"
                session: str = new[0]["session"]
                return session
            time.sleep(0.1)
        pytest.fail(f"the session is not recorded to its end in {SETTLE_SECONDS} s: {new}; {self.status()}")

    def check_recorder(self) -> None:
        """Fail if the recorder ended by itself."""
        if self.recorder is not None and self.recorder.poll() is not None:
            pytest.fail(f"the recorder ended with {self.recorder.returncode}:\n{self.recorder_errors()}")

    # Answers

    def session(self, session: str) -> Row:
        """Return the row of one session."""
        return next(row for row in self.rows("sessions") if row["session"] == session)

    def statements(self, session: str) -> list[Row]:
        """Return the statements of a session in the order of the log."""
        return sorted(self.rows("statements", "--session", session), key=lambda row: int(row["seq"]))

    def records(self, kind: str) -> list[Record]:
        """Return the records of one kind as they stand in the log."""
        records = (decode(payload) for _, payload in LogReader(self.log_dir).records())
        return [record for record in records if record["kind"] == kind]

    def final_opaque(self, session: str) -> list[Record]:
        """Return the last words about the unread connections of a session that ended; they come a moment after it."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            found = [r for r in self.records("opaque") if r.get("session") == session and r["final"]]
            if found:
                return found
            self.check_recorder()
            time.sleep(0.1)
        pytest.fail(f"no final record of a connection of session {session}")

    def commands(self, session: str) -> list[Row]:
        """Return the commands (execs) of a session in the order of the log."""
        found = [row for row in self.rows("commands") if row["session"] == session]
        return sorted(found, key=lambda row: int(row["seq"]))


_PLAIN_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


@pytest.fixture(scope="session")
def agent_user() -> Iterator[str]:
    """An ordinary user without privileges, made for this run."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make a user")
    name = f"awtest-{uuid.uuid4().hex[:8]}"
    subprocess.run(["/usr/sbin/useradd", "--system", "--no-create-home", "--shell", "/bin/sh", name], check=True)
    try:
        yield name
    finally:
        uid = pwd.getpwnam(name).pw_uid
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.uids().real == uid:
                    process.kill()
        subprocess.run(["/usr/sbin/userdel", name], check=True, capture_output=True)
        with contextlib.suppress(KeyError):
            pytest.fail(f"the group {grp.getgrnam(name).gr_name} is left")


@pytest.fixture(scope="session")
def agent_python() -> Iterator[Sequence[str]]:
    """The words that run Python with psycopg 3 as any user (the checkout may lie where the agent cannot go)."""
    root = Path(tempfile.mkdtemp(prefix="agentwatch-python-"))
    try:
        root.chmod(0o755)
        for module in (psycopg, psycopg_binary):
            assert module.__file__ is not None
            source = Path(module.__file__).parent
            shutil.copytree(source, root / source.name, ignore=shutil.ignore_patterns("__pycache__"))
            libraries = source.with_name(f"{source.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, root / libraries.name)
        shutil.copy(typing_extensions.__file__, root)
        yield ("/usr/bin/env", f"PYTHONPATH={root}", "PYTHONDONTWRITEBYTECODE=1", os.path.realpath(sys.executable))
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def watch(agent_user: str) -> Iterator[Watch]:
    """A running instance, one for each test file."""
    yield from running(Watch(agent_user))


@pytest.fixture
def own_watch(agent_user: str) -> Iterator[Watch]:
    """A running instance for one test that does it harm."""
    yield from running(Watch(agent_user))


def running(instance: Watch) -> Iterator[Watch]:
    """Yield an instance while it runs."""
    try:
        instance.start()
        yield instance
    finally:
        instance.stop()
