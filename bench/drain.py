"""How fast the recorder works off what waited in the ring, and how fast the index follows."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.kernel.fix_postgres import PostgresServer
    from tests.kernel.fix_watch import Watch

LIMIT_SECONDS = 300
POLL_SECONDS = 0.05
QUIET_SECONDS = 2.0
HEARTBEAT_BYTES = 4096
"""Less than this in a poll is not the backlog any more."""


class Drained(NamedTuple):
    """What waited, and how long it took."""

    events: int
    records: int
    lost: int
    recorder_seconds: float
    """From the moment at which it said that it was ready until everything was in the log."""
    index_seconds: float


def measure(watch: Watch, server: PostgresServer, transactions: int) -> Drained:
    """Stop the recorder, let events gather, start it again and take the time; then index."""
    watch.cli("index")
    watch.signal_recorder(signal.SIGTERM)
    before = watch.counters()
    words = [str(server.bin / "pgbench"), "-n", "-S", "-c", "2", "-t", str(transactions // 2)]
    agent = watch.start_agent(*words, env=server.environment("tcp"))
    _, errors = agent.communicate(timeout=LIMIT_SECONDS)
    if agent.returncode != 0:
        raise RuntimeError(errors)
    watch.start_recorder()
    recorder_seconds = _until_quiet(watch)
    watch.wait_drained()
    after = watch.counters()
    begin = time.monotonic()
    watch.cli("index", timeout=LIMIT_SECONDS)
    index_seconds = time.monotonic() - begin
    return Drained(
        after["submitted"] - before["submitted"],
        after["recorded"] - before["recorded"],
        after["lost"] - before["lost"],
        recorder_seconds,
        index_seconds,
    )


def _until_quiet(watch: Watch) -> float:
    """Return how long the log went on growing."""
    begin = grew = time.monotonic()
    size = _size(watch)
    while time.monotonic() - grew < QUIET_SECONDS:
        time.sleep(POLL_SECONDS)
        now = _size(watch)
        if now - size > HEARTBEAT_BYTES:
            grew = time.monotonic()
        size = now
    return max(grew - begin, POLL_SECONDS)


def _size(watch: Watch) -> int:
    return sum(path.stat().st_size for path in watch.log_dir.rglob("*") if path.is_file())
