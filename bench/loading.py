"""How long the loader takes: compile, attach, pin."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.kernel.fix_watch import Watch

ROUNDS = 3


def measure(watch: Watch) -> float:
    """Return the median wall time of ``agentwatch probes load`` in seconds; the probes are unloaded afterwards."""
    times = []
    for _ in range(ROUNDS):
        begin = time.monotonic()
        watch.cli("probes", "load")
        times.append(time.monotonic() - begin)
        watch.cli("probes", "unload")
    return statistics.median(times)
