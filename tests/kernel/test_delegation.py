"""What real clients have daemons do; what was asked is told by the daemon's side: a witness on the bus, the server."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.kernel.fix_daemons import Bus, bus, dockerd, needs, program, sshd, started, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agentwatch.records.encoding import Record
    from tests.kernel.fix_watch import Run, Watch

pytestmark = pytest.mark.kernel

MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
SIGNATURE = "ssa(sv)a(sa(sv))"


def delegations(watch: Watch, run: Run) -> list[Record]:
    return [record for record in watch.records("delegation") if record["session"] == run.session]


def opaque(watch: Watch, run: Run) -> list[Record]:
    """Return what is told of bytes that nobody read; the recorder tells it a moment after the connection ended."""
    return [record for record in watch.records("opaque") if record.get("session") == run.session]


def said(found: list[Record]) -> list[Record]:
    """Return what was noticed by its words, without the calls that are like any other."""
    return [record for record in found if record["noticed"] == "message" and record["operation"] != "call"]


@pytest.fixture
def folder(watch: Watch) -> Path:
    path = watch.root / uuid.uuid4().hex[:8]
    path.mkdir()
    path.chmod(0o755)
    return path


@pytest.fixture
def system_bus(folder: Path) -> Iterator[Bus]:
    with bus(folder / "dbus" / "system_bus_socket") as one:
        yield one


@pytest.fixture
def user_bus(folder: Path, watch: Watch) -> Iterator[Bus]:
    with bus(folder / "run" / "user" / str(pwd.getpwnam(watch.user).pw_uid) / "bus") as one:
        yield one


@needs("dbus-daemon", "busctl")
def test_a_transient_unit_on_the_bus_has_its_command(watch: Watch, system_bus: Bus) -> None:
    properties = ["2", "User", "s", "nobody", "ExecStart", "a(sasb)", "1", "/bin/echo", "3", "/bin/echo", "a", "b c"]
    words = ["busctl", f"--address={system_bus.address}", "call", *MANAGER, "StartTransientUnit", SIGNATURE]
    run = watch.run(*words, "x.service", "fail", *properties, "false", "0", check=False)
    assert run.returncode == 1  # nobody on this bus is systemd; it was asked all the same
    (seen,) = system_bus.await_call("StartTransientUnit")
    found = delegations(watch, run)
    assert (found[0]["channel"], found[0]["noticed"]) == ("dbus-system", "connect")
    (asked,) = said(found)
    assert (asked["channel"], asked["operation"]) == ("dbus-system", "StartTransientUnit")
    assert asked["command"] == ["/bin/echo", "a", "b c"]
    assert all(f"\0{word}\0".encode() in seen for word in asked["command"])
    assert (asked["detail"]["unit"], asked["detail"]["user"]) == ("x.service", "nobody")
    assert {r["peer"] for r in found} == {f"unix:{system_bus.path}"}
    assert asked["exe"] == "/usr/bin/busctl"
    assert watch.session(run.session)["gaps"] == 0


@needs("dbus-daemon", "systemd-run", "systemctl")
def test_systemd_run_and_systemctl_are_noticed_as_programs_and_by_their_words(watch: Watch, user_bus: Bus) -> None:
    env = {"XDG_RUNTIME_DIR": str(user_bus.path.parent)}
    script = (
        "systemd-run --user --no-block --unit=one /bin/echo 'two words';"
        "systemd-run --user --no-block --on-active=900 --unit=late /bin/date;"
        "systemctl --user start other.service; systemctl --user status other.service; true"
    )
    run = watch.run("/bin/sh", "-c", script, env=env)
    assert len(user_bus.await_call("StartTransientUnit", 2)) == 2
    assert len(user_bus.await_call("StartUnit")) == 1
    found = delegations(watch, run)
    programs = [(r["channel"], r["operation"], r["command"][0]) for r in found if r["noticed"] == "exec"]
    assert programs == [("systemd", "systemd-run", "systemd-run")] * 2 + [("systemd", "start", "systemctl")]
    words = [(r["channel"], r["operation"], r["command"], r["detail"].get("unit")) for r in said(found)]
    assert words == [
        ("dbus-user", "StartTransientUnit", ["/bin/echo", "two words"], "one.service"),
        ("dbus-user", "StartTransientUnit", None, "late.timer"),
        ("dbus-user", "StartTransientUnit", ["/bin/date"], "late.service"),
        ("dbus-user", "StartUnit", None, None),
    ]
    assert said(found)[3]["detail"]["units"] == ["other.service"]
    assert watch.session(run.session)["gaps"] == 0


@pytest.mark.parametrize("client", ["dbus-send", "gdbus"])
@needs("dbus-daemon")
def test_other_implementations_of_d_bus_are_read(watch: Watch, system_bus: Bus, client: str) -> None:
    if program(client) is None:
        pytest.skip(f"not installed: {client}")
    name, path, interface = MANAGER
    words = {
        "dbus-send": [f"--bus={system_bus.address}", "--print-reply", f"--dest={name}", path, f"{interface}.StartUnit"],
        "gdbus": ["call", "-a", system_bus.address, "-d", name, "-o", path, "-m", f"{interface}.StartUnit"],
    }[client]
    arguments = {"dbus-send": ["string:a.service", "string:fail"], "gdbus": ["a.service", "fail"]}[client]
    run = watch.run(client, *words, *arguments, check=False)
    assert len(system_bus.await_call("StartUnit")) == 1
    (asked,) = said(delegations(watch, run))
    assert (asked["operation"], asked["detail"]["units"]) == ("StartUnit", ["a.service"])
    assert asked["exe"] == f"/usr/bin/{client}"


@needs("dbus-daemon", "busctl")
def test_a_bus_at_an_unknown_place_is_known_by_what_is_said(watch: Watch, folder: Path) -> None:
    with bus(folder / "harmless") as one:
        words = ["busctl", f"--address={one.address}", "call", *MANAGER, "StopUnit", "ss", "a.service", "fail"]
        run = watch.run(*words, check=False)
        assert len(one.await_call("StopUnit")) == 1
    found = delegations(watch, run)
    assert {(r["channel"], r["noticed"]) for r in found} == {("dbus", "message")}
    assert [r["operation"] for r in said(found)] == ["StopUnit"]


@needs("docker")
def test_the_docker_client_is_read(watch: Watch, folder: Path) -> None:
    path = folder / "docker.sock"
    docker = [str(program("docker")), "-H", f"unix://{path}"]
    with dockerd(path) as (server, _):
        marker = uuid.uuid4().hex
        words = [*docker, "run", "-d", "-v", "/:/host", "-e", "TOKEN=secret", "alpine", "/bin/echo", marker]
        run = watch.run(*words, env={"DOCKER_CONFIG": str(folder)})
        name = run.stdout.strip()
        exec_run = watch.run(*docker, "exec", name, "/bin/echo", f"{marker} again", env={"DOCKER_CONFIG": str(folder)})
    assert server.printed == [f"{marker}\n", f"{marker} again\n"]
    assert exec_run.stdout == f"{marker} again\n"
    found = delegations(watch, run)
    assert (found[0]["channel"], found[0]["noticed"], found[0]["peer"]) == ("docker", "connect", f"unix:{path}")
    created = next(r for r in found if r["operation"] == "create")
    assert created["command"] == ["/bin/echo", marker]
    assert created["detail"]["image"] == "alpine"
    assert created["detail"]["binds"] == ["/:/host"]
    assert created["detail"]["environment"] == ["TOKEN"]
    assert created["detail"]["status"] == 201
    assert "secret" not in repr(found)
    started_ = next(r for r in found if r["operation"] == "start")
    assert (started_["detail"]["container"], started_["detail"]["status"]) == (name, 204)
    found = delegations(watch, exec_run)
    assert [(r["command"], r["detail"]["status"]) for r in found if r["operation"] == "exec"] == [
        (["/bin/echo", f"{marker} again"], 201)
    ]
    assert [r["detail"]["status"] for r in found if r["operation"] == "exec_start"] == [101]
    (rest,) = until("the rest is declared", lambda: [r for r in opaque(watch, exec_run) if r["final"]])
    assert (rest["reason"], rest["peer"]) == ("upgraded", f"unix:{path}")
    # What the server got, in its order, is what is recorded; what only reads is told once.
    changes = [(one.method, one.path) for one in server.asked if one.method == "POST"]
    every = [r for one in (run, exec_run) for r in said(delegations(watch, one))]
    told = [r["detail"]["path"] for r in every if not r["operation"].startswith(("GET ", "HEAD "))]
    assert told == [path for _, path in changes]


@needs("curl")
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_requests_by_curl_are_read(watch: Watch, folder: Path, transport: str) -> None:
    path = folder / "docker.sock"
    body = '{"Image": "alpine", "Cmd": ["/bin/echo", "x"]}'
    with dockerd(path if transport == "unix" else ("127.0.0.1", 0)) as (server, address):
        where = "docker" if transport == "unix" else f"127.0.0.1:{address[1]}"
        options = ["--unix-socket", str(path)] if transport == "unix" else []
        url = f"http://{where}/v1.41/containers/create"
        run = watch.run("curl", "-sS", *options, "-H", "Content-Type: application/json", "-d", body, url)
    assert [one.body["Cmd"] for one in server.asked] == [["/bin/echo", "x"]]
    (created,) = said(delegations(watch, run))
    assert (created["channel"], created["operation"], created["command"]) == ("docker", "create", ["/bin/echo", "x"])
    assert created["detail"]["status"] == 201
    assert not opaque(watch, run)


@needs("at", "crontab")
def test_at_and_crontab_are_noticed_as_programs(watch: Watch, folder: Path) -> None:
    table = folder / "table"
    table.write_text("0 0 1 1 * /bin/true\n")
    tables = f"crontab {table}; crontab -l; crontab -r"
    script = f"echo /bin/true | at -q z 'now + 3 hours'; {tables}; at -l; echo true | batch; true"
    try:
        run = watch.run("/bin/sh", "-c", script)
    finally:
        queued = subprocess.run(["atq"], capture_output=True, text=True, check=True).stdout.splitlines()
        for job in (line.split()[0] for line in queued if line.split()[-1] == watch.user):
            subprocess.run(["atrm", job], check=True)
    assert "job " in run.stderr
    assert "/bin/true" in run.stdout  # the table was there
    found = [(r["channel"], r["operation"], r["command"], r["noticed"]) for r in delegations(watch, run)]
    assert found == [
        ("at", "at", ["at", "-q", "z", "now + 3 hours"], "exec"),
        ("cron", "crontab", ["crontab", str(table)], "exec"),
        ("cron", "crontab", ["crontab", "-r"], "exec"),
        ("at", "batch", ["/bin/sh", "-e", "/usr/bin/batch"], "exec"),
        ("at", "at", ["/usr/bin/at", "-qb", "now"], "exec"),
    ]


@needs("sshd", "ssh", "ssh-keygen")
def test_ssh_to_this_host_is_noticed_whatever_the_client_is_called(watch: Watch, folder: Path) -> None:
    other = folder / "harmless"
    shutil.copy("/usr/bin/ssh", other)
    with sshd(folder / "ssh", watch.user, free_port()) as server:
        run = watch.run(*server.client(watch.user, "/bin/echo", "done"))
        copied = watch.run(*server.client(watch.user, "/bin/echo", "done", ssh=str(other)))
    assert (run.stdout, copied.stdout) == ("done\n", "done\n")
    found = {r["noticed"]: r for r in delegations(watch, run)}
    assert set(found) == {"exec", "message"}
    assert found["exec"]["command"][-3:] == [f"{watch.user}@127.0.0.1", "/bin/echo", "done"]
    assert {r["channel"] for r in found.values()} == {"ssh"}
    (login,) = delegations(watch, copied)
    assert (login["channel"], login["noticed"], login["operation"]) == ("ssh", "message", "login")
    assert (login["peer"], login["exe"]) == (f"127.0.0.1:{server.port}", str(other))
    found_opaque = until("the rest is declared", lambda: opaque(watch, copied))
    assert {r["reason"] for r in found_opaque} == {"ssh"}


@needs("tmux")
def test_a_server_of_tmux_outside_the_watch_is_noticed(watch: Watch, folder: Path) -> None:
    place = folder / "tmux-1"
    place.mkdir()
    shutil.chown(place, watch.user)
    place.chmod(0o700)
    out = place / "out"
    path = place / "default"
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "SHELL": "/bin/sh"}
    who = {"user": watch.user, "group": watch.user, "extra_groups": []}
    with started("tmux", "-S", path, "-D", "-f", "/dev/null", env=environment, **who):
        until("tmux listens", path.exists)
        run = watch.run("tmux", "-S", str(path), "run-shell", f"echo done > {out}", check=False)
        run = run if run.returncode == 0 else watch.run("tmux", "-S", str(path), "new", "-d", f"echo done > {out}")
        until("tmux ran it", lambda: out.exists() and out.read_text())
    (found,) = delegations(watch, run)
    assert (found["channel"], found["noticed"], found["peer"]) == ("tmux", "connect", f"unix:{path}")


@pytest.mark.parametrize(
    ("place", "channel"),
    [
        ("run/containerd/containerd.sock", "containerd"),
        ("run/podman/podman.sock", "podman"),
        ("run/systemd/private", "systemd"),
        ("run/screen/S-bob/1.tty", "screen"),
    ],
)
def test_other_sockets_are_known_by_their_path(watch: Watch, folder: Path, place: str, channel: str) -> None:
    path = folder / place
    path.parent.mkdir(parents=True)
    script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen()
        run = watch.run("/usr/bin/python3", "-c", script, str(path))
    (found,) = delegations(watch, run)
    assert (found["channel"], found["noticed"], found["operation"]) == (channel, "connect", None)


@needs("dbus-daemon", "busctl")
def test_a_delegation_keeps_a_question_about_programs_open(watch: Watch, system_bus: Bus) -> None:
    words = ["busctl", f"--address={system_bus.address}", "call", *MANAGER, "StartUnit", "ss", "a.service", "fail"]
    run = watch.run(*words, check=False)
    done = watch.cli("commands", "--session", run.session, "--text", "nothing-like-it", check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "cannot say: " in done.stderr
    assert "delegations to dbus-system, whose doings are in no session (StartUnit call)" in done.stderr
    shown = watch.cli("show", run.session).stdout
    assert "Delegated" in shown
    assert f"delegation dbus-system StartUnit org.freedesktop.systemd1 (unix:{system_bus.path})" in shown


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
