"""Connects of every family, and Unix sockets through every system call that sends and receives."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kernel.fix_postgres import PostgresServer
    from tests.kernel.fix_watch import Watch

pytestmark = pytest.mark.kernel

RAW_CLIENT = (Path(__file__).parent / "clients" / "raw_client.py").read_text()
PYTHON = "/usr/bin/python3"


@pytest.mark.parametrize("way", ["write", "writev", "sendto", "sendmsg", "sendmmsg", "peek"])
def test_statements_on_a_unix_socket_by_each_system_call(watch: Watch, postgres: PostgresServer, way: str) -> None:
    path = f"{postgres.root}/.s.PGSQL.{postgres.port}"
    run = watch.run(PYTHON, "-c", RAW_CLIENT, path, postgres.database, way)
    rows = watch.statements(run.session)
    assert [row["db.query.text"] for row in rows] == run.stdout.splitlines()
    assert [(row["outcome"], row["rows"]) for row in rows] == [("ok", 1)] * 3
    assert {row["peer"] for row in rows} == {f"unix:{path}"}
    assert watch.session(run.session)["gaps"] == 0


def test_connects_tell_peer_result_and_latency(watch: Watch) -> None:
    script = """
import errno, os, socket
def go(s, address):
    try: s.connect(address)
    except OSError as e: pass
go(socket.socket(), ("127.0.0.1", 1))
go(socket.socket(socket.AF_INET6), ("::1", 1))
listener = socket.create_server(("127.0.0.1", 0)); port = listener.getsockname()[1]
go(socket.socket(), ("127.0.0.1", port))
s = socket.socket(); s.setblocking(False); go(s, ("127.0.0.1", port)); import select; select.select([], [s], [], 5)
s = socket.socket(); s.setblocking(False); go(s, ("127.0.0.1", 2)); select.select([], [s], [], 5)
go(socket.socket(socket.AF_UNIX), "/nonexistent/socket")
l = socket.socket(socket.AF_UNIX); l.bind("\\0agentwatch test"); l.listen()
go(socket.socket(socket.AF_UNIX), "\\0agentwatch test")
u = socket.socket(type=socket.SOCK_DGRAM); u.connect(("127.0.0.1", 53001)); u.send(b"x" * 10)
u = socket.socket(type=socket.SOCK_DGRAM)
for _ in range(3): u.sendto(b"y" * 20, ("127.0.0.1", 53002))
u6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u6.sendto(b"z", ("::1", 53003))
print(os.getpid(), port)
"""
    run = watch.run(PYTHON, "-c", script)
    pid, port = map(int, run.stdout.split())
    found = [r for r in watch.records("connect") if r["session"] == run.session]
    assert [(r["transport"], r["peer"], r["errno"]) for r in found] == [
        ("tcp", "127.0.0.1:1", 111),
        ("tcp", "[::1]:1", 111),
        ("tcp", f"127.0.0.1:{port}", 0),
        ("tcp", f"127.0.0.1:{port}", 0),
        ("tcp", "127.0.0.1:2", 111),
        ("unix", "unix:/nonexistent/socket", 2),
        ("unix", "unix:@agentwatch test", 0),
        ("udp", "127.0.0.1:53001", 0),
        ("udp", "127.0.0.1:53002", 0),
        ("udp", "[::1]:53003", 0),
    ]
    assert {r["pid"] for r in found} == {pid}
    assert {r["exe"] for r in found} == {str(Path(PYTHON).resolve())}
    assert all(0 < r["latency_ns"] < 10**9 for r in found if r["transport"] == "tcp")
    assert len({r["connection"] for r in found}) == len(found)


def test_what_no_decoder_knows_is_opaque_with_exact_bytes(watch: Watch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        received: list[int] = []
        server = threading.Thread(target=_serve, args=(listener, received))
        server.start()
        script = f"""
import socket
s = socket.create_connection(("127.0.0.1", {port}))
s.sendall(b"\\x00not a protocol" * 300000)
s.shutdown(socket.SHUT_WR)
n = 0
while d := s.recv(65536): n += len(d)
print(n)
"""
        run = watch.run(PYTHON, "-c", script)
        server.join()
    final = watch.final_opaque(run.session)
    assert [(r["peer"], r["reason"], r["bytes_out"], r["bytes_in"]) for r in final] == [
        (f"127.0.0.1:{port}", "unknown-protocol", received[0], int(run.stdout))
    ]
    assert watch.session(run.session)["opaque_bytes"] == received[0] + int(run.stdout)


def test_tls_that_no_known_library_speaks_is_opaque_and_says_so(watch: Watch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=_serve, args=(listener, []))
        server.start()
        hello = _client_hello("db.example", ["postgresql"])
        script = f"""
import socket
s = socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}))
s.sendall(bytes.fromhex("{hello.hex()}"))
"""
        run = watch.run(PYTHON, "-c", script)
        server.join()
    (final,) = watch.final_opaque(run.session)
    assert (final["reason"], final["bytes_out"]) == ("tls", len(hello))
    assert final["tls"] == {
        "version": None,
        "cipher": None,
        "server_name": "db.example",
        "alpn": ["postgresql"],
        "cause": "no-library",
    }


def test_passing_a_descriptor_is_noticed(watch: Watch) -> None:
    script = """
import os, socket
a, b = socket.socketpair()
socket.send_fds(a, [b"here"], [0, 1])
socket.recv_fds(b, 100, 4)
"""
    run = watch.run(PYTHON, "-c", script)
    found = [r["direction"] for r in watch.records("scm_rights") if r["session"] == run.session]
    assert found == ["out", "in"]


def test_the_thread_that_writes_is_named_also_on_a_connection_another_one_made(watch: Watch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=_serve_startup, args=(listener,))
        server.start()
        script = f"""
import os, socket, struct, threading
s = socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}))
body = struct.pack(">I", 196608) + b"user\\0u\\0\\0"
s.sendall(struct.pack(">I", len(body) + 4) + body); s.recv(100)
def ask(n):
    text = b"SELECT %d" % n
    s.sendall(b"Q" + struct.pack(">I", len(text) + 5) + text + b"\\0"); s.recv(100)
    print(n, os.getpid(), threading.get_native_id(), flush=True)
ask(0)
t = threading.Thread(target=ask, args=(1,)); t.start(); t.join()
if not (pid := os.fork()):
    ask(2); os._exit(0)
os.waitpid(pid, 0)
ask(3)
"""
        run = watch.run(PYTHON, "-c", script)
        server.join()
    told = [tuple(map(int, line.split())) for line in run.stdout.splitlines()]
    records = [r for r in watch.records("statement") if r["session"] == run.session]
    seen = [(int(r["db.query.text"].split()[1]), r["pid"], r["tid"]) for r in records]
    assert seen == told


def _client_hello(name: str, protocols: list[str]) -> bytes:
    context = ssl.create_default_context()
    context.set_alpn_protocols(protocols)
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


def _serve(listener: socket.socket, received: list[int]) -> None:
    connection, _ = listener.accept()
    with connection:
        count = 0
        while data := connection.recv(1 << 16):
            count += len(data)
            if data.startswith(b"\x16"):
                return
        received.append(count)
        connection.sendall(b"\x01answer" * 50000)


def _serve_startup(listener: socket.socket) -> None:
    """Answer as PostgreSQL would: trust, then one empty result for each query."""
    connection, _ = listener.accept()
    with connection:
        first = True
        while connection.recv(1 << 16):
            ready = b"Z\0\0\0\5I"
            connection.sendall((b"R\0\0\0\x08\0\0\0\0" if first else b"C\0\0\0\x0dSELECT 0\0") + ready)
            first = False
