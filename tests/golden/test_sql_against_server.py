"""Tables and operation of each statement of the corpus, against what PostgreSQL 15 locked (see record_sql.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentwatch.sql import tables

TRUTH: list[dict[str, Any]] = json.loads((Path(__file__).parent / "sql" / "truth.json").read_text(encoding="utf-8"))
READ_MODES = {"AccessShareLock", "RowShareLock"}
# The server's tags for these have a second word; see agentwatch/sql/operations.py.
CALLED = {"TRUNCATE TABLE": "TRUNCATE", "LOCK TABLE": "LOCK", "DECLARE CURSOR": "DECLARE"}

# Where the strength of a lock is not the access. Only the names are compared for these.
NAMES_ONLY = (
    "LOCK",  # asks for a lock and touches no row
    "ANALYZE",  # keeps others from changing the table's statistics
    "EXPLAIN SELECT",
    "EXPLAIN DELETE",  # locks as if it ran; listed as read
    "EXPLAIN (VERBOSE",
)
# A table that is only referred to is locked against changes of its definition: listed as read.
REFERRED_TO = {
    "CREATE TABLE fresh (id int, order_id int REFERENCES orders (id), FOREIGN KEY (id) REFERENCES customers (id))",
    "CREATE TABLE fresh () INHERITS (orders)",
    "ALTER TABLE items ADD FOREIGN KEY (order_id) REFERENCES orders (id)",
    "ALTER TABLE archive.orders_2020 INHERIT orders",
}


def locked(entry: dict[str, Any]) -> set[tuple[str, str, str]]:
    found = set()
    for schema, name, modes in entry["locks"]:
        place = "public" if schema.startswith("pg_temp") else schema
        found |= {(place, name, "read" if mode in READ_MODES else "write") for mode in modes}
    # The server's own work on its catalogs (COMMENT writes pg_description) is not in the text.
    return {ref for ref in found if (ref[0], ref[2]) != ("pg_catalog", "write")}


def told(statement: str) -> set[tuple[str, str, str]]:
    analysis = tables.analyse(statement)
    assert analysis.confidence == "exact"
    assert analysis.tables is not None
    return {(ref.schema or default_schema(ref.name), ref.name, ref.access) for ref in analysis.tables}


def default_schema(name: str) -> str:
    return "pg_catalog" if name.startswith("pg_") else "public"


def test_the_corpus_is_the_one_that_was_recorded() -> None:
    corpus = (Path(__file__).parent / "sql" / "corpus.sql").read_text(encoding="utf-8").splitlines()
    assert [entry["statement"] for entry in TRUTH] == corpus
    assert len(corpus) >= 150


@pytest.mark.parametrize("entry", TRUTH, ids=lambda entry: entry["statement"][:60])
def test_tables_are_those_that_the_server_locked(entry: dict[str, Any]) -> None:
    ours, servers = told(entry["statement"]), locked(entry)
    if entry["statement"].startswith(NAMES_ONLY) or entry["statement"] in REFERRED_TO:
        assert {ref[:2] for ref in ours} == {ref[:2] for ref in servers}
    else:
        assert ours == servers


@pytest.mark.parametrize("entry", TRUTH, ids=lambda entry: entry["statement"][:60])
def test_operation_is_the_servers_command_tag(entry: dict[str, Any]) -> None:
    analysis = tables.analyse(entry["statement"])
    assert analysis.statements == len(entry["tags"])
    tag = entry["tags"][0].rstrip("0123456789 ")
    if entry["statement"].startswith("CREATE") and tag == "SELECT":
        assert analysis.operation in ("CREATE TABLE AS", "CREATE MATERIALIZED VIEW")  # the tag counts the rows
    elif tag:  # the client gives none for COPY TO
        assert analysis.operation == CALLED.get(tag, tag)
