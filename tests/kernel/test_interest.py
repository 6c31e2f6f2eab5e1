"""What nobody reads is counted and not copied: downloads, and the rows of results. The figures stay exact."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.fix_postgres import free_port, programs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agentwatch.records.encoding import Record
    from tests.kernel.fix_postgres import PostgresServer
    from tests.kernel.fix_watch import Watch

pytestmark = pytest.mark.kernel

DOWNLOAD = int(os.environ.get("AGENTWATCH_TEST_DOWNLOAD", str(256 << 20)))
ROWS = int(os.environ.get("AGENTWATCH_TEST_ROWS", "200000"))
CLIENT = Path(__file__).parent / "clients" / "download.py"
START_SECONDS = 30
FEW_BYTES = 32 * 1024 * 1024
"""Of ring that a download may take: what passes before its verdict is what the sockets hold, and that it goes on."""
PAUSE_SECONDS = 3
TRIES = 6
LITTLE_BYTES = 64 * 1024


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a web server that has one file."""
    folder = tmp_path_factory.mktemp("web")
    with (folder / "file").open("wb") as f:
        f.truncate(DOWNLOAD)
    port = free_port()
    words = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + START_SECONDS
            while subprocess.run([sys.executable, CLIENT, "127.0.0.1", str(port), "/none"], check=False).returncode:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield port
        finally:
            server.kill()


def ring_bytes(watch: Watch) -> int:
    """Return how many bytes were ever written into the ring."""
    return int(watch.status()["ring_position"])


def test_a_download_is_counted_exactly_and_not_copied(watch: Watch, agent_python: Sequence[str], web: int) -> None:
    watch.wait_drained()
    before = ring_bytes(watch)
    run = watch.run(*agent_python, str(CLIENT), "127.0.0.1", str(web), "/file", str(PAUSE_SECONDS), timeout=600)
    watch.wait_drained()
    assert int(run.stdout.split()[0]) == DOWNLOAD
    final = watch.final_opaque(run.session)
    assert [(r["transport"], r["reason"]) for r in final] == [("tcp", "unknown-protocol")]
    head = final[0]["bytes_in"] - DOWNLOAD
    assert 100 < head < 400, "the answer's HTTP header, and nothing else beside the file"
    assert not [r for r in watch.records("gap") if r.get("session") == run.session]
    assert ring_bytes(watch) - before < FEW_BYTES


def statements_of(watch: Watch, session: str) -> list[Record]:
    """Return the statements of a session as they stand in the log."""
    return [record for record in watch.records("statement") if record["session"] == session]


def select(watch: Watch, postgres: PostgresServer, sql: str, transport: str = "tcp") -> tuple[int, list[Record]]:
    """Run statements with psql as the agent; return the ring bytes that it took, and the statements."""
    watch.wait_drained()
    before = ring_bytes(watch)
    psql = str(programs() / "psql")
    words = [psql, "-X", "-q", "-o", "/dev/null", "-v", "FETCH_COUNT=0", "-c", sql]
    run = watch.run(*words, env=postgres.environment(transport), timeout=600)
    watch.wait_drained()
    assert not [r for r in watch.records("gap") if r.get("session") == run.session]
    return ring_bytes(watch) - before, statements_of(watch, run.session)


def select_cheaply(watch: Watch, postgres: PostgresServer, sql: str, rows: int, command_tag: str) -> None:
    """Have a result fetched until it costs next to nothing.

    What is recorded is right each time. Packets that a busy machine delivers out of order are copied until the rows are
    found again.
    """
    for _ in range(TRIES):
        used, statements = select(watch, postgres, sql)
        assert [(s["db.query.text"], s["rows"], s["outcome"], s["command_tag"]) for s in statements] == [
            (sql, rows, "ok", command_tag)
        ]
        if used < LITTLE_BYTES:
            return
    pytest.fail(f"the last of {TRIES} runs took {used} bytes of ring")


@pytest.mark.parametrize("width", [1, 100, 5000])
def test_rows_are_counted_and_not_copied(watch: Watch, postgres: PostgresServer, width: int) -> None:
    count = ROWS // width if width > 1 else ROWS
    sql = f"SELECT repeat('x', {width}) FROM generate_series(1, {count})"  # noqa: S608 -- numbers of our own
    select_cheaply(watch, postgres, sql, count, f"SELECT {count}")


def test_one_row_of_many_megabytes(watch: Watch, postgres: PostgresServer) -> None:
    select_cheaply(watch, postgres, "SELECT repeat('x', 100000000)", 1, "SELECT 1")


def test_what_follows_the_rows_is_read(watch: Watch, postgres: PostgresServer) -> None:
    failing = "SELECT 1 / (30000 - n) FROM generate_series(1, 30000) AS n"
    _, statements = select(watch, postgres, "SELECT n FROM generate_series(1, 50000) AS n; SELECT 'next'; SELECT 3")
    assert [s["rows"] for s in statements] == [50000, 1, 1]
    run = watch.run(
        str(programs() / "psql"), "-X", "-q", "-o", "/dev/null", "-c", failing, "-c", "SELECT 'after'",
        env=postgres.environment("tcp"), check=False,
    )  # fmt: skip
    found = statements_of(watch, run.session)
    assert [(s["outcome"], s["db.response.status_code"]) for s in found] == [("error", "22012"), ("ok", None)]


def test_copy_out_is_counted(watch: Watch, postgres: PostgresServer) -> None:
    sql = f"COPY (SELECT n, repeat('y', 200) FROM generate_series(1, {ROWS // 10}) AS n) TO STDOUT"  # noqa: S608
    select_cheaply(watch, postgres, sql, ROWS // 10, f"COPY {ROWS // 10}")
