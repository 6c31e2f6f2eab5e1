"""What scripts rely on: the keys of the JSON rows, the exit status, instances that do not see each other."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.kernel.fix_watch import AGENT, Watch

if TYPE_CHECKING:
    from tests.kernel.fix_postgres import PostgresServer

pytestmark = pytest.mark.kernel

STATEMENT = """
    seq time session agent pid exe peer transport protocol connection db.system.name db.namespace db.user db.query.text
    db.operation.name params tables rows db.response.status_code error outcome duration_ns truncated
"""
SESSION = "session agent user started ended host statements commands connections tables gaps opaque_bytes"
COMMAND = "argv exe cwd pid ppid uid status duration_ns"
STATUS = "recorder seen submitted lost received undecodable recorded indexed probe_mode"


def missing(keys: str, row: dict[str, object]) -> set[str]:
    """Return the promised keys that a row does not have."""
    return set(keys.split()) - set(row)


def test_rows_have_the_promised_keys(watch: Watch, postgres: PostgresServer) -> None:
    run = watch.run(
        str(postgres.bin / "psql"), "-Xc", "SELECT 1 FROM pg_class LIMIT 1", env=postgres.environment("tcp")
    )
    (statement,) = watch.statements(run.session)
    assert missing(STATEMENT, statement) == set()
    assert {"name": "pg_class", "schema": None, "access": "read"} in [
        {key: table[key] for key in ("name", "schema", "access")} for table in statement["tables"]
    ]
    assert missing(COMMAND, watch.commands(run.session)[0]) == set()
    session = watch.session(run.session)
    assert missing(SESSION, session) == set()
    assert (session["agent"], session["user"], session["statements"]) == (AGENT, watch.user, 1)


def test_status_tells_the_recorders_state_and_the_sums_agree(own_watch: Watch) -> None:
    own_watch.run("/bin/true")
    own_watch.wait_drained()
    status = own_watch.status()
    assert missing(STATUS, status) == set()
    assert status["recorder"] == "running"
    assert status["seen"] == status["submitted"] + status["lost"]
    assert status["submitted"] == status["received"] + status["undecodable"]
    own_watch.signal_recorder()
    assert own_watch.status()["recorder"] == "stopped"


def test_a_flow_that_no_decoder_knows_is_opaque_and_counted(watch: Watch, postgres: PostgresServer) -> None:
    script = f"exec 3<>/dev/tcp/127.0.0.1/{postgres.port}; printf 'NOT A PROTOCOL %s' {'x' * 100} >&3; cat <&3"
    run = watch.run("/bin/bash", "-c", script, check=False)
    (record,) = watch.final_opaque(run.session)
    assert watch.session(run.session)["opaque_bytes"] >= 115
    assert (record["peer"], record["transport"]) == (f"127.0.0.1:{postgres.port}", "tcp")
    assert record["bytes_out"] == 115


def test_answers_are_yes_no_or_cannot_say(own_watch: Watch, postgres: PostgresServer) -> None:
    psql = str(postgres.bin / "psql")
    own_watch.run(psql, "-Xc", "SELECT 1 FROM pg_class LIMIT 1", env=postgres.environment("unix"))
    assert own_watch.cli("sessions", "--table", "pg_class", check=False).returncode == 0
    assert own_watch.cli("sessions", "--table", "nothing", check=False).returncode == 1
    own_watch.run(psql, "-Xc", "DO $$ BEGIN PERFORM 1; END $$", env=postgres.environment("unix"))
    assert own_watch.cli("sessions", "--table", "nothing", check=False).returncode == 3


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["show", "no-such-session"], 66),
        (["--config", "/nonexistent.toml", "sessions"], 78),
        (["run", "--agent", "nobody-knows", "--", "true"], 66),
        (["run", "--agent", AGENT, "--user", "no-such-user", "--", "true"], 66),
        (["sessions", "--since", "soon"], 2),
    ],
)
def test_bad_input_is_one_line_and_an_exit_status(watch: Watch, words: list[str], status: int) -> None:
    done = watch.cli(*words, check=False)
    assert done.returncode == status
    assert done.stdout == ""
    if status != 2:
        (line,) = done.stderr.splitlines()
        assert line.startswith("agentwatch: ")


def test_a_user_who_may_not_read_the_log_is_told_so(watch: Watch) -> None:
    words = watch.command("sessions")
    if (
        not os.access(words[0], os.X_OK)
        or subprocess.run(["/usr/bin/test", "-x", words[0]], check=False, user=watch.user).returncode
    ):
        pytest.skip("the checkout lies where the agent's user cannot go")
    done = subprocess.run(words, capture_output=True, text=True, user=watch.user, check=False)
    assert done.returncode == 77
    (line,) = done.stderr.splitlines()
    assert line.startswith("agentwatch: ")


def test_two_instances_do_not_see_each_other(watch: Watch, agent_user: str) -> None:
    other = Watch(agent_user)
    try:
        other.start()
        here, there = watch.run("/bin/echo", "here"), other.run("/bin/echo", "there")
        assert ["/bin/echo", "there"] not in [row["argv"] for row in watch.rows("commands")]
        assert ["/bin/echo", "here"] not in [row["argv"] for row in other.rows("commands")]
        assert here.session != there.session
    finally:
        other.stop()
