"""psycopg 3 in the watch: what was recorded is what the server logged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.compare import differences

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.kernel.fix_postgres import PostgresServer
    from tests.kernel.fix_watch import Row, Watch

pytestmark = pytest.mark.kernel

CLIENT = Path(__file__).parent / "clients" / "psycopg_client.py"


@pytest.fixture(autouse=True)
def _tables(postgres: PostgresServer) -> Iterator[None]:
    postgres.execute(
        "CREATE TABLE capture (id int PRIMARY KEY, note text NOT NULL)",
        "CREATE TABLE deferred (id int PRIMARY KEY, parent int REFERENCES deferred (id) DEFERRABLE INITIALLY DEFERRED)",
    )
    yield
    postgres.execute("DROP TABLE capture, deferred")


def capture(
    watch: Watch, postgres: PostgresServer, python: Sequence[str], mode: str, transport: str
) -> tuple[list[Row], list[str]]:
    """Run the client in a mode; return the recorded statements and how they differ from the server's log."""
    script = str(shutil.copy(CLIENT, watch.root))
    start = postgres.log_position()
    run = watch.run(*python, script, mode, env=postgres.environment(transport))
    statements = watch.statements(run.session)
    assert {row["transport"] for row in statements} == {transport}
    session = watch.session(run.session)
    assert (session["gaps"], session["opaque_bytes"]) == (0, 0)
    return statements, differences(postgres.logged_since(start), statements)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("mode", ["execute", "prepared", "executemany", "pipeline", "server_cursor", "copy", "errors"])
def test_every_statement_once_verbatim_in_order(
    watch: Watch, postgres: PostgresServer, agent_python: Sequence[str], mode: str, transport: str
) -> None:
    _, different = capture(watch, postgres, agent_python, mode, transport)
    assert different == []


def test_statements_skipped_until_sync_are_discarded(
    watch: Watch, postgres: PostgresServer, agent_python: Sequence[str]
) -> None:
    statements, _ = capture(watch, postgres, agent_python, "pipeline", "tcp")
    discarded = [row["db.query.text"] for row in statements if row["outcome"] == "discarded"]
    assert discarded == ["SELECT 'skipped until Sync', $1::int", "SELECT 'skipped in flight'"]


def test_copy_counts_rows_both_ways(watch: Watch, postgres: PostgresServer, agent_python: Sequence[str]) -> None:
    statements, _ = capture(watch, postgres, agent_python, "copy", "tcp")
    copies = [row["rows"] for row in statements if row["db.operation.name"] == "COPY" and row["outcome"] == "ok"]
    assert copies == [500, 500, 1000]


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_five_megabytes_in_one_statement(
    watch: Watch, postgres: PostgresServer, agent_python: Sequence[str], transport: str
) -> None:
    statements, different = capture(watch, postgres, agent_python, "large", transport)
    assert different == []
    assert [row["truncated"] for row in statements] == [False, False]
    assert len(statements[0]["db.query.text"]) > 5_000_000
