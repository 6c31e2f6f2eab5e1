"""The distance between the wall clock and the time since boot, and when it was changed by a jump."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

STEP_NS = 100_000_000
"""A change of the distance by more than this between two looks is a step; what is smaller is the clock being slewed,
which time servers do by at most 0.5 ms in a second."""
_TRIES = 5
_CLOSE_NS = 1_000_000
"""Readings that lie closer together are good enough; the process may be interrupted between them."""


def offset(
    wall: Callable[[], int] = time.time_ns,
    boot: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
) -> int:
    """Return CLOCK_REALTIME minus CLOCK_BOOTTIME in ns, from the readings that lie closest together."""
    best: tuple[int, int] | None = None
    for _ in range(_TRIES):
        before, now, after = boot(), wall(), boot()
        found = after - before, now - (before + after) // 2
        if best is None or found < best:
            best = found
        if found[0] < _CLOSE_NS:
            break
    assert best is not None  # noqa: S101 -- there was a try
    return best[1]


def step(before: int, after: int) -> int | None:
    """Return by how much the wall clock jumped between two offsets; None if it did not."""
    change = after - before
    return change if abs(change) > STEP_NS else None
