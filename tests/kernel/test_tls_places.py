"""TLS libraries wherever they are: in a process that is older than the probes, in a file that the host cannot name."""

from __future__ import annotations

import pwd
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentwatch.identity import cgroups
from tests.kernel.compare import differences
from tests.kernel.fix_watch import AGENT, Watch, running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.kernel.fix_tls import TlsPostgresServer

pytestmark = pytest.mark.kernel

STATEMENTS = """
import sys, psycopg
with psycopg.connect(autocommit=True) as connection:
    print("connected", flush=True)
    sys.stdin.readline()
    for number in range(20):
        connection.execute("SELECT %s::int, 'from an older connection'", [number])
"""


def test_connection_that_is_older_than_the_probes_is_read_from_its_middle(
    agent_user: str, tls_postgres: TlsPostgresServer, agent_python: Sequence[str]
) -> None:
    instance = Watch(agent_user)
    cgroup = instance.cgroup / f"{AGENT}-older"
    cgroups.make(cgroup)
    user = pwd.getpwnam(agent_user)
    words = [*agent_python, "-c", STATEMENTS]
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=tls_postgres.environment(),
        cwd="/",
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
    ) as process:
        cgroups.place(cgroup, process.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
        start = tls_postgres.log_position()
        for watch in running(instance):
            process.communicate("go\n", timeout=60)
            session = watch.ended_session(set())
            statements = watch.statements(session)
            assert statements[0]["outcome"] == "unknown"  # the server's bytes before it were not seen
            statements[0]["outcome"] = "ok"
            assert differences(tls_postgres.logged_since(start), statements) == []
            records = [r for r in watch.records("statement") if r["session"] == session]
            assert {(r["seen_by"], r["joined"]) for r in records} == {("tls-uprobe", True)}
            (declared,) = watch.final_opaque(session)
            assert declared["tls"]["cause"] == "before-probes"


def test_library_in_a_file_system_that_only_the_agent_has_mounted(
    agent_user: str, tls_postgres: TlsPostgresServer, agent_python: Sequence[str]
) -> None:
    packages = next(word for word in agent_python if word.startswith("PYTHONPATH=")).removeprefix("PYTHONPATH=")
    script = "import psycopg; psycopg.connect(autocommit=True).execute('SELECT 1, 2')"
    shell = (
        f"mount -t tmpfs none /mnt && cp -r {packages} /mnt/packages && "
        f'exec env PYTHONPATH=/mnt/packages {agent_python[-1]} -c "{script}"'
    )
    for watch in running(Watch(agent_user, first_use="hold")):
        start = tls_postgres.log_position()
        run = watch.run("/usr/bin/unshare", "-Urm", "/bin/sh", "-c", shell, env=tls_postgres.environment())
        assert differences(tls_postgres.logged_since(start), watch.statements(run.session)) == []
        hooked = [r["file"] for r in watch.records("probe_attach") if r["reason"] == "library"]
        assert any(file.startswith("/mnt/packages/") and "libssl" in file for file in hooked)
        assert not Path("/mnt/packages").exists()
