"""Answers against a plain reading of the same records: a filter in Python over all of them is the truth here."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentwatch.config import Config
from agentwatch.errors import NotFoundError, StoreError
from agentwatch.index import store
from agentwatch.index.indexer import Indexer
from agentwatch.log.reader import LogReader
from agentwatch.query import answers
from agentwatch.query.filters import Filter, Table
from agentwatch.query.source import open_source
from agentwatch.records.encoding import Record, decode
from tests.unit.log_builder import BOOT0, MS, OTHER_SESSION, SECOND, SESSION, T0, LogBuilder

if TYPE_CHECKING:
    from collections.abc import Callable

STATEMENT_KEYS = """
    seq time session agent pid exe peer transport protocol connection db.system.name db.namespace db.user
    db.query.text db.operation.name params tables rows db.response.status_code error outcome duration_ns truncated
"""
SESSION_KEYS = """
    session agent user started ended host statements commands connections tables gaps opaque_bytes
"""
COMMAND_KEYS = """
    seq time session agent argv exe cwd pid ppid uid status duration_ns errno error
"""


def ask(config: Config, question: Callable[..., answers.Answer], **conditions: Any) -> tuple[list[Any], list[str]]:
    with open_source(config) as source:
        answer = question(source, Filter(**conditions))
        return list(answer.rows), answer.reasons


TEXTS: dict[str, set[tuple[str, str | None, str]] | None] = {
    "SELECT * FROM orders": {("orders", None, "read")},
    "SELECT * FROM public.orders": {("orders", "public", "read")},
    "INSERT INTO orders SELECT * FROM staging": {("orders", None, "write"), ("staging", None, "read")},
    "UPDATE archive.orders SET x = 1": {("orders", "archive", "write")},
    'SELECT * FROM "Orders"': {("Orders", None, "read")},
    "SELECT 1": set(),
    "DO $$ BEGIN END $$": None,
}
SESSIONS = {SESSION: "agent-backfill", OTHER_SESSION: "agent-report", None: None}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Every text in every session and database, times apart."""
    root = tmp_path_factory.mktemp("mixed")
    config = Config(log_dir=root / "log", state_dir=root / "state", cgroup_root=root)
    log = LogBuilder(config.log_dir)
    for session, agent in SESSIONS.items():
        if session is not None and agent is not None:
            log.start(session, agent)
        for number, text in enumerate(TEXTS):
            for database in ("shop", "billing", None):
                fields = {"own": session is not None, "db__namespace": database, "params": [number]}
                log.statement(text, f"c-{session}", **fields)
            if session is not None:
                log.exec(100 + number, "/bin/echo", f"n{number}", session[-3:])
    log.write()
    return config


def all_records(config: Config) -> list[tuple[int, Record]]:
    return [(seq, decode(payload)) for seq, payload in LogReader(config.log_dir).records()]


def holds(record: Record, wanted: Filter) -> bool:
    tables = TEXTS[record["db.query.text"]] or set()
    if wanted.table is not None:
        schema, name = wanted.table
        tables = {
            t
            for t in tables
            if t[0] == name and (schema is None or t[1] == schema or (schema == "public" and t[1] is None))
        }
    if wanted.access is not None:
        tables = {t for t in tables if t[2] == wanted.access}
    return (
        (bool(tables) or (wanted.table is None and wanted.access is None))
        and (wanted.database is None or record["db.namespace"] == wanted.database)
        and (wanted.text is None or wanted.text in record["db.query.text"])
        and in_scope(record, wanted)
    )


def in_scope(record: Record, wanted: Filter) -> bool:
    return (
        (wanted.agent is None or record.get("agent") == wanted.agent)
        and (wanted.session is None or record.get("session") == wanted.session)
        and (wanted.since is None or record["time"] >= wanted.since)
        and (wanted.until is None or record["time"] < wanted.until)
    )


moments = st.none() | st.integers(0, 90).map(lambda n: T0 + n * MS)
filters = st.builds(
    Filter,
    table=st.sampled_from(
        [
            None,
            Table(None, "orders"),
            Table("public", "orders"),
            Table(None, "Orders"),
            Table("x", "y"),
            Table(None, "staging"),
        ]
    ),
    access=st.sampled_from([None, "read", "write"]),
    agent=st.sampled_from([None, "agent-backfill", "agent-report", "nobody"]),
    since=moments,
    until=moments,
    database=st.sampled_from([None, "shop", "nowhere"]),
    text=st.sampled_from([None, "SELECT", "orders", "%", "BEGIN"]),
    session=st.sampled_from([None, SESSION, OTHER_SESSION]),
    limit=st.none() | st.integers(1, 5),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=filters)
def test_statements_are_those_that_a_plain_reading_finds(mixed: Config, wanted: Filter) -> None:
    expected = [seq for seq, r in all_records(mixed) if r["kind"] == "statement" and holds(r, wanted)]
    with open_source(mixed) as source:
        found = [row["seq"] for row in answers.statements(source, wanted).rows]
    assert found == expected[-(wanted.limit or len(expected)) :]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=filters)
def test_sessions_are_those_of_the_statements(mixed: Config, wanted: Filter) -> None:
    records = [r for _, r in all_records(mixed)]
    if any(x is not None for x in (wanted.table, wanted.access, wanted.database, wanted.text)):
        found = {r.get("session") for r in records if r["kind"] == "statement" and holds(r, wanted)}
    else:
        # They run to the present end, so only their start can lie outside of the window.
        found = {
            r["session"] for r in records if r["kind"] == "session_start" and in_scope(r, replace(wanted, since=None))
        }
    expected = [session for session in SESSIONS if session is not None and session in found]
    with open_source(mixed) as source:
        assert [row["session"] for row in answers.sessions(source, wanted).rows] == expected[-(wanted.limit or 9) :]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=filters)
def test_commands_are_those_of_sessions_with_such_a_statement(mixed: Config, wanted: Filter) -> None:
    records = all_records(mixed)
    about = any(x is not None for x in (wanted.table, wanted.access, wanted.database))
    sessions = {
        r.get("session") for _, r in records if r["kind"] == "statement" and holds(r, replace(wanted, text=None))
    }
    expected = [
        seq
        for seq, r in records
        if r["kind"] == "exec"
        and in_scope(r, wanted)
        and (not about or r["session"] in sessions)
        and (wanted.text is None or wanted.text in " ".join(r["argv"]))
    ]
    with open_source(mixed) as source:
        found = [row["seq"] for row in answers.commands(source, wanted).rows]
    assert found == expected[-(wanted.limit or len(expected)) :]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=filters)
def test_no_is_said_only_when_nothing_is_in_doubt(mixed: Config, wanted: Filter) -> None:
    """A statement of which a condition cannot be told, while all others hold, must be among the reasons."""

    def maybe(r: Record) -> bool:
        untold = TEXTS[r["db.query.text"]] is None
        unknown_table = untold and (wanted.table is not None or wanted.access is not None)
        unknown_database = r["db.namespace"] is None and wanted.database is not None
        unknown_session = r.get("session") is None
        eased = replace(
            wanted,
            table=None if untold else wanted.table,
            access=None if untold else wanted.access,
            database=None if unknown_database else wanted.database,
            session=None if unknown_session else wanted.session,
            agent=None if unknown_session else wanted.agent,
        )
        scoped = wanted.session is not None or wanted.agent is not None
        return (unknown_table or unknown_database or (unknown_session and scoped)) and holds(r, eased)

    in_doubt = any(r["kind"] == "statement" and maybe(r) for _, r in all_records(mixed))
    with open_source(mixed) as source:
        reasons = answers.statements(source, wanted).reasons
    if in_doubt:
        assert reasons


def test_statement_has_the_keys_of_the_contract(config: Config, log: LogBuilder) -> None:
    log.start()
    log.statement("SELECT 1 FROM orders", params=[None, 1, 1.5, "a", b"\xff\x00"])
    log.write()
    ((row,), _) = ask(config, answers.statements)
    assert list(row) == STATEMENT_KEYS.split()
    assert row["time"] == "2023-11-14T22:13:20.002000000Z"
    assert row["tables"] == [{"name": "orders", "schema": None, "access": "read"}]
    assert row["params"] == [None, 1, 1.5, "a", {"base64": "/wA="}]
    assert row["db.operation.name"] == "SELECT"
    assert row["outcome"] == "ok"
    assert row["truncated"] is False


def test_session_has_the_keys_of_the_contract(config: Config, log: LogBuilder) -> None:
    log.start()
    log.exec(100, "/usr/bin/psql")
    log.exec_failed(101, "/nonexistent")
    log.connect()
    log.connect("refused", "127.0.0.1:1", errno=111)
    log.statement("INSERT INTO orders SELECT * FROM staging")
    log.statement("SELECT * FROM orders")
    log.opaque()
    log.gap()
    log.gap(own=False)
    log.write()
    ((running,), _) = ask(config, answers.sessions)
    assert running["ended"] is None
    log.end()
    log.gap(own=False)
    log.write()
    ((row,), _) = ask(config, answers.sessions)
    assert list(row) == SESSION_KEYS.split()
    assert row == {
        "session": SESSION,
        "agent": "agent-backfill",
        "user": "alice",
        "started": "2023-11-14T22:13:20.001000000Z",
        "ended": "2023-11-14T22:13:20.011000000Z",
        "host": "db-agent-1",
        "statements": 2,
        "commands": 2,
        "connections": 2,
        "tables": [
            {"name": "orders", "schema": None, "access": "read"},
            {"name": "orders", "schema": None, "access": "write"},
            {"name": "staging", "schema": None, "access": "read"},
        ],
        "gaps": 2,
        "opaque_bytes": 3000,
    }


def test_command_has_the_keys_of_the_contract(config: Config, log: LogBuilder) -> None:
    log.start()
    shell = log.exec(100, "/bin/sh", "-c", "", b"\xff", ppid=7)
    log.exec_failed(101, "/nonexistent", "x")
    log.exit(shell, 3, duration_ns=42)
    log.write()
    ((ran, failed), _) = ask(config, answers.commands)
    assert list(ran) == COMMAND_KEYS.split()
    assert (ran["argv"], ran["exe"], ran["cwd"]) == (
        ["/bin/sh", "-c", "", {"base64": "/w=="}],
        "/bin/sh",
        "/home/alice",
    )
    assert (ran["pid"], ran["ppid"], ran["uid"], ran["status"], ran["duration_ns"]) == (100, 7, 1000, 3, 42)
    assert (failed["exe"], failed["status"], failed["errno"], failed["error"]) == (
        "/nonexistent",
        None,
        2,
        "No such file or directory",
    )


def test_text_that_is_not_utf8_is_kept_in_base64(config: Config, log: LogBuilder) -> None:
    log.start()
    log.statement(b"SELECT '\xe9' FROM orders")
    log.write()
    ((row,), _) = ask(config, answers.statements, text="FROM orders")
    assert row["db.query.text"] == "SELECT '�' FROM orders"
    assert row["db.query.text_base64"] == "U0VMRUNUICfpJyBGUk9NIG9yZGVycw=="


def test_numbers_that_json_does_not_have_are_given_as_text(config: Config, log: LogBuilder) -> None:
    log.start()
    log.statement("SELECT $1", params=[float("nan"), float("inf"), float("-inf"), 2**64 - 1, -(2**63)])
    log.write()
    ((row,), _) = ask(config, answers.statements)
    assert row["params"] == ["NaN", "Infinity", "-Infinity", 2**64 - 1, -(2**63)]
    assert json.loads(orjson.dumps(row), parse_constant=pytest.fail) == row


def test_tables_that_could_not_be_told_are_null_and_none_are_an_empty_list(config: Config, log: LogBuilder) -> None:
    log.start()
    log.statement("DO $$ BEGIN END $$")
    log.statement("SELECT 1")
    log.statement(None)
    log.write()
    (found, _) = ask(config, answers.statements)
    assert [row["tables"] for row in found] == [None, [], None]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"table": Table(None, "x")}, ["could not be told"]),
        ({"table": Table(None, "x"), "until": T0}, []),
        ({"database": "x"}, ["database is not known"]),
        ({"text": "zzz"}, ["text is not known", "kept only in part"]),
        ({"agent": "x"}, ["of no known session"]),
        ({"table": Table("audit", "orders")}, ["could not be told", "without a schema"]),
        ({"table": Table("public", "orders")}, ["could not be told"]),
    ],
)
def test_reasons_are_those_that_the_question_depends_on(
    config: Config, log: LogBuilder, conditions: dict[str, Any], expected: list[str]
) -> None:
    log.start()
    log.statement("SELECT 1 FROM orders", truncated=True, db__namespace=None)
    log.statement(None)
    log.statement("SELECT 1", own=False)
    log.write()
    _, reasons = ask(config, answers.statements, **conditions)
    for part in expected:
        assert any(part in reason for reason in reasons), (part, reasons)
    if not expected:
        assert reasons == []


def test_gap_counts_only_for_the_window_and_scope_it_touches(config: Config, log: LogBuilder) -> None:
    log.start()
    log.gap()
    log.start(OTHER_SESSION, "agent-report")
    log.now_ns += SECOND
    log.gap(own=False, cause="ring-full", count=4, since=None)
    log.write()
    for conditions, number in (
        ({}, 2),
        ({"agent": "agent-report"}, 1),
        ({"agent": "agent-backfill"}, 2),
        ({"until": T0 + SECOND}, 1),
        ({"since": T0 + SECOND}, 1),
        ({"since": T0 + 5 * SECOND}, 0),
    ):
        _, reasons = ask(config, answers.sessions, table=Table(None, "x"), **conditions)
        assert len([r for r in reasons if "gap" in r]) == number, (conditions, reasons)


def test_a_detached_probe_makes_answers_uncertain_until_it_is_attached_again(config: Config, log: LogBuilder) -> None:
    def gaps(**conditions: Any) -> int:
        log.write()
        _, reasons = ask(config, answers.sessions, table=Table(None, "x"), **conditions)
        return len([reason for reason in reasons if "gap" in reason])

    log.observer_start()
    log.add("probe_attach", own=False, reason="start", pins=["links/a", "links/b"])
    log.add("probe_detach", own=False, pin="links/b", what="pin-deleted", capturing=True)
    assert gaps() == 0
    log.now_ns += SECOND
    log.add("probe_detach", own=False, pin="links/a", what="link-detached", capturing=False, since=BOOT0 + SECOND // 2)
    assert gaps() == 1
    assert gaps(until=T0 + SECOND // 2) == 0
    assert gaps(since=T0 + 100 * SECOND) == 1, "it goes on"
    log.add("probe_attach", own=False, reason="restored", pins=["links/b"])
    assert gaps(since=T0 + 100 * SECOND) == 1, "another one"
    log.now_ns += SECOND
    log.add("probe_attach", own=False, reason="restored", pins=["links/a"])
    assert gaps() == 1
    assert gaps(since=T0 + 2 * SECOND - MS) == 1
    assert gaps(since=T0 + 3 * SECOND) == 0


def test_an_upgrade_or_a_start_ends_what_was_detached_and_what_still_is_follows(
    config: Config, log: LogBuilder
) -> None:
    later = {"since": T0 + 100 * SECOND, "table": Table(None, "x")}
    for reason in ("start", "upgrade"):
        for pin in ("links/a", "links/b"):
            log.add("probe_detach", own=False, pin=pin, what="link-detached", capturing=False)
        log.add("probe_attach", own=False, reason=reason, pins=[])
        log.add("probe_detach", own=False, pin="links/a", what="link-detached", capturing=False)
    log.write()
    assert "1 gap (probe-detached)" in ask(config, answers.sessions, **later)[1]
    log.add("gap", own=False, boot_id="another boot", cause="ring-full", count=1, bytes=None)
    log.write()
    assert ask(config, answers.sessions, **later)[1] == []


def test_a_missed_canary_makes_answers_uncertain_until_one_is_seen(config: Config, log: LogBuilder) -> None:
    later = {"since": T0 + 100 * SECOND, "table": Table(None, "x")}
    log.add("canary_missed", own=False, missing=["exec"], interval=60, since=BOOT0)
    log.write()
    assert "1 gap (canary-missed)" in ask(config, answers.sessions, **later)[1]
    log.add("canary_seen", own=False, interval=60)
    log.write()
    assert ask(config, answers.sessions, **later)[1] == []
    log.add("canary_missed", own=False, missing=["exec"], interval=60, since=BOOT0)
    log.observer_start(resumed=True)
    log.write()
    assert ask(config, answers.sessions, **later)[1] == []


def test_open_opaque_flow_lasts_as_long_as_its_session(config: Config, log: LogBuilder) -> None:
    log.start()
    log.opaque(final=False)
    log.write()
    later = {"since": T0 + 100 * SECOND, "table": Table(None, "x")}
    assert "1 opaque flow (tls, 3000 bytes, 203.0.113.5:443)" in ask(config, answers.sessions, **later)[1]
    log.end()
    log.write()
    assert ask(config, answers.sessions, **later)[1] == []
    assert ask(config, answers.sessions, table=Table(None, "x"))[1] != []


def test_delegation_puts_programs_and_statements_in_doubt_but_not_a_list_of_sessions(
    config: Config, log: LogBuilder
) -> None:
    log.start()
    log.delegation()
    log.delegation(operation="start")
    log.delegation("at", None)
    log.write()
    docker = "2 delegations to docker, whose doings are in no session (create start)"
    at = "1 delegation to at, whose doings are in no session (what was asked is not known)"
    for question in (answers.commands, answers.statements):
        assert ask(config, question)[1] == [docker, at]
    assert ask(config, answers.sessions, table=Table(None, "x"))[1] == [docker, at]
    assert ask(config, answers.sessions)[1] == []
    assert ask(config, answers.commands, since=T0 + 100 * SECOND)[1] == [
        docker,
        at,
    ]  # the session goes on
    assert ask(config, answers.commands, until=T0)[1] == []


def test_opaque_flow_does_not_put_a_list_of_programs_in_doubt(config: Config, log: LogBuilder) -> None:
    log.start()
    log.opaque()
    log.write()
    assert ask(config, answers.commands)[1] == []
    assert ask(config, answers.commands, table=Table(None, "x"))[1] != []


def test_row_that_is_something_else_in_the_log_is_not_shown(config: Config, log: LogBuilder) -> None:
    log.start()
    log.statement("SELECT 1 FROM orders")
    log.exec(1, "/bin/true")
    log.write()
    with Indexer(config) as indexer:
        indexer.catch_up()
    db = store.open_writer(config)
    db.execute("UPDATE statement SET seq = 2")
    db.execute("UPDATE touch SET statement = 2")
    db.close()
    with pytest.raises(StoreError, match="index rebuild"):
        ask(config, answers.statements)


def test_index_behind_the_log_is_said(config: Config, log: LogBuilder) -> None:
    log.start()
    log.write()
    with Indexer(config) as indexer:
        indexer.catch_up()
        log.statement("SELECT 1 FROM orders")
        log.write()
        found, reasons = ask(config, answers.statements)
    assert (found, reasons) == ([], ["index: 1 of 2 records"])


def test_session_is_found_by_a_prefix_that_only_it_has(config: Config, log: LogBuilder) -> None:
    log.start()
    log.start(OTHER_SESSION)
    log.write()
    with open_source(config) as source:
        assert answers.resolve_session(source, SESSION) == SESSION
        assert answers.resolve_session(source, OTHER_SESSION[:15].upper()) == OTHER_SESSION
        for typed in ("", "018bd0a6", "ffff", "%", "_" * 36):
            with pytest.raises(NotFoundError):
                answers.resolve_session(source, typed)


def test_window_before_the_log_begins_is_noted(config: Config, log: LogBuilder) -> None:
    log.start()
    log.write()
    with open_source(config) as source:
        note = answers.sessions(source, Filter(since=T0 - SECOND)).note
        assert note is not None
        assert "the log begins at" in note
        assert answers.sessions(source, Filter(since=T0 + SECOND)).note is None


def test_unusable_index_that_may_not_be_rebuilt_gives_lag_not_an_answer(config: Config, log: LogBuilder) -> None:
    log.start()
    log.write()
    with Indexer(config) as indexer:
        indexer.catch_up()
        indexer.close()
        lock = store.WriterLock(config)
        store.path_of(config).write_bytes(b"garbage" * 1000)
        try:
            found, reasons = ask(config, answers.sessions)
        finally:
            lock.close()
    assert found == []
    assert reasons == ["index: 0 of 1 records"]


def test_a_search_through_path_is_one_command(config: Config, log: LogBuilder) -> None:
    log.start()
    for folder in ("/usr/local/bin", "/usr/bin"):
        log.exec_failed(7, "psql", "-l", filename=f"{folder}/psql")
    log.exec(7, "psql", "-l", filename="/bin/psql")
    for folder in ("/usr/local/bin", "/usr/bin"):
        log.exec_failed(8, "nowhere", filename=f"{folder}/nowhere")
    log.exec_failed(9, "/usr/bin/psql")
    log.write()
    found, _ = ask(config, answers.commands)
    assert [(row["pid"], row["exe"], "errno" in row and row["errno"]) for row in found] == [
        (7, "psql", None),
        (8, "/usr/bin/nowhere", 2),
        (9, "/usr/bin/psql", 2),
    ]
    (session,), _ = ask(config, answers.sessions)
    assert session["commands"] == len(found)
