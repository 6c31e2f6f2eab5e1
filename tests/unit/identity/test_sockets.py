"""Truth: getsockname, getpeername, SO_COOKIE and fstat of sockets that this process holds."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from agentwatch.identity import sockets

if TYPE_CHECKING:
    from pathlib import Path

SO_COOKIE = 57


def found(one: socket.socket) -> sockets.Socket:
    return next(s for s in sockets.existing([os.getpid()]) if s.fd == one.fileno())


def cookie(one: socket.socket) -> int:
    value: int = struct.unpack("=Q", one.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
    return value


def common(one: socket.socket, family: int, transport: str) -> sockets.Socket:
    result = found(one)
    assert result.pid == os.getpid()
    assert result.inode == os.fstat(one.fileno()).st_ino
    assert result.cookie == cookie(one)
    assert (result.family, result.transport) == (family, transport)
    return result


def test_tcp_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        listening = common(server, socket.AF_INET, "tcp")
        assert listening.listening
        assert (listening.local, listening.peer) == (f"127.0.0.1:{server.getsockname()[1]}", None)
        result = common(client, socket.AF_INET, "tcp")
        assert not result.listening
        assert result.local == f"127.0.0.1:{client.getsockname()[1]}"
        assert result.peer == f"127.0.0.1:{server.getsockname()[1]}"


def test_udp_over_ipv6() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("::1", 9))
        except OSError:
            pytest.skip("this host has no IPv6")
        result = common(one, socket.AF_INET6, "udp")
        assert result.local == f"[::1]:{one.getsockname()[1]}"
        assert result.peer == "[::1]:9"


@pytest.mark.parametrize("name", ["path", "abstract", "not-utf8"])
def test_unix_connection(tmp_path: Path, name: str) -> None:
    address = {
        "path": os.fsencode(tmp_path / "socket"),
        "abstract": b"\0agentwatch test %d" % os.getpid(),
        "not-utf8": b"\0agentwatch \xff%d" % os.getpid(),
    }[name]
    shown = {
        "path": f"unix:{tmp_path}/socket",
        "abstract": f"unix:@agentwatch test {os.getpid()}",
        "not-utf8": f"unix:@agentwatch \udcff{os.getpid()}",
    }[name]
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(address)
        server.listen()
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(address)
        accepted = stack.enter_context(server.accept()[0])
        assert common(server, socket.AF_UNIX, "unix").local == shown
        assert common(client, socket.AF_UNIX, "unix").peer == shown
        assert common(accepted, socket.AF_UNIX, "unix").local == shown
        assert common(client, socket.AF_UNIX, "unix").local is None


def test_socket_without_diagnostics_is_not_left_out() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as one:
        result = found(one)
        assert result.inode == os.fstat(one.fileno()).st_ino
        assert (result.transport, result.local, result.peer) == (None, None, None)


def test_process_that_ended_has_none() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert sockets.existing([pid]) == []
