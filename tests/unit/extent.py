"""How much of the long tests is run: all by "make acceptance" (AGENTWATCH_TEST_FULL=1), an even sample otherwise."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

FULL = os.environ.get("AGENTWATCH_TEST_FULL") == "1"


def sample(cases: Sequence[T], count: int) -> list[T]:
    """Return ``count`` of the cases, evenly spread, the first and the last among them; all of them in a full run."""
    if FULL or len(cases) <= count:
        return list(cases)
    return [cases[at * (len(cases) - 1) // (count - 1)] for at in range(count)]
