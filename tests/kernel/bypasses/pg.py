"""PostgreSQL's protocol in the few messages that an attack needs; the environment says where (PGHOST, PGPORT, ...)."""

from __future__ import annotations

import os
import socket
import struct

READY = b"Z\0\0\0\5"


def address() -> tuple[str, int] | str:
    """Return the server's address, or the path of its Unix socket."""
    host, port = os.environ["PGHOST"], os.environ["PGPORT"]
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, int(port))


def new_socket(protocol: int = 0) -> socket.socket:
    """Return a socket of the server's family."""
    family = socket.AF_UNIX if os.environ["PGHOST"].startswith("/") else socket.AF_INET
    return socket.socket(family, socket.SOCK_STREAM, protocol)


def hello() -> bytes:
    """Return the startup packet."""
    names = ("user", os.environ["PGUSER"], "database", os.environ["PGDATABASE"])
    body = struct.pack(">I", 196608) + b"\0".join(name.encode() for name in names) + b"\0\0"
    return struct.pack(">I", len(body) + 4) + body


def query(text: str) -> bytes:
    """Return a Query message."""
    return b"Q" + struct.pack(">I", len(text.encode()) + 5) + text.encode() + b"\0"


def ready(s: socket.socket) -> bytes:
    """Read until the server is ready for a query; return what it said."""
    data = b""
    while data[-6:-1] != READY:
        more = s.recv(65536)
        if not more:
            raise SystemExit("the server closed the connection")
        data += more
    return data


def connect() -> socket.socket:
    """Return a connection that is ready."""
    s = new_socket()
    s.connect(address())
    s.sendall(hello())
    ready(s)
    return s


def ask(s: socket.socket, text: str) -> None:
    """Have a statement executed, and end."""
    s.sendall(query(text))
    ready(s)
    s.sendall(b"X\0\0\0\4")
    s.close()
