"""Connections that the watch did not see being made, or that do not look like one; see docs/bypasses.md."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.kernel.fix_bypass import COVERED, DECLARED, NEEDS_PTRACE, PYTHON, seen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.fix_bypass import Arena, State

pytestmark = pytest.mark.kernel

BOTH = pytest.mark.parametrize("transport", ["tcp", "unix"])
CONNECT_AND_WAIT = """
import socket, sys, time
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(s.fileno(), flush=True)
time.sleep(60)
"""


def connections(arena: Arena, way: str) -> tuple[str, ...]:
    return PYTHON, arena.tool("connections.py"), way


def connect_outside(arena: Arena, transport: str) -> socket.socket:
    """Return a connection to the server that the test makes, outside the watch, and does not use."""
    if transport == "tcp":
        return socket.create_connection(("127.0.0.1", arena.postgres.port))
    s = socket.socket(socket.AF_UNIX)
    s.connect(f"{arena.postgres.root}/.s.PGSQL.{arena.postgres.port}")
    return s


@contextmanager
def meeting_point(arena: Arena) -> Iterator[socket.socket]:
    """Listen on a Unix socket that the agent may connect to."""
    path = arena.watch.root / "meeting-point"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.settimeout(30)
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen()
        yield listener
    path.unlink()


@pytest.mark.parametrize("way", ["fast_open", "mptcp"])
def test_fast_open_and_mptcp(arena: Arena, way: str) -> None:
    state, attack = arena.sql(*connections(arena, way))
    assert state == COVERED
    assert len(attack.of("connect")) == 1


@BOTH
def test_fork_without_exec(arena: Arena, transport: str) -> None:
    state, _ = arena.sql(*connections(arena, "fork"), transport=transport)
    assert state == COVERED


@BOTH
def test_double_fork_and_setsid(arena: Arena, transport: str) -> None:
    state, _ = arena.sql(*connections(arena, "double_fork"), transport=transport)
    assert state == COVERED


@BOTH
def test_thread_that_outlives_the_leader(arena: Arena, transport: str) -> None:
    state, _ = arena.sql(arena.tool("threads"), "query", transport=transport)
    assert state == COVERED


@BOTH
def test_static_binary(arena: Arena, transport: str) -> None:
    state, _ = arena.sql(arena.tool("static"), transport=transport)
    assert state == COVERED


@BOTH
def test_ld_preload(arena: Arena, transport: str) -> None:
    words = ("/usr/bin/env", f"LD_PRELOAD={arena.tool('preload.so')}", "/bin/true")
    state, attack = arena.sql(*words, transport=transport)
    assert state == COVERED
    assert {record["exe"] for record in attack.of("statement")} == {"/usr/bin/true"}


def test_spoofed_comm(arena: Arena) -> None:
    state, attack = arena.sql(*connections(arena, "comm"))
    assert state == COVERED
    assert {record["exe"] for record in attack.of("statement")} == {os.path.realpath(PYTHON)}


@BOTH
def test_user_and_pid_namespaces(arena: Arena, transport: str) -> None:
    state, _ = arena.sql(*connections(arena, "namespaces"), transport=transport)
    assert state == COVERED


def test_network_namespace(arena: Arena) -> None:
    text = arena.statement()
    attack = arena.run(PYTHON, arena.tool("netns.py"), text, known=lambda a: a.said(text))
    assert attack.stdout == text  # what the server in the namespace received
    assert [record["outcome"] for record in attack.said(text)] == ["ok"]
    assert seen(attack.said(text), attack) == COVERED


def test_address_rewritten_during_connect(arena: Arena) -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=2000) as a,
        socket.create_server(("127.0.0.1", 0), backlog=2000) as b,
    ):
        attack = arena.run(arena.tool("connect_race"), str(a.getsockname()[1]), str(b.getsockname()[1]))
    went = attack.stdout.split()
    assert len(set(went)) == 2
    assert [record["peer"].rpartition(":")[2] for record in attack.of("connect")] == went
    assert seen(went, attack) == COVERED


def test_tcp_socket_received(arena: Arena) -> None:
    assert received(arena, "tcp") == COVERED


def test_unix_socket_received(arena: Arena) -> None:
    assert received(arena, "unix") == COVERED


def received(arena: Arena, transport: str) -> State:
    """Let the agent use a connection that it gets from an accomplice."""
    text = arena.statement()
    with meeting_point(arena) as listener:
        where = listener.getsockname()
        _, attack = arena.sql(
            *connections(arena, "received"),
            text=text,
            transport=transport,
            env={"PASSED": where},
            meanwhile=lambda: hand_over(listener, connect_outside(arena, transport)),
        )
    assert attack.of("scm_rights")
    return arena.verdict(text, attack.without(where))


def hand_over(listener: socket.socket, passed: socket.socket) -> None:
    with closing(listener.accept()[0]) as agent, passed:
        socket.send_fds(agent, [b"x"], [passed.fileno()])


def test_tcp_socket_given_away(arena: Arena) -> None:
    assert given(arena, "tcp") == COVERED


def test_unix_socket_given_away(arena: Arena) -> None:
    assert given(arena, "unix") == COVERED


def given(arena: Arena, transport: str) -> State:
    """Let an accomplice use the agent's connection."""
    text = arena.statement()
    with meeting_point(arena) as listener:
        where = listener.getsockname()
        _, attack = arena.sql(
            *connections(arena, "given"),
            text=text,
            transport=transport,
            env={"PASSED": where},
            meanwhile=lambda: use_given(listener, text),
        )
    assert attack.of("scm_rights")
    assert "foreign-task" in attack.techniques()
    return arena.verdict(text, attack.without(where))


def use_given(listener: socket.socket, text: str) -> None:
    """Be the accomplice: take the agent's connection and have the statement executed on it."""
    with closing(listener.accept()[0]) as agent:
        _, fds, _, _ = socket.recv_fds(agent, 1, 1)
        with socket.socket(fileno=fds[0]) as database:
            database.sendall(b"Q" + (len(text) + 5).to_bytes(4, "big") + text.encode() + b"\0")
            answer = b""
            while b"Z\0\0\0\5I" not in answer:
                answer += database.recv(4096)
        agent.sendall(b"x")


@NEEDS_PTRACE
def test_tcp_socket_taken_by_pidfd_getfd(arena: Arena) -> None:
    words = [PYTHON, "-c", CONNECT_AND_WAIT, str(arena.postgres.port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, **arena.as_agent_user()) as victim:
        try:
            assert victim.stdout is not None
            fd = victim.stdout.readline().strip()
            environment = {"TAKEN_PID": str(victim.pid), "TAKEN_FD": fd}
            state, attack = arena.sql(*connections(arena, "getfd"), env=environment)
        finally:
            victim.kill()
    assert state == COVERED
    assert attack.techniques() == {"pidfd_getfd", "socket-from-outside"}


def test_inherited_tcp_socket(arena: Arena) -> None:
    with connect_outside(arena, "tcp") as s:
        state, attack = arena.sql(*connections(arena, "stdin"), stdin=s.fileno())
    assert state == COVERED
    assert attack.techniques() == {"socket-from-outside"}


def test_inherited_unix_socket(arena: Arena) -> None:
    with connect_outside(arena, "unix") as s:
        state, _ = arena.sql(*connections(arena, "stdin"), transport="unix", stdin=s.fileno())
    assert state == COVERED


def test_cgroup_move(arena: Arena) -> None:
    state, attack = arena.sql(
        *connections(arena, "moved"), env={"CGROUP": arena.watch.slice}, meanwhile=lambda: move_out(arena)
    )
    assert attack.of("cgroup_move")
    assert state == COVERED
    assert attack.techniques() == {"socket-from-outside"}


def move_out(arena: Arena) -> None:
    (arena.watch.cgroup.parent / "cgroup.procs").write_text(str(arena.watch.wait_agent_pid()))


def test_raw_and_packet_sockets(arena: Arena) -> None:
    attack = arena.run(PYTHON, arena.tool("refused.py"))
    assert set(json.loads(attack.stdout).values()) == {"EPERM"}
    assert seen(attack.stdout, attack) == COVERED  # refused by the kernel: nothing left


def test_vsock(arena: Arena) -> None:
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError as e:
        pytest.skip(f"no AF_VSOCK: {e}")
    attack = arena.run(PYTHON, arena.tool("vsock.py"))
    assert attack.stdout  # tried: no peer is needed for a connect to be a record
    assert {record["transport"] for record in attack.of("connect")} == {"vsock"}
    assert seen(attack.of("connect"), attack) == COVERED


@pytest.mark.parametrize("way", ["tls", "udp", "other"])
def test_bytes_that_no_decoder_reads(arena: Arena, way: str, tmp_path: Path) -> None:
    text = arena.statement()
    received: list[bytes] = []
    kind = socket.SOCK_DGRAM if way == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as listener:
        listener.settimeout(30)
        listener.bind(("127.0.0.1", 0))
        server = threading.Thread(target=serve, args=(listener, way, received, tmp_path))
        server.start()
        attack = arena.run(PYTHON, arena.tool("sending.py"), way, str(listener.getsockname()[1]), text)
        server.join()
    assert received == [text.encode()]
    assert seen(None, attack) == DECLARED
    # Under TLS the plaintext was seen, and is of a protocol that no decoder knows.
    assert {record["reason"] for record in attack.of("opaque")} == {"udp" if way == "udp" else "unknown-protocol"}
    assert {"tls" in record for record in attack.of("opaque")} == {way == "tls"}


def serve(listener: socket.socket, way: str, received: list[bytes], folder: Path) -> None:
    if way == "udp":
        received.append(listener.recv(4096))
        return
    context = certificate(folder) if way == "tls" else None
    listener.listen()
    connection, _ = listener.accept()
    with connection if context is None else context.wrap_socket(connection, server_side=True) as s:
        data = s.recv(4096)
    received.append(data if context else bytes(byte ^ 0x55 for byte in data))


def certificate(folder: Path) -> ssl.SSLContext:
    """Return a server's context with a certificate made for it."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    subprocess.run(["openssl", "req", "-x509", *options, "-keyout", key, "-out", cert], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context
