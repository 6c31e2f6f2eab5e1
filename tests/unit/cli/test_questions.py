from __future__ import annotations

import grp
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from agentwatch.cli import main
from agentwatch.index.indexer import Indexer
from tests.unit.log_builder import OTHER_SESSION, SESSION, LogBuilder

if TYPE_CHECKING:
    from agentwatch.config import Config

AGENTWATCH = (sys.executable, "-c", "from agentwatch.cli import main; main(prog_name='agentwatch')")


@pytest.fixture
def agentwatch(config_file: Path) -> Run:
    return Run(config_file)


class Run:
    def __init__(self, config_file: Path) -> None:
        self._config_file = config_file

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "--config", str(self._config_file)])


@pytest.fixture
def orders(log: LogBuilder) -> LogBuilder:
    log.observer_start()
    log.start()
    log.exec(100, "/usr/bin/psql", "-f", "backfill.sql")
    log.statement("INSERT INTO orders VALUES ($1, $2)", params=["a\nb", None])
    return log


def test_yes_no_and_cannot_say_are_exit_statuses(agentwatch: Run, orders: LogBuilder) -> None:
    orders.write()
    for question in ("sessions", "statements", "commands"):
        assert agentwatch(question, "--table", "Orders").exit_code == 0
        result = agentwatch(question, "--table", "customers")
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", "")
    orders.gap()
    orders.write()
    for question in ("sessions", "statements", "commands"):
        assert agentwatch(question, "--table", "orders").exit_code == 0
        result = agentwatch(question, "--table", "customers")
        assert (result.exit_code, result.stdout) == (3, "")
        assert result.stderr == "agentwatch: cannot say: 1 gap (tcp-hole, 77 bytes)\n"


def test_rows_with_reasons_are_a_yes_that_says_there_may_be_more(agentwatch: Run, orders: LogBuilder) -> None:
    orders.statement("DO $$ BEGIN END $$")
    orders.opaque()
    orders.write()
    result = agentwatch("sessions", "--table", "orders", "--json")
    assert result.exit_code == 0
    assert [json.loads(line)["session"] for line in result.stdout.splitlines()] == [SESSION]
    assert result.stderr.splitlines() == [
        "agentwatch: there may be more: 1 opaque flow (tls, 3000 bytes, 203.0.113.5:443)",
        "agentwatch: there may be more: 1 statement whose tables could not be told",
    ]


def test_lag_is_stated_on_stderr_and_is_no_no(agentwatch: Run, orders: LogBuilder, config: Config) -> None:
    orders.write()
    with Indexer(config) as indexer:
        indexer.catch_up(limit=2)
        result = agentwatch("sessions", "--table", "orders", "--json")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "agentwatch: cannot say: index: 2 of 4 records\n"


def test_json_is_one_object_a_line_and_nothing_else(agentwatch: Run, orders: LogBuilder) -> None:
    orders.statement("SELECT '\u2028\x9b31m\x7f' FROM orders", params=["\u202e"])
    orders.write()
    result = agentwatch("statements", "--json")
    found = [json.loads(line) for line in result.stdout.split("\n")[:-1]]
    assert [row["db.query.text"] for row in found] == [
        "INSERT INTO orders VALUES ($1, $2)",
        "SELECT '\u2028\x9b31m\x7f' FROM orders",
    ]
    assert found[1]["params"] == ["\u202e"]
    assert not set(result.stdout) & set("\u2028\x9b\x7f\u202e\x1b")


def test_escape_sequences_of_an_agent_do_not_reach_the_terminal(agentwatch: Run, orders: LogBuilder) -> None:
    evil = "\x1b]0;owned\x07\x9b2J\u202e\r"
    orders.statement(f"SELECT '{evil}'\nFROM orders", params=[evil], error=evil, outcome="error", db__user=evil)
    orders.exec(102, "/bin/sh", "-c", evil, cwd=evil)
    orders.exec_failed(103, evil)
    orders.connect(evil, f"unix:@{evil}")
    orders.opaque(evil, peer=evil, reason=evil)
    orders.gap(detail=evil)
    orders.add("cgroup_move", pid=1, to=evil)["from"] = evil
    orders.add(evil, key=evil)
    orders.write()
    for arguments in (
        ["statements"],
        ["commands"],
        ["sessions"],
        ["show", SESSION],
        ["show", SESSION, "--statements"],
        ["replay", SESSION, "--no-wait"],
        ["tail"],
        ["statements", "--json"],
        ["replay", SESSION, "--no-wait", "--json"],
        ["tail", "--json"],
    ):
        result = agentwatch(*arguments)
        assert result.exit_code == 0, result.output
        assert not set(result.output) & set("\x1b\x07\x9b\u202e\r"), arguments


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_config_is_taken_from_every_place(
    config_file: Path, orders: LogBuilder, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders.write()
    arguments = ["sessions", "--json"]
    if place == "environment":
        monkeypatch.setenv("AGENTWATCH_CONFIG", str(config_file))
    else:
        monkeypatch.setenv("AGENTWATCH_CONFIG", "/nonexistent")
        option = ["--config", str(config_file)]
        arguments = [*option, *arguments] if place == "before" else [*arguments, *option]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["session"] == SESSION


def test_config_nearest_to_the_command_wins(config_file: Path, orders: LogBuilder) -> None:
    orders.write()
    result = CliRunner().invoke(main, ["--config", "/nonexistent", "sessions", "--config", str(config_file)])
    assert result.exit_code == 0


def test_missing_configuration_is_one_line_and_78() -> None:
    result = CliRunner().invoke(main, ["sessions", "--config", "/nonexistent/x.toml"])
    assert (result.exit_code, result.stdout) == (78, "")
    assert result.stderr == "agentwatch: cannot read the configuration /nonexistent/x.toml: No such file or directory\n"


def test_missing_log_is_one_line_and_66(agentwatch: Run) -> None:
    for arguments in (["sessions"], ["tail"], ["verify"], ["index"], ["show", "x"], ["replay", "x"]):
        result = agentwatch(*arguments)
        assert (result.exit_code, result.stdout) == (66, ""), arguments
        assert "there is no log" in result.stderr
        assert result.stderr.count("\n") == 1


def test_unknown_session_is_one_line_and_66(agentwatch: Run, orders: LogBuilder) -> None:
    orders.write()
    for arguments in (["statements", "--session", "zz"], ["show", "zz"], ["replay", "zz"]):
        result = agentwatch(*arguments)
        assert (result.exit_code, result.stdout) == (66, "")
        assert result.stderr == "agentwatch: no session 'zz'; list them with `agentwatch sessions`\n"


def test_ambiguous_session_names_some(agentwatch: Run, orders: LogBuilder) -> None:
    orders.start(OTHER_SESSION)
    orders.write()
    result = agentwatch("show", SESSION[:8])
    assert result.exit_code == 66
    assert "more than one session" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--since", "soon"], ["--access", "drop"], ["--limit", "0"], ["--nonsense"], ["extra"]],
)
def test_wrong_usage_is_2(agentwatch: Run, arguments: list[str]) -> None:
    assert agentwatch("sessions", *arguments).exit_code == 2


def test_every_command_of_the_responder_documents_its_exit_status() -> None:
    for name in ("sessions", "statements", "commands", "show", "replay", "tail", "verify", "index"):
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0
        assert "Exit status" in result.stdout, name
        assert "--config FILE" in result.stdout, name


def test_statements_of_one_session_by_prefix_and_limit(agentwatch: Run, orders: LogBuilder) -> None:
    orders.start(OTHER_SESSION)
    orders.statement("SELECT 1")
    orders.statement("SELECT 2")
    orders.write()
    result = agentwatch("statements", "--json", "--session", OTHER_SESSION[:14], "--limit", "1")
    assert [json.loads(line)["db.query.text"] for line in result.stdout.splitlines()] == ["SELECT 2"]


def test_pipe_gets_tab_separated_columns(agentwatch: Run, orders: LogBuilder) -> None:
    orders.write()
    header, row = agentwatch("commands").stdout.splitlines()
    assert header.split("\t")[-1] == "command"
    assert row.split("\t")[-1] == "/usr/bin/psql -f backfill.sql"


def test_closed_pipe_ends_quietly(config_file: Path, orders: LogBuilder) -> None:
    for number in range(3000):
        orders.statement(f"SELECT {number}, '{'x' * 100}'")
    orders.write()
    process = subprocess.Popen(
        [*AGENTWATCH, "statements", "--json", "--config", str(config_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_full_disk_is_one_line(config_file: Path, orders: LogBuilder) -> None:
    orders.write()
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*AGENTWATCH, "sessions", "--json", "--config", str(config_file)],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert result.returncode == 74
    assert result.stderr == b"agentwatch: input or output failed: No space left on device\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_stranger_is_told_that_he_may_not(config_file: Path, orders: LogBuilder) -> None:
    orders.write()
    for path in (config_file, *config_file.parents):
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(path.stat().st_mode | 0o005)
    for name in ("sessions", "tail", "verify", "index"):
        result = subprocess.run(
            [*AGENTWATCH, name, "--config", str(config_file)],
            capture_output=True,
            check=False,
            user=65534,
            group=65534,
            extra_groups=[],
        )
        assert (result.returncode, result.stdout) == (77, b""), result.stderr
        assert result.stderr.count(b"\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_member_of_the_reader_group_reads_what_root_indexed(
    config_file: Path, config: Config, orders: LogBuilder
) -> None:
    orders.write()
    with config_file.open("a") as f:
        f.write(f'reader_group = "{grp.getgrgid(65534).gr_name}"\n')
    for path in (config_file, *config_file.parents):
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(path.stat().st_mode | 0o005)
    os.chown(config.log_dir, -1, 65534)
    config.log_dir.chmod(0o750)
    for path in config.log_dir.iterdir():
        os.chown(path, -1, 65534)
        path.chmod(0o640)

    def ask_as_nobody() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*AGENTWATCH, "sessions", "--json", "--config", str(config_file)],
            capture_output=True,
            check=False,
            text=True,
            user=65534,
            group=65534,
            extra_groups=[],
        )

    assert CliRunner().invoke(main, ["index", "--config", str(config_file)]).exit_code == 0
    result = ask_as_nobody()
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["session"] == SESSION


def test_cheap_commands_do_not_import_the_kernel_side_or_parsers(config_file: Path, orders: LogBuilder) -> None:
    orders.write()
    assert CliRunner().invoke(main, ["index", "--config", str(config_file)]).exit_code == 0
    code = (
        "import sys; from agentwatch.cli import main\n"
        "try: main(['sessions', '--json', '--config', sys.argv[1]])\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(config_file)], capture_output=True, check=True, text=True)
    loaded = set(result.stderr.split())
    assert not {"bcc", "pyroute2", "psycopg", "rich", "agentwatch.kernel.loader", "sqlglot"} & loaded
