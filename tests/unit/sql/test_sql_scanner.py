"""The scanner against the grammar: on text that is whole both can be asked."""

# ruff: noqa: S608 -- the statements are made to be parsed, no server runs them

from __future__ import annotations

from pathlib import Path

from agentwatch.sql import postgres
from agentwatch.sql.fingerprint import fold
from agentwatch.sql.model import TableRef
from agentwatch.sql.scanner import MAX_PREFIX_CHARACTERS, scan

CORPUS = (Path(__file__).parents[2] / "golden" / "sql" / "corpus.sql").read_text(encoding="utf-8").splitlines()


def found_and_right(cut: float) -> tuple[int, int, int]:
    found = right = there = 0
    for text in CORPUS:
        if "EXPLAIN" in text:
            continue  # its access is the grammar's to tell
        exact = postgres.analyse(text)
        assert exact is not None
        cut_text = text if cut == 1 else text[: int(len(text) * cut)].rpartition(" ")[0]
        scanned = set(scan(fold(cut_text).text, "test").tables or ())
        there += len(set(exact.tables or ()))
        found += len(scanned)
        right += len(scanned & set(exact.tables or ()))
    return found, right, there


def test_whole_text_is_scanned_with_high_precision_and_recall() -> None:
    found, right, there = found_and_right(1.0)
    assert right / found > 0.97
    assert right / there > 0.96


def test_cut_text_is_scanned_with_high_precision() -> None:
    found, right, _ = found_and_right(0.8)
    assert right / found > 0.95


def test_both_ends_of_a_long_text_are_read() -> None:
    text = "SELECT * FROM orders WHERE " + "a = b AND " * MAX_PREFIX_CHARACTERS + " c IN (SELECT d FROM items)"
    answer = scan(text, "too-long")
    assert answer.tables == (TableRef("orders", None, "read"), TableRef("items", None, "read"))


def test_operation_and_number_of_statements() -> None:
    assert scan("CREATE UNIQUE INDEX ON orders (a", "test").operation == "CREATE INDEX"
    assert scan("WITH x AS (INSERT INTO a VALUES (1)) DELETE FROM b", "test").operation == "DELETE"
    assert scan("SELECT 1; UPDATE a SET b = 1; DELETE FROM", "test").statements == 3
    assert scan(")(;;,,", "test") == (None, None, "none", "test", 1)
