"""How fast the recorder works off what waited in the ring, and how fast the index follows."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.kernel.fix_postgres import PostgresServer
    from tests.kernel.fix_watch import Watch

LIMIT_SECONDS = 300


class Drained(NamedTuple):
    """What waited, and how long it took."""

    events: int
    records: int
    lost: int
    recorder_seconds: float
    """From the start of the process until everything was in the log."""
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
    begin = time.monotonic()
    watch.start_recorder()
    watch.wait_drained()
    recorder_seconds = time.monotonic() - begin
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
