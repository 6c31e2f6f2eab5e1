"""Broken, hostile and huge texts: an answer in bounded time, never an exception, never a crash of the C library."""

# ruff: noqa: S608 -- the statements are made to be parsed, no server runs them

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from agentwatch.sql.tables import TableRef, analyse

ORDERS = (TableRef("orders", None, "read"),)
MAX_SECONDS = 20
"""For 5 MB, on a machine that does other things too; the usual is 1 to 5 s."""


def test_nothing_after_a_nul_is_lost() -> None:
    answer = analyse("SELECT * FROM items\0; DROP TABLE orders")
    assert answer.tables == (TableRef("orders", None, "write"), TableRef("items", None, "read"))
    assert answer[2:4] == ("partial", "nul")


def test_text_that_is_not_utf8_is_partial() -> None:
    assert analyse(b"SELECT * FROM orders WHERE note = '\xff\xfe'")[1:4] == (ORDERS, "partial", "encoding")


def test_lone_surrogates_are_taken() -> None:
    assert analyse("SELECT * FROM orders WHERE note = '\ud800'").tables == ORDERS
    assert analyse("SELECT * FROM orders, \ud800").confidence in ("exact", "partial")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT * FROM orders WHERE", ["orders read"]),
        ("SELECT * FROM s.Orders o, \"Items\" i WHERE note = 'it''s FROM stock", ["s.orders read", "Items read"]),
        ("INSERT INTO orders SELECT * FROM items JOIN stock ON", ["orders write", "items read", "stock read"]),
        (
            "UPDATE ONLY orders SET a = 1 FROM items WHERE b IN (SELECT c FROM stock",
            ["orders write", "items read", "stock read"],
        ),
        ("DELETE FROM orders USING items WHERE (", ["orders write", "items read"]),
        ("MERGE INTO orders USING items ON (", ["orders write", "items read"]),
        ("WITH x AS (SELECT * FROM orders), y (a) AS (SELECT 1 FROM x) SELECT * FROM x, y JOIN", ["orders read"]),
        ("SELECT EXTRACT(day FROM at) FROM orders WHERE a IS DISTINCT FROM b AND", ["orders read"]),
        ("SELECT * FROM orders FOR UPDATE SKIP", ["orders read"]),
        ("INSERT INTO orders VALUES (1) ON CONFLICT DO UPDATE SET", ["orders write"]),
        ("SELECT * FROM unnest(a) x, orders LIMIT LIMIT", ["orders read"]),
        ("TRUNCATE TABLE orders, items CASC ADE", ["orders write", "items write"]),
        ("DROP TABLE IF EXISTS orders, s.items CASC ADE", ["orders write", "s.items write"]),
        ("COPY orders (a, b) FROM STDIN WITH (", ["orders write"]),
        ("COPY (SELECT * FROM orders) TO STDOUT WITH (", ["orders read"]),
        ("CREATE INDEX CONCURRENTLY ON orders (a", ["orders write"]),
        ("ALTER TABLE orders ADD FOREIGN KEY (a) REFERENCES items (", ["orders write", "items read"]),
        ("SELEC * FROM orders; DELETE FROM items", ["items write", "orders read"]),
        ("LOCK TABLE orders, items IN NO MODE", ["orders read", "items read"]),
    ],
)
def test_refused_text_is_scanned(text: str, expected: list[str]) -> None:
    answer = analyse(text)
    assert answer.tables is not None
    assert [f"{r.schema + '.' if r.schema else ''}{r.name} {r.access}" for r in answer.tables] == expected
    assert answer[2:4] == ("partial", "syntax")


def test_cut_text_gives_what_its_ends_name() -> None:
    text = "INSERT INTO orders VALUES ('abc, 'x') RETURNING (SELECT 1 FROM items)"
    answer = analyse(text, truncated=True)
    assert answer.tables == (TableRef("orders", None, "write"), TableRef("items", None, "read"))
    assert answer[2:4] == ("partial", "truncated")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("IN list of 700,000", f"SELECT * FROM orders WHERE id IN ({','.join(map(str, range(700_000)))})"),
        ("one literal", f"SELECT * FROM orders WHERE note = '{'x' * 5_000_000}'"),
        ("AND of 1,000", "SELECT * FROM orders WHERE a = 1" + " AND a = 1" * 1_000),
        ("4,000 parentheses", f"SELECT {'(' * 4_000}1{')' * 4_000} FROM orders"),
        ("5,000 operators", f"SELECT 1{'+1' * 5_000} FROM orders"),
        ("2,000 UNIONs", "SELECT a FROM orders" + " UNION ALL SELECT a FROM orders" * 2_000),
        ("2,000 JOINs", "SELECT * FROM orders" + " JOIN orders USING (a)" * 2_000),
        ("3,000 casts", f"SELECT a{'::int' * 3_000} FROM orders"),
        ("3,000 subscripts", f"SELECT {'ARRAY[' * 3_000}1{']' * 3_000} FROM orders"),
        ("comments in comments", f"SELECT {'/*' * 100_000}{'*/' * 100_000} * FROM orders"),
        ("rows", f"SELECT * FROM orders, (VALUES {','.join(f'({n}, now(), $${n}$$)' for n in range(100_000))}) v"),
    ],
    ids=lambda value: value if len(value) < 40 else "",
)
def test_large_texts_are_exact_in_bounded_time(name: str, text: str) -> None:
    began = time.monotonic()
    assert analyse(text)[1:4] == (ORDERS, "exact", None), name
    assert time.monotonic() - began < MAX_SECONDS


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("100,000 operators", f"SELECT * FROM orders WHERE a = 1{'+1' * 100_000}"),
        ("a million operators", f"SELECT * FROM orders WHERE a = 1{'+1' * 1_000_000}"),
        ("100,000 JOINs", "SELECT * FROM orders" + " JOIN orders USING (a)" * 100_000),
        ("100,000 parentheses", f"SELECT * FROM orders WHERE {'(' * 100_000}"),
        ("a run of operators", f"SELECT * FROM orders WHERE a {'+-' * 500_000} 1"),
        ("quotes", f"SELECT * FROM orders WHERE a = {chr(39) * 1_000_001}"),
        ("open comments", f"SELECT * FROM orders {'/*' * 1_000_000}"),
        ("dollars", f"SELECT * FROM orders {'$a$ ' * 300_001}"),
        ("lists of columns that end", "SELECT * FROM orders " + ") AS " * 100_000),
        ("words that wait for a table", "SELECT * FROM orders " + "TABLE ONLY " * 50_000),
        ("names of WITH", "SELECT * FROM orders " + ", a AS (SELECT * FROM a" * 25_000),
        ("commands in parentheses", f"SELECT * FROM orders; {'(' * 200_000}{'AS (SELECT) ' * 25_000}"),
        ("COPY", "SELECT * FROM orders; " + "COPY " * 100_000),
        ("escapes", "SELECT * FROM orders " + "E'\\" * 300_000),
    ],
    ids=lambda value: value if len(value) < 40 else "",
)
def test_texts_beyond_a_limit_are_partial_in_bounded_time(name: str, text: str) -> None:
    began = time.monotonic()
    answer = analyse(text)
    assert answer.tables is not None, name
    assert answer.tables[0] == ORDERS[0]
    assert answer.confidence == "partial"
    assert answer.reason in ("too-long", "syntax")
    assert time.monotonic() - began < MAX_SECONDS


def test_deep_mysql_and_long_lists_are_answered() -> None:
    for text in (
        f"SELECT {'(' * 2_000}1{')' * 2_000} FROM orders",
        f"SELECT * FROM orders WHERE a IN ({'1,' * 100_000}1)",
    ):
        assert analyse(text, "mysql").tables == ORDERS


def test_the_deepest_text_that_is_parsed_needs_less_than_two_megabytes_of_stack() -> None:
    # In a process of its own: it would die of a segmentation fault.
    program = """
import threading
from agentwatch.sql import postgres
def times(tail):
    return tail * ((postgres.MAX_TOKENS - 10) // len(tail.split()))
deepest = ["SELECT a " + times("+ a "), "SELECT a " + times("IS NULL "), "SELECT * FROM t " + times("NATURAL JOIN t ")]
answers = []
def parse():
    answers.extend(postgres.parse(text) for text in deepest)
threading.stack_size(2 * 1024 * 1024)
thread = threading.Thread(target=parse)
thread.start()
thread.join()
print(sum(answer is not None for answer in answers))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
