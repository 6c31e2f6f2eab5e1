"""psql in the watch: a script, \\copy, several statements in one query, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel.compare import differences

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.fix_postgres import PostgresServer
    from tests.kernel.fix_watch import Row, Watch

pytestmark = pytest.mark.kernel

SCRIPT = r"""
-- A comment before a statement.
BEGIN;
INSERT INTO "Orders" (id, note) VALUES (1, 'semicolon ; in text'), (2, $tag$it's ; quoted$tag$);
UPDATE "Orders" SET note = 'ä
over two lines' WHERE id = 1;
COMMIT;
SELECT count(*) AS n FROM orders \gset
SELECT :n + 1, :'n';
\copy orders (id, note) from copy.in
\copy (select * from orders order by id) to copy.out
\d orders
SELECT 1/0;
DO $$ BEGIN PERFORM 1; END $$;
SELECT 'SELECT ' || n FROM generate_series(1, 3) AS n \gexec
DELETE FROM orders WHERE id > 50;
TRUNCATE public.orders;
WITH gone AS (DELETE FROM "Orders" RETURNING id) SELECT count(*) FROM gone;
"""

SEVERAL = "SELECT 1 AS one; ; INSERT INTO orders VALUES (901, 'x;y') /* ; */; SELECT 1/0; SELECT 'never run'"


@pytest.fixture(autouse=True)
def _tables(postgres: PostgresServer) -> Iterator[None]:
    columns = "(id int PRIMARY KEY, note text)"
    postgres.execute(f"CREATE TABLE orders {columns}", f'CREATE TABLE "Orders" {columns}')
    yield
    postgres.execute('DROP TABLE orders, "Orders"')


def psql(watch: Watch, postgres: PostgresServer, transport: str, *args: str) -> tuple[str, list[Row], list[str]]:
    """Run psql; return the session, its statements and how they differ from the server's log."""
    start = postgres.log_position()
    command = ["/usr/bin/env", "-C", str(watch.root), str(postgres.bin / "psql"), "-X", *args]
    run = watch.run(*command, env=postgres.environment(transport), check=False)
    statements = watch.statements(run.session)
    return run.session, statements, differences(postgres.logged_since(start), statements)


def script(watch: Watch, postgres: PostgresServer, transport: str) -> tuple[str, list[Row], list[str]]:
    """Run the script."""
    (watch.root / "script.sql").write_text(SCRIPT)
    (watch.root / "copy.in").write_text("".join(f"{n}\tnote {n}\n" for n in range(1, 101)))
    (watch.root / "copy.out").touch(mode=0o666)
    (watch.root / "copy.out").chmod(0o666)
    return psql(watch, postgres, transport, "-f", "script.sql")


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_script_is_recorded_verbatim_in_order(watch: Watch, postgres: PostgresServer, transport: str) -> None:
    session, statements, different = script(watch, postgres, transport)
    assert different == []
    assert len({row["connection"] for row in statements}) == 1
    assert {(row["transport"], row["protocol"], row["db.user"], row["db.namespace"]) for row in statements} == {
        (transport, "postgresql", postgres.user, postgres.database)
    }
    assert all(row["exe"].endswith("/psql") and row["session"] == session for row in statements)
    rows = {row["db.query.text"]: row["rows"] for row in statements}
    assert rows["DELETE FROM orders WHERE id > 50;"] == 50
    assert [n for text, n in rows.items() if text.upper().startswith("COPY")] == [100, 100]


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_several_statements_in_one_query_have_an_outcome_each(
    watch: Watch, postgres: PostgresServer, transport: str
) -> None:
    _, statements, different = psql(watch, postgres, transport, "-c", SEVERAL)
    assert different == []
    outcomes = [(row["db.operation.name"], row["outcome"], row["db.response.status_code"]) for row in statements]
    assert outcomes[:3] == [("SELECT", "ok", None), ("INSERT", "ok", None), ("SELECT", "error", "22012")]
    assert all(outcome == "discarded" for _, outcome, _ in outcomes[3:])


def test_a_table_is_found_by_the_name_sql_gives_it(watch: Watch, postgres: PostgresServer) -> None:
    session, _, _ = script(watch, postgres, "tcp")
    for table, access, texts in (
        ("orders", "write", {"COPY", "DELETE", "TRUNCATE"}),
        ("ORDERS", "write", {"COPY", "DELETE", "TRUNCATE"}),
        ("public.orders", "write", {"COPY", "DELETE", "TRUNCATE"}),
        ("other.orders", "write", set()),
        ('"Orders"', "write", {"INSERT", "UPDATE", "WITH"}),
        ("orders", "read", {"SELECT", "COPY"}),
    ):
        found = watch.rows("statements", "--session", session, "--table", table, "--access", access)
        assert {row["db.query.text"].split()[0].upper() for row in found} == texts, (table, access)
        sessions = {row["session"] for row in watch.rows("sessions", "--table", table, "--access", access)}
        assert (session in sessions) == bool(texts)
    assert watch.rows("sessions", "--table", "order") == []
