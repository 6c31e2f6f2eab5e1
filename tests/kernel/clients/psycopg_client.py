"""A client of PostgreSQL for the capture tests: each mode uses psycopg 3 in another way.

The server's log says what it did; nothing here is compared with.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import sys
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.json import Json

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

Connection = psycopg.Connection[Any]

VALUES = (
    0,
    -1,
    32767,
    32768,
    2**31,
    -(2**63),
    2**70,
    1.5,
    -0.1,
    1e300,
    float("inf"),
    decimal.Decimal("12345678901234567890.1234567890"),
    decimal.Decimal("-1.50"),
    True,
    False,
    None,
    "",
    'it\'s\n"quoted" \\ $1 %',
    "äöü ⇒ 🐘",
    b"\x00\x01\xfe\xff",
    dt.date(2026, 2, 3),
    dt.time(12, 34, 56, 789000),
    dt.datetime(2026, 2, 3, 4, 5, 6, 7),  # noqa: DTZ001 - a timestamp without time zone is meant
    dt.datetime(2026, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
    dt.timedelta(days=3, seconds=4.5),
    uuid.UUID("12345678-1234-5678-1234-567812345678"),
    [1, 2, 3],
    ["a", None, 'b "c"', "d,e"],
    Json({"key": [1, None, "ä"]}),
)


def execute(connection: Connection) -> None:
    """Every type, as text, as binary and as the library chooses."""
    for value in VALUES:
        for placeholder in ("%s", "%t", "%b"):
            with contextlib.suppress(psycopg.NotSupportedError, psycopg.ProgrammingError):
                connection.execute(f"SELECT {placeholder} AS value -- {type(value).__name__}".encode(), [value])
    connection.execute("SELECT 1 WHERE 'no' = 'parameters'")
    connection.execute("SELECT %s::int + %s::int, %s", [1, 2, "three"])


def prepared(connection: Connection) -> None:
    """Named statements, used again and thrown away."""
    connection.prepared_max = 2
    for number in range(30):
        connection.execute(f"SELECT {number % 3} + %s".encode(), [number], prepare=True)
    for number in range(20):
        connection.execute("INSERT INTO capture (id, note) VALUES (%s, %s)", [1000 + number, f"note {number}"])


def executemany(connection: Connection) -> None:
    """One text, many rows of parameters."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO capture (id, note) VALUES (%s, %s)", [(2000 + n, f"many {n}") for n in range(100)]
        )
        cursor.executemany(
            "UPDATE capture SET note = %s WHERE id = %s RETURNING id",
            [("again", 2000 + n) for n in range(50)],
            returning=True,
        )


def pipeline(connection: Connection) -> None:
    """Statements in flight together, an error among them, more after it."""
    with connection.pipeline() as pipe:
        for number in range(50):
            connection.execute("INSERT INTO capture (id, note) VALUES (%s, %s)", [3000 + number, "pipeline"])
        pipe.sync()
        connection.execute("SELECT %s::int", [1])
    with contextlib.suppress(psycopg.Error), connection.pipeline() as pipe:
        connection.execute("SELECT 'before the error', %s::int", [1])
        connection.execute("SELECT 1 / %s::int", [0])
        connection.execute("SELECT 'skipped until Sync', %s::int", [2])
        pipe.sync()
        connection.execute("SELECT 'after Sync', %s::int", [3])
    with connection.pipeline():
        connection.execute("SELECT 'a new pipeline', %s::int", [4])
    _raw_pipeline(connection.pgconn)


def _raw_pipeline(connection: PGconn) -> None:
    """Two Syncs in flight at once: what follows the first runs although what precedes it failed."""
    connection.enter_pipeline_mode()
    for text in (b"SELECT 'in flight'", b"SELECT 1/0", b"SELECT 'skipped in flight'"):
        connection.send_query_params(text, None)
    connection.pipeline_sync()
    connection.send_query_params(b"SELECT 'after Sync in flight', $1::int", [b"5"])
    connection.pipeline_sync()
    syncs = 0
    while syncs < 2:
        result = connection.get_result()
        syncs += result is not None and result.status == psycopg.pq.ExecStatus.PIPELINE_SYNC
    connection.exit_pipeline_mode()


def server_cursor(connection: Connection) -> None:
    """DECLARE, FETCH, MOVE, CLOSE."""
    with connection.transaction(), connection.cursor("a_cursor") as cursor:
        cursor.itersize = 100
        cursor.execute("SELECT n, repeat('x', 100) FROM generate_series(1, %s) AS n", [1000])
        rows = sum(1 for _ in cursor)
        cursor.scroll(0, mode="absolute")
        rows += len(cursor.fetchmany(10))
        assert rows == 1010


def copy(connection: Connection) -> None:
    """COPY in both directions, in text and binary, and one that the server refuses."""
    with connection.cursor() as cursor:
        with cursor.copy("COPY capture (id, note) FROM STDIN") as out:
            for number in range(500):
                out.write_row((4000 + number, f"row\t{number}\\"))
        with cursor.copy("COPY capture (id, note) FROM STDIN (FORMAT binary)") as out:
            out.set_types(["int4", "text"])
            for number in range(500):
                out.write_row((4500 + number, f"row {number}"))
        with cursor.copy("COPY (SELECT * FROM generate_series(1, %s)) TO STDOUT", [1000]) as into:
            assert sum(1 for _ in into.rows()) == 1000
        with contextlib.suppress(psycopg.Error), cursor.copy("COPY capture (id, note) FROM STDIN") as out:
            out.write(b"not a number\tnote\n")
        with contextlib.suppress(ZeroDivisionError), cursor.copy("COPY capture (id, note) FROM STDIN") as out:
            raise ZeroDivisionError
        cursor.execute("SELECT 'after COPY'")


def errors(connection: Connection) -> None:
    """Errors at Parse, at Bind, while running, at the end of the transaction, and inside a failed one."""
    for query, params in (
        ("SELEKT 1", None),
        ("SELECT %s FROM nowhere", [1]),
        ("SELECT 1 / %s::int", [0]),
        ("SELECT 1 + %s::int", ["x"]),
        ("INSERT INTO capture (id, note) VALUES (%s, %s)", [1, None]),
        ("DO $$ BEGIN RAISE EXCEPTION 'custom' USING ERRCODE = 'AW001'; END $$", None),
    ):
        with contextlib.suppress(psycopg.Error):
            connection.execute(query.encode(), params)
    with contextlib.suppress(psycopg.Error), connection.transaction():
        connection.execute("INSERT INTO deferred (id, parent) VALUES (%s, %s)", [1, 12345])
    with contextlib.suppress(psycopg.Error):
        connection.execute("INSERT INTO deferred (id, parent) VALUES (%s, %s)", [2, 12345])
    with contextlib.suppress(psycopg.Error), connection.transaction():
        with contextlib.suppress(psycopg.Error):
            connection.execute("SELECT 1/0")
        connection.execute("SELECT 'in a failed transaction'")
    connection.execute("SELECT 'after the errors'")


def large(connection: Connection) -> None:
    """One statement of about 5 MB, and one parameter of that size."""
    body = ", ".join(f"'{n:09d}'" for n in range(400_000))
    connection.execute(f"SELECT cardinality(ARRAY[{body}])".encode())
    connection.execute("SELECT length(%s::text)", ["0123456789" * 500_000])


MODES = (execute, prepared, executemany, pipeline, server_cursor, copy, errors, large)


def main() -> None:
    """Run the mode that the first argument names."""
    mode = next(mode for mode in MODES if mode.__name__ == sys.argv[1])
    with psycopg.connect(autocommit=True) as connection:
        mode(connection)


if __name__ == "__main__":
    main()
