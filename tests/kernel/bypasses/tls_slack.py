"""tls_slack.py WAY TEXT: hide a statement's ciphertext in what TLS may need for itself."""

from __future__ import annotations

import sys
import time

import pg  # type: ignore[import-not-found] # it lies beside this script
import pgtls  # type: ignore[import-not-found]

HARMLESS = "SELECT 'harmless'"
_KEY_UPDATE, _ALERT = 5, 2
_CBC, _BLOCK, _CBC_STATEMENTS = b"ECDHE-ECDSA-AES128-SHA", 16, 10
_PADDED = 512
_SECONDS, _PAUSE = 8, 0.3


def begun(tls: pgtls.Tls) -> pgtls.Tls:
    """Do what every client does, until after a harmless statement."""
    pgtls.begin(tls.connect().plainly())
    pgtls.ask(tls.plainly(), HARMLESS)
    return tls


def end(tls: pgtls.Tls) -> None:
    tls.plainly().write(pgtls.TERMINATE)
    tls.end()


def trifles(text: str) -> None:
    """Send it in records as long as a KeyUpdate."""
    tls = begun(pgtls.Tls())
    message = pg.query(text)
    for i in range(0, len(message), _KEY_UPDATE):
        tls.by_bio().write(message[i : i + _KEY_UPDATE])
    pgtls.ready(tls.by_bio())
    end(tls)


def alert(text: str) -> None:
    """Send its last bytes in a record as long as an alert."""
    tls = begun(pgtls.Tls())
    message = pg.query(text)
    tls.plainly().write(message[:-_ALERT])
    tls.by_bio().write(message[-_ALERT:])
    pgtls.ready(tls.by_bio())
    tls.socket.close()


def cbc(text: str) -> None:
    """Send it after statements that would fit their last block best."""

    def choose(openssl: pgtls.OpenSsl, context: int) -> None:
        pgtls.at_most_tls_1_2(openssl, context)
        openssl.SSL_CTX_set_cipher_list(context, _CBC)

    tls = begun(pgtls.Tls(prepare=choose))
    for _ in range(_CBC_STATEMENTS):
        pgtls.ask(tls.plainly(), HARMLESS + " " * (-(len(pg.query(HARMLESS)) + 1) % _BLOCK))
    pgtls.ask(tls.by_bio(), text)
    end(tls)


def padded(text: str) -> None:
    """Say everything as if it were a handshake whose end cannot be recognised."""
    tls = pgtls.Tls(prepare=lambda openssl, context: openssl.SSL_CTX_set_block_padding(context, _PADDED))
    pgtls.whole(tls, text, tls.by_bio())


def busy(text: str) -> None:
    """Never be quiet afterwards."""
    tls = begun(pgtls.Tls())
    pgtls.ask(tls.by_bio(), text)
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        pgtls.ask(tls.plainly(), HARMLESS)
        time.sleep(_PAUSE)
    end(tls)


WAYS = {way.__name__: way for way in (trifles, alert, cbc, padded, busy)}

if __name__ == "__main__":
    WAYS[sys.argv[1]](sys.argv[2])
