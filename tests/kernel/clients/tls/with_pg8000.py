"""pg8000 over TLS: with_pg8000.py N. The protocol is written in Python, on a socket of Python's ssl module."""

from __future__ import annotations

import contextlib
import os
import ssl
import sys
from typing import Any

from pg8000.exceptions import DatabaseError  # type: ignore[import, unused-ignore]
from pg8000.native import Connection as Native  # type: ignore[import, unused-ignore]

Connection = Any

INSERT = "INSERT INTO tls_capture (id, client, note) VALUES (:id, :client, :note)"


def connect() -> Connection:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return Native(
        os.environ["PGUSER"],
        host=os.environ["PGHOST"],
        port=int(os.environ["PGPORT"]),
        database=os.environ["PGDATABASE"],
        ssl_context=context,
    )


def insert(connections: list[Connection], count: int) -> None:
    for number in range(count):
        connections[number % 2].run(INSERT, id=number, client="pg8000", note=f"pg8000 note {number}")


def read(connection: Connection, name: str, count: int) -> None:
    for number in range(5):
        rows = connection.run(f"SELECT generate_series(1, {3000 + number}) AS n, '{name} row'")
        assert len(rows) == 3000 + number
    prepared = connection.prepare(f"SELECT CAST(:n AS int) + 1, 'pg8000 prepared by {name}'")
    for number in range(count):
        assert prepared.run(n=number)[0][0] == number + 1
    prepared.close()


def large(connection: Connection, name: str) -> None:
    body = "".join(f"{name}{number:06d}," for number in range(128 * 1024))
    assert connection.run(f"SELECT length('{body}')") == [[len(body)]]
    assert connection.run("SELECT length(CAST(:body AS text))", body=body) == [[len(body)]]


def fail(connection: Connection, name: str) -> None:
    with contextlib.suppress(DatabaseError):
        connection.run(f"SELECT 1/0 AS pg8000_{name}")
    connection.run("START TRANSACTION")
    connection.run(INSERT, id=-1, client="pg8000", note=f"rolled back by {name}")
    connection.run("ROLLBACK")
    connection.run(f"SELECT 'pg8000 after the rollback of {name}'")


def main(count: int) -> None:
    connections = [connect(), connect()]
    insert(connections, count)
    for name, connection in zip("ab", connections, strict=True):
        read(connection, name, count)
        large(connection, name)
        fail(connection, name)
    for connection in connections:
        connection.close()


main(int(sys.argv[1]))
