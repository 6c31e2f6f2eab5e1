"""Commands in the watch: what was recorded is what was run."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kernel.fix_watch import Watch

pytestmark = pytest.mark.kernel

CLIENTS = Path(__file__).parent / "clients"
PYTHON = os.path.realpath(sys.executable)


def test_two_thousand_processes_in_a_tight_loop_are_all_recorded(watch: Watch) -> None:
    script = str(shutil.copy(CLIENTS / "spawner.py", watch.root))
    run = watch.run(PYTHON, script, "2000")
    truth = [tuple(map(int, line.split())) for line in run.stdout.splitlines()]
    assert len(truth) == 2000
    commands = watch.commands(run.session)
    parent = next(row for row in commands if row["argv"] == [PYTHON, script, "2000"])
    recorded = [
        (row["pid"], row["status"], int(row["argv"][1].removeprefix("number ")))
        for row in commands
        if row["argv"][0] in ("/bin/true", "/bin/false")
    ]
    assert recorded == truth
    children = [row for row in commands if row["argv"][0] in ("/bin/true", "/bin/false")]
    assert {(row["ppid"], row["argv"][2], len(row["argv"])) for row in children} == {(parent["pid"], "", 3)}
    assert {row["exe"] for row in children} == {os.path.realpath("/bin/true"), os.path.realpath("/bin/false")}
    assert all(row["duration_ns"] > 0 for row in children)


def test_arguments_of_a_hundred_kilobytes_are_complete(watch: Watch) -> None:
    words = ["/bin/true", "", *(f"{n:06d} ä\n'\"\\ " * 8 for n in range(900)), ""]
    assert sum(len(word.encode()) + 1 for word in words) > 100_000
    run = watch.run(*words)
    assert [row["argv"] for row in watch.commands(run.session) if row["argv"][0] == "/bin/true"] == [words]


def test_one_argument_of_a_hundred_kilobytes_is_complete(watch: Watch) -> None:
    word = "".join(f"{n:07d}," for n in range(12_600))
    run = watch.run("/bin/true", word)
    assert [row["argv"] for row in watch.commands(run.session) if row["argv"][0] == "/bin/true"] == [
        ["/bin/true", word]
    ]


def test_a_command_tells_where_and_as_whom_it_ran(watch: Watch) -> None:
    run = watch.run("/bin/sh", "-c", "cd /usr && /usr/bin/env -i /usr/bin/id -u; kill -TERM $$", check=False)
    commands = {Path(row["argv"][0]).name: row for row in watch.commands(run.session)}
    assert commands["id"]["cwd"] == "/usr"
    assert commands["id"]["uid"] == int(run.stdout)
    assert commands["id"]["status"] == 0
    assert commands["sh"]["status"] == 128 + 15
