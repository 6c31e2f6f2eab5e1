"""The short form of tests/fuzz/fuzz_elf.py: its invariant, on some hundred inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwatch.kernel import elf
from tests.unit.kernel.fix_elf import functions, space_of
from tests.unit.kernel.fix_go import ENTRY, RETURNS, with_everything
from tests.unit.modules import FUZZ, load

if TYPE_CHECKING:
    from collections.abc import Callable


check: Callable[[bytes], None] = load(FUZZ / "fuzz_elf.py").check
edits = st.tuples(st.integers(0, 255), st.integers(0, 64), st.integers(0, 255), st.integers(0, 255)).map(bytes)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 40), st.lists(edits, max_size=12).map(b"".join))
def test_any_file_keeps_the_invariant(kind: int, changes: bytes) -> None:
    check(bytes([kind]) + changes)


@pytest.mark.parametrize("stripped", [True, False])
@pytest.mark.parametrize("headers", [True, False])
def test_what_is_changed_has_functions_to_begin_with(*, stripped: bool, headers: bool) -> None:
    text = space_of(".text")
    assert functions(with_everything(stripped=stripped, headers=headers), {"SSL_write", "a.B"}) == (
        elf.Function("SSL_write", text, ()),
        elf.Function("a.B", text + ENTRY, tuple(text + ENTRY + at for at in RETURNS)),
    )
