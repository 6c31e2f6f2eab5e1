"""The short form of tests/fuzz/fuzz_note.py: its invariant, on some hundred inputs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import example, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET = Path(__file__).parents[2] / "fuzz" / "fuzz_note.py"


def load_check() -> Callable[[bytes], None]:
    spec = importlib.util.spec_from_file_location("fuzz_note", TARGET)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Callable[[bytes], None] = module.check
    return made


check = load_check()
edits = st.tuples(st.integers(0, 65535), st.integers(0, 3), st.binary(max_size=4)).map(
    lambda edit: edit[0].to_bytes(2, "big") + bytes([edit[1], len(edit[2])]) + edit[2]
)
inputs = st.tuples(st.binary(min_size=1, max_size=1), st.lists(edits, max_size=3).map(b"".join)).map(b"".join)


@settings(max_examples=400, deadline=None)
@given(inputs)
@example(b"")
@example(bytes(range(8)))
@example(b"\x00\x00\x00\x00\x02\x81\x80")
def test_any_bytes_are_what_was_signed_or_refused(data: bytes) -> None:
    check(data)
