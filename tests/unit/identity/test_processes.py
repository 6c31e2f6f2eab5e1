from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time

from agentwatch.identity import processes
from agentwatch.identity.processes import ProcessTable


def test_child_inherits_program_and_session() -> None:
    table = ProcessTable()
    table.fork(10, 1, 100, session="s")
    table.exec(10, "/bin/sh", 5, 110)
    child = table.fork(11, 10, 120)
    assert (child.exe, child.exec_id, child.session, child.started, child.began) == ("/bin/sh", 5, "s", 120, 120)


def test_exec_begins_a_program_and_keeps_the_fork() -> None:
    table = ProcessTable()
    table.fork(10, 1, 100, session="s")
    process = table.exec(10, "/bin/true", 5, 110)
    assert (process.exe, process.ppid, process.session, process.started, process.began) == (
        "/bin/true",
        1,
        "s",
        100,
        110,
    )


def test_exec_of_an_unknown_process_is_kept() -> None:
    table = ProcessTable()
    process = table.exec(10, "/bin/true", 5, 110, ppid=3)
    assert table.get(10) == process
    assert (process.ppid, process.started, process.session) == (3, None, None)


def test_exited_process_stays_known_until_its_number_is_used_again() -> None:
    table = ProcessTable()
    table.fork(10, 1, 100, session="s")
    assert table.exit(10) is not None
    known = table.get(10)
    assert known is not None
    assert known.session == "s"
    assert not table.is_living(10)
    assert table.of_session("s") == []
    table.fork(10, 1, 200)
    again = table.get(10)
    assert again is not None
    assert again.session is None
    assert len(table) == 1


def test_exit_of_an_unknown_process_is_none() -> None:
    assert ProcessTable().exit(10) is None


def test_process_enters_a_session() -> None:
    table = ProcessTable()
    table.fork(10, 1, 100)
    table.assign(10, "s")
    table.assign(11, "s")
    assert [process.tgid for process in table.of_session("s")] == [10]


def test_ancestors_are_nearest_first_and_a_circle_ends() -> None:
    table = ProcessTable()
    table.fork(10, 1, 100)
    table.fork(11, 10, 100)
    table.fork(12, 11, 100)
    assert [process.tgid for process in table.ancestors(12)] == [11, 10]
    table.fork(10, 12, 100)
    assert len(table.ancestors(12)) == processes.MAX_ANCESTORS
    table.fork(20, 20, 100)
    assert table.ancestors(20) == []


def test_exited_processes_make_room_before_living_ones() -> None:
    table = ProcessTable(limit=3)
    for tgid in (10, 11, 12):
        table.fork(tgid, 1, 100)
    table.exit(11)
    table.fork(13, 1, 100)
    assert table.get(11) is None
    assert table.evicted == 0
    table.fork(14, 1, 100)
    assert table.get(10) is None
    assert table.evicted == 1
    assert len(table) == 3


def test_table_survives_pickle() -> None:
    table = ProcessTable()
    table.fork(10, 1, 100, session="s")
    copy: ProcessTable = pickle.loads(pickle.dumps(table))  # noqa: S301 (our own bytes)
    assert copy.get(10) == table.get(10)


def test_running_process_is_read_verbatim(tmp_path: os.PathLike[str]) -> None:
    code = "import sys; print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", code, "one argument with spaces", "", "ä"]
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = processes.read(process.pid)
        after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        process.communicate()
    assert found is not None
    assert found.argv == argv
    assert (found.pid, found.ppid, found.uid, found.gid) == (process.pid, os.getpid(), os.getuid(), os.getgid())
    assert found.exe == os.path.realpath(sys.executable)
    assert found.cwd == os.path.realpath(tmp_path)
    tick = 10_000_000
    assert before - 2 * tick <= found.started <= after + tick


def test_single_argument_with_spaces_is_one_argument() -> None:
    with subprocess.Popen(["cat -"], executable="/bin/cat", stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 10
        found = processes.read(process.pid)
        while time.monotonic() < deadline and (found is None or found.argv != ["cat -"]):
            time.sleep(0.01)
            found = processes.read(process.pid)
        process.communicate()
    assert found is not None
    assert found.argv == ["cat -"]


def test_process_that_ended_is_none() -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        pass
    assert processes.read(process.pid) is None
