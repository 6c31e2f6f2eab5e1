"""psycopg 3 asking in every way it has; what it did is in the server's log."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import ipaddress
import uuid
from typing import Any

import psycopg
from psycopg.types.json import Json, Jsonb
from psycopg.types.numeric import Float4, Int2, Int4, Int8, Oid
from psycopg.types.range import Range

Connection = psycopg.Connection[Any]
UTC = dt.UTC

VALUES: tuple[Any, ...] = (
    0,
    -1,
    32767,
    2**31,
    -(2**63),
    2**80,
    Int2(7),
    Int4(-7),
    Int8(2**60),
    Oid(4000000000),
    1.5,
    -0.1,
    1e300,
    1e15,
    123456789012345680.0,
    1e-5,
    0.0001,
    5e-324,
    Float4(0.1),
    Float4(1e6),
    Float4(123456.0),
    float("inf"),
    float("nan"),
    decimal.Decimal("12345678901234567890.1234567890"),
    decimal.Decimal("-0.00"),
    decimal.Decimal("0.00001"),
    decimal.Decimal("1e20"),
    decimal.Decimal("NaN"),
    True,
    False,
    None,
    "",
    "it's \n $1 \\ %",
    "ünïcode ⇒ 🐘",
    b"\x00\x01\xfe\xff",
    b"",
    dt.date(2026, 2, 28),
    dt.date(1, 1, 1),
    dt.time(12, 34, 56, 789000),
    dt.time(1, 2, 3, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))),
    dt.time(1, 2, 3, tzinfo=dt.timezone(-dt.timedelta(hours=3))),
    dt.datetime(2026, 2, 28, 4, 5, 6, 7),  # noqa: DTZ001 - a timestamp without time zone is meant
    dt.datetime(1969, 12, 31, 23, 59, 59, 500000, tzinfo=UTC),
    dt.datetime(2026, 2, 28, 4, 5, 6, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    dt.timedelta(days=3, seconds=4.5),
    dt.timedelta(days=-3, seconds=4),
    dt.timedelta(seconds=-1),
    dt.timedelta(0),
    uuid.UUID("12345678-1234-5678-1234-567812345678"),
    ipaddress.ip_address("192.0.2.1"),
    ipaddress.ip_address("2001:db8::1"),
    ipaddress.ip_address("::ffff:192.0.2.1"),
    ipaddress.ip_interface("192.0.2.1/24"),
    ipaddress.ip_network("192.0.2.0/24"),
    ipaddress.ip_network("2001:db8::/32"),
    [1, 2, 3],
    [2**40, None],
    [[1, 2], [3, 4]],
    [],
    ["a", None, 'b "c"', "d,e", "", "null", "x\\y", " s"],
    [1.5, 1e20, float("inf")],
    [True, False],
    [dt.date(2026, 1, 1)],
    [decimal.Decimal("1.50")],
    [b"\x01"],
    Range(1, 5),
    Range(None, dt.date(2026, 1, 1), "()"),
    Range(decimal.Decimal("1.5"), None),
    Range(empty=True),
    Json({"b": [1, None, "ä"], "a": 1.50}),
    Jsonb({"bb": [1, None, "ä\n\u007f"], "a": 1.50, "c": {"z": True, "": -0.0}, "e": 1e25}),
)
CASTS = {
    Range: {"int4range", "daterange", "numrange"},
}


def execute(connection: Connection) -> None:
    """Every type, as the library chooses, as text and as binary."""
    for value in VALUES:
        for placeholder in ("%s", "%t", "%b"):
            with contextlib.suppress(psycopg.Error):
                connection.execute(f"SELECT {placeholder} AS value -- {type(value).__name__}".encode(), [value])
    connection.execute("SELECT 1 WHERE 'no' = 'parameters'")
    connection.execute("SELECT 1; SELECT 2; SELECT 'three;'")


def many(connection: Connection) -> None:
    """executemany: a pipeline of its own."""
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO t (a, b) VALUES (%s, %s)", [(i, f"row {i}") for i in range(40)])
        with contextlib.suppress(psycopg.Error):
            cursor.executemany("INSERT INTO t (a, b) VALUES (%s, %s)", [(100, "x"), (1, "duplicate"), (101, "y")])


def prepared(connection: Connection) -> None:
    """Named prepared statements, made, evicted and deallocated by the library."""
    connection.prepare_threshold = 1
    connection.prepared_max = 3
    for turn in range(3):
        for number in range(5):
            connection.execute(f"SELECT %s + {number}".encode(), [turn])
    connection.execute("SELECT %s::text", ["forced"], prepare=True)


def pipeline(connection: Connection) -> None:
    """Pipelines: with errors, with Syncs between."""
    with connection.pipeline() as p:
        for i in range(200, 210):
            connection.execute("INSERT INTO t (a, b) VALUES (%s, %s)", [i, "pipelined"])
        p.sync()
        cursor = connection.execute("SELECT count(*) FROM t")
        cursor.fetchone()
    with contextlib.suppress(psycopg.Error), connection.pipeline() as p:
        connection.execute("SELECT %s", [1])
        connection.execute("SELECT 1 / %s", [0])
        connection.execute("SELECT %s", [2])
        p.sync()
        connection.execute("SELECT %s", [3])
    with contextlib.suppress(psycopg.Error), connection.pipeline() as p:
        connection.execute("SELECT %s FROM nowhere", [1])
        connection.execute("SELECT %s", ["skipped"])
        p.sync()
        connection.execute("SELECT %s", ["after"])


def cursors(connection: Connection) -> None:
    """Server-side cursors, which are DECLARE and FETCH."""
    with connection.transaction(), connection.cursor("named") as cursor:
        cursor.itersize = 10
        cursor.execute("SELECT i FROM generate_series(1, %s) i", [35])
        for _ in cursor:
            pass


def copy(connection: Connection) -> None:
    """COPY in and out, text and binary, with errors of client and server."""
    with connection.cursor() as cursor:
        with cursor.copy("COPY t (a, b) FROM STDIN") as c:
            for i in range(300, 350):
                c.write_row((i, f"copied {i}"))
        with cursor.copy("COPY t TO STDOUT") as c:
            for _ in c.rows():
                pass
        with cursor.copy("COPY (SELECT a FROM t WHERE a < %s) TO STDOUT (FORMAT BINARY)", [50]) as c:
            for _ in c:
                pass
        with contextlib.suppress(psycopg.Error), cursor.copy("COPY t (a, b) FROM STDIN") as c:
            c.write(b"not a number\tx\n")
        with contextlib.suppress(ZeroDivisionError), cursor.copy("COPY t (a, b) FROM STDIN") as c:
            c.write_row((999, "never"))
            raise ZeroDivisionError


def errors(connection: Connection) -> None:
    """Errors when parsing, binding, executing and committing."""
    for query, params in (
        ("SELEC 1", None),
        ("SELEC %s", [1]),
        ("SELECT * FROM nowhere WHERE a = %s", [1]),
        ("SELECT 1 / %s", [0]),
        ("SELECT %s::int", ["no number"]),
        ("SELECT %t::int + 1", ["no number"]),
        ("INSERT INTO t (a) VALUES (%s)", [1]),
        ("INSERT INTO later VALUES (%s)", [12345]),
        ("INSERT INTO later VALUES (54321)", None),
        ("DO $$ BEGIN RAISE EXCEPTION 'own; code' USING ERRCODE = 'AB123'; END $$", None),
        ("", None),
    ):
        with contextlib.suppress(psycopg.Error):
            connection.execute(query, params)
    with contextlib.suppress(psycopg.Error), connection.transaction():
        connection.execute("INSERT INTO later VALUES (%s)", [777])
    with contextlib.suppress(psycopg.Error), connection.transaction():
        with contextlib.suppress(psycopg.Error):
            connection.execute("SELECT 1 / %s", [0])
        connection.execute("SELECT %s", ["in a failed transaction"])


def ended(connection: Connection) -> None:
    """The server ends the connection in the middle."""
    with contextlib.suppress(psycopg.Error):
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid()), %s", ["last words"])


def cancelled(connection: Connection) -> None:
    """A statement that another connection cancels, and a timeout."""
    with contextlib.suppress(psycopg.Error):
        connection.execute("SET statement_timeout = 50")
        connection.execute("SELECT pg_sleep(%s)", [5])
    connection.execute("SET statement_timeout = 0")
    connection.cancel()


def main() -> None:
    """Run each of them on a connection of its own."""
    with psycopg.connect(autocommit=True) as connection:
        connection.execute("CREATE TABLE t (a int PRIMARY KEY, b text)")
        connection.execute("CREATE TABLE later (a int REFERENCES t DEFERRABLE INITIALLY DEFERRED)")
    for part in (execute, many, prepared, pipeline, cursors, copy, errors, cancelled, ended):
        with contextlib.suppress(psycopg.Error), psycopg.connect(autocommit=True) as connection:
            part(connection)
    with contextlib.suppress(psycopg.Error), psycopg.connect() as connection:
        connection.execute("SELECT 'in a transaction of its own'")
        connection.execute("SELECT %s", [1])
    with contextlib.suppress(psycopg.Error):
        psycopg.connect("dbname=nowhere")


if __name__ == "__main__":
    main()
