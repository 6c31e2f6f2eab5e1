"""Channels by path, port and program, and what is told once."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from agentwatch.observation import delegation
from agentwatch.observation.delegation import Told
from agentwatch.protocols.base import Delegated
from agentwatch.streams.flow import Flow

HOST = "db-agent-1"


@pytest.mark.parametrize(
    ("peer", "channel"),
    [
        ("unix:/run/docker.sock", "docker"),
        ("unix:/var/run/docker.sock", "docker"),
        ("unix:/proc/self/root//run/./docker.sock", "docker"),
        ("unix:docker.sock", "docker"),
        ("unix:/run/user/1000/podman/podman.sock", "podman"),
        ("unix:/run/containerd/containerd.sock", "containerd"),
        ("unix:/run/k3s/containerd/containerd.sock.ttrpc", "containerd"),
        ("unix:/var/run/crio/crio.sock", "crio"),
        ("unix:/var/run/dbus/system_bus_socket", "dbus-system"),
        ("unix:/run/user/1000/bus", "dbus-user"),
        ("unix:@/tmp/dbus-AbCd123", "dbus-user"),
        ("unix:/run/systemd/private", "systemd"),
        ("unix:/run/user/0/systemd/private", "systemd"),
        ("unix:@/org/freedesktop/systemd1/private", "systemd"),
        ("unix:/tmp/tmux-1000/default", "tmux"),
        ("unix:/run/screen/S-bob/77.pts-0", "screen"),
        ("unix:/tmp/notdocker.sock", None),
        ("unix:/run/docker.sock.bak", None),
        ("unix:@docker.sock", None),
        ("unix:/run/systemd/notify", None),
        ("unix:/home/bob/bus", None),
        ("unix:/var/run/postgresql/.s.PGSQL.5432", None),
        ("127.0.0.1:22", None),
        (None, None),
    ],
)
def test_a_socket_is_known_by_the_end_of_its_path(peer: str | None, channel: str | None) -> None:
    assert delegation.channel_of_path(peer) == channel


@pytest.mark.parametrize(
    ("peer", "local", "channel"),
    [
        ("127.0.0.1:22", "127.0.0.1:50000", "ssh"),
        ("127.8.9.1:2375", None, "docker"),
        ("[::1]:2376", "[::1]:50000", "docker"),
        ("192.0.2.1:22", "192.0.2.1:50000", "ssh"),
        ("[2001:db8::1]:22", "[2001:db8::1]:50000", "ssh"),
        ("0.0.0.0:22", None, "ssh"),
        ("192.0.2.2:22", "192.0.2.1:50000", None),
        ("192.0.2.2:2375", None, None),
        ("127.0.0.1:5432", "127.0.0.1:50000", None),
    ],
)
def test_a_server_on_this_host_is_known_by_its_port(peer: str, local: str | None, channel: str | None) -> None:
    fields = delegation.by_connect({"transport": "tcp", "peer": peer, "local": local, "connection": "tcp-1"})
    assert (fields and fields["channel"]) == channel


def executed(*argv: str | bytes, exe: str | None = None, filename: str | None = None) -> dict[str, Any] | None:
    first = str(argv[0])
    path = exe or (first if first.startswith("/") else f"/usr/bin/{first}")
    record = {"argv": list(argv), "exe": path, "filename": filename or path, "exec_id": 5}
    return delegation.by_exec(record, HOST)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("at", "-f", "job", "now"), ("at", "at")),
        (("at", "-l"), None),
        (("at", "now", "-qz"), ("at", "at")),
        (("at", "-fl", "now"), ("at", "at")),
        (("/bin/sh", "-e", "/usr/bin/batch"), ("at", "batch")),
        (("crontab", "-"), ("cron", "crontab")),
        (("crontab", "-l"), None),
        (("crontab", "-u", "-l", "file"), ("cron", "crontab")),
        (("systemd-run", "--user", "id"), ("systemd", "systemd-run")),
        (("systemctl", "--user", "-M", "x", "restart", "a"), ("systemd", "restart")),
        (("systemctl", "status", "a"), None),
        (("systemctl",), None),
        (("machinectl", "shell", "root@.host"), ("machined", "shell")),
        (("ssh", "localhost"), ("ssh", "ssh")),
        (("ssh", "-p", "22", "-vv", "bob@127.1", "id"), ("ssh", "ssh")),
        (("ssh", "ssh://bob@[::1]:2222"), ("ssh", "ssh")),
        (("ssh", "bob@DB-agent-1."), ("ssh", "ssh")),
        (("ssh", "-o", "HostName=127.0.0.1", "alias"), ("ssh", "ssh")),
        (("ssh", "-i", "localhost", "db.example.com"), None),
        (("ssh", "db.example.com", "localhost"), None),
        (("ssh",), None),
        (("psql", "-h", "localhost"), None),
        ((b"\xff", "localhost"), None),
    ],
)
def test_a_program_is_noticed_when_it_asks_for_something(
    argv: tuple[str | bytes, ...], told: tuple[str, str] | None
) -> None:
    filename = "/usr/bin/batch" if "/usr/bin/batch" in argv else None
    found = executed(*argv, filename=filename)
    assert (found and (found["channel"], found["operation"])) == told
    if found:
        assert (found["command"], found["noticed"], found["exec_id"]) == (list(argv), "exec", 5)


def test_a_program_is_known_by_its_file_whatever_it_calls_itself() -> None:
    found = executed("harmless", "id", exe="/usr/bin/systemd-run")
    assert found is not None
    assert found["command"] == ["harmless", "id"]


def test_what_is_opened_is_told_once_and_what_is_asked_each_time() -> None:
    told = Told()
    flow = Flow("unix-1", "unix", "unix:/run/user/0/bus", started=0)
    asked = delegation.by_message(flow, Delegated("dbus", "StartUnit", (b"a", b"\xff"), {}, 1, 0))
    assert asked is not None
    assert (asked["channel"], asked["command"]) == ("dbus-user", ["a", b"\xff"])
    assert [told.is_new(asked), told.is_new(asked)] == [True, True]
    used = delegation.by_use("unix", flow.peer, None, flow.connection)
    assert [told.is_new(used), told.is_new(used), told.is_new(None)] == [True, False, False]
    assert not pickle.loads(pickle.dumps(told)).is_new(used)  # noqa: S301 - our own bytes


def test_ssh_to_another_host_is_not_on_behalf_of_anybody_here() -> None:
    login = Delegated("ssh", "login", None, {}, 1, 0)
    here = Flow("tcp-1", "tcp", "192.0.2.1:2222", started=0)
    there = Flow("tcp-2", "tcp", "192.0.2.2:2222", started=0)
    here.local = there.local = "192.0.2.1:999"
    assert delegation.by_message(here, login) is not None
    assert delegation.by_message(there, login) is None
