"""Fold a statement to its shape: the key of the cache, and the text that the parsers are given.

In: SQL text without NUL. Out: `Folded`: the text with each literal replaced by one of its kind, lists of literals
by their first, comments emptied and white space narrowed. Always holds: the folded text names the same tables in
the same order, and folding is linear in the length of the text. What does not hold is left alone: where the value of
a literal decides about tables (EXPLAIN's options, the body of a function, ``UESCAPE``) and for DO, PREPARE and EXECUTE
only comments and white space are touched, and there is no key.

Lexical rules: PostgreSQL 15-17, chapter 4.1, with ``standard_conforming_strings`` on. Comments become ``/**/`` and not
a space, and a white space with a line end stays one: ``'a' 'b'`` on two lines is one literal, on one line an error.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_OPERATOR_CHARACTERS = 64
"""A longer run of operator characters is no operator (NAMEDATALEN is 64), and PostgreSQL's scanner takes quadratic
time for it: 1 s for 20 kB of ``+-``. Such a text is not whole."""

MAX_KEY_CHARACTERS = 16 * 1024
"""Folded text that is longer has no key: the cache would hold few of them and they hardly ever repeat."""

_SPACE = r"[ \t\n\r\f\v]"
_NAME = r"[A-Za-z0-9_$\x80-\U0010ffff]"
_TAG = r"(?>(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?)"
_STRING = r"'(?>[^']*(?:''[^']*)*)'"
_QUOTED = r'"(?>[^"]*(?:""[^"]*)*)"'
_OPERATOR = r"[-+*/<>=~!@#%^&|`?]"
# What needs no thought is taken in one piece, so that the loop in Python turns once for each literal and not
# once for each character; words are taken whole, so that their digits and dollar signs open nothing.
# Atomic groups and not possessive repeats of a group: CPython 3.11.2, Debian 12's, matches those wrongly (gh-106052).
_LEXEME = re.compile(
    rf"""
    (?P<plain>(?>(?:
        (?![eEbBxXnN]'|[uU]&')[A-Za-z_\x80-\U0010ffff]{_NAME}*+
      | \$\d++ | \.\d*+ | [,;:()[\]] | [ ](?!{_SPACE}|--) | [<>=|!~]{{0,2}}{_OPERATOR}(?!{_OPERATOR})
    )*))
    (?: (?P<name>{_QUOTED})
      | (?P<string>[eE]'(?>[^'\\]*(?:(?:''|\\.)[^'\\]*)*)' | (?>(?:[bBxXnN]|[uU]&)?){_STRING}
        | \$(?P<tag>{_TAG})\$.*?\$(?P=tag)\$)
      | (?P<number>(?>0[xXoObB][0-9a-fA-F_]+ | \d[\d_]*(?:\.(?!\.)[\d_]*)?(?:[eE][+-]?\d+)?)(?!{_NAME}))
      | (?P<comment>/\*)
      | (?P<space>(?>(?:--[^\r\n]*|{_SPACE})+))
      | (?P<operators>{_OPERATOR}{{{MAX_OPERATOR_CHARACTERS + 1}}})
      | (?P<open>[eEbBxXnN]?['"]|\${_TAG}\$)
      | (?P<other>\d{_NAME}*|.)
      | \Z )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_LITERAL = r"(?>-?(?:1(?:\.5)?|[A-Za-z&]{0,2}'x'|\$\d+)(?:::[a-z_][a-z0-9_]*)?|(?i:null|true|false|default))"
_COMMA = r"(?>[ \n]?,[ \n]?)"
_REST = rf"(?>(?:{_COMMA}{_LITERAL})*) ?\)"
# The first alternative of both keeps a quoted name from being read as a list.
_LITERAL_ROWS = re.compile(rf"({_QUOTED})|\( ?({_LITERAL}){_REST}(?>(?:{_COMMA}\( ?{_LITERAL}{_REST})*)")
_EQUAL_ROWS = re.compile(rf"""({_QUOTED})|(\((?>(?:[^()"]|\([^()"]*\))*)\))(?>(?:{_COMMA}\2)+)""")
_NOT_FOLDED = re.compile(
    r"""(?i)\b(?:explain|prepare|execute|function|procedure|uescape)\b|u&["']|(?:\A|;)(?:[ \n]|/\*\*/)*do\b"""
)
_MAX_SMALL_INTEGER_DIGITS = 9


class Folded(NamedTuple):
    """A folded text.

    ``key``: for the cache, None to bypass it. ``whole``: the grammar may be asked, because no literal, name or comment
    is left open and no operator is endless. ``sure``: how many characters stand before a literal that is left open.
    """

    text: str
    key: str | None
    whole: bool
    sure: int


def fold(text: str) -> Folded:
    """Return the shape of a statement."""
    folded, whole, sure = _replace(text, literals=True)
    if _NOT_FOLDED.search(folded):
        return strip(text)
    if whole and "(" in folded:
        folded = _LITERAL_ROWS.sub(_first_row, folded)
        folded = _EQUAL_ROWS.sub(r"\1\2", folded)
        sure = len(folded)
    return Folded(folded, folded if len(folded) <= MAX_KEY_CHARACTERS else None, whole, sure)


def strip(text: str) -> Folded:
    """Return a text with comments emptied and white space narrowed, and every literal as it is."""
    stripped, whole, sure = _replace(text, literals=False)
    return Folded(stripped, None, whole, sure)


def _first_row(match: re.Match[str]) -> str:
    name: str | None = match[1]
    return name if name is not None else f"({match[2]})"


def _replace(text: str, *, literals: bool) -> tuple[str, bool, int]:
    parts: list[str] = []
    position, end = 0, len(text)
    while position < end:
        match = _LEXEME.match(text, position)
        if match is None:  # cannot be: "other" takes any character
            break
        parts.append(match["plain"])
        kind, position = match.lastgroup, match.end()
        lexeme = text[match.end("plain") : position]
        if kind == "comment":
            position = _comment_end(text, position)
            if position < 0:
                return _left_open(parts, "")
            lexeme = "/**/"
        elif kind == "space":
            lexeme = _narrow(lexeme)
        elif kind in {"open", "operators"}:
            rest = text[position - len(lexeme) :]
            return _left_open(parts, rest) if kind == "open" else ("".join([*parts, rest]), False, end)
        elif literals and kind in {"string", "number"}:
            lexeme = _placeholder(lexeme)
        parts.append(lexeme)
    replaced = "".join(parts)
    return replaced, True, len(replaced)


def _left_open(parts: list[str], rest: str) -> tuple[str, bool, int]:
    before = "".join(parts)
    return before + rest, False, len(before)


def _comment_end(text: str, position: int) -> int:
    # Comments nest, which a regular expression cannot count. -1: it does not end.
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(text, position)
        if edge is None:
            return -1
        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()
    return position


def _narrow(space: str) -> str:
    return "\n" if "\n" in space or "\r" in space or "--" in space else " "


def _placeholder(literal: str) -> str:
    if literal[0] in "0123456789":
        # The grammar tells small integers from other numbers: LIMIT takes both, FETCH and varchar() do not.
        return "1" if literal.isdigit() and len(literal) <= _MAX_SMALL_INTEGER_DIGITS else "1.5"
    return "'x'" if literal[0] == "$" else literal[: literal.find("'")] + "'x'"
