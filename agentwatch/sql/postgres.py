"""PostgreSQL's own grammar, version 18, through libpg_query's JSON.

In: a folded text (`fingerprint.fold`), whole and without NUL. Out: an Analysis, or None when the grammar refuses the
text or a limit keeps it from being asked. Never raises.

The C library is trusted with nothing that could end the process: it stops silently at a NUL; it prints the tree by
recursion, and 60,000 operators in a row overflow a stack of 8 MB (`MAX_TOKENS`); it takes quadratic time for
nested comments and long runs of operator characters, which folding removes or refuses.

Measured beside `pgparse` (BSD-3-Clause, grammar of version 17): the JSON with orjson is faster by a third.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from agentwatch.sql.deep_json import decode
from agentwatch.sql.fingerprint import fold
from agentwatch.sql.libpg_query import parse_to_json
from agentwatch.sql.model import Analysis, conclude
from agentwatch.sql.operations import operation
from agentwatch.sql.tree import Fields, Walk, explain_runs

MAX_TOKENS = 20_000
"""Of a folded text. A level of the tree takes at least two tokens and about 150 bytes of C stack when printed:
1.5 MB at the limit, which a stack of 2 MB holds (tested; a thread usually has 8 MB). Beyond it the scanner answers."""

MAX_TREE_BYTES = 64 * 1024 * 1024
"""Of JSON: a text within MAX_TOKENS gives less than a tenth, literals apart."""

_TOKEN = re.compile(r'"[^"]*"|\'[^\']*\'|[A-Za-z0-9_$.\x80-\U0010ffff]+|[^\sA-Za-z0-9_$.\x80-\U0010ffff]')
_NOTHING: Analysis = Analysis(None, (), "exact", None, 0)


def analyse(text: str) -> Analysis | None:
    """Return what a text in PostgreSQL's SQL says; None when the grammar cannot tell."""
    statements = parse(text)
    if statements is None:
        return None
    if not statements:
        return _NOTHING
    walk = Walk(_parse_body)
    nodes = [node(statement.get("stmt")) for statement in statements]
    note = "not-executed" if all(_describes(kind, fields) for kind, fields in nodes) else None
    for statement, (kind, fields) in zip(statements, nodes, strict=True):
        walk.statement(kind, fields, statement.get("stmt_location", 0))
    return conclude(operation(*nodes[0]), walk.refs, walk.unknown, note, len(statements))


def parse(text: str) -> list[Fields] | None:
    """Return the raw statements of a text, None when the grammar or a limit refuses it."""
    if "\0" in text or too_long(text):
        return None
    tree = parse_to_json(text.encode("utf-8", "replace"))
    if tree is None or len(tree) > MAX_TREE_BYTES:
        return None
    statements: list[Fields] = _decode(tree).get("stmts", [])
    return statements


def too_long(text: str) -> bool:
    """Return whether a text has more tokens than libpg_query may be given."""
    return len(text) > MAX_TOKENS and sum(1 for _ in _TOKEN.finditer(text)) > MAX_TOKENS


def named(text: str) -> tuple[str, str, Analysis | None] | None:
    """Return (kind, name, what it stands for) of one PREPARE, EXECUTE, DECLARE or FETCH that stands alone.

    The kind is that of the node: ``PrepareStmt``, ``ExecuteStmt``, ``DeclareCursorStmt`` or ``FetchStmt``.
    """
    statements = parse(text)
    if statements is None or len(statements) != 1:
        return None
    kind, fields = node(statements[0].get("stmt"))
    name = fields.get("name") if kind in ("PrepareStmt", "ExecuteStmt") else fields.get("portalname")
    if not isinstance(name, str) or kind not in ("PrepareStmt", "ExecuteStmt", "DeclareCursorStmt", "FetchStmt"):
        return None
    if "query" not in fields:
        return kind, name, None
    inner, inner_fields = node(fields["query"])
    walk = Walk(_parse_body)
    walk.statement(inner, inner_fields, 0)
    return kind, name, conclude(operation(inner, inner_fields), walk.refs, walk.unknown, None, 1)


def node(value: Any) -> tuple[str, Fields]:
    """Return (type, fields) of a node."""
    kind, fields = next(iter(value.items())) if value else ("", {})
    return kind, fields


def _describes(kind: str, fields: Fields) -> bool:
    # Whether a statement only says what would be done.
    return kind in ("PrepareStmt", "CreateFunctionStmt") or (
        kind == "ExplainStmt" and not explain_runs(fields.get("options", ()))
    )


def _parse_body(text: str) -> list[Fields] | None:
    folded = fold(text)
    statements = parse(folded.text) if folded.whole else None
    return None if statements is None else [statement["stmt"] for statement in statements if "stmt" in statement]


def _decode(tree: bytes) -> Fields:
    try:
        decoded: Fields = orjson.loads(tree)
    except orjson.JSONDecodeError:
        # orjson stops at 1,024 levels: about 300 operators, UNIONs or JOINs in a row, which programs do write.
        decoded = decode(tree)
    return decoded
