"""asyncpg over TLS: with_asyncpg.py N asyncio|uvloop. TLS is done in memory, the loop moves the bytes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import asyncpg  # type: ignore[import, unused-ignore]
import uvloop  # type: ignore[import, unused-ignore]

Connection = Any

INSERT = "INSERT INTO tls_capture (id, client, note) VALUES ($1, $2, $3)"


async def insert(connection: Connection, name: str, count: int) -> None:
    for number in range(count):
        await connection.execute(INSERT, number, "asyncpg", f"asyncpg note {number} of {name}")
    await connection.executemany(INSERT, [(1000 + n, "asyncpg", f"many {n} of {name}") for n in range(count)])


async def read(connection: Connection, name: str, count: int) -> None:
    for number in range(5):
        rows = await connection.fetch(f"SELECT generate_series(1, {3000 + number}) AS n, '{name} row'")
        assert len(rows) == 3000 + number
    prepared = await connection.prepare(f"SELECT $1::int + 1, 'asyncpg prepared by {name}'")
    for number in range(count):
        assert await prepared.fetchval(number) == number + 1
    async with connection.transaction():  # one Execute gets all rows: the server would log each further one as its own
        rows = connection.cursor("SELECT n, repeat('y', 50) FROM generate_series(1, $1::int) AS n", 2000, prefetch=2500)
        assert len([row async for row in rows]) == 2000


async def copy(connection: Connection, name: str) -> None:
    rows = [(100_000 + number, "asyncpg", f"copied by {name}") for number in range(3000)]
    await connection.copy_records_to_table("tls_capture", records=rows)
    await connection.fetchval("SELECT count(*) FROM tls_capture")


async def large(connection: Connection, name: str) -> None:
    body = "".join(f"{name}{number:06d}," for number in range(128 * 1024))
    assert await connection.fetchval(f"SELECT length('{body}')") == len(body)
    assert await connection.fetchval("SELECT length($1::text)", body) == len(body)


async def fail(connection: Connection, name: str) -> None:
    with contextlib.suppress(asyncpg.DivisionByZeroError):
        await connection.execute(f"SELECT 1/0 AS asyncpg_{name}")
    with contextlib.suppress(ZeroDivisionError):
        async with connection.transaction():
            await connection.execute(INSERT, -1, "asyncpg", f"rolled back by {name}")
            raise ZeroDivisionError
    await connection.fetch(f"SELECT 'asyncpg after the rollback of {name}'")


async def session(name: str, count: int) -> None:
    connection = await asyncpg.connect()
    await insert(connection, name, count)
    await read(connection, name, count)
    await copy(connection, name)
    await large(connection, name)
    await fail(connection, name)
    await connection.close()


async def both(count: int) -> None:
    await asyncio.gather(session("a", count), session("b", count))


def main(count: str, loop: str) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(both(int(count)))


main(*sys.argv[1:])
