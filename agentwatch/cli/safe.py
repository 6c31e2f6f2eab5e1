"""Untrusted text on a terminal: what a watched process wrote must not be able to steer the responder's terminal.

Control characters (C0, DEL, C1), format characters (bidirectional overrides, zero-width), line and paragraph
separators, lone surrogates and unassigned code points are replaced by escapes as Python and JSON write them.
"""

from __future__ import annotations

import re
import unicodedata

_ALWAYS_SAFE = re.compile(r"[\x20-\x7e]*\Z")
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_JSON_SUSPECTS = re.compile(r"[\x7f-\U0010ffff]")


def printable(text: str) -> str:
    r"""Return one line: every unsafe character as ``\n``, ``\x1b`` or ``\u202e``."""
    if _ALWAYS_SAFE.match(text):
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _UNSAFE_CATEGORIES else c for c in text)


def printable_lines(text: str) -> list[str]:
    """Return the lines of a text, each safe to print; tabs become spaces and line ends stay line ends."""
    return [printable(line.expandtabs(8)) for line in text.replace("\r\n", "\n").split("\n")]


def json_line(encoded: bytes) -> str:
    r"""Return encoded JSON with the characters that a terminal could act on written as ``\uXXXX``.

    JSON escapes C0 itself but passes DEL, C1 and the bidirectional overrides. They occur only within strings,
    so the value stays the same.
    """
    text = encoded.decode()
    if text.isascii() and "\x7f" not in text:
        return text
    return _JSON_SUSPECTS.sub(_json_escaped, text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _json_escaped(match: re.Match[str]) -> str:
    character = match[0]
    if unicodedata.category(character) not in _UNSAFE_CATEGORIES:
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
