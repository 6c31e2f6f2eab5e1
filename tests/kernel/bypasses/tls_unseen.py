"""tls_unseen.py WAY TEXT: have a statement executed over TLS by calls into a library that no probe is at.

The library is the one that everybody uses. A way whose name ends with _only says nothing in any other way.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys
from pathlib import Path
from typing import Any

import pgtls  # type: ignore[import-not-found] # it lies beside this script

HARMLESS = "SELECT 'harmless'"
FIRST_BYTES = 4
"""Of a function: its first instruction, in the libraries that are known here."""
FIRST_INSTRUCTIONS = (b"\x48\x83\xec", b"\xf3\x0f\x1e")  # sub $n,%rsp; endbr64
MAPPED: list[mmap.mmap] = []
"""What must not go away."""


def plain(text: str) -> None:
    """Do what every client does."""
    pgtls.whole(pgtls.Tls(), text)


def hidden(tls: pgtls.Tls, say: pgtls.Channel, text: str) -> None:
    """Do what every client does, but say one statement in another way."""
    tls.connect()
    plainly = tls.plainly()
    pgtls.begin(plainly)
    pgtls.ask(plainly, HARMLESS)
    pgtls.ask(say, text)
    pgtls.ask(plainly, HARMLESS)
    plainly.write(pgtls.TERMINATE)
    tls.end()


def bio(text: str) -> None:
    """Speak through a BIO of type SSL."""
    tls = pgtls.Tls()
    hidden(tls, tls.by_bio(), text)


def bio_only(text: str) -> None:
    """Say everything through a BIO of type SSL."""
    tls = pgtls.Tls()
    pgtls.whole(tls, text, tls.by_bio())


def jump(text: str) -> None:
    """Call the functions behind their first instruction."""
    tls = pgtls.Tls()
    hidden(tls, past_the_probe(tls), text)


def jump_only(text: str) -> None:
    """Say everything so."""
    tls = pgtls.Tls()
    pgtls.whole(tls, text, past_the_probe(tls))


def past_the_probe(tls: pgtls.Tls) -> pgtls.Channel:
    """Return what calls SSL_write and SSL_read by code of one's own that does their first instruction itself."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    MAPPED.append(code)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(code))
    functions = []
    for name in ("SSL_write", "SSL_read"):
        function = address(getattr(tls.openssl, name))
        first = as_in_the_file(function, FIRST_BYTES)
        assert first.startswith(FIRST_INSTRUCTIONS), first.hex()
        jump_on = b"\xff\x25\0\0\0\0" + struct.pack("<Q", function + len(first))  # jmp *0(%rip)
        functions.append(at(begin + code.tell(), name))
        code.write(first + jump_on)
    return pgtls.channel(tls.ssl, *functions)


def unhooked(text: str) -> None:
    """Remove the breakpoints from one's own memory after a harmless statement."""
    tls = pgtls.Tls().connect()
    plainly = tls.plainly()
    pgtls.begin(plainly)
    pgtls.ask(plainly, HARMLESS)
    remove_breakpoints(tls.openssl)
    pgtls.ask(plainly, text)
    plainly.write(pgtls.TERMINATE)
    tls.end()


def unhooked_only(text: str) -> None:
    """Remove the breakpoints behind the handshake."""
    tls = pgtls.Tls().connect()
    remove_breakpoints(tls.openssl)
    pgtls.say_all(tls, text)


def remove_breakpoints(openssl: pgtls.OpenSsl) -> None:
    """Write the code of the library's file over what is in memory."""
    for name in ("SSL_write", "SSL_read"):
        function = address(getattr(openssl, name))
        page = function & -mmap.PAGESIZE
        pgtls.protect(page, 2 * mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        ctypes.memmove(function, as_in_the_file(function, FIRST_BYTES), FIRST_BYTES)


def address(function: Any) -> int:
    """Return where a function is."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def at(place: int, name: str) -> Any:
    """Return the function at an address, as one of this name."""
    return pgtls.signed(ctypes.CFUNCTYPE(None)(place), name)


def as_in_the_file(place: int, length: int) -> bytes:
    """Return code as the file has it that is mapped there: in memory a probe may have changed it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, *_, path = line.split()
        begin, end = (int(word, 16) for word in span.split("-"))
        if begin <= place < end:
            start = place - begin + int(offset, 16)
            return Path(path).read_bytes()[start : start + length]
    raise SystemExit("nothing is mapped there")


WAYS = {way.__name__: way for way in (plain, bio, bio_only, jump, jump_only, unhooked, unhooked_only)}

if __name__ == "__main__":
    WAYS[sys.argv[1]](sys.argv[2])
