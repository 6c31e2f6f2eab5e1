"""tls_sessions.py WAY TEXT: confuse what is known of a TLS connection with another one.

Each statement but the last says the port of the socket that it is sent on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pgtls  # type: ignore[import-not-found]

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 200
_GET = b"GET /bytes/100 HTTP/1.1\r\nHost: localhost\r\n\r\n"


def named(tls: pgtls.Tls, more: str = "") -> str:
    """Return a statement that names the port."""
    return f"SELECT 'port {tls.socket.getsockname()[1]}{more}'"


def end(tls: pgtls.Tls) -> None:
    tls.plainly().write(pgtls.TERMINATE)
    tls.end()


def freed(text: str) -> None:
    """Make an object after another one was freed, again and again."""
    openssl = pgtls.OpenSsl()
    places = set()
    for last in [False] * ROUNDS + [True]:
        tls = pgtls.Tls(openssl).connect()
        places.add(tls.ssl)
        pgtls.begin(tls.plainly())
        pgtls.ask(tls.plainly(), text if last else named(tls))
        end(tls)
        openssl.SSL_free(tls.ssl)
    sys.stdout.write(str(len(places)))


def move(tls: pgtls.Tls, to: socket.socket) -> None:
    """Use an object for another connection."""
    tls.socket = to
    tls.openssl.SSL_clear(tls.ssl)
    tls.openssl.SSL_set_fd(tls.ssl, to.fileno())
    tls.connect()


def cleared(text: str) -> None:
    """Use one object on one socket after the other, two of which are open at a time."""
    tls = pgtls.Tls().connect()
    for _ in range(ROUNDS):
        pgtls.begin(tls.plainly())
        pgtls.ask(tls.plainly(), named(tls))
        tls.openssl.SSL_shutdown(tls.ssl)
        before = tls.socket
        move(tls, pgtls.asked())
        before.close()
    pgtls.begin(tls.plainly())
    pgtls.ask(tls.plainly(), text)
    end(tls)


def counted(text: str) -> None:
    """Have what an object says only counted, because nobody can read it, and then use it for a statement at once."""
    with socket.create_connection(("127.0.0.1", int(os.environ["HTTPS_PORT"]))) as web:
        tls = pgtls.Tls(to=web).connect()
        for _ in range(ROUNDS):
            tls.plainly().write(_GET)
            answer = b""
            while len(answer.partition(b"\r\n\r\n")[2]) < int(_GET[11:14]):
                answer += tls.plainly().read(65536)
        tls.openssl.SSL_shutdown(tls.ssl)
        move(tls, pgtls.asked())
    pgtls.begin(tls.plainly())
    pgtls.ask(tls.plainly(), text)
    tls.socket.close()


def fork(text: str) -> None:
    """Let a child say it on the connection of its parent, which has said something before and goes on afterwards."""
    tls = pgtls.Tls().connect()
    pgtls.begin(tls.plainly())
    pgtls.ask(tls.plainly(), named(tls, " before"))
    if not (child := os.fork()):
        pgtls.ask(tls.plainly(), text)
        os._exit(0)
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def relayed(text: str) -> None:
    """Speak TLS into a socket pair, whose other end a process of one's own connects with the server."""
    server = pgtls.asked()
    near, far = socket.socketpair()
    if not os.fork():
        near.close()
        for pair in ((far, server), (server, far)):
            threading.Thread(target=pass_on, args=pair).start()
        return
    server.close()
    far.close()
    tls = pgtls.Tls(to=near).connect()
    pgtls.begin(tls.plainly())
    pgtls.ask(tls.plainly(), text)
    end(tls)


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """Pass bytes on until there are no more."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def tunnel() -> pgtls.Tls:
    """Return a connection under TLS with the proxy, which passes on to the database what is said under it."""
    return pgtls.Tls(to=socket.create_connection(("127.0.0.1", int(os.environ["PROXY_PORT"])))).connect()


def chain(text: str) -> None:
    """Speak TLS under TLS, by a chain of BIOs."""
    inside(tunnel(), text, lambda outer, inner: outer.openssl.SSL_set_bio(inner.ssl, outer.as_bio(), outer.as_bio()))


def inside(outer: pgtls.Tls, text: str, join: Callable[[pgtls.Tls, pgtls.Tls], object]) -> None:
    """Ask for TLS under TLS, and have it."""
    outer.plainly().write(pgtls.SSL_REQUEST)
    assert outer.plainly().read(1) == b"S"
    inner = pgtls.Tls(outer.openssl, to=outer.socket)
    join(outer, inner)
    inner.connect()
    pgtls.begin(inner.plainly())
    pgtls.ask(inner.plainly(), text)
    inner.plainly().write(pgtls.TERMINATE)
    outer.end()


WAYS = {way.__name__: way for way in (freed, cleared, counted, fork, relayed, chain)}

if __name__ == "__main__":
    WAYS[sys.argv[1]](sys.argv[2])
