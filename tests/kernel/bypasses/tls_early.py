"""tls_early.py WAY TEXT: say something before the handshake is done, as early data of TLS 1.3."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys

import pg  # type: ignore[import-not-found] # it lies beside this script
import pgtls  # type: ignore[import-not-found]

PASSWORD_BYTES = 60_000
_TICKET_SECONDS = 1
_REJECTED = 1
_CIPHER, _KEY, _IDENTITY = b"\x13\x02", b"a key that nobody else has".ljust(48), ctypes.create_string_buffer(b"nobody")
_USE_SESSION = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.POINTER(ctypes.c_void_p),
)


def connected() -> socket.socket:
    """Return a connection to a server that takes early data, on which no answer is waited for long."""
    s = socket.create_connection(("127.0.0.1", int(os.environ["EARLY_PORT"])))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _TICKET_SECONDS, 0))
    return s


def accepted(text: str) -> None:
    """Get a session in a first connection, use it in a second one."""
    first = pgtls.Tls(to=connected()).connect()
    buffer = ctypes.create_string_buffer(1)
    first.openssl.SSL_read(first.ssl, buffer, 1)  # the server says nothing but tickets
    session = first.openssl.SSL_get1_session(first.ssl)
    first.end()
    second = pgtls.Tls(first.openssl, to=connected())
    pgtls.must(second.openssl.SSL_set_session(second.ssl, session))
    second.write_early(pg.hello() + pg.query(text))
    second.connect().plainly().write(pgtls.TERMINATE)
    second.end()


def rejected(text: str) -> None:
    """Begin a password early, which a server without that session drops: what follows seems to belong to it."""

    def use_session(_: int, __: int, identity: object, length: object, session: object) -> int:
        identity[0], length[0] = ctypes.addressof(_IDENTITY), len(_IDENTITY) - 1  # type: ignore[index]
        session[0] = new = openssl.SSL_SESSION_new()  # type: ignore[index]
        openssl.SSL_SESSION_set1_master_key(new, _KEY, len(_KEY))
        openssl.SSL_SESSION_set_cipher(new, openssl.SSL_CIPHER_find(tls.ssl, _CIPHER))
        openssl.SSL_SESSION_set_protocol_version(new, pgtls.TLS_1_3)
        return int(openssl.SSL_SESSION_set_max_early_data(new, 1 << 14))

    def prepare(_: pgtls.OpenSsl, context: int) -> None:
        openssl.SSL_CTX_set_psk_use_session_callback(context, callback)
        pgtls.with_groups(openssl, context, b"P-256")  # of the server: it asks for no other

    openssl, callback = pgtls.OpenSsl(), _USE_SESSION(use_session)
    tls = pgtls.Tls(openssl, prepare=prepare)
    tls.write_early(pg.hello() + b"p" + struct.pack(">I", PASSWORD_BYTES))
    tls.connect()
    assert openssl.SSL_get_early_data_status(tls.ssl) == _REJECTED
    pgtls.say_all(tls, text)


WAYS = {way.__name__: way for way in (accepted, rejected)}

if __name__ == "__main__":
    WAYS[sys.argv[1]](sys.argv[2])
