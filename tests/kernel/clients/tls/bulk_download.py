"""Fetch a body of so many bytes over HTTPS, whoever the server is: bulk_download.py HOST PORT BYTES.

Standard library only. Prints how many bytes came and how many seconds it took.
"""

from __future__ import annotations

import ssl
import sys
import time
import urllib.request

PIECE_BYTES = 1 << 20


def main(host: str, port: str, size: str) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    buffer = bytearray(PIECE_BYTES)
    received = 0
    began = time.monotonic()
    with urllib.request.urlopen(f"https://{host}:{port}/bytes/{size}", context=context) as answer:
        while n := answer.readinto(buffer):
            received += n
    sys.stdout.write(f"{received} {time.monotonic() - began}\n")


main(*sys.argv[1:])
