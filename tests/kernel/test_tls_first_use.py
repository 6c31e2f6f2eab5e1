"""The first connection through a TLS library that nobody has looked into: a driver that was installed just now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel.compare import differences
from tests.kernel.extent import short
from tests.kernel.fix_tls import INSTALL_SECONDS, copied_drivers
from tests.kernel.fix_watch import Watch, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.fix_tls import Clients, TlsPostgresServer

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(INSTALL_SECONDS)]

SOURCES = ("with_psycopg2.py", "with_adbc.py", "with_connectorx.py")
"""A library of its own beside the extension, linked into it by local symbols, and that in a file of 180 MB."""
STATEMENTS = "10"


@pytest.fixture(scope="module", params=["hold", "declare"])
def watch(agent_user: str, request: pytest.FixtureRequest) -> Iterator[Watch]:
    yield from running(Watch(agent_user, first_use=request.param))


@pytest.fixture
def fresh_drivers(drivers: Path) -> Iterator[Path]:
    with copied_drivers(drivers) as python:
        yield python


@pytest.fixture(autouse=True)
def _tables(tls_postgres: TlsPostgresServer) -> Iterator[None]:
    tls_postgres.execute("CREATE TABLE tls_capture (id int, client text, note text)")
    yield
    tls_postgres.execute("DROP TABLE tls_capture")


@pytest.mark.parametrize(
    ("watch", "source"),
    short([("hold", SOURCES[1]), ("declare", SOURCES[-1])], [("hold", SOURCES[0]), ("hold", SOURCES[2])]),
    indirect=["watch"],
)
def test_first_connection_is_recorded_or_declared_and_recorded_if_it_is_held(
    watch: Watch, tls_postgres: TlsPostgresServer, compiled: Clients, fresh_drivers: Path, source: str
) -> None:
    client = compiled.python(fresh_drivers, source, [STATEMENTS])
    start = tls_postgres.log_position()
    run = watch.run(*client.words, env=tls_postgres.environment())
    missing = differences(tls_postgres.logged_since(start), watch.statements(run.session))
    hooked = [r for r in watch.records("probe_attach") if r["reason"] == "library" and r["session"] == run.session]
    names = [name for record in hooked for name in record["functions"]]
    assert any(name.startswith("SSL_write") for name in names)
    assert all(record["file"].startswith(str(fresh_drivers.parents[1])) for record in hooked)
    if 'first_use = "hold"' in watch.config.read_text():
        assert missing == []
        assert watch.session(run.session)["opaque_bytes"] == 0
        assert all(record["waited_ns"] > 0 for record in hooked)
        longest = max(record["waited_ns"] for record in hooked) / 1e6
        print(f"{source}: stopped for {longest:.0f} ms at the most")  # noqa: T201 -- a figure, with pytest -s
    elif missing:
        declared = [r for r in watch.final_opaque(run.session) if r["reason"] == "tls"]
        assert declared
        assert {record["tls"]["cause"] for record in declared} <= {"no-library", "before-probes", "surplus"}
