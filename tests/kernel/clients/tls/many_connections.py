"""Many connections of one process over TLS: many_connections.py asyncio|uvloop|threads [CONNECTIONS [STATEMENTS]].

Every statement tells the number of its connection and its own, and asks for the process at the other end. Prints a
line for each connection: its number and that process.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import asyncpg  # type: ignore[import, unused-ignore]
import psycopg
import uvloop  # type: ignore[import, unused-ignore]

LARGE = 64
"""One statement in so many is longer than a TLS record (16 KiB)."""


def statement(number: int, serial: int) -> str:
    """Return a text of its own; the one parameter is written as %s."""
    padding = "x" * (20_000 if serial % LARGE == number % LARGE else serial % 50)
    return f"SELECT 'connection {number} statement {serial}', pg_backend_pid(), %s::text -- {padding}"


def tell(number: int, backends: set[int]) -> None:
    (backend,) = backends
    sys.stdout.write(f"{number} {backend}\n")


async def converse(number: int, statements: int, all_connected: asyncio.Barrier) -> None:
    connection: Any = await asyncpg.connect()
    await all_connected.wait()
    backends = set()
    for serial in range(statements):
        row = await connection.fetchrow(statement(number, serial).replace("%s", "$1"), f"{number} {serial}")
        assert row[0] == f"connection {number} statement {serial}"
        backends.add(row[1])
    await connection.close()
    tell(number, backends)


async def tasks(connections: int, statements: int) -> None:
    all_connected = asyncio.Barrier(connections)
    await asyncio.gather(*(converse(number, statements, all_connected) for number in range(connections)))


def thread(number: int, statements: int, all_connected: threading.Barrier) -> None:
    with psycopg.connect(autocommit=True) as connection:
        all_connected.wait()
        backends = set()
        for serial in range(statements):
            row = connection.execute(statement(number, serial).encode(), [f"{number} {serial}"]).fetchone()
            assert row is not None
            assert row[0] == f"connection {number} statement {serial}"
            backends.add(row[1])
    tell(number, backends)


def threads(connections: int, statements: int) -> None:
    all_connected = threading.Barrier(connections)
    started = [
        threading.Thread(target=thread, args=(number, statements, all_connected)) for number in range(connections)
    ]
    for one in started:
        one.start()
    for one in started:
        one.join()


def main(way: str, connections: str = "50", statements: str = "200") -> None:
    if way == "threads":
        threads(int(connections), int(statements))
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if way == "uvloop" else None) as runner:
        runner.run(tasks(int(connections), int(statements)))


main(*sys.argv[1:])
