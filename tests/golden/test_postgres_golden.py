"""Recorded connections of real clients, decoded, against what the server itself logged of them."""

from __future__ import annotations

import csv
import gzip
import io
import random
from pathlib import Path
from typing import Any

import pytest

from agentwatch.protocols.base import Direction, Message, Opened, Outcome, Statement
from agentwatch.protocols.postgres import PostgresDecoder
from tests.golden import corpus
from tests.kernel import server_log

FOLDER = Path(__file__).parent / "postgres"
CORPORA = sorted(path.name.removesuffix(".capture.gz") for path in FOLDER.glob("*.capture.gz"))
Pieces = list[tuple[int, bytes]]


def decode(pieces: Pieces) -> list[Message]:
    decoder = PostgresDecoder()
    messages = [m for direction, data in pieces for m in decoder.feed(Direction(direction), data, 5)]
    return messages + decoder.close(5)


def statements(messages: list[Message]) -> list[Statement]:
    return [m for m in messages if isinstance(m, Statement)]


def queries(found: list[Statement]) -> list[tuple[str, Any, str | None]]:
    """Return what was asked in order, several statements of one Query put together again."""
    result: list[tuple[str, Any, str | None]] = []
    parts: dict[int, tuple[bytes, str | None]] = {}
    for s in sorted(found, key=lambda s: s.offset):
        assert s.text is not None or s.outcome is not Outcome.OK
        count = s.attributes.get("postgresql.query_index")
        if count is None:
            if s.outcome is not Outcome.DISCARDED and s.text is not None:
                result.append((s.text.decode(), s.params, s.status_code))
            continue
        before, code = parts.pop(s.offset, (str(s.attributes.get("postgresql.query_prefix", "")).encode(), None))
        whole = before + (s.text or b"") + str(s.attributes["postgresql.query_separator"]).encode()
        parts[s.offset] = whole, code or s.status_code
        if s.attributes["postgresql.query_index"] == int(s.attributes["postgresql.query_count"]) - 1:
            result.append((whole.decode(), None, parts.pop(s.offset)[1]))
    assert not parts
    return result


SEVERITY, SQLSTATE, MESSAGE, QUERY = 11, 12, 13, 19


def of_statements(log: str) -> str:
    """Leave out what is about no statement of its own.

    Executions that go on with a suspended portal, and errors about a name that stands for nothing.
    """
    out = io.StringIO()
    for row in csv.reader(io.StringIO(log, newline="")):
        nameless = row[SEVERITY] == "ERROR" and not row[QUERY] and row[SQLSTATE] in NAMELESS
        if row[SEVERITY] == "FATAL" and row[QUERY]:
            row[SEVERITY] = "ERROR"  # it ended the statement and the connection
        if not row[MESSAGE].startswith("execute fetch from") and not nameless:
            csv.writer(out).writerow(row)
    return out.getvalue()


NAMELESS = ("26000", "08P01")  # no such statement; a function call that is none
UNSPELLED = ("list", "Range", "IPv6Address")
"""Types that psycopg also sends as text, in a spelling of its own that is kept."""


def logged_statements(messages: list[Message]) -> list[Statement]:
    """Leave out what a server does not log: replication commands, and an empty text of the extended protocol."""
    if any(isinstance(m, Opened) and "postgresql.replication" in m.attributes for m in messages):
        return []
    return [s for s in statements(messages) if s.text or s.params is None]


def same(value: Any, logged: str | None) -> bool:
    if isinstance(value, bytes):
        return False
    if isinstance(value, float):
        return logged is not None and float(logged) == value
    return (None if value is None else str(value)) == logged


@pytest.mark.parametrize("name", CORPORA)
def test_every_statement_is_the_servers_in_order_with_parameters_and_sqlstate(name: str) -> None:
    log = gzip.decompress((FOLDER / f"{name}.csv.gz").read_bytes()).decode()
    sessions = {row[4]: row[5] for row in csv.reader(io.StringIO(log, newline="")) if len(row) > 5}
    logged = server_log.connections(of_statements(log))
    compared = parameters = 0
    for connection in corpus.connections(FOLDER / f"{name}.capture.gz"):
        found = queries(logged_statements(decode(connection.pieces)))
        truth = logged.get(sessions.get(connection.address, ""), [])
        assert [(text, code) for text, _, code in found] == [(entry.text, entry.sqlstate) for entry in truth]
        for (text, params, _), entry in zip(found, truth, strict=True):
            compared += 1
            if not entry.params or entry.params == server_log.UNLOGGED:
                continue
            assert params is not None
            assert len(params) == len(entry.params), text
            for value, printed in zip(params, entry.params, strict=True):
                parameters += 1
                unspelled = isinstance(value, str | bytes) and text.endswith(UNSPELLED)
                assert same(value, printed) or unspelled, (text, value, printed)
    assert compared


@pytest.mark.parametrize("name", CORPORA)
def test_messages_do_not_depend_on_pieces(name: str) -> None:
    for connection in corpus.connections(FOLDER / f"{name}.capture.gz"):
        whole = decode(connection.pieces)
        one_by_one = [(d, data[i : i + 1]) for d, data in connection.pieces for i in range(len(data))]
        assert decode(one_by_one) == whole
        joined: Pieces = []
        for direction, data in connection.pieces:
            if joined and joined[-1][0] == direction:
                joined[-1] = direction, joined[-1][1] + data
            else:
                joined.append((direction, data))
        assert decode(joined) == whole


def with_gap(pieces: Pieces, direction: int, start: int, length: int) -> list[Message]:
    decoder = PostgresDecoder()
    messages: list[Message] = []
    position = 0
    for way, data in pieces:
        if way != direction:
            messages += decoder.feed(Direction(way), data, 5)
            continue
        before = data[: max(0, start - position)]
        lost = data[len(before) : max(0, start + length - position)]
        if before:
            messages += decoder.feed(Direction(way), before, 5)
        if lost:
            messages += decoder.gap(Direction(way), len(lost), 5)
        messages += decoder.feed(Direction(way), data[len(before) + len(lost) :], 5)
        position += len(data)
    return messages + decoder.close(5)


def outcome(statement: Statement) -> tuple[object, ...]:
    if statement.text and statement.text.startswith(b"START_REPLICATION"):
        return (statement.outcome,)  # a walsender completes this one statement twice, with two tags
    return statement.outcome, statement.rows, statement.command_tag, statement.status_code, statement.error


@pytest.mark.parametrize("name", CORPORA)
def test_lost_bytes_make_outcomes_unknown_and_never_others(name: str) -> None:
    choose = random.Random(name)  # noqa: S311 - places to cut, the same in each run
    known = 0
    for connection in corpus.connections(FOLDER / f"{name}.capture.gz"):
        truth = {(s.offset, s.text): outcome(s) for s in statements(decode(connection.pieces))}
        for _ in range(25):
            direction = choose.randrange(2)
            size = sum(len(data) for way, data in connection.pieces if way == direction)
            start, length = choose.randrange(size + 1), choose.choice([1, 6, 40, 300, 3000])
            for s in statements(with_gap(connection.pieces, direction, start, length)):
                whole = s.text is None or len(s.text) == s.text_length
                if whole and s.outcome in (Outcome.OK, Outcome.ERROR) and (s.offset, s.text) in truth:
                    assert outcome(s) == truth[s.offset, s.text]
                    known += 1
    assert known
