"""vsock.py: try to connect by AF_VSOCK to this machine itself; prints the error, which is expected."""

from __future__ import annotations

import socket
import sys

s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.settimeout(1)
try:
    s.connect((1, 7777))
except OSError as e:
    sys.stdout.write(str(e))
