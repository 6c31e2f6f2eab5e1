"""The three questions of a responder: which sessions, which statements, which programs.

Candidates come from the index; every row is read again from the log and must be what the index took it for.
Each answer carries the reasons why it may be incomplete. Rows are produced while they are consumed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from agentwatch.errors import NotFoundError, StoreError
from agentwatch.index.names import UNKNOWN, Shape, load_shape
from agentwatch.query import doubts, filters, present
from agentwatch.query.times import iso
from agentwatch.records.encoding import decode
from agentwatch.sql.model import TableRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agentwatch.query.filters import Filter
    from agentwatch.query.present import Row
    from agentwatch.query.source import Source
    from agentwatch.records.encoding import Record

T = TypeVar("T")

IN_PROGRESS = 115
"""EINPROGRESS: a connect that did not wait is a connection as far as anyone knows."""
MAX_AMBIGUOUS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows in order, the reasons why there may be more, and what else is worth saying."""

    rows: Iterator[Row]
    reasons: list[str]
    note: str | None


def resolve_session(source: Source, typed: str) -> str:
    """Return the full id of a session from a prefix that only it has. Raises NotFoundError."""
    found = source.db.execute(
        "SELECT uuid FROM session WHERE uuid = ?1 OR substr(uuid, 1, length(?1)) = ?1 ORDER BY uuid = ?1 DESC, uuid"
        " LIMIT ?2",
        (typed.strip().lower(), MAX_AMBIGUOUS_SHOWN + 1),
    ).fetchall()
    if not found or not typed.strip():
        behind = source.coverage.behind
        yet = f" (the index does not know {behind} records yet)" if behind else ""
        raise NotFoundError(f"no session {typed!r}{yet}; list them with `agentwatch sessions`")
    if len(found) > 1 and found[0][0] != typed.strip().lower():
        some = ", ".join(uuid for (uuid,) in found[:MAX_AMBIGUOUS_SHOWN])
        raise NotFoundError(f"more than one session begins with {typed!r}: {some} ...; type more of it")
    uuid: str = found[0][0]
    return uuid


def statements(source: Source, wanted: Filter) -> Answer:
    """Answer which statements match, in the log's order."""
    return Answer(
        (row for row, _ in _statements(source, wanted)),
        doubts.reasons(source, wanted, about_statements=True),
        doubts.beginning(source.db, wanted),
    )


def commands(source: Source, wanted: Filter) -> Answer:
    """Answer which programs were executed, or were tried, in the log's order. The text is sought in the arguments."""
    return Answer(
        _commands(source, wanted),
        doubts.reasons(source, wanted, about_statements=wanted.about_statements, about_programs=True),
        doubts.beginning(source.db, wanted),
    )


def sessions(source: Source, wanted: Filter) -> Answer:
    """Answer which sessions have a statement in the window that matches; without such conditions, which ran in it."""
    about_statements = wanted.about_statements or wanted.text is not None
    return Answer(
        _sessions(source, wanted),
        doubts.reasons(source, wanted, about_statements=about_statements, by_session=about_statements),
        doubts.beginning(source.db, wanted),
    )


def statement_rows(source: Source, session: str) -> Iterator[tuple[Row, Record]]:
    """Return all statements of a session, as rows and as records, in the log's order."""
    return _statements(source, filters.Filter(session=session))


def shape_of(source: Source, seq: int) -> Shape:
    """Return what the index derived from a statement."""
    row = source.db.execute(
        "SELECT value FROM shape JOIN statement ON statement.shape = shape.id WHERE seq = ?", (seq,)
    ).fetchone()
    return UNKNOWN if row is None else load_shape(row[0])


def session_row(source: Source, number: int) -> Row:
    """Return one session by its number in the index."""
    columns = "uuid, agent, user, started, ended, host, statements, commands, start_seq"
    uuid, agent, user, started, ended, host, n_statements, n_commands, start_seq = source.db.execute(
        f"SELECT {columns} FROM session WHERE id = ?",  # noqa: S608 - the literal above
        (number,),
    ).fetchone()
    if start_seq is not None:
        ((_, record),) = source.records([start_seq])
        _must(start_seq, record, ("session_start",))
    return {
        "session": uuid,
        "agent": agent,
        "user": user,
        "started": iso(started),
        "ended": None if ended is None else iso(ended),
        "host": host,
        "statements": n_statements,
        "commands": n_commands,
        "connections": _one(
            source,
            "SELECT count(*) FROM connection WHERE session = ? AND (errno IS NULL OR errno IN (0, ?))",
            number,
            IN_PROGRESS,
        ),
        "tables": present.tables(_session_tables(source, number)),
        "gaps": _one(
            source,
            "SELECT count(*) FROM gap WHERE session = ?1 OR (session IS NULL"
            " AND coalesce(time, ?2) >= ?2 AND since <= coalesce(?3, since))",
            number,
            started,
            ended,
        ),
        "opaque_bytes": _one(
            source, "SELECT coalesce(sum(bytes_out + bytes_in), 0) FROM opaque WHERE session = ?", number
        ),
    }


def _statements(source: Source, wanted: Filter) -> Iterator[tuple[Row, Record]]:
    for seq, record, shape, _ in _matching_statements(source, wanted):
        yield present.statement(seq, record, shape), record


def _matching_statements(source: Source, wanted: Filter) -> Iterator[tuple[int, Record, Shape, int | None]]:
    query = filters.in_order(filters.statements(wanted), _index_limit(wanted))
    rows = source.db.execute(query.sql, query.values)
    needle = None if wanted.text is None else wanted.text.encode(errors="surrogateescape")
    shapes: dict[int, Shape] = {}  # as many as there are distinct sets of tables
    found = _reread(source, rows, _STATEMENT_KINDS, needle)
    if needle is not None:
        found = ((row, record) for row, record in found if _statement_has(record, needle))
    for (seq, shape, session), record in _newest(found, wanted):
        if shape not in shapes:
            shapes[shape] = load_shape(
                source.db.execute("SELECT value FROM shape WHERE id = ?", (shape,)).fetchone()[0]
            )
        yield seq, record, shapes[shape], session


def _commands(source: Source, wanted: Filter) -> Iterator[Row]:
    query = filters.in_order(filters.commands(wanted), _index_limit(wanted))
    rows = source.db.execute(query.sql, query.values)
    found = _reread(source, rows, _COMMAND_KINDS)
    if wanted.text is not None:
        needle = wanted.text.encode(errors="surrogateescape")
        found = ((row, record) for row, record in found if _command_has(record, needle))
    for (seq, status, duration_ns), record in _newest(found, wanted):
        yield present.command(seq, record, status, duration_ns)


def _sessions(source: Source, wanted: Filter) -> Iterator[Row]:
    among: filters.Query | None = None
    if wanted.text is not None:
        found = {session for *_, session in _matching_statements(source, replace(wanted, limit=None))}
        numbers = sorted(number for number in found if number is not None)
        among = filters.Query("SELECT value FROM json_each(?)", (str(numbers),))
    elif wanted.about_statements:
        among = filters.statement_sessions(wanted)
    query = filters.sessions(wanted, among)
    for number, _ in source.db.execute(query.sql, query.values):
        yield session_row(source, number)


_STATEMENT_KINDS = ("statement",)
_COMMAND_KINDS = ("exec", "exec_failed")


def _reread(
    source: Source, rows: Iterable[tuple[Any, ...]], kinds: tuple[str, ...], needle: bytes | None = None
) -> Iterator[tuple[tuple[Any, ...], Record]]:
    """Pair rows of the index, whose first column is ``seq``, with their records; skip those without the needle."""
    pending: deque[tuple[Any, ...]] = deque()

    def seqs() -> Iterator[int]:
        for row in rows:
            pending.append(row)
            yield row[0]

    for seq, payload in source.fetch(seqs()):
        row = pending.popleft()
        # msgpack stores a text's bytes as they are: what is not in the payload is not in the text.
        if needle is not None and needle not in payload:
            continue
        record = decode(payload)
        _must(seq, record, kinds)
        yield row, record


def _must(seq: int, record: Record, kinds: tuple[str, ...]) -> None:
    if record["kind"] not in kinds:
        raise StoreError(
            f"record {seq} is a {record['kind']!r} in the log and a {kinds[0]!r} in the index;"
            " run `agentwatch index rebuild`"
        )


def _index_limit(wanted: Filter) -> int | None:
    return wanted.limit if wanted.text is None else None


def _newest(found: Iterable[T], wanted: Filter) -> Iterable[T]:
    """Apply the limit where the index could not, because the text is only in the log."""
    return found if wanted.text is None or wanted.limit is None else deque(found, maxlen=wanted.limit)


def _statement_has(record: Record, needle: bytes) -> bool:
    text = record.get("db.query.text")
    return needle in (text.encode() if isinstance(text, str) else text or b"")


def _command_has(record: Record, needle: bytes) -> bool:
    words = record.get("argv") or []
    return needle in b" ".join(word if isinstance(word, bytes) else str(word).encode() for word in words)


def _session_tables(source: Source, number: int) -> tuple[TableRef, ...]:
    rows = source.db.execute(
        "SELECT name, schema, access FROM session_touch JOIN relation ON relation.id = relation"
        " WHERE session = ? ORDER BY name, schema, access",
        (number,),
    )
    return tuple(TableRef(*row) for row in rows)


def _one(source: Source, sql: str, *values: object) -> int:
    number: int = source.db.execute(sql, values).fetchone()[0]
    return number
