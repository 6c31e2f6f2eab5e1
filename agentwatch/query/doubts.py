"""Why an answer may be incomplete: what the window holds that nobody can tell, as lines for people.

An answer with rows is a yes whatever is missing. One without rows is a no only when this list is empty; else it
is "cannot say".
"""

from __future__ import annotations

import functools
import json
import operator
from typing import TYPE_CHECKING

from agentwatch.index.doubt import Doubt
from agentwatch.query.filters import DEFAULT_SCHEMA, Filter, Query, Where, access_condition, relation_condition, select
from agentwatch.query.times import local

if TYPE_CHECKING:
    import sqlite3

    from agentwatch.query.source import Coverage, Source

MAX_NAMED = 3
"""Peers or operations that a line names; the rest is counted."""


def reasons(
    source: Source, wanted: Filter, *, about_statements: bool, about_programs: bool = False, by_session: bool = False
) -> list[str]:
    """Return every reason why there may be more than the index shows for this question.

    ``about_statements``: a statement that nobody could read would change the answer. ``about_programs``: so would a
    program. ``by_session``: so would a statement that belongs to no known session.
    """
    found = [*coverage(source.coverage), *_gaps(source.db, wanted)]
    if about_statements or about_programs:
        found += _delegations(source.db, wanted)
    if about_statements:
        found += _opaque(source.db, wanted)
        found += _doubtful_statements(source.db, wanted, by_session=by_session)
        found += _unqualified(source.db, wanted)
    return found


def coverage(reach: Coverage) -> list[str]:
    """Return what is said of an index that has not read the whole log."""
    lines = []
    if reach.problem is not None:
        lines.append(reach.problem)
    if reach.behind:
        lines.append(f"index: {reach.indexed} of {reach.recorded} records")
    return lines


def beginning(db: sqlite3.Connection, wanted: Filter) -> str | None:
    """Return a note when the window reaches back to before the log begins."""
    first: int | None = db.execute("SELECT first_time FROM position").fetchone()[0]
    if wanted.since is None or first is None or wanted.since >= first:
        return None
    return f"the log begins at {local(first)}; nothing before that is known"


def _gaps(db: sqlite3.Connection, wanted: Filter) -> list[str]:
    where = Where()
    if wanted.since is not None:
        where.add("(time IS NULL OR time >= ?)", wanted.since)
    if wanted.until is not None:
        where.add("since < ?", wanted.until)
    where.scope("session", wanted, or_none=True)
    query = select("cause, count(*), sum(count), sum(bytes)", "gap", where)
    lines = []
    for cause, number, events, size in db.execute(f"{query.sql} GROUP BY cause ORDER BY 2 DESC, 1", query.values):
        parts = [cause, *([f"{events} events"] if events else []), *([f"{size} bytes"] if size else [])]
        lines.append(f"{number} {_plural(number, 'gap')} ({', '.join(parts)})")
    return lines


def _opaque(db: sqlite3.Connection, wanted: Filter) -> list[str]:
    where = Where()
    where.add("bytes_out + bytes_in > 0")
    if wanted.since is not None:
        # A connection that was not closed may have gone on as long as its session did.
        lasting = "(SELECT ended IS NULL OR ended >= ? FROM session WHERE id = opaque.session)"
        where.add(f"(time >= ? OR (NOT final AND {lasting}))", wanted.since, wanted.since)
    if wanted.until is not None:
        where.add("since < ?", wanted.until)
    where.scope("session", wanted)
    query = select("reason, count(*), sum(bytes_out + bytes_in), json_group_array(DISTINCT peer)", "opaque", where)
    return [
        f"{number} opaque {_plural(number, 'flow')} ({reason}, {size} bytes{_peers(json.loads(peers))})"
        for reason, number, size, peers in db.execute(f"{query.sql} GROUP BY reason ORDER BY 3 DESC, 1", query.values)
    ]


def _delegations(db: sqlite3.Connection, wanted: Filter) -> list[str]:
    where = Where()
    if wanted.since is not None:
        # What a daemon was asked for may go on; how long, nobody can tell, so it counts while the session lasts.
        lasting = "(SELECT ended IS NULL OR ended >= ? FROM session WHERE id = delegation.session)"
        where.add(f"(time >= ? OR {lasting})", wanted.since, wanted.since)
    if wanted.until is not None:
        where.add("time < ?", wanted.until)
    where.scope("session", wanted)
    query = select("channel, count(*), json_group_array(DISTINCT operation)", "delegation", where)
    return [
        f"{number} {_plural(number, 'delegation')} to {channel}, whose doings are in no session"
        f" ({_some(json.loads(operations)) or 'what was asked is not known'})"
        for channel, number, operations in db.execute(f"{query.sql} GROUP BY channel ORDER BY 2 DESC, 1", query.values)
    ]


def _peers(found: list[str | None]) -> str:
    named = _some(found)
    return f", {named}" if named else ""


def _some(found: list[str | None]) -> str:
    names = sorted(name for name in found if name is not None)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{' '.join(names[:MAX_NAMED])}{more}"


def _doubtful_statements(db: sqlite3.Connection, wanted: Filter, *, by_session: bool) -> list[str]:
    bits = _relevant_bits(wanted, by_session=by_session)
    if not bits:
        return []
    query = _maybe(wanted, bits)
    counts = db.execute(query.sql, query.values).fetchone()
    return [
        f"{number} {_plural(number, 'statement')} {_MEANING[bit]}"
        for bit, number in zip(bits, counts, strict=True)
        if number
    ]


_MEANING = {
    Doubt.TABLES_UNKNOWN: "whose tables could not be told",
    Doubt.TABLES_PARTIAL: "whose tables could be told only in part",
    Doubt.DATABASE_UNKNOWN: "whose database is not known",
    Doubt.TEXT_UNKNOWN: "whose text is not known",
    Doubt.TEXT_CUT: "whose text is kept only in part",
    Doubt.SESSION_UNKNOWN: "of no known session",
}


def _relevant_bits(wanted: Filter, *, by_session: bool) -> list[Doubt]:
    bits: list[Doubt] = []
    if wanted.table is not None or wanted.access is not None:
        bits += [Doubt.TABLES_UNKNOWN, Doubt.TABLES_PARTIAL]
    if wanted.database is not None:
        bits.append(Doubt.DATABASE_UNKNOWN)
    if wanted.text is not None:
        bits += [Doubt.TEXT_UNKNOWN, Doubt.TEXT_CUT]
    if by_session or wanted.session is not None or wanted.agent is not None:
        bits.append(Doubt.SESSION_UNKNOWN)
    return bits


def _maybe(wanted: Filter, bits: list[Doubt]) -> Query:
    """Count statements for which every condition holds or cannot be told, by what cannot be told."""
    where = Where()
    where.add("s.doubt <> 0")  # word for word as in the partial index
    where.add("s.doubt & ?", int(functools.reduce(operator.or_, bits)))
    where.window("s.time", wanted)
    where.scope("s.session", wanted, or_none=True)
    tables = int(Doubt.TABLES_UNKNOWN | Doubt.TABLES_PARTIAL)
    if wanted.table is not None:
        relation = relation_condition(wanted.table)
        access = "" if wanted.access is None else " AND t.access = ?"
        touch = f"SELECT 1 FROM touch AS t WHERE {relation.sql} AND t.time = s.time AND t.statement = s.seq{access}"  # noqa: S608 - literals
        where.add(
            f"(s.doubt & {tables} OR EXISTS ({touch}))",
            *relation.values,
            *([] if wanted.access is None else [wanted.access]),
        )
    elif wanted.access is not None:
        where.add(f"(s.doubt & {tables} OR {access_condition(wanted.access)})")
    if wanted.database is not None:
        where.add("(s.database IS NULL OR s.database = (SELECT id FROM database WHERE name = ?))", wanted.database)
    return select(", ".join(f"sum(s.doubt & {int(bit)} <> 0)" for bit in bits), "statement AS s", where)


def _unqualified(db: sqlite3.Connection, wanted: Filter) -> list[str]:
    if wanted.table is None or wanted.table.schema in (None, DEFAULT_SCHEMA):
        return []
    where = Where()
    where.add("t.relation = (SELECT id FROM relation WHERE name = ? AND schema IS NULL)", wanted.table.name)
    where.window("t.time", wanted)
    where.scope("t.session", wanted)
    if wanted.access is not None:
        where.add("t.access = ?", wanted.access)
    query = select("count(DISTINCT t.statement)", "touch AS t", where)
    number: int = db.execute(query.sql, query.values).fetchone()[0]
    if not number:
        return []
    return [f"{number} {_plural(number, 'statement')} with {wanted.table.name!r} written without a schema"]


def _plural(number: int, word: str) -> str:
    return word if number == 1 else f"{word}s"
