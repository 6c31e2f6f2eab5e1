"""A typed wrapper over the one call of libpg_query that is needed: text in, the parse tree as JSON out.

The library is the one that the wheel of `postgast` (BSD-2-Clause) carries; its Python side is not imported, which would
bring in protobuf and 0.1 s for classes that the JSON makes unnecessary. Structures as in libpg_query's pg_query.h.

The caller keeps the text small and free of NUL: the library stops silently at a NUL and recurses while printing.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from importlib.util import find_spec
from pathlib import Path


class _ParseResult(ctypes.Structure):
    """PgQueryParseResult: the last member points to an error that is only tested for being there."""

    _fields_ = (("parse_tree", ctypes.c_char_p), ("stderr_buffer", ctypes.c_char_p), ("error", ctypes.c_void_p))


def _load() -> ctypes.CDLL:
    spec = find_spec("postgast")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "libpg_query.so"
        if path.is_file():
            return ctypes.CDLL(str(path))
    name = ctypes.util.find_library("pg_query")
    if name is None:
        raise ImportError("libpg_query.so was not found; install the package 'postgast' (pip install postgast)")
    return ctypes.CDLL(name)


_library = _load()
_library.pg_query_parse.argtypes = [ctypes.c_char_p]
_library.pg_query_parse.restype = _ParseResult
_library.pg_query_free_parse_result.argtypes = [_ParseResult]
_library.pg_query_free_parse_result.restype = None


def parse_to_json(text: bytes) -> bytes | None:
    """Return the tree of a text in UTF-8, None where the grammar refuses it."""
    result: _ParseResult = _library.pg_query_parse(text)
    try:
        tree: bytes | None = result.parse_tree
        return None if result.error else tree
    finally:
        _library.pg_query_free_parse_result(result)
