"""The agent's user tries to read, change or stop the record: each attempt is refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kernel.fix_watch import Watch

pytestmark = pytest.mark.kernel

CLIENT = Path(__file__).parent / "clients" / "attempts.py"
PYTHON = os.path.realpath(sys.executable)


def test_the_agents_user_is_refused_everything(own_watch: Watch) -> None:
    own_watch.run("/bin/true")  # so that there is something to take
    assert own_watch.recorder is not None
    where = {
        "log": own_watch.log_dir,
        "segment": next(path for path in sorted(own_watch.log_dir.rglob("*")) if path.is_file()),
        "pins": own_watch.pin_dir,
        "pin": next(path for path in sorted(own_watch.pin_dir.rglob("*")) if path.is_file()),
        "config": own_watch.config,
        "sessions": own_watch.run_dir / "sessions",
        "recorder": own_watch.recorder.pid,
        "elsewhere": own_watch.cgroup.parent / "cgroup.procs",
    }
    before = own_watch.cli("verify").stdout
    script = str(shutil.copy(CLIENT, own_watch.root))
    run = own_watch.run(PYTHON, script, json.dumps(where, default=str))
    result = json.loads(run.stdout)
    assert len(result) > 20
    assert {name: answer for name, answer in result.items() if answer not in ("EACCES", "EPERM")} == {}
    assert own_watch.recorder.poll() is None
    assert before
    own_watch.cli("verify")
    assert [row for row in own_watch.commands(run.session) if script in row["argv"]]


def test_a_move_to_another_cgroup_by_root_does_not_end_the_watch(own_watch: Watch) -> None:
    elsewhere = own_watch.cgroup.parent / "cgroup.procs"
    process = own_watch.start_agent("/bin/sh", "-c", "sleep 3; /bin/echo 'after the move'; sleep 1")
    try:
        pid = own_watch.wait_agent_pid()
        elsewhere.write_text(str(pid))
        stdout, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert stdout == "after the move\n"
    session = own_watch.ended_session(set())
    assert ["/bin/echo", "after the move"] in [row["argv"] for row in own_watch.commands(session)]
    assert own_watch.records("cgroup_move")
