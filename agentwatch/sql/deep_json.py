"""Decode JSON of any depth: for what orjson refuses beyond 1,024 levels, and only for JSON that a parser printed.

In: UTF-8 bytes of one JSON value. Out: the same objects that orjson gives. It does not recurse. RFC 8259 is not
checked: libpg_query writes the text. Raises ValueError for what has no value in it.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

_TOKEN = re.compile(rb'[][{}]|"(?>[^"\\]*(?:\\.[^"\\]*)*)"(\s*:)?|[^][{},:"\s]+', re.DOTALL)


def decode(data: bytes) -> Any:
    """Return the value of JSON text."""
    root: list[Any] = []
    stack: list[list[Any] | dict[str, Any]] = [root]
    key = ""
    for match in _TOKEN.finditer(data):
        token = match[0]
        if match[1] is not None:
            key = orjson.loads(token[: match.start(1) - match.start()])
            continue
        if token in (b"]", b"}"):
            stack.pop()
            continue
        value: Any = [] if token == b"[" else {} if token == b"{" else orjson.loads(token)
        container = stack[-1]
        if isinstance(container, list):
            container.append(value)
        else:
            container[key] = value
        if token in (b"[", b"{"):
            stack.append(value)
    if not root:
        raise ValueError("no JSON value")
    return root[0]
