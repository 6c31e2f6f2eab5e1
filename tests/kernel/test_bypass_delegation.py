"""Programs that a daemon runs on the agent's behalf; see docs/bypasses.md.

That the program ran is told by the daemon, or by what the program wrote; it is in no session.
"""

from __future__ import annotations

import json
import pwd
import shutil
import socket
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.kernel.fix_bypass import DECLARED, seen
from tests.kernel.fix_daemons import atd, bus, dockerd, needs, program, sshd, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.fix_bypass import Arena, Attack

pytestmark = pytest.mark.kernel

ECHO = "/bin/echo"


@pytest.fixture
def marker() -> str:
    return f"bypass-{uuid.uuid4()}"


@pytest.fixture
def folder(arena: Arena) -> Path:
    """A folder that the agent can go through."""
    path = arena.watch.root / uuid.uuid4().hex[:8]
    path.mkdir()
    path.chmod(0o755)
    return path


def delegated(attack: Attack, channel: str) -> list[object]:
    """Return the commands of the delegations to a channel; nothing that is declared has to be of another kind."""
    return [record["command"] for record in attack.of("delegation") if record["channel"] == channel]


@needs("curl")
@pytest.mark.parametrize("client", ["docker", "curl"])
def test_docker_socket(arena: Arena, marker: str, folder: Path, client: str) -> None:
    if program(client) is None:
        pytest.skip(f"not installed: {client}")
    path = folder / "docker.sock"
    body = json.dumps({"Image": "alpine", "Cmd": [ECHO, marker]})
    api = "http://docker/v1.41/containers"
    create = f"curl -sS --unix-socket {path} -H 'Content-Type: application/json' -d '{body}' {api}/create"
    words = {
        "docker": [str(program("docker")), "-H", f"unix://{path}", "run", "-d", "alpine", ECHO, marker],
        "curl": ["/bin/sh", "-c", f"{create} && curl -sS --unix-socket {path} -d '' {api}/{0:064x}/start"],
    }[client]
    with dockerd(path) as (server, _):
        attack = arena.run(*words, env={"DOCKER_CONFIG": str(folder)}, known=lambda a: len(delegated(a, "docker")) > 2)
    assert server.printed == [f"{marker}\n"]
    assert seen(attack.ran(ECHO, marker), attack) == DECLARED
    assert [ECHO, marker] in delegated(attack, "docker")


@needs("dbus-daemon", "busctl", "systemd-run")
def test_systemd_run_and_dbus(arena: Arena, marker: str, folder: Path) -> None:
    out = folder / "out"
    uid = pwd.getpwnam(arena.watch.user).pw_uid
    with bus(folder / "run" / "user" / str(uid) / "bus") as one:
        service = one.services / "org.example.Job.service"
        service.write_text(f"[D-BUS Service]\nName=org.example.Job\nExec=/bin/sh -c '{ECHO} {marker} > {out}'\n")
        bus_itself = "org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus"
        call = f"busctl --address={one.address} --expect-reply=no call {bus_itself}"
        script = f"{call} StartServiceByName su org.example.Job 0; systemd-run --user --no-block {ECHO} {marker}; true"
        attack = arena.run(
            "/bin/sh",
            "-c",
            script,
            env={"XDG_RUNTIME_DIR": str(one.path.parent)},
            known=lambda a: [ECHO, marker] in delegated(a, "dbus-user"),
        )
        until("the service ran", lambda: out.exists() and out.read_text() == f"{marker}\n")
        one.await_call("StartTransientUnit")
    assert seen(attack.ran(ECHO, marker), attack) == DECLARED
    assert [ECHO, marker] in delegated(attack, "dbus-user")
    operations = {record["operation"] for record in attack.of("delegation")}
    assert {"StartServiceByName", "StartTransientUnit", "systemd-run"} <= operations


@needs("at", "atd", "crontab")
def test_cron_and_at(arena: Arena, marker: str, folder: Path) -> None:
    out = folder / "out"
    out.touch()
    shutil.chown(out, arena.watch.user)
    table = folder / "table"
    table.write_text(f"0 0 1 1 * {ECHO} {marker}\n")
    script = f"echo '{ECHO} {marker} > {out}' | at now; crontab {table} && crontab -l; crontab -r"
    with atd():
        attack = arena.run("/bin/sh", "-c", script, known=lambda a: len(a.of("delegation")) > 2)
        until("atd ran the job", lambda: out.read_text() == f"{marker}\n")
    assert attack.stdout.endswith(f"{ECHO} {marker}\n")  # cron has the table
    assert seen(attack.ran(ECHO, marker), attack) == DECLARED
    assert delegated(attack, "at") == [["at", "now"]]
    assert delegated(attack, "cron") == [["crontab", str(table)], ["crontab", "-r"]]


@needs("sshd", "ssh", "ssh-keygen")
@pytest.mark.parametrize("name", ["ssh", "harmless"])
def test_ssh_to_localhost(arena: Arena, marker: str, folder: Path, name: str) -> None:
    client = folder / name
    shutil.copy("/usr/bin/ssh", client)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with sshd(folder / "server", arena.watch.user, port) as server:
        words = server.client(arena.watch.user, ECHO, marker, ssh=str(client))
        attack = arena.run(*words, known=lambda a: a.of("opaque"))
    assert attack.stdout == f"{marker}\n"
    assert seen(attack.ran(ECHO, marker), attack) == DECLARED
    assert None in delegated(attack, "ssh")  # by its bytes
    assert (words in delegated(attack, "ssh")) == (name == "ssh")
