"""An arena for attacks: the attackers compiled, and a verdict on what the log knows of what they did.

In: a command, run as the agent's user under ``agentwatch run``. That the attack succeeded is never taken from
agentwatch: the server's own log, or the attacker's output, says so, and a test fails (it does not count as a hole)
when the attack did not work. Out: an ``Attack`` with the records of its session, and one of the states of
docs/bypasses.md.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import uuid
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from agentwatch.log.reader import LogReader
from agentwatch.records.encoding import decode
from tests.kernel.fix_watch import AGENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from agentwatch.records.encoding import Record
    from tests.kernel.fix_postgres import PostgresServer
    from tests.kernel.fix_watch import Watch

SOURCES = Path(__file__).parent / "bypasses"
PYTHON = "/usr/bin/python3"
END_SECONDS = 60
LATE_SECONDS = 2.0
"""How long after the end of a session a record about it may still come before it counts as missing."""
DECLARING = frozenset(("opaque", "gap", "request", "divergence", "delegation"))
"""Kinds that say that something was not seen, or not read; statements and arguments that were cut say so too."""
_LIBSSL = ("-Wl,--no-as-needed", "-l:libssl.so.3", "-l:libcrypto.so.3")
VARIANTS = {
    "preload.so": ("plain.c", "-shared", "-fPIC", "-DPRELOAD"),
    "static": ("plain.c", "-static"),
    "tls_forged": ("tls_forged.c", *_LIBSSL),
    "tls_jump": ("tls_jump.c", *_LIBSSL),
    "tls_static": ("tls_static.c", "-static", "-s", "-lssl", "-lcrypto"),
}
STATIC_LIBSSL = Path("/usr/lib/x86_64-linux-gnu/libssl.a")


def _setting(path: str) -> int:
    file = Path("/proc/sys") / path
    return int(file.read_text()) if file.exists() else 0


NEEDS_IO_URING = pytest.mark.skipif(_setting("kernel/io_uring_disabled") > 0, reason="io_uring is disabled here")
NEEDS_STATIC_LIBSSL = pytest.mark.skipif(not STATIC_LIBSSL.exists(), reason="needs libssl.a, of Debian's libssl-dev")
NEEDS_PTRACE = pytest.mark.skipif(_setting("kernel/yama/ptrace_scope") > 0, reason="Yama restricts ptrace here")


class State(StrEnum):
    """How an attack ended; the states of docs/bypasses.md."""

    COVERED = "covered"
    DECLARED = "declared"
    OPEN = "open"


COVERED, DECLARED, OPEN = State.COVERED, State.DECLARED, State.OPEN


class Unseen(AssertionError):
    """The log is silent about an attack that succeeded, or says something else."""


class Attack(NamedTuple):
    """What an attacker printed, and what was recorded of its session and of no session meanwhile."""

    session: str
    stdout: str
    records: list[Record]

    def of(self, kind: str) -> list[Record]:
        """Return the records of one kind."""
        return [record for record in self.records if record["kind"] == kind]

    def declared(self) -> list[Record]:
        """Return the records that say that something was not seen."""
        return [record for record in self.records if _declares(record)]

    def without(self, peer: str) -> Attack:
        """Leave out the records about a connection that is not the one in question."""
        return self._replace(records=[record for record in self.records if record.get("peer") != f"unix:{peer}"])

    def ran(self, *argv: str) -> bool:
        """Tell whether an exec of exactly these words is recorded."""
        return list(argv) in [record["argv"] for record in self.of("exec")]

    def techniques(self) -> set[str]:
        """Return the techniques that divergence records name."""
        return {record["technique"] for record in self.of("divergence")}

    def said(self, text: str) -> list[Record]:
        """Return the statements with this text."""
        return [record for record in self.of("statement") if record["db.query.text"] == text]


def _declares(record: Record) -> bool:
    if record["kind"] == "exec":
        return bool(record["argv_captured"] < record["argv_bytes"] or record["other_mounts"])
    return record["kind"] in DECLARING or bool(record.get("truncated"))


def seen(found: object, attack: Attack) -> State:
    """Return the state of an attack: what it did is recorded, or else it is said that something is missing."""
    if found:
        return COVERED
    return DECLARED if attack.declared() else OPEN


def not_silent(state: State) -> None:
    """Raise Unseen for an open one: how the test of a known hole fails."""
    if state is OPEN:
        raise Unseen("the attack succeeded, and nothing that is recorded says so")


class Arena:
    """A running instance, a database and the attackers."""

    def __init__(self, watch: Watch, postgres: PostgresServer, tools: Path) -> None:
        self.watch = watch
        self.postgres = postgres
        self.tools = tools

    def tool(self, name: str) -> str:
        """Return the path of a compiled attacker, or of a script beside their sources."""
        return str(self.tools / name)

    def as_agent_user(self) -> dict[str, Any]:
        """Return the arguments of Popen that start an accomplice: the agent's user, outside the watch."""
        return {"user": self.watch.user, "group": self.watch.user, "extra_groups": []}

    def position(self) -> int:
        """Return where the log ends now."""
        return LogReader(self.watch.log_dir).end()

    # Attacks

    def start(
        self, *command: str, env: Mapping[str, str] | None = None, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[str]:
        """Start an attacker as the agent's user; return at once."""
        watch = self.watch
        words = watch.command("run", "--agent", AGENT, "--user", watch.user, "--", *command)
        return subprocess.Popen(
            words,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=stdin,
            cwd=watch.root,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
        )

    def run(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        known: Callable[[Attack], object] | None = None,
        meanwhile: Callable[[], object] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> Attack:
        """Run an attacker to its end; wait for late records unless ``known`` finds what it looks for."""
        start = self.position()
        with self.start(*command, env=env, stdin=stdin) as process:
            try:
                if meanwhile is not None:
                    meanwhile()
                stdout, stderr = process.communicate(timeout=END_SECONDS)
            finally:
                process.kill()
        if process.returncode != 0:
            pytest.fail(f"the attacker failed: {command}: {process.returncode}\n{stdout[-2000:]}{stderr[-2000:]}")
        return self.collect(start, stdout, known)

    def collect(self, start: int, stdout: str = "", known: Callable[[Attack], object] | None = None) -> Attack:
        """Wait until the session that began after ``start`` is recorded to its end; return it."""
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            attack = self._attack(start, stdout)
            if attack is not None:
                break
            self.watch.check_recorder()
            time.sleep(0.05)
        else:
            pytest.fail("the session is not recorded to its end")
        late = time.monotonic() + LATE_SECONDS
        while not (known and known(attack)) and time.monotonic() < late:
            time.sleep(0.1)
            attack = self._attack(start, stdout) or attack
        return attack

    def _attack(self, start: int, stdout: str) -> Attack | None:
        records = [decode(payload) for _, payload in LogReader(self.watch.log_dir).records(start)]
        begun = [record["session"] for record in records if record["kind"] == "session_start"]
        if not begun or not any(r["kind"] == "session_end" and r["session"] == begun[-1] for r in records):
            return None
        return Attack(begun[-1], stdout, [r for r in records if r.get("session", begun[-1]) == begun[-1]])

    def sql(
        self,
        *command: str,
        transport: str = "tcp",
        env: Mapping[str, str] | None = None,
        text: str | None = None,
        meanwhile: Callable[[], object] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> tuple[State, Attack]:
        """Run an attacker that gets a statement as its last argument, or in PRELOADED_TEXT, and has it executed.

        The statement is one that nobody sent before. Fails if the server's log does not have it.
        """
        text = text or self.statement()
        position = self.postgres.log_position()
        environment = {**self.postgres.environment(transport), "PRELOADED_TEXT": text, **(env or {})}
        attack = self.run(
            *command, text, env=environment, known=lambda a: a.said(text), meanwhile=meanwhile, stdin=stdin
        )
        logged = [entry.text for entries in self.postgres.logged_since(position).values() for entry in entries]
        if logged.count(text) != 1:
            pytest.fail(f"the server ran the statement {logged.count(text)} times: {logged}")
        return self.verdict(text, attack), attack

    @staticmethod
    def verdict(text: str, attack: Attack) -> State:
        """Return the state of a statement that the server ran once."""
        said = attack.said(text)
        return seen(len(said) == 1 and said[0]["outcome"] == "ok" and said[0]["rows"] == 1, attack)

    @staticmethod
    def statement() -> str:
        """Return a statement that nobody sent before."""
        return f"SELECT 'bypass {uuid.uuid4()}'"

    @staticmethod
    def slow_statement() -> str:
        """Return a statement that nobody sent before and that keeps the server busy for a while."""
        return f"{Arena.statement()} FROM pg_sleep(0.6)"


def compile_all(folder: Path) -> None:
    """Compile every attacker into a folder and put the scripts beside them."""
    for source in SOURCES.glob("*.c"):
        if source.stem not in VARIANTS:
            _compile(folder / source.stem, source)
    for name, (source_name, *options) in VARIANTS.items():
        if "-lssl" not in options or STATIC_LIBSSL.exists():
            _compile(folder / name, SOURCES / source_name, *options)
    for script in SOURCES.glob("*.py"):
        shutil.copy(script, folder)


def _compile(target: Path, source: Path, *options: str) -> None:
    words: Sequence[str] = ("gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread")
    done = subprocess.run([*words, "-o", target, source, *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"gcc {source.name}: {done.stderr}")


@pytest.fixture(scope="session")
def attackers() -> Iterator[Path]:
    """The folder of the compiled attackers, which the agent's user may read."""
    folder = Path(tempfile.mkdtemp(prefix="agentwatch-attackers-"))
    try:
        folder.chmod(0o755)
        compile_all(folder)
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def arena(watch: Watch, postgres: PostgresServer, attackers: Path) -> Arena:
    """An arena for each test file."""
    return Arena(watch, postgres, attackers)
