"""Names of tables as a person types them, read as PostgreSQL reads identifiers (chapter 4.1.1)."""

from __future__ import annotations

import re

MAX_NAME_BYTES = 63
"""NAMEDATALEN - 1: the server cuts longer identifiers, so an answer must look for the cut name."""

_PART = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^".]*))\s*(?:\.|\Z)')
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


def normalise_name(typed: str) -> tuple[str | None, str]:
    """Return (schema or None, name) of a name as typed: folded to lower case unless quoted.

    Of three parts the first (the database) is left out. What is no identifier is taken as a name as it is.
    """
    parts: list[str] = []
    position = 0
    while position < len(typed):
        match = _PART.match(typed, position)
        if match is None or match.end() == position:
            return None, typed
        quoted, plain = match[1], match[2]
        parts.append(cut_name(fold_case(plain.strip()) if quoted is None else quoted.replace('""', '"')))
        position = match.end()
    if not parts:
        return None, typed
    return (parts[-2] if len(parts) > 1 else None), parts[-1]


def fold_case(identifier: str) -> str:
    """Return an unquoted identifier as the server stores it: in UTF-8 only A to Z are folded."""
    return identifier.translate(_LOWER)


def cut_name(identifier: str) -> str:
    """Return an identifier cut to what the server keeps, between two characters."""
    encoded = identifier.encode("utf-8", "surrogatepass")
    if len(encoded) <= MAX_NAME_BYTES:
        return identifier
    return encoded[:MAX_NAME_BYTES].decode("utf-8", "ignore")
