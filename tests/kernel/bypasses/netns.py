"""netns.py TEXT: a client and a server of PostgreSQL in a network namespace of their own.

Prints what the server got.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys

import pg  # type: ignore[import-not-found] # it lies beside this script

_NEWUSER, _NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1

libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(_NEWUSER | _NEWNET) < 0:
    raise OSError(ctypes.get_errno(), "unshare")
with socket.socket() as s:
    fcntl.ioctl(s, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
listener = socket.create_server(("127.0.0.1", 5432))
if not os.fork():
    connection, _ = listener.accept()
    connection.recv(65536)
    connection.sendall(b"R\0\0\0\x08\0\0\0\0" + pg.READY + b"I")
    sys.stdout.write(connection.recv(65536)[5:-1].decode())
    sys.stdout.flush()
    connection.sendall(b"C\0\0\0\x0dSELECT 1\0" + pg.READY + b"I")
    os._exit(0)
os.environ.update(PGHOST="127.0.0.1", PGPORT="5432", PGUSER="u", PGDATABASE="d")
pg.ask(pg.connect(), sys.argv[1])
os.wait()
