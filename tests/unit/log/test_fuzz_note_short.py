"""The short form of tests/fuzz/fuzz_note.py: its invariant, on some hundred inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.modules import FUZZ, load

if TYPE_CHECKING:
    from collections.abc import Callable


check: Callable[[bytes], None] = load(FUZZ / "fuzz_note.py").check
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
