"""MySQL and the other dialects through sqlglot: a first, working version.

In: the verbatim text without NUL. Out: an Analysis, or None when sqlglot refuses the text, a limit forbids to ask it,
or nothing of it was understood. Never raises. Names are as written: whether their case matters is the server's setting.
"""

from __future__ import annotations

import logging
import re

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from agentwatch.sql.model import Analysis, TableRef, conclude

MAX_TOKENS = 20_000
"""sqlglot takes about 10 microseconds for each: 0.2 s."""

# It warns on stderr of each statement that it keeps as an opaque command; the answer says so already.
logging.getLogger("sqlglot").setLevel(logging.ERROR)

_TOKEN = re.compile(r"[\w$]+|[^\s\w]")
_TARGETS = (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.Create, exp.Drop, exp.Alter, exp.TruncateTable, exp.Into)


def analyse(text: str, dialect: str) -> Analysis | None:
    """Return what a text in one of sqlglot's dialects says; None when it cannot tell."""
    if len(text) > MAX_TOKENS and sum(1 for _ in _TOKEN.finditer(text)) > MAX_TOKENS:
        return None
    try:
        statements = [s for s in sqlglot.parse(text, read=dialect) if s is not None]
        return _conclude(statements)
    except (SqlglotError, RecursionError, ValueError):
        return None


def _conclude(statements: list[exp.Expr]) -> Analysis | None:
    if any(isinstance(s, exp.Command) for s in statements):
        return None
    refs: list[tuple[int, TableRef]] = []
    for statement in statements:
        for table in statement.find_all(exp.Table, bfs=False):
            if table.name and not _is_cte(table):
                ref = TableRef(table.name, table.db or None, _access(table), table.catalog or None)
                refs.append((len(refs), ref))
    operation = _operation(statements[0]) if statements else None
    return conclude(operation, refs, None, None, len(statements))


def _is_cte(table: exp.Table) -> bool:
    if table.db:
        return False
    node: exp.Expr | None = table.parent
    while node is not None:
        clause = node.args.get("with_") or node.args.get("with")
        if isinstance(clause, exp.With) and any(cte.alias == table.name for cte in clause.expressions):
            return _access(table) == "read"
        node = node.parent
    return False


def _access(table: exp.Table) -> str:
    child: exp.Expr = table
    if isinstance(child.parent, exp.Schema):  # the table stands before a list of columns
        child = child.parent
    parent = child.parent
    if not isinstance(parent, _TARGETS):
        return "read"
    return "write" if parent.this is child or isinstance(parent, exp.Drop | exp.TruncateTable) else "read"


def _operation(statement: exp.Expr) -> str:
    if isinstance(statement, exp.Query):
        return "SELECT"
    word = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(statement).__name__).upper()
    if isinstance(statement, exp.Create | exp.Drop | exp.Alter):
        word = f"{word} {statement.args.get('kind') or ''}".rstrip()
    return {"TRUNCATE TABLE": "TRUNCATE", "TRANSACTION": "BEGIN"}.get(word, word)
