"""pgbench in the watch, in its three protocols, over TCP and over the Unix socket.

AGENTWATCH_TEST_TRANSACTIONS is the number of transactions of each run ('make acceptance': 10,000).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.kernel.compare import differences

if TYPE_CHECKING:
    from tests.kernel.fix_postgres import PostgresServer
    from tests.kernel.fix_watch import Watch

pytestmark = pytest.mark.kernel

TRANSACTIONS = int(os.environ.get("AGENTWATCH_TEST_TRANSACTIONS", "400"))
CLIENTS = 4


@pytest.fixture(scope="module", autouse=True)
def _tables(postgres: PostgresServer) -> None:
    with postgres.connect() as connection:
        for table, columns in (
            ("pgbench_branches", "bid int PRIMARY KEY, bbalance int, filler text"),
            ("pgbench_tellers", "tid int PRIMARY KEY, bid int, tbalance int, filler text"),
            ("pgbench_accounts", "aid int PRIMARY KEY, bid int, abalance int, filler text"),
            ("pgbench_history", "tid int, bid int, aid int, delta int, mtime timestamp, filler text"),
        ):
            connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})".encode())
        connection.execute("INSERT INTO pgbench_branches SELECT 1, 0 ON CONFLICT DO NOTHING")
        connection.execute(
            "INSERT INTO pgbench_tellers SELECT n, 1, 0 FROM generate_series(1, 10) n ON CONFLICT DO NOTHING"
        )
        connection.execute(
            "INSERT INTO pgbench_accounts SELECT n, 1, 0 FROM generate_series(1, 100000) n ON CONFLICT DO NOTHING"
        )


def pgbench(postgres: PostgresServer, mode: str) -> list[str]:
    """Return the words of a pgbench run of TRANSACTIONS transactions."""
    each = TRANSACTIONS // CLIENTS
    return [str(postgres.bin / "pgbench"), "-M", mode, "-c", str(CLIENTS), "-j", "2", "-t", str(each)]


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_every_statement_once_verbatim_in_order(
    watch: Watch, postgres: PostgresServer, mode: str, transport: str
) -> None:
    start = postgres.log_position()
    run = watch.run(*pgbench(postgres, mode), env=postgres.environment(transport))
    statements = watch.statements(run.session)
    assert differences(postgres.logged_since(start), statements) == []
    assert len(statements) >= 7 * TRANSACTIONS
    session = watch.session(run.session)
    assert (session["gaps"], session["opaque_bytes"]) == (0, 0)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_recorder_killed_and_started_again_misses_nothing(
    own_watch: Watch, postgres: PostgresServer, transport: str
) -> None:
    start = postgres.log_position()
    words = [*pgbench(postgres, "prepared"), "--rate", str(max(TRANSACTIONS / 6, 50))]  # lasts about six seconds
    process = own_watch.start_agent(*words, env=postgres.environment(transport))
    time.sleep(2)
    own_watch.signal_recorder(9)
    time.sleep(1)
    own_watch.start_recorder()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    session = own_watch.ended_session(set())
    assert differences(postgres.logged_since(start), own_watch.statements(session)) == []
    assert own_watch.session(session)["gaps"] == 0
    assert own_watch.cli("verify").returncode == 0
