"""A jump of the wall clock is told, a drift is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.config import Config
from agentwatch.observation import clock
from agentwatch.observation.observer import Observer

if TYPE_CHECKING:
    from pathlib import Path

MS = 1_000_000
OFFSETS = st.integers(-(2**62), 2**62)


@pytest.mark.parametrize("change", [0, 1, -1, 100 * MS, -100 * MS])
def test_a_small_change_is_no_step(change: int) -> None:
    assert clock.step(10**18, 10**18 + change) is None


@given(OFFSETS, OFFSETS)
def test_a_step_is_what_was_added(before: int, after: int) -> None:
    found = clock.step(before, after)
    assert found is None or before + found == after
    assert (found is None) == (abs(after - before) <= clock.STEP_NS)


def test_an_interruption_between_the_readings_is_not_taken_for_a_step() -> None:
    boot = iter([0, 500 * MS, 1000 * MS, 1000 * MS + 10])
    wall = iter([10**18 + 500 * MS, 10**18 + 1000 * MS + 5])
    assert clock.offset(lambda: next(wall), lambda: next(boot)) == 10**18


def test_the_closest_readings_count_when_all_are_interrupted() -> None:
    boot = iter([0, 90 * MS, 100 * MS, 110 * MS, 200 * MS, 290 * MS, 300 * MS, 390 * MS, 400 * MS, 490 * MS])
    wall = iter([90 * MS, 105 * MS, 290 * MS, 390 * MS, 490 * MS])
    assert clock.offset(lambda: next(wall), lambda: next(boot)) == 0


def test_the_observer_records_steps_and_follows_the_clock(tmp_path: Path) -> None:
    observer = Observer(Config(cgroup_root=tmp_path), "host", "boot")
    observer.set_clock(10**18)
    assert observer.set_clock(10**18 + 50 * MS) == []
    assert observer.set_clock(10**18 + 140 * MS) == []  # of the drift until then nothing is left
    (record,) = observer.set_clock(10**18 - 1860 * MS)
    assert (record["kind"], record["step_ns"]) == ("clock_step", -2000 * MS)
    assert (record["before"], record["after"]) == (10**18 + 140 * MS, 10**18 - 1860 * MS)
    assert record["time"] - record["boottime"] == record["after"]
    assert observer.set_clock(10**18 - 1860 * MS) == []
