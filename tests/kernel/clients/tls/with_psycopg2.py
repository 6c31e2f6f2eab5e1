"""psycopg2 over TLS: with_psycopg2.py N. It puts the parameters into the text, every statement is a simple query."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import psycopg2  # type: ignore[import, unused-ignore]

Connection = Any

INSERT = "INSERT INTO tls_capture (id, client, note) VALUES (%s, %s, %s)"


def insert(connections: list[Connection], count: int) -> None:
    """Each insert is a transaction (BEGIN and COMMIT are psycopg2's), on one connection and the other in turn."""
    for number in range(count):
        connection = connections[number % 2]
        with connection, connection.cursor() as cursor:
            cursor.execute(INSERT, [number, "psycopg2", f"it's psycopg2 note {number}"])


def read(connection: Connection, name: str, count: int) -> None:
    with connection, connection.cursor() as cursor:
        for number in range(5):
            cursor.execute(f"SELECT generate_series(1, {3000 + number}) AS n, '{name} row'")
            assert len(cursor.fetchall()) == 3000 + number
        cursor.execute(f"PREPARE psycopg2_{name} (int) AS SELECT $1 + 1, 'psycopg2 prepared'")
        for number in range(count):
            cursor.execute(f"EXECUTE psycopg2_{name} (%s)", [number])
    with connection, connection.cursor(f"cursor_{name}") as cursor:
        cursor.itersize = 500
        cursor.execute("SELECT n, repeat('y', 50) FROM generate_series(1, %s) AS n", [2000])
        assert sum(1 for _ in cursor) == 2000


def large(connection: Connection, name: str) -> None:
    body = "".join(f"{name}{number:06d}," for number in range(128 * 1024))
    with connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT length('{body}')")
        assert cursor.fetchone() == (len(body),)


def fail(connection: Connection, name: str) -> None:
    with contextlib.suppress(psycopg2.errors.DivisionByZero), connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT 1/0 AS psycopg2_{name}")
    with connection.cursor() as cursor:
        cursor.execute(INSERT, [-1, "psycopg2", f"rolled back by {name}"])
        connection.rollback()
        cursor.execute(f"SELECT 'psycopg2 after the rollback of {name}'")
        connection.rollback()


def main(count: int) -> None:
    connections = [psycopg2.connect(""), psycopg2.connect("")]
    insert(connections, count)
    for name, connection in zip("ab", connections, strict=True):
        read(connection, name, count)
        large(connection, name)
        fail(connection, name)
    for connection in connections:
        connection.close()


main(int(sys.argv[1]))
