"""What the public function says where no server's record can be the truth (tests/golden has those that can)."""

# ruff: noqa: S608 -- the statements are made to be parsed, no server runs them

from __future__ import annotations

import pytest

from agentwatch.sql import tables
from agentwatch.sql.tables import TableRef, analyse


def named(text: str | bytes, dialect: str = "postgresql") -> list[str] | None:
    found = analyse(text, dialect).tables
    return None if found is None else [f"{r.schema + '.' if r.schema else ''}{r.name} {r.access}" for r in found]


@pytest.mark.parametrize("text", ["", " \n;; ", "-- FROM orders", "/* a /* b */ */"])
def test_text_without_statement_has_no_tables_and_no_operation(text: str) -> None:
    assert analyse(text) == (None, (), "exact", None, 0)


def test_no_tables_and_could_not_tell_are_different() -> None:
    assert analyse("SELECT 1").tables == ()
    assert analyse("DO $$ BEGIN DELETE FROM orders; END $$").tables is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("DO $$ BEGIN DELETE FROM orders; END $$", "dynamic"),
        ("CALL tidy_up()", "call"),
        ("EXECUTE p (1)", "execute"),
        ("FETCH 10 FROM c", "fetch"),
        ("VACUUM", "unnamed-tables"),
        ("DROP INDEX orders_pkey", "index"),
        ("REINDEX DATABASE postgres", "unnamed-tables"),
        ("DROP OWNED BY agent", "unnamed-tables"),
        ("GRANT SELECT ON ALL TABLES IN SCHEMA public TO agent", "unnamed-tables"),
        ("CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN DELETE FROM orders; END $$", "function-body"),
        ("SELECT FROM FROM", "syntax"),
    ],
)
def test_what_the_text_cannot_tell_says_why(text: str, reason: str) -> None:
    assert analyse(text)[1:4] == (None, "none", reason)


def test_known_tables_beside_unknown_ones_are_partial() -> None:
    answer = analyse("DELETE FROM orders; DO $$ x $$")
    assert answer[1:] == ((TableRef("orders", None, "write"),), "partial", "dynamic", 2)
    assert analyse("CREATE TABLE fresh AS EXECUTE p")[1:4] == (
        (TableRef("fresh", None, "write"),),
        "partial",
        "execute",
    )
    assert analyse("REFRESH MATERIALIZED VIEW mv").confidence == "partial"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("EXPLAIN (ANALYZE off) DELETE FROM orders", ["orders read"]),
        ("EXPLAIN (ANALYZE 0) DELETE FROM orders", ["orders read"]),
        ("EXPLAIN (ANALYZE 'false') DELETE FROM orders", ["orders read"]),
        ("EXPLAIN (ANALYZE 'true') DELETE FROM orders", ["orders write"]),
        ("EXPLAIN (ANALYZE, ANALYZE off) DELETE FROM orders", ["orders read"]),
        ("SELECT 1; EXPLAIN ANALYZE DELETE FROM orders; EXPLAIN DELETE FROM items", ["orders write", "items read"]),
    ],
)
def test_explain_writes_only_when_it_runs_the_statement(text: str, expected: list[str]) -> None:
    assert named(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PREPARE p AS INSERT INTO a SELECT * FROM b", ["a write", "b read"]),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE SQL AS $$ DELETE FROM a; SELECT 1 FROM b $$", ["a write", "b read"]),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC DELETE FROM a; END", ["a write"]),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql RETURN (SELECT 1 FROM a)", ["a read"]),
    ],
)
def test_definitions_list_what_they_would_touch_and_say_that_nothing_ran(text: str, expected: list[str]) -> None:
    assert named(text) == expected
    assert analyse(text)[2:4] == ("exact", "not-executed")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("VACUUM orders, s.items (sku)", ["orders write", "s.items write"]),
        ("VACUUM (ANALYZE) orders", ["orders write"]),
        ("CLUSTER orders", ["orders write"]),
        ("GRANT SELECT, UPDATE ON orders, s.items TO agent", ["orders write", "s.items write"]),
        ("GRANT USAGE ON SEQUENCE orders_id_seq TO agent", []),
        ("REVOKE ALL ON TABLE orders FROM agent", ["orders write"]),
        ("ALTER TABLE s.orders RENAME TO gone", ["s.orders write", "s.gone write"]),
        ("ALTER TABLE orders SET SCHEMA s", ["orders write", "s.orders write"]),
        ("ALTER SEQUENCE orders_id_seq RESTART", []),
        ("ALTER VIEW v OWNER TO agent", ["v write"]),
        ("DROP VIEW v, s.w", ["v write", "s.w write"]),
        ("DROP TRIGGER t ON s.orders", ["s.orders write"]),
        ("DROP POLICY p ON orders", ["orders write"]),
        ("DROP FUNCTION f()", []),
        ("COMMENT ON CONSTRAINT c ON s.orders IS 'x'", ["s.orders write"]),
        ("CREATE TRIGGER t AFTER INSERT ON orders EXECUTE FUNCTION f()", ["orders write"]),
        ("CREATE RULE r AS ON INSERT TO a DO ALSO (DELETE FROM b; SELECT 1 FROM c)", ["a write", "b write", "c read"]),
        ("CREATE PUBLICATION p FOR TABLE orders", ["orders read"]),
        ("CREATE FOREIGN TABLE far (id int) SERVER s", ["far write"]),
        ("CREATE SCHEMA s CREATE TABLE t (id int) CREATE VIEW v AS SELECT * FROM t", ["t write", "v write", "t read"]),
        ("CREATE SEQUENCE q OWNED BY orders.id", []),
        ("CREATE TYPE pair AS (a int, b int)", []),
        ("SET CONSTRAINTS orders DEFERRED", []),
        ("SELECT * FROM JSON_TABLE('[]', '$' COLUMNS (a int PATH '$.a')) AS orders, items", ["items read"]),
        ("SELECT * FROM orders WHERE id = $1 AND note = $2", ["orders read"]),
        ("DECLARE c CURSOR FOR SELECT * FROM orders FOR UPDATE OF orders", ["orders read"]),
    ],
)
def test_tables_of_statements_that_manage(text: str, expected: list[str]) -> None:
    assert named(text) == expected
    assert analyse(text).confidence == "exact"


def test_each_table_and_access_once_writes_first_then_by_appearance() -> None:
    text = "WITH x AS (SELECT * FROM c, a, c) INSERT INTO b SELECT * FROM x, s.a, b, public.a"
    assert named(text) == ["b write", "c read", "a read", "s.a read", "b read", "public.a read"]


def test_three_part_names_keep_the_catalog() -> None:
    assert analyse("SELECT * FROM db.s.t").tables == (TableRef("t", "s", "read", "db"),)


def test_long_identifiers_are_cut_as_the_server_cuts_them() -> None:
    assert analyse(f"SELECT * FROM {'a' * 80}").tables == (TableRef("a" * 63, None, "read"),)
    assert tables.normalise_name("a" * 80) == (None, "a" * 63)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("Orders", (None, "orders")),
        ('"Orders"', (None, "Orders")),
        ("public.orders", ("public", "orders")),
        (' S . "a.b" ', ("s", "a.b")),
        ('"say ""hi"""', (None, 'say "hi"')),
        ("db.s.t", ("s", "t")),
        ("GRÖSSE", (None, "grÖsse")),
        ("", (None, "")),
        ('"open', (None, '"open')),
        ("a b", (None, "a b")),
    ],
)
def test_typed_names_are_folded_as_sql_folds_them(typed: str, expected: tuple[str | None, str]) -> None:
    assert tables.normalise_name(typed) == expected


def test_prepared_statements_and_cursors_can_be_resolved_by_name() -> None:
    name, inner = tables.prepares('/* x */ PREPARE "P" (int) AS DELETE FROM orders WHERE id = $1') or ("", None)
    assert name == tables.prepared_name(b'EXECUTE "P" (5)') == "P"
    assert inner == ("DELETE", (TableRef("orders", None, "write"),), "exact", None, 1)
    name, inner = tables.declares("DECLARE C CURSOR FOR SELECT * FROM orders") or ("", None)
    assert name == tables.cursor_name("FETCH 100 FROM c") == tables.cursor_name("MOVE c") == "c"
    assert inner is not None
    assert inner.tables == (TableRef("orders", None, "read"),)


@pytest.mark.parametrize(
    "text", ["SELECT 1", "PREPARE", "EXECUTE", "PREPARE TRANSACTION 'x'", "EXECUTE p; SELECT 1", ""]
)
def test_what_is_no_single_prepare_or_execute_has_no_name(text: str) -> None:
    assert tables.prepares(text) is tables.declares(text) is None
    assert tables.prepared_name(text) is tables.cursor_name(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT * FROM `a`.`b` JOIN c ON 1", ["a.b read", "c read"]),
        ("INSERT INTO t (a, b) SELECT * FROM u ON DUPLICATE KEY UPDATE a = 1", ["t write", "u read"]),
        ("WITH a AS (SELECT * FROM b) SELECT * FROM a", ["b read"]),
        ("DROP TABLE a, b", ["a write", "b write"]),
        ("REPLACE INTO Orders SELECT * FROM u", ["Orders write", "u read"]),
        ("DELETE FROM t WHERE id = 1", ["t write"]),
        ("SELECT * FROM orders WHERE 'it''s", ["orders read"]),
    ],
)
def test_mysql(text: str, expected: list[str]) -> None:
    assert named(text, "mysql") == expected


def test_unknown_dialect_is_scanned() -> None:
    assert analyse("SELECT * FROM orders", "no-such-dialect")[1:4] == (
        (TableRef("orders", None, "read"),),
        "partial",
        "syntax",
    )
