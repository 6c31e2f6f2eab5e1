"""How much of the kernel tests is run: all of it by 'make acceptance' (AGENTWATCH_TEST_FULL=1), a part otherwise.

What is left out repeats something on another transport or in another version; no behaviour is left untested.
"""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

FULL = os.environ.get("AGENTWATCH_TEST_FULL") == "1"


def short(part: list[T], rest: list[T]) -> list[T]:
    """Return the cases to run: ``part``, and ``rest`` too in a full run."""
    return [*part, *rest] if FULL else part
