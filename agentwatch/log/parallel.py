"""Run jobs on all cores, or here where that is not worth it. Results come in the order of the jobs."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

J = TypeVar("J")
R = TypeVar("R")


class Runner:
    """Processes that live as long as this; with one worker there are none. Jobs and functions have to pickle."""

    def __init__(self, workers: int | None = None) -> None:
        """``workers``: processes; None: one for each core that this process may use."""
        count = len(os.sched_getaffinity(0)) if workers is None else workers
        # Not fork: the caller may have threads.
        self._pool = ProcessPoolExecutor(count, mp_context=get_context("spawn")) if count > 1 else None

    def map(self, function: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
        """Yield the result of each job. Raises what a job raises."""
        if self._pool is None:
            return map(function, jobs)
        return self._pool.map(function, jobs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
