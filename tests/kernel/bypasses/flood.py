"""flood.py TEXT: fill the ring from a Unix socket pair, to its last bytes, then have a statement executed."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pg  # type: ignore[import-not-found] # it lies beside this script

go, stop = Path(os.environ["GO"]), Path(os.environ["STOPPED"])
while not stop.exists():
    time.sleep(0.01)
s = pg.connect()
a, b = socket.socketpair()
for _ in range(256):
    a.sendall(b"x" * 32768)
    b.recv(32768, socket.MSG_WAITALL)
for _ in range(5000):
    a.sendall(b"x")
    b.recv(1)
pg.ask(s, sys.argv[1])
while not go.exists():
    time.sleep(0.01)
