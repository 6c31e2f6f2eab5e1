"""psycopg 3 over TLS: with_psycopg.py N. Extended protocol, a pipeline, COPY; two connections at a time."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import psycopg

Connection = psycopg.Connection[Any]

INSERT = "INSERT INTO tls_capture (id, client, note) VALUES (%s, %s, %s)"


def insert(connections: list[Connection], count: int) -> None:
    for number in range(count):
        connections[number % 2].execute(INSERT, [number, "psycopg", f"psycopg note {number}"], prepare=False)


def read(connection: Connection, name: str, count: int) -> None:
    for number in range(5):
        rows = connection.execute(f"SELECT generate_series(1, {3000 + number}) AS n, '{name} row'".encode())
        assert len(rows.fetchall()) == 3000 + number
    for number in range(count):
        connection.execute("SELECT %s::int + 1, 'psycopg prepared'", [number], prepare=True)
    with connection.transaction(), connection.cursor(f"cursor_{name}") as cursor:
        cursor.itersize = 500
        cursor.execute("SELECT n, repeat('y', 50) FROM generate_series(1, %s) AS n", [2000])
        assert sum(1 for _ in cursor) == 2000


def pipeline(connections: list[Connection], count: int) -> None:
    with connections[0].pipeline(), connections[1].pipeline():
        for number in range(count):
            for name, connection in zip("ab", connections, strict=True):
                connection.execute(f"SELECT %s::int, 'in the pipeline of {name}'".encode(), [number])


def copy(connection: Connection, name: str) -> None:
    with connection.cursor() as cursor:
        with cursor.copy("COPY tls_capture (id, client, note) FROM STDIN") as rows:
            for number in range(3000):
                rows.write_row((100_000 + number, "psycopg", f"copied by {name}"))
        cursor.execute("SELECT 'after COPY', count(*) FROM tls_capture")


def large(connection: Connection, name: str) -> None:
    body = "".join(f"{name}{number:06d}," for number in range(128 * 1024))
    row = connection.execute(f"SELECT length('{body}')".encode()).fetchone()
    assert row == (len(body),)
    assert connection.execute("SELECT length(%s::text)", [body]).fetchone() == row


def fail(connection: Connection, name: str) -> None:
    with contextlib.suppress(psycopg.errors.DivisionByZero):
        connection.execute(f"SELECT 1/0 AS psycopg_{name}".encode())
    with contextlib.suppress(ZeroDivisionError), connection.transaction():
        connection.execute(INSERT, [-1, "psycopg", f"rolled back by {name}"])
        raise ZeroDivisionError
    connection.execute(f"SELECT 'psycopg after the rollback of {name}'".encode())


def main(count: int) -> None:
    with psycopg.connect(autocommit=True) as one, psycopg.connect(autocommit=True) as two:
        connections = [one, two]
        insert(connections, count)
        pipeline(connections, count)
        for name, connection in zip("ab", connections, strict=True):
            read(connection, name, count)
            copy(connection, name)
            large(connection, name)
            fail(connection, name)


main(int(sys.argv[1]))
