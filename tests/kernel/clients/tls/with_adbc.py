"""ADBC's driver over TLS: with_adbc.py N. libpq and its TLS library are linked into the driver."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import pyarrow as pa  # type: ignore[import, unused-ignore]
from adbc_driver_postgresql import dbapi  # type: ignore[import, unused-ignore]

Connection = Any

INSERT = "INSERT INTO tls_capture (id, client, note) VALUES ($1, $2, $3)"


def insert(connections: list[Connection], count: int) -> None:
    """The second insert is a prepared statement that is executed for each row."""
    for number in range(count):
        with connections[number % 2].cursor() as cursor:
            cursor.execute(INSERT, (number, "adbc", f"adbc note {number}"))
        connections[number % 2].commit()
    for name, connection in zip("ab", connections, strict=True):
        with connection.cursor() as cursor:
            cursor.executemany(INSERT, [(1000 + n, "adbc", f"many {n} of {name}") for n in range(count)])
        connection.commit()


def read(connection: Connection, name: str) -> None:
    with connection.cursor() as cursor:
        for number in range(5):
            cursor.execute(f"SELECT generate_series(1, {3000 + number}) AS n, '{name} row'")
            assert cursor.fetch_arrow_table().num_rows == 3000 + number
    connection.commit()


def ingest(connection: Connection, name: str) -> None:
    """By COPY, into a table of its own: for one that exists, the server logs a parameter otherwise than it was sent."""
    columns = {
        "id": pa.array(range(100_000, 103_000), pa.int32()),
        "client": ["adbc"] * 3000,
        "note": [f"ingested by {name}"] * 3000,
    }
    with connection.cursor() as cursor:
        cursor.adbc_ingest(f"tls_adbc_{name}", pa.table(columns), mode="create")
        cursor.execute(f"DROP TABLE tls_adbc_{name}")
    connection.commit()


def large(connection: Connection, name: str) -> None:
    body = "".join(f"{name}{number:06d}," for number in range(128 * 1024))
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT length('{body}')")
        assert cursor.fetchone() == (len(body),)
    connection.commit()


def fail(connection: Connection, name: str) -> None:
    with contextlib.suppress(dbapi.Error), connection.cursor() as cursor:
        cursor.execute(f"SELECT 1/0 AS adbc_{name}")
    connection.rollback()
    with connection.cursor() as cursor:
        cursor.execute(INSERT, (-1, "adbc", f"rolled back by {name}"))
        connection.rollback()
        cursor.execute(f"SELECT 'adbc after the rollback of {name}'")
        cursor.fetchall()
    connection.commit()


def main(count: int) -> None:
    with dbapi.connect("sslmode=require") as one, dbapi.connect("sslmode=require") as two:
        insert([one, two], count)
        for name, connection in (("a", one), ("b", two)):
            read(connection, name)
            ingest(connection, name)
            large(connection, name)
            fail(connection, name)


main(int(sys.argv[1]))
