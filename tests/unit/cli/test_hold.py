"""``agentwatch hold``, and that reads are recorded: real commands as processes, answered by a recorder's desk."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agentwatch.index.indexer import Indexer
from agentwatch.requests.holds import read_holds
from tests.unit.log_builder import OTHER_SESSION, SESSION, LogBuilder
from tests.unit.requests.fix_host import GROUP, MEMBER, Host, alone, needs_root, place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agentwatch.config import Config

__all__ = ["alone", "place"]
AGENTWATCH = (sys.executable, "-c", "from agentwatch.cli import main; main(prog_name='agentwatch')")

pytestmark = needs_root


class Cli:
    """Runs commands while a recorder serves, and while none does."""

    def __init__(self, config: Config, file: Path) -> None:
        self.config = config
        self._file = file

    def start(self, *arguments: str, uid: int = 0) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*AGENTWATCH, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"AGENTWATCH_CONFIG": str(self._file)},
            user=uid,
            group=uid,
            extra_groups=[GROUP.gr_gid],
        )

    def __call__(self, *arguments: str, uid: int = 0, host: Host | None = None) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, uid=uid)
        if host is not None:
            host.until(lambda: process.poll() is not None)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture
def cli(alone: Config, place: Path) -> Cli:
    config = replace(alone, reader_group=GROUP.gr_name)
    log = LogBuilder(config.log_dir)
    log.observer_start()
    log.start()
    log.statement("INSERT INTO orders VALUES (1)")
    log.start(OTHER_SESSION)
    log.write()
    file = place / "agentwatch.toml"
    names = ("log_dir", "state_dir", "run_dir", "pin_dir", "cgroup_root", "reader_group")
    file.write_text("".join(f'{name} = "{getattr(config, name)}"\n' for name in names))
    file.chmod(0o644)
    return Cli(config, file)


@pytest.fixture
def host(cli: Cli) -> Iterator[Host]:
    host = Host(cli.config)
    yield host
    host.close()


def test_a_session_is_held_listed_and_released(cli: Cli, host: Host) -> None:
    assert cli("hold", "--json").stdout == ""
    before = host.writer.next_seq
    held = cli("hold", SESSION, "--reason", "case 17", "--json", host=host)
    assert json.loads(held.stdout) == {"session": SESSION, "held": True, "seq": before}
    assert read_holds(cli.config.log_dir) == {SESSION}
    assert json.loads(cli("hold", "--json").stdout) == {"session": SESSION}
    assert cli("hold").stdout.split() == ["session", SESSION]
    released = cli("hold", "--release", SESSION[:10], "--reason", "settled", host=host)
    assert (released.returncode, released.stdout) == (0, "")
    assert released.stderr == f"agentwatch: {SESSION} is released: record {before + 1}\n"
    assert read_holds(cli.config.log_dir) == frozenset()
    first, second = host.records()[before:]
    assert [first[key] for key in ("kind", "held_session", "held", "reason", "uid", "user")] == [
        "hold",
        SESSION,
        True,
        "case 17",
        0,
        "root",
    ]
    assert [second[key] for key in ("kind", "held_session", "held", "reason")] == ["hold", SESSION, False, "settled"]


def test_what_cannot_be_held_is_said_and_leaves_nothing(cli: Cli, host: Host) -> None:
    before = host.writer.next_seq
    for arguments, status, message in (
        (("hold", SESSION), 2, "say why: --reason TEXT"),
        (("hold", SESSION, "--reason", " "), 2, "must have 1 to 1000 characters"),
        (("hold", "--release", "--reason", "x"), 2, "name the session that is meant"),
        (("hold", "018bd0a6", "--reason", "x"), 66, "more than one session begins with"),
        (("hold", "ffff", "--reason", "x"), 66, "no session 'ffff'"),
        (("hold", "--release", SESSION, "--reason", "x"), 66, "0 sessions under hold begin with"),
        (("hold", "--release", "", "--reason", "x"), 66, "0 sessions under hold begin with"),
    ):
        result = cli(*arguments, host=host)
        assert (result.returncode, result.stdout) == (status, ""), arguments
        assert message in result.stderr
    assert host.writer.next_seq == before
    assert not (cli.config.log_dir / "holds").exists()


def test_without_a_recorder_nothing_is_held(cli: Cli) -> None:
    Host(cli.config).close()
    result = cli("hold", SESSION, "--reason", "case 17")
    assert (result.returncode, result.stdout) == (74, "")
    assert result.stderr == f"agentwatch: cannot hold {SESSION}: no recorder runs; start it (agentwatch record)\n"
    assert read_holds(cli.config.log_dir) == frozenset()


def test_only_root_holds(cli: Cli, host: Host) -> None:
    cli("index")
    result = cli("hold", SESSION, "--reason", "mine", uid=MEMBER, host=host)
    assert (result.returncode, result.stderr) == (77, f"agentwatch: cannot hold {SESSION}: only root may\n")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["sessions", "--table", "orders", "--json"], 0),
        (["sessions", "--table", "customers"], 1),
        (["statements", "--text", "\udcff\u202e"], 1),
        (["commands"], 1),
        (["show", SESSION], 0),
        (["replay", SESSION, "--no-wait"], 0),
        (["show", "ffff"], 66),
        (["tail", "-n", "2", "--json"], 0),
    ],
)
def test_a_read_is_recorded_as_it_was_typed(cli: Cli, host: Host, arguments: list[str], status: int) -> None:
    before = host.writer.next_seq
    result = cli(*arguments, host=host)
    assert result.returncode == status
    assert "not recorded" not in result.stderr
    (record,) = host.records()[before:]
    typed = [b"\xff\xe2\x80\xae" if "\udcff" in word else word for word in arguments]
    assert [record[key] for key in ("kind", "command", "question")] == ["read", arguments[0], typed]


def test_a_read_is_recorded_before_it_is_answered(cli: Cli, host: Host) -> None:
    process = cli.start("sessions", "--json")
    while not host.desk._waiting:
        host.desk.take(None)
    assert process.poll() is None
    host.writer.commit()
    host.desk.answer(host.writer.durable_seq)
    out, _ = process.communicate(timeout=60)
    assert len(out.splitlines()) == 2


def test_following_the_log_is_one_read(cli: Cli, host: Host) -> None:
    before = host.writer.next_seq
    process = cli.start("tail", "-f", "-n", "1", "--json")
    assert process.stdout is not None
    host.until(lambda: host.writer.next_seq > before)
    host.step()
    lines = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [line["seq"] for line in lines] == [before - 1, before]
    process.kill()
    process.communicate()
    assert [record["command"] for record in host.records()[before:]] == ["tail"]


def test_the_end_of_the_log_does_not_show_its_own_reading(cli: Cli, host: Host) -> None:
    before = host.writer.next_seq
    result = cli("tail", "-n", "2", "--json", host=host)
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == [before - 2, before - 1]


def test_the_record_of_a_question_does_not_make_its_answer_doubtful(cli: Cli, host: Host) -> None:
    # A reader cannot bring the index up to date: its own record must not turn "no" into "cannot say".
    with Indexer(cli.config) as indexer:
        indexer.catch_up()
    result = cli("sessions", "--table", "customers", uid=MEMBER, host=host)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "")
    assert host.records()[-1]["uid"] == MEMBER


def test_a_read_that_is_not_recorded_is_answered_and_says_so(cli: Cli) -> None:
    Host(cli.config).close()
    result = cli("sessions", "--table", "orders", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["session"] == SESSION
    assert result.stderr == ("agentwatch: this read is not recorded: no recorder runs; start it (agentwatch record)\n")


def test_who_reads_a_copy_is_not_told_anything(cli: Cli) -> None:
    result = cli("sessions", "--table", "orders", "--json")
    assert (result.returncode, result.stderr) == (0, "")


def test_help_is_no_read(cli: Cli, host: Host) -> None:
    before = host.writer.next_seq
    assert cli("sessions", "--help", host=host).returncode == 0
    assert cli("show", host=host).returncode == 2
    assert host.writer.next_seq == before
