"""Many TLS connections of one process at the same time: each statement is recorded on the connection that sent it."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.kernel.compare import differences
from tests.kernel.extent import short
from tests.kernel.fix_tls import INSTALL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.kernel.fix_tls import Client, TlsPostgresServer
    from tests.kernel.fix_watch import Row, Watch
    from tests.kernel.server_log import Logged

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(INSTALL_SECONDS)]

CONNECTIONS = 50
STATEMENTS = 200
_NUMBERS = re.compile(r"SELECT 'connection (\d+) statement (\d+)'")


def numbers(text: str) -> tuple[int, int]:
    """Return the connection's number and the statement's that a text tells."""
    found = _NUMBERS.match(text)
    assert found is not None, text[:100]
    return int(found[1]), int(found[2])


def check_truth(logged: Mapping[str, Sequence[Logged]], backends: Mapping[int, int]) -> None:
    """Check that the client did what its texts say: each connection has one server process, and all its statements."""
    told = {int(session.split(".")[1], 16): [numbers(entry.text) for entry in logged[session]] for session in logged}
    expected = {pid: [(number, serial) for serial in range(STATEMENTS)] for number, pid in backends.items()}
    assert len(expected) == CONNECTIONS
    assert told == expected


def misattributed(statements: Sequence[Row]) -> int:
    """Return how many statements stand on a connection that is not the one of most of its statements."""
    connections: dict[str, Counter[int]] = {}
    for row in statements:
        connections.setdefault(row["connection"], Counter())[numbers(row["db.query.text"])[0]] += 1
    return sum(found.total() - max(found.values()) for found in connections.values())


@pytest.mark.parametrize(
    ("way", "version"),
    short(
        [("asyncio", "1.3"), ("threads", "1.3")],
        [("uvloop", "1.3"), ("asyncio", "1.2"), ("uvloop", "1.2"), ("threads", "1.2")],
    ),
)
def test_no_statement_of_ten_thousand_is_on_another_connection(
    watch: Watch, tls_postgres: TlsPostgresServer, tls_client: Callable[..., Client], way: str, version: str
) -> None:
    client = tls_client("many", way, CONNECTIONS, STATEMENTS)
    with tls_postgres.tls_version(version):
        start = tls_postgres.log_position()
        run = watch.run(*client.words, env=tls_postgres.environment())
        logged = tls_postgres.logged_since(start)
    pairs = (line.split() for line in run.stdout.splitlines())
    check_truth(logged, {int(number): int(backend) for number, backend in pairs})
    statements = watch.statements(run.session)
    assert len(statements) == CONNECTIONS * STATEMENTS
    assert misattributed(statements) == 0
    assert len({row["connection"] for row in statements}) == CONNECTIONS
    assert differences(logged, statements) == []
    records = [record for record in watch.records("statement") if record["session"] == run.session]
    assert {record["seen_by"] for record in records} == {"tls-uprobe"}
    session = watch.session(run.session)
    assert (session["gaps"], session["opaque_bytes"]) == (0, 0)
