"""tls_unseen.py WAY TEXT: a statement over TLS by calls into a library that no probe is at."""

from __future__ import annotations

import sys

import pgtls  # type: ignore[import-not-found] # it lies beside this script


def bio(text: str) -> None:
    """Speak through a BIO of type SSL, after a harmless statement."""
    tls = pgtls.Tls().connect()
    pgtls.begin(tls.plainly())
    pgtls.ask(tls.plainly(), "SELECT 'harmless'")
    pgtls.ask(tls.by_bio(), text)
    tls.plainly().write(pgtls.TERMINATE)
    tls.end()


def bio_only(text: str) -> None:
    """Say everything through a BIO of type SSL."""
    tls = pgtls.Tls().connect()
    pgtls.begin(tls.by_bio())
    pgtls.ask(tls.by_bio(), text)
    tls.by_bio().write(pgtls.TERMINATE)
    tls.end()


def plain(text: str) -> None:
    """Do what every client does."""
    tls = pgtls.Tls().connect()
    pgtls.begin(tls.plainly())
    pgtls.ask(tls.plainly(), text)
    tls.plainly().write(pgtls.TERMINATE)
    tls.end()

WAYS = {way.__name__: way for way in (bio, bio_only, plain)}

if __name__ == "__main__":
    WAYS[sys.argv[1]](sys.argv[2])
