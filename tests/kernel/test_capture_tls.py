"""Real drivers over TLS in the watch: what was recorded is what the server logged, as if there were no TLS.

The drivers were installed when the probes were loaded, and their folders are among those that are scanned.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.kernel.compare import differences
from tests.kernel.extent import short
from tests.kernel.fix_tls import CLIENTS, INSTALL_SECONDS, VERSIONS
from tests.kernel.fix_watch import SCANNED, Watch, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.kernel.fix_tls import Client, Clients, HttpsServer, TlsPostgresServer
    from tests.kernel.fix_watch import Row, Run

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(INSTALL_SECONDS)]

STATEMENTS = 50
LONG_TEXT = 1 << 20
DOWNLOAD_BYTES = 16 << 20
"""Plaintext and ciphertext of it fit into the ring, should the recorder's verdict that nobody reads it come late."""
UNREAD = frozenset(("jdbc",))
"""TLS that is compiled while the program runs: no symbol of it could be probed."""
READ = [name for name in CLIENTS if name not in UNREAD | {"many", "download"}]


@pytest.fixture(scope="module")
def watch(agent_user: str, drivers: Path, compiled: Clients) -> Iterator[Watch]:
    """An instance that was started after everything was installed."""
    for source in compiled.folder.glob("*.go"):
        compiled.go(source.name, ())
    venv = drivers.parents[1]
    yield from running(Watch(agent_user, scan=(*SCANNED, "/usr/bin", str(venv), str(compiled.folder))))


@pytest.fixture(autouse=True)
def _tables(tls_postgres: TlsPostgresServer) -> Iterator[None]:
    tls_postgres.execute("CREATE TABLE tls_capture (id int, client text, note text)")
    yield
    tls_postgres.execute("DROP TABLE tls_capture")


def capture(watch: Watch, server: TlsPostgresServer, client: Client, version: str) -> tuple[Run, list[Row], list[str]]:
    """Run a client; return its run, the recorded statements and how they differ from the server's log."""
    with server.tls_version(version):
        start = server.log_position()
        run = watch.run(*client.words, env=server.environment())
        logged = server.logged_since(start)
        encrypted = server.tls_since(start)
    assert {session: encrypted.get(session) for session in logged} == dict.fromkeys(logged, version)
    assert max(len(entry.text) for entries in logged.values() for entry in entries) > LONG_TEXT
    statements = watch.statements(run.session)
    sent, connections = sum(map(len, logged.values())), len(logged)
    print(f"{client.exe} TLS {version}: {len(statements)} of {sent} on {connections} connections")  # noqa: T201 -- with -s
    return run, statements, differences(logged, statements)


def seen_by(watch: Watch, session: str) -> set[str]:
    """Return the witnesses of a session's statements."""
    return {record["seen_by"] for record in watch.records("statement") if record["session"] == session}


def programs_run(watch: Watch, session: str) -> dict[int, str]:
    """Return the last program that each process of a session became."""
    return {row["pid"]: row["exe"] for row in watch.commands(session)}


@pytest.mark.parametrize(
    ("name", "version"),
    short(
        [*((name, "1.3") for name in READ), ("psql", "1.2"), ("asyncpg", "1.2"), ("pgx", "1.2"), ("gnutls", "1.2")],
        [(name, "1.2") for name in READ if name not in ("psql", "asyncpg", "pgx", "gnutls")],
    ),
)
def test_every_statement_once_verbatim_in_order_on_its_connection(
    watch: Watch, tls_postgres: TlsPostgresServer, tls_client: Callable[..., Client], name: str, version: str
) -> None:
    client = tls_client(name, STATEMENTS)
    run, statements, different = capture(watch, tls_postgres, client, version)
    assert different == []
    assert seen_by(watch, run.session) == {"tls-uprobe"}
    assert {(row["transport"], row["peer"]) for row in statements} == {("tcp", f"127.0.0.1:{tls_postgres.port}")}
    session = watch.session(run.session)
    assert (session["gaps"], session["opaque_bytes"]) == (0, 0)
    programs = programs_run(watch, run.session)
    assert {(row["exe"], programs.get(row["pid"])) for row in statements} == {(client.exe, client.exe)}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", sorted(UNREAD))
def test_tls_that_cannot_be_read_is_opaque_with_its_peer_and_bytes(
    watch: Watch, tls_postgres: TlsPostgresServer, tls_client: Callable[..., Client], name: str, version: str
) -> None:
    run, statements, _ = capture(watch, tls_postgres, tls_client(name, STATEMENTS), version)
    assert statements == []
    final = [r for r in watch.final_opaque(run.session) if r["peer"] == f"127.0.0.1:{tls_postgres.port}"]
    assert [(r["transport"], r["reason"]) for r in final] == [("tcp", "tls")] * 2
    assert len({r["connection"] for r in final}) == 2
    assert all(r["bytes_out"] > LONG_TEXT and r["bytes_in"] > 0 for r in final)
    assert watch.session(run.session)["gaps"] == 0


@pytest.mark.parametrize("name", ["download", "curl"])
def test_a_download_over_https_loses_nothing_and_is_no_statement(
    watch: Watch, https_server: HttpsServer, tls_client: Callable[..., Client], name: str
) -> None:
    if name == "download":
        words = tls_client(name, "127.0.0.1", https_server.port, DOWNLOAD_BYTES).words
    else:
        curl = shutil.which("curl") or pytest.skip("needs curl")
        words = (curl, "-k", "-s", "-o", "/dev/null", "-w", "%{size_download}", https_server.url(DOWNLOAD_BYTES))
    run = watch.run(*words)
    assert int(run.stdout.split()[0]) == DOWNLOAD_BYTES
    assert watch.statements(run.session) == []
    final = [r for r in watch.final_opaque(run.session) if r["peer"] == f"127.0.0.1:{https_server.port}"]
    assert len(final) == 1
    assert final[0]["bytes_in"] >= DOWNLOAD_BYTES
    assert watch.session(run.session)["gaps"] == 0
