"""The short form of tests/fuzz/fuzz_segment.py: its invariant, on some hundred inputs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import example, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET = Path(__file__).parents[2] / "fuzz" / "fuzz_segment.py"


def load_check() -> Callable[[bytes], None]:
    spec = importlib.util.spec_from_file_location("fuzz_segment", TARGET)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Callable[[bytes], None] = module.check
    return made


check = load_check()
steps = st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)).map(bytes)


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=25).map(b"".join))
@example(b"")
@example(bytes.fromhex("f6ffffd9fef7fd0106ff010059595920"))  # a record behind a damaged header told too high a number
@example(bytes([7, 1, 0, *[0, 10, 65] * 6, 5, 0, 70]))
def test_reading_and_recovering_any_segments_keeps_the_invariant(data: bytes) -> None:
    check(data)
