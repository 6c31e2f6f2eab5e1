"""Identity on the real kernel: cgroups that are made and removed, processes and sockets in other namespaces."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

from agentwatch.config import find_cgroup2_mount
from agentwatch.identity import cgroups, processes, sockets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="makes cgroups: needs root")]


@pytest.fixture
def cgroup() -> Iterator[Path]:
    path = find_cgroup2_mount() / f"agents-test-{os.getpid()}-{uuid.uuid4().hex[:6]}.slice"
    cgroups.make(path)
    yield path
    assert cgroups.remove(path)


def test_identifier_of_a_new_cgroup_leads_to_its_path(cgroup: Path) -> None:
    inner = cgroup / "a" / "b"
    identifier = cgroups.make(inner)
    assert cgroups.path_of(identifier, find_cgroup2_mount()) == f"{cgroup.name}/a/b"
    with pytest.raises(FileExistsError):
        cgroups.make(inner)


def test_processes_below_a_cgroup_are_its_processes(cgroup: Path) -> None:
    cgroups.make(cgroup / "inner")
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:
        cgroups.place(cgroup / "inner", process.pid)
        assert cgroups.processes(cgroup) == [process.pid]
        assert [found.argv for found in processes.snapshot(cgroup)] == [["/bin/cat"]]
        assert cgroups.populated(cgroup)
        assert not cgroups.remove(cgroup)
        process.communicate()
    assert cgroups.processes(cgroup) == []


def test_processes_of_a_threaded_cgroup_are_listed_once(cgroup: Path) -> None:
    inner = cgroup / "threads"
    cgroups.make(inner)
    (inner / "cgroup.type").write_text("threaded")
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:
        cgroups.place(cgroup, process.pid)
        cgroups.place(inner, process.pid)
        assert cgroups.processes(cgroup) == [process.pid]
        process.communicate()


def test_socket_in_another_network_namespace_is_found_with_its_addresses() -> None:
    code = (
        "import socket, struct, sys\n"
        "s = socket.create_server(('0.0.0.0', 5432))\n"
        "print(struct.unpack('=Q', s.getsockopt(socket.SOL_SOCKET, 57, 8))[0], flush=True); sys.stdin.read()\n"
    )
    words = ["/usr/bin/unshare", "--net", sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        cookie = int(process.stdout.readline())
        found = sockets.existing([process.pid])
        process.communicate()
    assert [(s.transport, s.local, s.cookie, s.listening) for s in found] == [("tcp", "0.0.0.0:5432", cookie, True)]
