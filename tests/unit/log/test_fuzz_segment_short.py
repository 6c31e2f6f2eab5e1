"""The short form of tests/fuzz/fuzz_segment.py: its invariant, on some hundred inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.modules import FUZZ, load

if TYPE_CHECKING:
    from collections.abc import Callable


check: Callable[[bytes], None] = load(FUZZ / "fuzz_segment.py").check
steps = st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)).map(bytes)


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=25).map(b"".join))
@example(b"")
@example(bytes.fromhex("f6ffffd9fef7fd0106ff010059595920"))  # a record behind a damaged header told too high a number
@example(bytes([7, 1, 0, *[0, 10, 65] * 6, 5, 0, 70]))
def test_reading_and_recovering_any_segments_keeps_the_invariant(data: bytes) -> None:
    check(data)
