"""What the ring can take: the highest rates without a loss, and what payload that nobody reads costs."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.kernel.fix_postgres import free_port, programs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.kernel.fix_watch import Watch

LIMIT_SECONDS = 900
START_SECONDS = 30
CLIENTS = Path(__file__).parent.parent / "tests" / "kernel" / "clients"
SOURCE = Path(__file__).parent / "paced.c"
KINDS = ("exec", "send")
ROW_BYTES = 1 + 4 + 2 + 4 + 4 + 32
"""Of the message with one row of our SELECT, but for the digits of its number: tag, sizes, columns and an MD5."""


class Rate(NamedTuple):
    """One run at a rate: what was asked for, what was reached, what was lost."""

    kind: str
    wanted: int
    """A second; 0: as fast as it goes."""
    reached: float
    events: int
    lost: int
    fill: float
    """The largest part of the ring that was seen full."""


class Payload(NamedTuple):
    """Payload that nobody reads: seconds outside and inside (medians), and the bytes that a run inside gave."""

    bytes: int
    outside: float
    inside: float
    ring: int
    """Of the ring, at the most."""
    counted: int
    """That were counted and not copied: the median."""


class Rows(NamedTuple):
    """A result of many rows: what was recorded of it, and the ring bytes that it took."""

    rows: int
    recorded: int
    bytes: int
    """Counted and not copied, on average."""
    transferred: int
    """Of the rows' messages."""
    ring: int
    outside: float
    inside: float


def rates(watch: Watch, seconds: int, wanted: Sequence[int]) -> Iterator[Rate]:
    """Run at each rate for so long: processes that run a program, or send, evenly over two processes."""
    with tempfile.TemporaryDirectory(prefix="agentwatch-bench-") as folder:
        Path(folder).chmod(0o755)
        program = str(Path(folder) / "paced")
        subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", program, SOURCE], check=True)
        for kind in KINDS:
            for rate in wanted:
                yield _rate(watch, program, kind, rate, seconds)


def _rate(watch: Watch, program: str, kind: str, wanted: int, seconds: int) -> Rate:
    watch.wait_drained()
    before = watch.counters()
    agent = watch.start_agent(program, kind, str(wanted), str(seconds))
    fullest = 0
    while agent.poll() is None:
        fullest = max(fullest, int(watch.status()["backlog_bytes"] or 0))
        time.sleep(0.2)
    output, errors = agent.communicate()
    if agent.returncode != 0:
        raise RuntimeError(errors)
    watch.wait_drained()
    after = watch.counters()
    seen, lost = after["seen"] - before["seen"], after["lost"] - before["lost"]
    return Rate(kind, wanted, float(output), seen, lost, fullest / (64 << 20))


def download(watch: Watch, user: int, size: int, pairs: int) -> Payload:
    """Fetch a file over loopback HTTP, outside and inside in turn."""
    with tempfile.TemporaryDirectory(prefix="agentwatch-bench-") as folder:
        Path(folder).chmod(0o755)
        client = Path(folder) / "download.py"
        client.write_bytes((CLIENTS / "download.py").read_bytes())
        with (Path(folder) / "file").open("wb") as f:
            f.truncate(size)
        port = free_port()
        words = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", folder, str(port)]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                fetch = ["/usr/bin/python3", str(client), "127.0.0.1", str(port), "/file"]
                _until_it_answers(fetch[:-1])
                return fetch_pairs(watch, user, fetch, size, pairs)
            finally:
                server.kill()


def fetch_pairs(watch: Watch, user: int, words: Sequence[str], size: int, pairs: int) -> Payload:
    """Run a client that says how many bytes came and in how many seconds, outside and inside in turn."""
    outside, inside, ring, counted = [], [], [], []
    for _ in range(pairs):
        outside.append(_took(_outside(words, user), size))
        before, counted_before = _ring(watch), _counted(watch)
        inside.append(_took(_inside(watch, words), size))
        ring.append(_ring(watch) - before)
        counted.append(_counted(watch) - counted_before)
    return Payload(
        size, statistics.median(outside), statistics.median(inside), max(ring), round(statistics.median(counted))
    )


def select(watch: Watch, environment: dict[str, str], user: int, rows: int, pairs: int) -> Rows:
    """Have psql fetch a result of many rows from the server of an environment, outside and inside in turn."""
    sql = f"SELECT n, md5(n::text) FROM generate_series(1, {rows}) AS n"  # noqa: S608 -- a number of our own
    words = [str(programs() / "psql"), "-X", "-q", "-A", "-o", "/dev/null", "-c", sql]
    outside, inside, ring = [], [], []
    before_bytes = _counted(watch)
    for _ in range(pairs):
        began = time.monotonic()
        _outside(words, user, environment)
        outside.append(time.monotonic() - began)
        before = _ring(watch)
        began = time.monotonic()
        _inside(watch, words, environment)
        inside.append(time.monotonic() - began)
        ring.append(_ring(watch) - before)
    counted = (_counted(watch) - before_bytes) // pairs
    recorded = [r["rows"] for r in watch.records("statement") if r["db.query.text"] == sql]
    if recorded != [rows] * pairs:
        raise RuntimeError(f"recorded rows: {recorded}")
    sent = sum(ROW_BYTES + len(str(n)) for n in range(1, rows + 1))
    return Rows(rows, recorded[0], counted, sent, max(ring), statistics.median(outside), statistics.median(inside))


def _until_it_answers(words: Sequence[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run([*words, "/none"], check=False, capture_output=True).returncode:
        if time.monotonic() > deadline:
            raise RuntimeError("the web server did not start")
        time.sleep(0.1)


def _outside(words: Sequence[str], user: int, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, check=True, capture_output=True, text=True, user=user, env=env, cwd="/")
    return done.stdout


def _inside(watch: Watch, words: Sequence[str], env: dict[str, str] | None = None) -> str:
    agent = watch.start_agent(*words, env=env)
    output, errors = agent.communicate(timeout=LIMIT_SECONDS)
    if agent.returncode != 0:
        raise RuntimeError(errors)
    watch.wait_drained()
    return str(output)


def _took(output: str, size: int) -> float:
    got, seconds = output.split()
    if int(got) != size:
        raise RuntimeError(f"{got} bytes came instead of {size}")
    return float(seconds)


def _ring(watch: Watch) -> int:
    watch.wait_drained()
    return int(watch.status()["ring_position"])


def _counted(watch: Watch) -> int:
    return int(watch.status()["counted_bytes"])
