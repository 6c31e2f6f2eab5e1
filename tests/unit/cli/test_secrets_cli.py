"""The auditor's commands: a key is made; what was sealed for it is opened, from the log and from JSON, and no more."""

from __future__ import annotations

import base64
import json
import stat
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from agentwatch.cli import main
from agentwatch.config_tables import SecretsConfig
from agentwatch.records.secrets import Redactor
from tests.unit.log_builder import OTHER_SESSION, SESSION, LogBuilder

if TYPE_CHECKING:
    from pathlib import Path


def run(*words: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], input=stdin)


def keygen(path: Path) -> bytes:
    result = run("secrets", "keygen", "-o", path)
    assert result.exit_code == 0, result.output
    name, _, value = result.stdout.strip().partition(" = ")
    assert name == "auditor_key"
    return base64.b64decode(json.loads(value), validate=True)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "auditor.key"


@pytest.fixture
def sealed(key: Path, log: LogBuilder) -> LogBuilder:
    """Return a log with three credentials in two sessions, sealed for the key."""
    redactor = Redactor(SecretsConfig("seal", keygen(key)), b"k" * 32)
    log.add("statement", db__query__text="ALTER ROLE a PASSWORD 'hunter2'")
    log.add("exec", argv=["mysql", b"-p\xff\x1b[2J"])
    log.session = OTHER_SESSION
    log.add("command_input", text="PGPASSWORD=other psql")
    log.records = [redactor.apply(record) for record in log.records]
    log.write()
    return log


def test_private_key_is_for_its_owner_and_an_existing_file_is_left_alone(key: Path) -> None:
    assert len(keygen(key)) == 32
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    result = run("secrets", "keygen", "-o", key)
    assert result.exit_code == 74
    assert key.read_bytes() == before


def test_originals_come_out_of_the_log(sealed: LogBuilder, key: Path, config_file: Path) -> None:
    del sealed
    result = run("secrets", "open", "--key", key, "--json", "--config", config_file)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["seq"], row["field"], row["value"]) for row in rows] == [
        (0, "db.query.text", "hunter2"),
        (1, "argv[1]", "\ufffd\x1b[2J"),
        (2, "text", "other"),
    ]
    assert base64.b64decode(rows[1]["value_base64"]) == b"\xff\x1b[2J"


def test_session_chooses_and_a_terminal_gets_no_control_characters(
    sealed: LogBuilder, key: Path, config_file: Path
) -> None:
    del sealed
    result = run("secrets", "open", "--key", key, "--config", config_file, "--session", OTHER_SESSION)
    assert [line.rpartition(" ")[2] for line in result.stdout.splitlines()] == ["other"]
    result = run("secrets", "open", "--key", key, "--config", config_file, "--session", SESSION)
    assert len(result.stdout.splitlines()) == 2
    assert "\x1b" not in result.stdout


def test_originals_come_out_of_what_tail_prints(sealed: LogBuilder, key: Path, config_file: Path) -> None:
    del sealed
    printed = run("tail", "--json", "--config", config_file).stdout
    assert "hunter2" not in printed
    result = run("secrets", "open", "--key", key, "--json", "-", stdin=printed)
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["value"] for line in result.stdout.splitlines()][::2] == ["hunter2", "other"]


def test_another_key_opens_nothing_and_says_so(sealed: LogBuilder, tmp_path: Path, config_file: Path) -> None:
    del sealed
    other = tmp_path / "other.key"
    keygen(other)
    result = run("secrets", "open", "--key", other, "--config", config_file)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("sealed for another key") == 3


def test_bad_input_is_one_line_and_a_status(key: Path, tmp_path: Path) -> None:
    keygen(key)
    (tmp_path / "no.key").write_text("none")
    assert run("secrets", "open", "--key", tmp_path / "absent", "-", stdin="").exit_code == 66
    assert run("secrets", "open", "--key", tmp_path / "no.key", "-", stdin="").exit_code == 78
    assert run("secrets", "open", "--key", key, "-", stdin="{\n").exit_code == 65
    odd = '[]\n{"secrets": 3}\n{"secrets": [4, {"sealed": {"base64": "!"}}, {"sealed": {"base64": ""}}]}\n'
    assert run("secrets", "open", "--key", key, "-", stdin=odd).exit_code == 1
