"""Taking times: runs of several things in turn, so that a slow drift of the machine meets all of them."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def in_turn(runs: int, actions: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Do all actions, ``runs`` times over; return the figures that each gave."""
    figures: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(runs):
        for name, action in actions.items():
            figures[name].append(action())
    return figures


def seconds(action: Callable[[], object], clock: Callable[[], float] = time.monotonic) -> float:
    """Return how long it took; by ``time.process_time``: of this process alone, whatever else runs."""
    begin = clock()
    action()
    return clock() - begin


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this process, and what it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
