"""The truth of the capture tests: what the server's log says of statements whose text and fate are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.kernel.server_log import UNLOGGED, Logged

if TYPE_CHECKING:
    from tests.kernel.fix_postgres import PostgresServer


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_server_log_tells_text_parameters_and_sqlstate(postgres: PostgresServer, transport: str) -> None:
    start = postgres.log_position()
    with psycopg.connect(postgres.conninfo(transport), autocommit=True) as connection:
        connection.execute("SELECT 'ä''\n', %s::text, %s::int", ["it's\n$1 = NULL", None])
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")
        with pytest.raises(psycopg.errors.SyntaxError):
            connection.execute("SELEKT 1")
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            connection.execute("SELECT 1 + %s::int", ["x"])
        connection.execute("SELECT 1; SELECT 2", prepare=False)
    (logged,) = postgres.logged_since(start).values()
    assert logged == [
        Logged("SELECT 'ä''\n', $1::text, $2::int", ("it's\n$1 = NULL", None), None),
        Logged("SELECT 1/0", None, "22012"),
        Logged("SELEKT 1", UNLOGGED, "42601"),
        Logged("SELECT 1 + $1::int", UNLOGGED, "22P02"),
        Logged("SELECT 1; SELECT 2", None, None),
    ]


def test_connections_are_told_apart(postgres: PostgresServer) -> None:
    start = postgres.log_position()
    with postgres.connect() as one, postgres.connect() as two:
        for number in range(3):
            one.execute(f"SELECT 'one', {number}".encode())
            two.execute(f"SELECT 'two', {number}".encode())
    texts = [[entry.text for entry in logged] for logged in postgres.logged_since(start).values()]
    assert sorted(texts) == [[f"SELECT '{name}', {n}" for n in range(3)] for name in ("one", "two")]
