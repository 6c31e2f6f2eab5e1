"""tls_early.py PORT TEXT: say a statement to a server before the handshake is done: as early data of TLS 1.3."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys

import pg  # type: ignore[import-not-found] # it lies beside this script
import pgtls  # type: ignore[import-not-found]

_TICKET_SECONDS = 1


def connected(port: int) -> socket.socket:
    """Return a connection on which no answer is waited for long."""
    s = socket.create_connection(("127.0.0.1", port))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _TICKET_SECONDS, 0))
    return s


def main(port: int, text: str) -> None:
    """Get a session in a first connection, use it in a second one."""
    first = pgtls.Tls(to=connected(port)).connect()
    buffer = ctypes.create_string_buffer(1)
    first.openssl.SSL_read(first.ssl, buffer, 1)  # the server says nothing but tickets
    session = first.openssl.SSL_get1_session(first.ssl)
    first.end()
    second = pgtls.Tls(first.openssl, to=connected(port))
    pgtls.must(second.openssl.SSL_set_session(second.ssl, session))
    message = pg.hello() + pg.query(text)
    written = ctypes.c_size_t()
    pgtls.must(second.openssl.SSL_write_early_data(second.ssl, message, len(message), ctypes.byref(written)))
    second.connect().plainly().write(pgtls.TERMINATE)
    second.end()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
