"""JSON text as a jsonb column prints it: text in, text out.

jsonb keeps no white space, sorts keys by length and then by bytes, keeps the last of equal keys, and writes numbers
as numeric does. Raises ValueError for what is no JSON, RecursionError for nesting that Python's parser does not
follow.

Specification: JsonbToCString and lengthCompareJsonbStringValue in src/backend/utils/adt/jsonb.c, escape_json in
json.c.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

_MAX_EXPONENT = 20_000
"""Beyond what a numeric can hold: such a number is refused by the server."""

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPE_TABLE = str.maketrans({chr(code): f"\\u{code:04x}" for code in range(32)} | _ESCAPES)


class _Number(str):
    """A number in the spelling of the client."""

    __slots__ = ()


def jsonb_text(text: str) -> str:
    """Return ``text`` in the form of jsonb."""
    value = json.loads(text, parse_float=_Number, parse_int=_Number, parse_constant=_refuse)
    return _write(value)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _write(value: Any) -> str:
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        return "{" + ", ".join(f"{_string(key)}: {_write(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_write, value)) + "]"
    if isinstance(value, _Number):
        return _number(value)
    if isinstance(value, str):
        return _string(value)
    return {None: "null", True: "true", False: "false"}[value]


def _string(text: str) -> str:
    text.encode()  # a lone surrogate: the server refuses it
    return f'"{text.translate(_ESCAPE_TABLE)}"'


def _number(text: str) -> str:
    if not any(c in text for c in ".eE"):
        return "0" if text == "-0" else str(text)
    number = Decimal(text)
    if abs(number.adjusted()) > _MAX_EXPONENT or abs(int(number.as_tuple().exponent)) > _MAX_EXPONENT:
        raise ValueError(text)
    written = f"{number:f}"
    return written[1:] if number.is_zero() and written.startswith("-") else written
