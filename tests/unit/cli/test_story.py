from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from agentwatch.cli import main
from agentwatch.log.signed import Options, SignedLog
from agentwatch.records.encoding import encode
from tests.unit.log_builder import MS, OTHER_SESSION, SESSION, LogBuilder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AGENTWATCH = (sys.executable, "-c", "from agentwatch.cli import main; main(prog_name='agentwatch')")


@pytest.fixture
def agentwatch(config_file: Path) -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(main, [*arguments, "--config", str(config_file)])


@pytest.fixture
def told(log: LogBuilder) -> LogBuilder:
    log.observer_start()
    log.start()
    shell = log.exec(100, "/bin/sh", "backfill.sh")
    psql = log.exec(101, "/usr/bin/psql", "-c", "SELECT 1", ppid=100)
    log.connect(pid=101)
    log.start(OTHER_SESSION, "agent-report")
    log.session, log.agent = SESSION, "agent-backfill"
    log.statement("UPDATE orders\n   SET state = $1\t-- all", params=["it's", None, b"\xff", 1.5], pid=101)
    log.exec_failed(102, "/nonexistent")
    log.gap(own=False, cause="ring-full", count=4, bytes=None)
    log.exit(psql, 3)
    log.exit(shell)
    log.end(7)
    return log


def test_replay_tells_everything_in_order(agentwatch: Callable[..., Result], told: LogBuilder) -> None:
    told.write()
    result = agentwatch("replay", SESSION[:15], "--no-wait")
    assert result.exit_code == 0
    told_lines = [line for line in result.stdout.splitlines() if not line.startswith("    ")]
    assert [line.split(maxsplit=3)[3].split()[0] for line in told_lines] == [
        "session_start",
        "exec",
        "exec",
        "connect",
        "statement",
        "exec_failed",
        "gap",
        "exit",
        "exit",
        "session_end",
    ]


def test_replay_prints_statements_verbatim_with_parameters(agentwatch: Callable[..., Result], told: LogBuilder) -> None:
    told.write()
    lines = agentwatch("replay", SESSION, "--no-wait").stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if " statement " in line)
    assert lines[at].endswith("psql[101] statement app@shop ok, 1 rows, 700 µs [orders(w)]")
    assert lines[at + 1 : at + 7] == [
        "    UPDATE orders",
        "       SET state = $1       -- all",
        "    $1 = 'it's'",
        "    $2 = NULL",
        "    $3 = \\xff",
        "    $4 = 1.5",
    ]


def test_replay_as_json_has_a_kind_for_each_record(agentwatch: Callable[..., Result], told: LogBuilder) -> None:
    told.write()
    rows = [json.loads(line) for line in agentwatch("replay", SESSION, "--no-wait", "--json").stdout.splitlines()]
    assert [row["kind"] for row in rows][:5] == ["session_start", "exec", "exec", "connect", "statement"]
    statement = rows[4]
    assert statement["tables"] == [{"name": "orders", "schema": None, "access": "write"}]
    assert statement["db.query.text"] == "UPDATE orders\n   SET state = $1\t-- all"
    assert all(row["time"].endswith("Z") for row in rows)


def test_replay_orders_by_when_things_began(agentwatch: Callable[..., Result], log: LogBuilder) -> None:
    log.start()
    slow = log.statement("SELECT pg_sleep(9)", "slow")
    log.statement("SELECT 1", "quick")
    log.records.remove(slow)
    log.records.append(slow)
    log.write()
    rows = [json.loads(line) for line in agentwatch("replay", SESSION, "--no-wait", "--json").stdout.splitlines()]
    assert [row["db.query.text"] for row in rows[1:]] == ["SELECT pg_sleep(9)", "SELECT 1"]


def test_replay_never_reorders_one_connection(agentwatch: Callable[..., Result], log: LogBuilder) -> None:
    log.start()
    log.statement("first")
    log.statement("second")["boottime"] -= 5 * MS
    log.statement("third")
    log.write()
    rows = [json.loads(line) for line in agentwatch("replay", SESSION, "--no-wait", "--json").stdout.splitlines()]
    assert [row["db.query.text"] for row in rows[1:]] == ["first", "second", "third"]


def test_replay_keeps_the_pace(agentwatch: Callable[..., Result], log: LogBuilder) -> None:
    log.start()
    log.now_ns += 2000 * MS
    log.statement("SELECT 1")
    log.write()
    began = time.monotonic()
    assert agentwatch("replay", SESSION, "--speed", "10").exit_code == 0
    assert 0.19 < time.monotonic() - began < 1.5


def test_show_puts_a_session_on_a_page(agentwatch: Callable[..., Result], told: LogBuilder) -> None:
    told.opaque()
    told.delegation()
    told.write()
    result = agentwatch("show", SESSION)
    assert result.exit_code == 0
    page = result.stdout
    assert "agent-backfill" in page
    assert "alice (uid 1000)" in page
    assert "/bin/sh backfill.sh\n" in page
    assert "  [100] /bin/sh backfill.sh -> 0 5.0 ms\n" in page
    assert "    [101] /usr/bin/psql -c 'SELECT 1' -> 3 5.0 ms\n" in page
    assert "  [102] /nonexistent -> No such file or directory\n" in page
    assert "tcp 127.0.0.1:5432 postgresql, 1 statements\n" in page
    assert "  orders(w)\n" in page
    assert "  gap ring-full, 4 events\n" in page
    assert "  delegation docker create alpine: /bin/echo 'two words' (unix:/run/docker.sock)\n" in page
    assert "  opaque tls 203.0.113.5:443: 1000 out, 2000 in\n" in page
    assert "with status 7" in page
    assert "\n1 statements;" in page


def test_show_as_json_is_one_object_with_the_keys_of_the_session(
    agentwatch: Callable[..., Result], told: LogBuilder
) -> None:
    told.write()
    row = json.loads(agentwatch("show", SESSION, "--json", "--statements").stdout)
    assert row["session"] == SESSION
    assert [(p["pid"], p["depth"], p["status"]) for p in row["processes"]] == [(100, 0, 0), (101, 1, 3), (102, 0, None)]
    assert row["statement_rows"][0]["db.query.text"].startswith("UPDATE orders")


def test_show_takes_a_chain_of_processes_deeper_than_the_stack(
    agentwatch: Callable[..., Result], log: LogBuilder
) -> None:
    log.start()
    for pid in range(2, 5000):
        log.exec(pid, "/bin/sh", ppid=pid - 1)
    log.write()
    for arguments in (["show", SESSION], ["show", SESSION, "--json"]):
        assert agentwatch(*arguments).exit_code == 0


def test_tail_prints_the_last_records(agentwatch: Callable[..., Result], told: LogBuilder) -> None:
    told.write()
    assert [line.split()[4] for line in agentwatch("tail", "-n", "2").stdout.splitlines()] == ["exit", "session_end"]
    rows = [json.loads(line) for line in agentwatch("tail", "-n", "1", "--json").stdout.splitlines()]
    assert rows[0]["kind"] == "session_end"
    assert rows[0]["status"] == 7
    assert agentwatch("tail", "-n", "0").stdout == ""


def test_tail_follows_until_interrupted(config_file: Path, log: LogBuilder) -> None:
    log.start()
    log.write()
    process = subprocess.Popen(
        [*AGENTWATCH, "tail", "-f", "--json", "--config", str(config_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert json.loads(process.stdout.readline())["kind"] == "session_start"
        log.statement("SELECT 1")
        log.write()
        assert json.loads(process.stdout.readline())["db.query.text"] == "SELECT 1"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_verify_tells_intact_from_damaged(
    agentwatch: Callable[..., Result], told: LogBuilder, config_file: Path
) -> None:
    with SignedLog(config_file.parent / "log", config_file.parent / "keys", Options("host")) as log:
        for record in told.records:
            log.writer.append(encode(record))
    result = agentwatch("verify")
    assert result.exit_code == 0
    assert "integrity: intact: " in result.stdout
    (segment,) = (config_file.parent / "log").glob("*.segment")
    data = bytearray(segment.read_bytes())
    data[data.index(b"UPDATE")] ^= 1
    segment.write_bytes(data)
    result = agentwatch("verify")
    assert result.exit_code == 1
    assert "integrity: BROKEN at record " in result.stdout
    row = json.loads(agentwatch("verify", "--json").stdout)
    assert row["intact"] is False
    (problem,) = row["problems"]
    assert problem["seq"] == row["broken_at"]


def test_index_says_how_far_it_is(agentwatch: Callable[..., Result], told: LogBuilder) -> None:
    count = len(told.records)
    told.write()
    assert agentwatch("index").stdout == f"indexed {count} records; index: {count} of {count} records\n"
    assert agentwatch("index").stdout == f"indexed 0 records; index: {count} of {count} records\n"
    assert agentwatch("index", "rebuild").stdout == f"indexed {count} records; index: {count} of {count} records\n"


def test_index_follows_until_terminated(config_file: Path, log: LogBuilder) -> None:
    log.start()
    log.write()
    process = subprocess.Popen(
        [*AGENTWATCH, "index", "--follow", "--config", str(config_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stderr.readline() == b"agentwatch: following the log\n"
        log.statement("SELECT 1 FROM orders")
        log.write()
        result = CliRunner().invoke(main, ["sessions", "--table", "orders", "--config", str(config_file)])
        assert (result.exit_code, result.stderr) == (0, "")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
