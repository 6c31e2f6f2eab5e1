"""Sockets that would go around the watch. Prints, for each, the name of the error that refused it, or 'done'."""

from __future__ import annotations

import errno
import json
import socket
import sys

_ALL = 0x0300  # ETH_P_ALL in network order

SOCKETS = {
    "raw": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP),
    "raw6": (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_TCP),
    "packet": (socket.AF_PACKET, socket.SOCK_RAW, _ALL),
    "packet datagram": (socket.AF_PACKET, socket.SOCK_DGRAM, _ALL),
}

result = {}
for name, kind in SOCKETS.items():
    try:
        socket.socket(*kind).close()
    except OSError as e:
        result[name] = errno.errorcode[e.errno or 0]
    else:
        result[name] = "done"
sys.stdout.write(json.dumps(result))
