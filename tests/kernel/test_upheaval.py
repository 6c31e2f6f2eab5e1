"""Under load: the recorder killed again and again, the probes replaced by newer ones. Nothing missing, nothing twice.

AGENTWATCH_TEST_KILLS is how often the recorder is killed ('make acceptance': 50), half of it how often the probes are
replaced.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.kernel.compare import differences
from tests.kernel.extent import FULL, short

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.fix_postgres import PostgresServer
    from tests.kernel.fix_watch import Watch

pytestmark = pytest.mark.kernel

KILLS = int(os.environ.get("AGENTWATCH_TEST_KILLS", "4"))
UPGRADES = max(KILLS // 2, 1)
BETWEEN_SECONDS = 0.5


def test_recorder_killed_again_and_again(own_watch: Watch, server: tuple[PostgresServer, str]) -> None:
    def kill() -> None:
        own_watch.signal_recorder(9)
        own_watch.start_recorder()

    _disturb(own_watch, *server, KILLS, kill)


@pytest.mark.parametrize("transport", short(["tcp"], ["unix"]))
def test_probes_replaced_under_load(own_watch: Watch, postgres: PostgresServer, transport: str) -> None:
    _disturb(own_watch, postgres, transport, UPGRADES, lambda: own_watch.cli("probes", "upgrade"))


@pytest.mark.skipif(not FULL, reason="in a full run")
def test_probes_replaced_under_a_tls_load(own_watch: Watch, tls_postgres: PostgresServer) -> None:
    _disturb(own_watch, tls_postgres, "tcp", UPGRADES, lambda: own_watch.cli("probes", "upgrade"))


def test_upgrade_without_probes_says_what_to_do(own_watch: Watch) -> None:
    own_watch.signal_recorder()
    own_watch.cli("probes", "unload")
    refused = own_watch.cli("probes", "upgrade", check=False)
    assert refused.returncode == 69
    assert "agentwatch probes load" in refused.stderr


def _disturb(
    watch: Watch, postgres: PostgresServer, transport: str, times: int, disturbance: Callable[[], object]
) -> None:
    """Disturb a session that runs commands and statements; everything must be in the log once."""
    start = postgres.log_position()
    stop = watch.root / "stop"
    script = watch.root / "statement.sql"
    script.write_text("\\set n random(1, 1000000000)\nSELECT :n, 'a statement that no other is like';\n")
    script.chmod(0o644)
    bench = f"{postgres.bin}/pgbench -n -c 2 -T 600 --rate 600 -f {script} >/dev/null 2>&1"
    commands = f"n=0; until [ -e {stop} ]; do /bin/true $n; n=$((n+1)); done; echo $n"
    shell = f"{bench} & bench=$!; {commands}; kill $bench; wait"
    process = watch.start_agent("/bin/sh", "-c", shell, env=postgres.environment(transport))
    watch.wait_agent_pid()
    for _ in range(times):
        time.sleep(BETWEEN_SECONDS)
        disturbance()
    stop.touch()
    output, errors = process.communicate(timeout=120)
    session = watch.ended_session(set())
    argv = [row["argv"] for row in watch.commands(session) if row["argv"][0] == "/bin/true"]
    assert argv == [["/bin/true", str(n)] for n in range(int(output))], errors
    statements = watch.statements(session)
    for last in {row["connection"]: row for row in statements}.values():
        # pgbench is killed: an answer that it did not take out of its TLS library was decrypted by nobody, and one that
        # it did not take out of its Unix socket was read by nobody.
        unseen = transport == "unix" or "sslmode=require" in postgres.conninfo()
        if unseen and last["outcome"] == "unknown":
            last["outcome"] = "ok"
    assert differences(postgres.logged_since(start), statements) == []
    watch.wait_drained()
    status = watch.status()
    assert (status["lost"], status["unaccounted"], status["undecodable"]) == (0, 0, 0)
    assert [(r["cause"], r["detail"]) for r in watch.records("gap")] == []
    assert watch.session(session)["opaque_bytes"] == 0
    assert watch.cli("verify").returncode == 0
