"""SQLAlchemy over psycopg 3 over TLS: with_sqlalchemy.py N. A pool of two connections, both in use."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import sqlalchemy as sa  # type: ignore[import, unused-ignore]

Connection = Any

CAPTURE = sa.table("tls_capture", sa.column("id"), sa.column("client"), sa.column("note"))


def row(number: int, note: str) -> dict[str, Any]:
    return {"id": number, "client": "sqlalchemy", "note": f"sqlalchemy {note}"}


def insert(connections: list[Connection], count: int) -> None:
    for number in range(count):
        with connections[number % 2].begin():
            connections[number % 2].execute(sa.insert(CAPTURE).values(row(number, f"note {number}")))
    for name, connection in zip("ab", connections, strict=True):
        with connection.begin():
            connection.execute(sa.insert(CAPTURE), [row(1000 + n, f"many {n} of {name}") for n in range(count)])


def read(connection: Connection, name: str, count: int) -> None:
    with connection.begin():
        for number in range(5):
            text = f"SELECT generate_series(1, :last) AS n, '{name} row'"
            assert len(connection.execute(sa.text(text), {"last": 3000 + number}).all()) == 3000 + number
        repeated = sa.select(CAPTURE.c.note).where(CAPTURE.c.id == sa.bindparam("id")).limit(1)
        for number in range(count):
            assert connection.execute(repeated, {"id": number}).scalar_one() == f"sqlalchemy note {number}"


def large(connection: Connection, name: str) -> None:
    body = "".join(f"{name}{number:06d}," for number in range(128 * 1024))
    with connection.begin():
        assert connection.exec_driver_sql(f"SELECT length('{body}')").scalar_one() == len(body)


def fail(connection: Connection, name: str) -> None:
    with contextlib.suppress(sa.exc.DBAPIError), connection.begin():
        connection.exec_driver_sql(f"SELECT 1/0 AS sqlalchemy_{name}")
    with contextlib.suppress(ZeroDivisionError), connection.begin():
        connection.execute(sa.insert(CAPTURE).values(row(-1, f"rolled back by {name}")))
        raise ZeroDivisionError
    with connection.begin():
        connection.exec_driver_sql(f"SELECT 'sqlalchemy after the rollback of {name}'")


def main(count: int) -> None:
    engine = sa.create_engine("postgresql+psycopg://", pool_size=2)
    with engine.connect() as one, engine.connect() as two:
        insert([one, two], count)
        for name, connection in (("a", one), ("b", two)):
            read(connection, name, count)
            large(connection, name)
            fail(connection, name)
    engine.dispose()


main(int(sys.argv[1]))
