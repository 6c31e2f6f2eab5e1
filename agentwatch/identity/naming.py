"""A cgroup's name for a new session, made of its agent's pattern.

In: a pattern as in ``agents``, the agent's name and a random suffix. Out: a path that the pattern matches and that
contains the suffix where the pattern leaves room for it: ``agents.slice/agent-x*`` and ``1f2e`` give
``agents.slice/agent-x-1f2e``. A pattern without wildcards is its own only name.
"""

from __future__ import annotations

import random
import re
import string
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOKEN = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|[^*?\[]+|\[")
_SEPARATORS = "-_.:@"
_LETTERS = string.ascii_lowercase + string.digits
_CLASS_CANDIDATES = _LETTERS + string.ascii_uppercase + "-_.+,:;=@~!#$%&'()[]{}^ "
"""What a ``[...]`` is tried with: printable ASCII without the characters that paths and globs use."""


def is_fixed(pattern: str) -> bool:
    """Tell whether a pattern matches one name only."""
    return not any(character in pattern for character in "*?[")


def name_for(pattern: str, agent: str, suffix: str) -> str | None:
    """Return a path that ``pattern`` should match, with ``suffix`` in its last component.

    None where no name can be made (a ``[...]`` that matches nothing usable). The caller verifies the name with
    ``agents.match``: an earlier agent may claim it.
    """
    *parents, last = pattern.split("/")
    parts = [_component(parent, agent, "") for parent in parents] + [_component(last, agent, suffix)]
    names = [part for part in parts if part]
    return "/".join(names) if len(names) == len(parts) else None


def _component(pattern: str, agent: str, suffix: str) -> str | None:
    result = ""
    for piece in _tokens(pattern):
        if piece.startswith("*"):
            result += _fill(result, agent, suffix)
            suffix = ""  # once is enough: further stars match nothing
        elif piece == "?":
            result += random.choice(_LETTERS)  # noqa: S311 (a name, not a secret)
        elif len(piece) > 1 and piece.startswith("[") and piece.endswith("]"):
            members = [c for c in _CLASS_CANDIDATES if fnmatchcase(c, piece)]
            if not members:
                return None
            result += random.choice(members)  # noqa: S311 (as above)
        else:
            result += piece
    return result if fnmatchcase(result, pattern) and result not in ("", ".", "..") else None


def _tokens(pattern: str) -> Iterator[str]:
    return (found[0] for found in _TOKEN.finditer(pattern))


def _fill(before: str, agent: str, suffix: str) -> str:
    if not before:
        return f"{agent}-{suffix}" if suffix else agent
    if not suffix:
        return ""
    return suffix if before[-1] in _SEPARATORS else f"-{suffix}"
