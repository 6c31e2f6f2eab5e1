"""Names to numbers: the small integers by which the index refers to sessions, connections, tables and shapes.

Numbers are given in the order of first appearance in the log. The caches only save look-ups: each may be
emptied at any time, and is, when a transaction was rolled back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import orjson

from agentwatch.sql.model import TableRef

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Hashable

    from agentwatch.sql.model import Analysis

K = TypeVar("K", bound="Hashable")

MAX_CACHED = 1 << 16
"""Entries of each cache: some megabytes. A full one is emptied; names then come from SQLite again."""


class Shape(NamedTuple):
    """What was derived from a statement's text, as the index keeps it."""

    operation: str | None
    confidence: str
    tables: tuple[TableRef, ...] | None


UNKNOWN = Shape(None, "none", None)
"""A statement whose text is not known, or not in a language that is understood."""


class Names:
    """The numbers of names in one index."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._sessions: dict[str, int] = {}
        self._connections: dict[tuple[str, str], int] = {}
        self._databases: dict[str, int] = {}
        self._relations: dict[tuple[str | None, str], int] = {}
        self._shapes: dict[Shape, int] = {}
        self._protocols: dict[int, str] = {}

    def forget(self) -> None:
        """Empty the caches: the transaction that gave some of the numbers was rolled back."""
        for cache in (
            self._sessions,
            self._connections,
            self._databases,
            self._relations,
            self._shapes,
            self._protocols,
        ):
            cache.clear()

    def session(self, uuid: str, agent: str | None, host: str | None, boot_id: str | None, time: int) -> int:
        """Return the number of a session; its first record gives agent, host and a start until session_start does."""
        if (known := self._sessions.get(uuid)) is not None:
            return known
        row = self._db.execute("SELECT id FROM session WHERE uuid = ?", (uuid,)).fetchone()
        return _keep(
            self._sessions,
            uuid,
            row[0]
            if row
            else self._insert(
                "INSERT INTO session (uuid, agent, host, boot_id, started) VALUES (?, ?, ?, ?, ?)",
                (uuid, agent, host, boot_id, time),
            ),
        )

    def connection(
        self, key: tuple[str, str], session: int | None, opened: int, transport: str | None, peer: str | None
    ) -> int:
        """Return the number of a connection; ``key`` is the boot's id and the connection's name."""
        if (known := self._connections.get(key)) is not None:
            return known
        row = self._db.execute("SELECT id FROM connection WHERE boot_id = ? AND name = ?", key).fetchone()
        return _keep(
            self._connections,
            key,
            row[0]
            if row
            else self._insert(
                "INSERT INTO connection (boot_id, name, session, opened, transport, peer) VALUES (?, ?, ?, ?, ?, ?)",
                (*key, session, opened, transport, peer),
            ),
        )

    def note_protocol(self, connection: int, protocol: str | None) -> None:
        """Remember what the first statement of a connection said about its protocol."""
        if protocol is not None and self._protocols.get(connection) is None:
            self._db.execute(
                "UPDATE connection SET protocol = ? WHERE id = ? AND protocol IS NULL", (protocol, connection)
            )
            if len(self._protocols) >= MAX_CACHED:
                self._protocols.clear()
            self._protocols[connection] = protocol

    def database(self, name: str) -> int:
        """Return the number of a database."""
        if (known := self._databases.get(name)) is not None:
            return known
        row = self._db.execute("SELECT id FROM database WHERE name = ?", (name,)).fetchone()
        return _keep(
            self._databases, name, row[0] if row else self._insert("INSERT INTO database (name) VALUES (?)", (name,))
        )

    def relation(self, schema: str | None, name: str) -> int:
        """Return the number of a table as it was written."""
        if (known := self._relations.get((schema, name))) is not None:
            return known
        row = self._db.execute("SELECT id FROM relation WHERE name = ? AND schema IS ?", (name, schema)).fetchone()
        return _keep(
            self._relations,
            (schema, name),
            row[0] if row else self._insert("INSERT INTO relation (schema, name) VALUES (?, ?)", (schema, name)),
        )

    def shape(self, shape: Shape) -> int:
        """Return the number of a shape."""
        if (known := self._shapes.get(shape)) is not None:
            return known
        value = dump_shape(shape)
        row = self._db.execute("SELECT id FROM shape WHERE value = ?", (value,)).fetchone()
        access = {table.access for table in shape.tables or ()}
        return _keep(
            self._shapes,
            shape,
            row[0]
            if row
            else self._insert(
                "INSERT INTO shape (value, reads, writes) VALUES (?, ?, ?)",
                (value, "read" in access, "write" in access),
            ),
        )

    def promise(self, connection: int, name: str, shape: int) -> None:
        """Remember what a prepared statement or a cursor stands for on a connection, from now on."""
        self._db.execute("INSERT OR REPLACE INTO promise VALUES (?, ?, ?)", (connection, name, shape))

    def promised(self, connection: int, name: str, use: Shape) -> Shape:
        """Return the shape of an EXECUTE or FETCH: what its name stands for on the connection, if the log told."""
        row = self._db.execute(
            "SELECT value FROM shape JOIN promise ON promise.shape = shape.id WHERE connection = ? AND name = ?",
            (connection, name),
        ).fetchone()
        if row is None:
            return use._replace(tables=None, confidence="none")
        return load_shape(row[0])._replace(operation=use.operation)

    def _insert(self, sql: str, values: tuple[object, ...]) -> int:
        # A plain INTEGER PRIMARY KEY: the largest number plus one, as nothing is ever deleted.
        number = self._db.execute(sql, values).lastrowid
        return number or 0


def shape_of(analysis: Analysis) -> Shape:
    """Return what the index keeps of an analysis."""
    return Shape(analysis.operation, analysis.confidence, analysis.tables)


def dump_shape(shape: Shape) -> str:
    """Return the stored form of a shape."""
    tables = None if shape.tables is None else [[t.name, t.schema, t.access] for t in shape.tables]
    return orjson.dumps([shape.operation, shape.confidence, tables]).decode()


def load_shape(value: str) -> Shape:
    """Return the shape of its stored form."""
    operation, confidence, tables = orjson.loads(value)
    if tables is None:
        return Shape(operation, confidence, None)
    return Shape(operation, confidence, tuple(TableRef(name, schema, access) for name, schema, access in tables))


def _keep(cache: dict[K, int], key: K, number: int) -> int:
    if len(cache) >= MAX_CACHED:
        cache.clear()
    cache[key] = number
    return number
