"""connectorx over TLS: with_connectorx.py N. A Rust client, which reads in parallel; it writes only before it reads."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import connectorx  # type: ignore[import, unused-ignore]

INSERT = "INSERT INTO tls_capture (id, client, note) VALUES"
PROTOCOLS = ("binary", "csv", "cursor", "simple")


def read(query: str, **options: Any) -> Any:
    url = "postgresql://{PGUSER}@{PGHOST}:{PGPORT}/{PGDATABASE}?sslmode={PGSSLMODE}".format_map(os.environ)
    return connectorx.read_sql(url, query, return_type="arrow", **options)


def insert(count: int) -> None:
    rows = [f"{INSERT} ({number}, 'connectorx', 'connectorx note {number}')" for number in range(count)]
    read("SELECT count(*) FROM tls_capture", pre_execution_query=rows)


def rows(protocol: str, last: int) -> None:
    query = f"SELECT generate_series(1, {last}) AS n, '{protocol} row' AS note"
    assert read(query, protocol=protocol).num_rows == last


def partitions() -> None:
    query = "SELECT n, 'part ' || n AS note FROM generate_series(1, 8000) AS n"
    assert read(query, partition_on="n", partition_num=4).num_rows == 8000


def large() -> None:
    body = "".join(f"c{number:06d}," for number in range(128 * 1024))
    assert read(f"SELECT length('{body}') AS length").to_pylist() == [{"length": len(body)}]


def fail() -> None:
    with contextlib.suppress(RuntimeError):
        read("SELECT 1/0 AS connectorx")
    rolled_back = f"{INSERT} (-1, 'connectorx', 'rolled back')"
    read("SELECT 'connectorx after the rollback' AS note", pre_execution_query=["BEGIN", rolled_back, "ROLLBACK"])


def main(count: int) -> None:
    insert(count)
    for number, protocol in enumerate(PROTOCOLS):
        rows(protocol, 3000 + number)
    partitions()
    large()
    fail()


main(int(sys.argv[1]))
