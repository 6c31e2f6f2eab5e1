"""Records in, rows out: what the index keeps of each kind of record.

A ``Batch`` lives for one transaction. It only adds to what earlier records left, so that the content does not depend on
how the log was cut into batches. Kinds without a handler leave an ``event`` row when they belong to a session.
"""

from __future__ import annotations

import errno
from collections import Counter
from typing import TYPE_CHECKING, ClassVar

from agentwatch.errors import LogError
from agentwatch.index import names, store
from agentwatch.index.doubt import Doubt
from agentwatch.index.fields import integer, realtime_of, text
from agentwatch.index.names import Shape, shape_of
from agentwatch.records.encoding import decode
from agentwatch.sql.tables import Analysis, analyse, cursor_name, declares, prepared_name, prepares

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from agentwatch.records.encoding import Record

_NOT_HERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES})
"""What execvp(3) takes for: look in the next folder of PATH."""

SQL_SYSTEMS = frozenset({"postgresql"})
"""The values of ``db.system.name`` whose text ``sql.tables`` understands."""


class Batch:
    """The rows of some consecutive records, within one open transaction."""

    def __init__(self, db: sqlite3.Connection, cache: names.Names) -> None:
        self._db = db
        self._names = cache
        self._statements: list[tuple[object, ...]] = []
        self._touches: list[tuple[object, ...]] = []
        self._events: list[tuple[object, ...]] = []
        self._session_touches: set[tuple[int, int, str]] = set()
        self._counts: dict[str, Counter[int]] = {"statements": Counter(), "commands": Counter()}
        self._last_payload: bytes | None = None
        row = db.execute("SELECT next_seq, first_time, last_time, boot_id FROM position").fetchone()
        self._next_seq: int = row[0]
        self._first_time: int | None = row[1]
        self._last_time: int | None = row[2]
        self._boot_id: str | None = row[3]

    def add(self, seq: int, payload: bytes) -> None:
        """Take in the next record; one that is not the next means that those between cannot be read."""
        try:
            record = decode(payload)
        except LogError:
            record = None
        if seq > self._next_seq:
            until = None if record is None else integer(record, "time")
            self._add_hole("log-damaged", self._next_seq, seq - self._next_seq, until)
        if record is None:
            # Intact bytes that are no record: a fault of a writer. It is missing, and an answer must say so.
            self._add_hole("unreadable-record", seq, 1, None)
        else:
            self._add_record(seq, record)
        self._next_seq = seq + 1
        self._last_payload = payload

    def flush(self) -> None:
        """Write what is still held, and the position; the caller commits."""
        db = self._db
        db.executemany("INSERT INTO statement VALUES (?, ?, ?, ?, ?, ?, ?)", self._statements)
        db.executemany("INSERT OR IGNORE INTO touch VALUES (?, ?, ?, ?, ?)", self._touches)
        db.executemany("INSERT INTO event VALUES (?, ?, ?)", self._events)
        db.executemany("INSERT OR IGNORE INTO session_touch VALUES (?, ?, ?)", sorted(self._session_touches))
        for column, counts in self._counts.items():
            db.executemany(
                f"UPDATE session SET {column} = {column} + ? WHERE id = ?",  # noqa: S608 - a literal column name
                [(count, session) for session, count in counts.items()],
            )
        if self._last_payload is not None:
            db.execute(
                "UPDATE position SET next_seq = ?, last_digest = ?, first_time = ?, last_time = ?, boot_id = ?",
                (self._next_seq, store.digest(self._last_payload), self._first_time, self._last_time, self._boot_id),
            )

    def _add_hole(self, cause: str, seq: int, count: int, until: int | None) -> None:
        since = self._last_time or 0
        self._db.execute(
            "INSERT INTO gap VALUES (?, ?, ?, NULL, ?, ?, NULL)",
            (seq, since, max(since, until or since), cause, count),
        )

    def _add_record(self, seq: int, record: Record) -> None:
        time = integer(record, "time")
        if time is None:
            time = self._last_time or 0
        boot_id = text(record, "boot_id")
        if boot_id is not None and boot_id != self._boot_id:
            self._begin_boot(seq, boot_id)
        session = self._session(record, time)
        kind: str = record["kind"]
        if session is not None:
            self._events.append((session, kind, seq))
        handler = self._HANDLERS.get(kind)
        if handler is not None:
            handler(self, seq, time, session, record)
        if self._first_time is None:
            self._first_time = time
        if kind != "epoch" and (kind != "gap" or record.get("cause") not in _FOUND_AT_START):
            self._last_time = time  # of what was observed: keys may change before anybody looks

    def _begin_boot(self, seq: int, boot_id: str) -> None:
        # What ran before the host went down has ended, at the latest with the last record of that time.
        if self._boot_id is not None:
            self._db.execute(
                "UPDATE session SET ended = ? WHERE ended IS NULL AND boot_id IS NOT ?", (self._last_time, boot_id)
            )
            self._db.execute("UPDATE command SET ended_seq = ? WHERE ended_seq IS NULL AND failed = 0", (seq,))
            self._see_again(self._last_time or 0, "1")
        self._boot_id = boot_id

    def _session(self, record: Record, time: int) -> int | None:
        uuid = text(record, "session")
        if uuid is None:
            return None
        return self._names.session(uuid, text(record, "agent"), text(record, "host"), self._boot_id, time)

    def _session_start(self, seq: int, time: int, session: int | None, record: Record) -> None:
        self._db.execute(
            "UPDATE session SET started = ?, start_seq = ?, user = ? WHERE id = ?",
            (time, seq, text(record, "user"), session),
        )

    def _session_end(self, _seq: int, time: int, session: int | None, _record: Record) -> None:
        self._db.execute("UPDATE session SET ended = ? WHERE id = ?", (time, session))

    def _exec(self, seq: int, time: int, session: int | None, record: Record) -> None:
        self._db.execute(
            "UPDATE command SET ended_seq = ?1, duration_ns = CASE WHEN session IS ?2 THEN max(0, ?3 - time) END"
            " WHERE pid = ?4 AND ended_seq IS NULL AND failed = 0",
            (seq, session, time, integer(record, "pid")),
        )
        self._command(seq, time, session, record)

    def _command(self, seq: int, time: int, session: int | None, record: Record) -> None:
        failed = record["kind"] == "exec_failed"
        pid, name = integer(record, "pid"), (text(record, "filename") or "").rpartition("/")[2]
        # execvp tries each folder of PATH: one command, whatever the number of folders.
        replaced = self._db.execute(
            "UPDATE command SET superseded = 1 WHERE pid = ? AND sought = ? AND superseded = 0", (pid, name)
        ).rowcount
        sought = name if failed and integer(record, "errno") in _NOT_HERE else None
        self._db.execute(
            "INSERT INTO command (seq, time, session, pid, exec_id, failed, sought) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (seq, time, session, pid, integer(record, "exec_id"), failed, sought),
        )
        if not replaced:
            self._count("commands", session)

    def _exit(self, seq: int, _time: int, _session: int | None, record: Record) -> None:
        self._db.execute(
            "UPDATE command SET ended_seq = ?, status = ?, duration_ns = ?"
            " WHERE pid = ? AND exec_id = ? AND ended_seq IS NULL AND failed = 0",
            (
                seq,
                integer(record, "status"),
                integer(record, "duration_ns"),
                integer(record, "pid"),
                integer(record, "exec_id"),
            ),
        )

    def _connect(self, _seq: int, time: int, session: int | None, record: Record) -> None:
        connection = self._connection(time, session, record)
        if connection is not None:
            self._db.execute(
                "UPDATE connection SET errno = ? WHERE id = ?", (integer(record, "errno") or 0, connection)
            )

    def _connection(self, time: int, session: int | None, record: Record) -> int | None:
        name = text(record, "connection")
        if name is None:
            return None
        return self._names.connection(
            (self._boot_id or "", name), session, time, text(record, "transport"), text(record, "peer")
        )

    def _request(self, _seq: int, time: int, session: int | None, record: Record) -> None:
        self._connection(time, session, record)

    def _opaque(self, seq: int, time: int, session: int | None, record: Record) -> None:
        connection = self._connection(time, session, {"connection": f"record-{seq}", **record})
        self._db.execute(
            "INSERT OR REPLACE INTO opaque SELECT id, ?, opened, ?, ?, ?, ?, ?, ? FROM connection WHERE id = ?",
            (
                session,
                time,
                text(record, "reason") or "unknown",
                text(record, "peer"),
                integer(record, "bytes_out") or 0,
                integer(record, "bytes_in") or 0,
                record.get("final") is True,
                connection,
            ),
        )

    def _delegation(self, seq: int, time: int, session: int | None, record: Record) -> None:
        self._connection(time, session, record)
        self._db.execute(
            "INSERT INTO delegation VALUES (?, ?, ?, ?, ?)",
            (seq, time, session, text(record, "channel") or "unknown", text(record, "operation")),
        )

    def _gap(self, seq: int, time: int, session: int | None, record: Record) -> None:
        self._db.execute(
            "INSERT INTO gap VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                seq,
                realtime_of(record, "since", time),
                time,
                session,
                text(record, "cause") or "unknown",
                integer(record, "count"),
                integer(record, "bytes"),
            ),
        )

    def _probe_detach(self, seq: int, time: int, _session: int | None, record: Record) -> None:
        if record.get("capturing") is not True:
            self._be_blind(seq, time, record, text(record, "pin") or "?", "probe-detached")

    def _probe_attach(self, _seq: int, time: int, _session: int | None, record: Record) -> None:
        if record.get("reason") in _EVERYTHING_AGAIN:  # what is still wrong then is told after it
            self._see_again(time, "what <> ?", _CANARY)
        for pin in _list(record, "pins"):
            self._see_again(time, "what = ?", pin)

    def _canary_missed(self, seq: int, time: int, _session: int | None, record: Record) -> None:
        self._be_blind(seq, time, record, _CANARY, "canary-missed")

    def _canary_seen(self, _seq: int, time: int, _session: int | None, _record: Record) -> None:
        self._see_again(time, "what = ?", _CANARY)

    def _be_blind(self, seq: int, time: int, record: Record, what: str, cause: str) -> None:
        known = self._db.execute("SELECT gap FROM blind WHERE what = ?", (what,)).fetchone()
        if known is not None:
            return  # in another way now, but it never saw in between
        since = min(realtime_of(record, "since", time), time)
        self._db.execute("INSERT INTO gap VALUES (?, ?, NULL, NULL, ?, NULL, NULL)", (seq, since, cause))
        self._db.execute("INSERT INTO blind VALUES (?, ?)", (what, seq))

    def _see_again(self, time: int, condition: str, *values: str) -> None:
        self._db.execute(
            f"UPDATE gap SET time = max(since, ?) WHERE seq IN (SELECT gap FROM blind WHERE {condition})",  # noqa: S608 - literals
            (time, *values),
        )
        self._db.execute(f"DELETE FROM blind WHERE {condition}", values)  # noqa: S608 - literals

    def _observer_start(self, seq: int, time: int, _session: int | None, record: Record) -> None:
        self._see_again(time, "what = ?", _CANARY)  # this recorder tells by itself, back to when the last one looked
        # A recorder that could not take up what its predecessor left saw nothing of the time between them.
        if self._last_time is not None and record.get("resumed") is not True:
            self._db.execute(
                "INSERT INTO gap VALUES (?, ?, ?, NULL, 'no-recorder', NULL, NULL)",
                (seq, min(self._last_time, time), time),
            )

    def _statement(self, seq: int, time: int, session: int | None, record: Record) -> None:
        connection = self._connection(time, session, record)
        shape = self._derive(record, connection)
        namespace = text(record, "db.namespace")
        database = None if namespace is None else self._names.database(namespace)
        doubt = _doubt(record, shape, session, database)
        self._statements.append((seq, time, session, connection, database, self._names.shape(shape), int(doubt)))
        for table in shape.tables or ():
            relation = self._names.relation(table.schema, table.name)
            self._touches.append((relation, time, seq, table.access, session))
            if session is not None:
                self._session_touches.add((session, relation, table.access))
        if connection is not None:
            self._names.note_protocol(connection, text(record, "protocol"))
        self._count("statements", session)

    def _derive(self, record: Record, connection: int | None) -> Shape:
        sql, system = record.get("db.query.text"), text(record, "db.system.name")
        if not isinstance(sql, str | bytes) or system not in SQL_SYSTEMS:
            return names.UNKNOWN
        shape = shape_of(analyse(sql, system, truncated=record.get("truncated") is True))
        if connection is None or shape.operation not in _NAMES_WORK:
            return shape
        if (name := _used_name(sql)) is not None:
            return self._names.promised(connection, name, shape)
        if record.get("outcome") in ("ok", "unknown") and (promise := _promise(sql)) is not None:
            name, analysis = promise
            self._names.promise(connection, name, self._names.shape(shape_of(analysis)))
        return shape

    def _count(self, column: str, session: int | None) -> None:
        if session is not None:
            self._counts[column][session] += 1

    _HANDLERS: ClassVar[dict[str, Callable[[Batch, int, int, int | None, Record], None]]] = {
        "session_start": _session_start,
        "session_end": _session_end,
        "exec": _exec,
        "exec_failed": _command,
        "exit": _exit,
        "connect": _connect,
        "request": _request,
        "statement": _statement,
        "opaque": _opaque,
        "delegation": _delegation,
        "gap": _gap,
        "observer_start": _observer_start,
        "probe_attach": _probe_attach,
        "probe_detach": _probe_detach,
        "canary_missed": _canary_missed,
        "canary_seen": _canary_seen,
    }


_FOUND_AT_START = frozenset({"torn-tail", "log-damaged"})
"""Gaps that a recorder declares before its ``observer_start``: they are no sign that one was there until then."""

_EVERYTHING_AGAIN = frozenset({"start", "upgrade"})
"""Reasons of a ``probe_attach`` that tells of all hooks."""
_CANARY = "canary"

_NAMES_WORK = frozenset({"PREPARE", "EXECUTE", "DECLARE", "FETCH", "MOVE"})
"""Operations by which a connection gives work a name, or does work by its name."""


def _list(record: Record, key: str) -> list[str]:
    value = record.get(key)
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []


def _promise(sql: str | bytes) -> tuple[str, Analysis] | None:
    if (found := prepares(sql)) is not None:
        return f"statement {found[0]}", found[1]
    if (found := declares(sql)) is not None:
        return f"cursor {found[0]}", found[1]
    return None


def _used_name(sql: str | bytes) -> str | None:
    if (name := prepared_name(sql)) is not None:
        return f"statement {name}"
    if (name := cursor_name(sql)) is not None:
        return f"cursor {name}"
    return None


def _doubt(record: Record, shape: Shape, session: int | None, database: int | None) -> Doubt:
    doubt = Doubt(0)
    truncated = record.get("truncated") is True
    if shape.tables is None or shape.confidence == "none":
        doubt |= Doubt.TABLES_UNKNOWN
    elif shape.confidence != "exact" or truncated:
        doubt |= Doubt.TABLES_PARTIAL
    if database is None:
        doubt |= Doubt.DATABASE_UNKNOWN
    if record.get("db.query.text") is None:
        doubt |= Doubt.TEXT_UNKNOWN
    if truncated:
        doubt |= Doubt.TEXT_CUT
    if session is None:
        doubt |= Doubt.SESSION_UNKNOWN
    return doubt
