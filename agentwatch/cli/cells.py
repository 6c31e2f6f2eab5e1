"""Cells of the tables: from a JSON row to a short text for people. Escaping is the printer's work."""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from agentwatch.query import times

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Row = Mapping[str, Any]

SESSION_CHARACTERS = 18
"""Of a session's id in tables where it repeats: its millisecond and 12 random bits of a UUIDv7."""
MAX_TABLES = 6
"""Tables named in a cell; the rest is counted."""


def text(key: str) -> Callable[[Row], str]:
    """Return a cell with a text field."""
    return lambda row: row.get(key) or ""


def count(key: str) -> Callable[[Row], str]:
    """Return a cell with a number."""
    return lambda row: "" if row.get(key) is None else str(row[key])


def moment(key: str) -> Callable[[Row], str]:
    """Return a cell with a time in the host's zone."""
    return lambda row: times.local(times.parse(row[key], 0)) if row.get(key) else ""


def session(row: Row) -> str:
    """Return the beginning of a session's id, which commands take for the whole."""
    return (row.get("session") or "")[:SESSION_CHARACTERS]


def duration(row: Row) -> str:
    """Return how long it took."""
    return times.span(row.get("duration_ns"))


def program(row: Row) -> str:
    """Return the process that sent a statement."""
    return f"{PurePosixPath(row.get('exe') or '?').name}[{row.get('pid') or '?'}]"


def outcome(row: Row) -> str:
    """Return what became of a statement, with its SQLSTATE."""
    code = row.get("db.response.status_code")
    return f"{row.get('outcome')} {code}" if code else row.get("outcome") or ""


def status(row: Row) -> str:
    """Return how a program ended."""
    if row.get("errno"):
        return row.get("error") or f"errno {row['errno']}"
    return "" if row.get("status") is None else str(row["status"])


def argv(row: Row) -> str:
    """Return a command line as a shell would take it."""
    return " ".join(shlex.quote(word if isinstance(word, str) else str(word)) for word in row.get("argv") or ())


def tables(row: Row) -> str:
    """Return the tables with how they were touched: ``orders(rw)``."""
    if row.get("tables") is None:
        return "?"
    named = table_names(row)
    more = f" and {len(named) - MAX_TABLES} more" if len(named) > MAX_TABLES else ""
    return " ".join(named[:MAX_TABLES]) + more


def table_names(row: Row) -> list[str]:
    """Return each table once, with how it was touched."""
    accesses: dict[str, set[str]] = {}
    for table in row["tables"] or ():
        name = f"{table['schema']}.{table['name']}" if table["schema"] else table["name"]
        accesses.setdefault(name, set()).add(table["access"][0])
    return [f"{name}({''.join(sorted(found))})" for name, found in accesses.items()]
