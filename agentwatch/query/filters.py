"""What a responder asks for, and the conditions that it becomes in the index.

One ``Filter`` serves sessions, statements and commands. Times are half open: ``since`` belongs to the window, ``until``
does not. A table without a schema matches that name in every schema; with one it matches where the statement writes
that schema. Which schema an unqualified name meant is not in its text: it is taken for ``public``, where PostgreSQL's
default search path finds it, and is a doubt, not a match, when another schema is asked for.

SQL is put together of the literals of this file; what the responder typed is only ever a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

_OF_ID = "(SELECT id FROM session WHERE uuid = ?)"
_OF_AGENT = "(SELECT id FROM session WHERE agent = ?)"
_BY_ACCESS = {
    "read": "s.shape IN (SELECT id FROM shape WHERE reads)",
    "write": "s.shape IN (SELECT id FROM shape WHERE writes)",
}

ACCESSES = ("read", "write")
DEFAULT_SCHEMA = "public"
"""Where PostgreSQL looks for an unqualified name, unless search_path says otherwise."""


class Table(NamedTuple):
    """A table as asked for, after case-folding."""

    schema: str | None
    name: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Every field that is not None must hold. ``session`` is a full id; times are CLOCK_REALTIME nanoseconds."""

    table: Table | None = None
    access: str | None = None
    agent: str | None = None
    since: int | None = None
    until: int | None = None
    database: str | None = None
    text: str | None = None
    session: str | None = None
    limit: int | None = None

    @property
    def about_statements(self) -> bool:
        """Whether it takes a statement to tell if a session matches (leaving the text aside)."""
        return not (self.table is None and self.access is None and self.database is None)


class Query(NamedTuple):
    """SQL with its values."""

    sql: str
    values: tuple[object, ...]


class Where:
    """Conditions joined by AND, as ``str()``, with their ``values``."""

    def __init__(self) -> None:
        self._conditions: list[str] = []
        self._values: list[object] = []

    def add(self, condition: str, *values: object) -> None:
        """Ask for one more condition."""
        self._conditions.append(condition)
        self._values.extend(values)

    def window(self, column: str, wanted: Filter) -> None:
        """Keep to the window of time."""
        if wanted.since is not None:
            self.add(f"{column} >= ?", wanted.since)
        if wanted.until is not None:
            self.add(f"{column} < ?", wanted.until)

    def scope(self, column: str, wanted: Filter, *, or_none: bool = False) -> None:
        """Keep to the sessions of the agent, or to the one session; ``or_none``: and to what belongs to none."""
        none = f"{column} IS NULL OR " if or_none else ""
        if wanted.session is not None:
            self.add(f"({none}{column} IN {_OF_ID})", wanted.session)
        if wanted.agent is not None:
            self.add(f"({none}{column} IN {_OF_AGENT})", wanted.agent)

    def statement_scope(self, wanted: Filter) -> None:
        """Keep the statements ``s`` to the sessions of the agent, or to the one session."""
        # A window is found through the time index; without one the sessions' own lists of records are shorter.
        if wanted.since is not None or (wanted.session is None and wanted.agent is None):
            self.scope("s.session", wanted)
            return
        sessions = Where()
        sessions.scope("session", wanted)
        sessions.add("kind = 'statement'")
        listed = select("seq", "event", sessions)
        self.add(f"s.seq IN ({listed.sql})", *listed.values)

    @property
    def values(self) -> tuple[object, ...]:
        """The values of the conditions, in their order."""
        return tuple(self._values)

    def __str__(self) -> str:
        return f" WHERE {' AND '.join(self._conditions)}" if self._conditions else ""


def statements(wanted: Filter) -> Query:
    """Rows ``seq, shape, session`` of the statements that match all but the text; see ``in_order``."""
    where = Where()
    if wanted.table is None:
        source = "statement AS s"
        where.window("s.time", wanted)
        if wanted.access is not None:
            where.add(access_condition(wanted.access))
        where.statement_scope(wanted)
    else:
        # CROSS JOIN fixes the order: from the table's touches to their statements.
        source = "touch AS t CROSS JOIN statement AS s ON s.seq = t.statement"
        _touches(where, wanted.table, wanted)
    if wanted.database is not None:
        where.add("s.database = (SELECT id FROM database WHERE name = ?)", wanted.database)
    return select("DISTINCT s.seq, s.shape, s.session", source, where)


def statement_sessions(wanted: Filter) -> Query:
    """Rows ``session`` of the statements that match all but the text; each session once."""
    if wanted.table is None or wanted.database is not None:
        inner = statements(wanted)
        return Query(f"SELECT DISTINCT session FROM ({inner.sql})", inner.values)  # noqa: S608 - see the module's docstring
    where = Where()
    _touches(where, wanted.table, wanted)
    return select("DISTINCT t.session", "touch AS t", where)


def sessions(wanted: Filter, among: Query | None) -> Query:
    """Rows ``id`` of the sessions that ran at some time of the window, the newest ``limit``, by their start.

    With ``among`` (rows of session numbers) those, whenever they ran.
    """
    where = Where()
    where.scope("id", wanted)
    if among is not None:
        where.add(f"id IN ({among.sql})", *among.values)
    else:
        if wanted.since is not None:
            where.add("(ended IS NULL OR ended >= ?)", wanted.since)
        if wanted.until is not None:
            where.add("started < ?", wanted.until)
    return in_order(select("id, started", "session", where), wanted.limit, ("started", "id"))


def commands(wanted: Filter) -> Query:
    """Rows ``seq, status, duration_ns`` of the programs executed in the window, leaving the text aside.

    A program that was looked for in several folders of PATH is one row, that of the last folder.
    A condition about statements holds for a program when a statement of its session in the window meets it.
    """
    where = Where()
    where.add("superseded = 0")
    where.window("time", wanted)
    where.scope("session", wanted)
    if wanted.about_statements:
        among = statement_sessions(wanted)
        where.add(f"session IN ({among.sql})", *among.values)
    return select("seq, status, duration_ns", "command", where)


def in_order(query: Query, limit: int | None, by: tuple[str, ...] = ("seq",)) -> Query:
    """Order rows, oldest first; with a limit keep the newest."""
    forward = ", ".join(by)
    if limit is None:
        return Query(f"{query.sql} ORDER BY {forward}", query.values)
    backward = ", ".join(f"{column} DESC" for column in by)
    return Query(
        f"SELECT * FROM ({query.sql} ORDER BY {backward} LIMIT ?) ORDER BY {forward}",  # noqa: S608 - see the module's docstring
        (*query.values, limit),
    )


def relation_condition(table: Table) -> Query:
    """Return the condition on ``t.relation`` that means a table."""
    if table.schema is None:
        return Query("t.relation IN (SELECT id FROM relation WHERE name = ?)", (table.name,))
    written = "schema = ? OR schema IS NULL" if table.schema == DEFAULT_SCHEMA else "schema = ?"
    return Query(
        f"t.relation IN (SELECT id FROM relation WHERE name = ? AND ({written}))",  # noqa: S608 - see the module's docstring
        (table.name, table.schema),
    )


def access_condition(access: str) -> str:
    """Return the condition on ``s.shape`` that means an access to any table."""
    return _BY_ACCESS[access]


def _touches(where: Where, table: Table, wanted: Filter) -> None:
    relation = relation_condition(table)
    where.add(relation.sql, *relation.values)
    where.window("t.time", wanted)
    if wanted.access is not None:
        where.add("t.access = ?", wanted.access)
    where.scope("t.session", wanted)


def select(columns: str, source: str, where: Where) -> Query:
    """Return a query of literal columns and tables."""
    return Query(f"SELECT {columns} FROM {source}{where}", where.values)  # noqa: S608 - see the module's docstring
