"""Fetch URL over HTTP and print how many bytes came and how many seconds it took.

download.py HOST PORT PATH [PAUSE]: after the first bytes it waits for PAUSE seconds.
"""

from __future__ import annotations

import http.client
import sys
import time


def main(host: str, port: str, path: str, pause: str = "0") -> None:
    """Read the answer to its end."""
    buffer = bytearray(1 << 20)
    began = time.monotonic()
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("GET", path)
    answer = connection.getresponse()
    size = answer.readinto(buffer)
    time.sleep(float(pause))
    while n := answer.readinto(buffer):
        size += n
    sys.stdout.write(f"{size} {time.monotonic() - began}\n")


main(*sys.argv[1:])
