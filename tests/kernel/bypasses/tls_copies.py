"""tls_copies.py WAY TEXT: have a statement executed over TLS by a copy of OpenSSL."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pgtls  # type: ignore[import-not-found] # it lies beside this script

if TYPE_CHECKING:
    from collections.abc import Callable

HOOKED = (
    "SSL_write", "SSL_write_ex", "SSL_write_early_data", "SSL_sendfile", "SSL_read", "SSL_read_ex",
    "SSL_read_early_data", "SSL_peek", "SSL_peek_ex", "SSL_do_handshake", "SSL_free",
)  # fmt: skip
LOOKED_INTO_SECONDS = 1
"""So long it may take until probes are at what was mapped."""
_EXECUTABLE, _LOADED = 1, 1  # p_flags, p_type
_DYNAMIC, _UNKNOWN_TAG = 2, 0x6000_1000
_RUN_BY_THE_LOADER = (12, 13, 25, 26)  # DT_INIT, DT_FINI, and their arrays
_PROGRAM_HEADER, _ENTRY = struct.Struct("<IIQQQQQQ"), struct.Struct("<QQ")


def file_of(name: str) -> Path:
    """Return the file of a library that is loaded."""
    ctypes.CDLL(name)
    return next(Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if name in line)


def copied(folder: str, change: Callable[[bytearray], object] = len) -> tuple[str, str]:
    """Copy libssl, changed, and libcrypto under names of one's own."""
    code = bytearray(file_of("libssl.so.3").read_bytes())
    change(code)
    ssl, crypto = Path(folder, "libone.so"), Path(folder, "libother.so")
    ssl.write_bytes(code)
    crypto.write_bytes(file_of("libcrypto.so.3").read_bytes())
    return str(ssl), str(crypto)


def ask(openssl: pgtls.OpenSsl, text: str) -> None:
    """Do what every client does, with a library that was looked into."""
    time.sleep(LOOKED_INTO_SECONDS)
    pgtls.whole(pgtls.Tls(openssl), text)


def private(folder: str, text: str) -> None:
    """Use a copy of the library, after the time that it takes to look into it."""
    ask(pgtls.OpenSsl(*copied(folder)), text)


def renamed(folder: str, text: str) -> None:
    """Use a copy in which the functions have other names, with the hashes that the loader knows the old ones by."""

    def rename(code: bytearray) -> None:
        for name in HOOKED:
            old = b"\0" + name.encode() + b"\0"
            assert old in code
            code[:] = code.replace(old, old.replace(b"SS", b"T2"))  # 33 * "S" + "S" == 33 * "T" + "2"

    openssl = pgtls.OpenSsl(*copied(folder, rename))
    for name in ("SSL_write", "SSL_read", "SSL_free"):
        setattr(openssl, name, pgtls.signed(getattr(openssl.libraries[1], name.replace("SS", "T2")), name))
    ask(openssl, text)


def made_executable(folder: str, text: str) -> None:
    """Use a copy that is mapped as if it were data, and made executable afterwards."""

    def forbid(code: bytearray) -> None:
        table, count = struct.unpack_from("<Q", code, 32)[0], struct.unpack_from("<H", code, 56)[0]
        for place in range(table, table + count * _PROGRAM_HEADER.size, _PROGRAM_HEADER.size):
            kind, flags, offset, *rest = _PROGRAM_HEADER.unpack_from(code, place)
            if kind == _LOADED:
                _PROGRAM_HEADER.pack_into(code, place, kind, flags & ~_EXECUTABLE, offset, *rest)
            for entry in range(offset, offset + rest[2], _ENTRY.size) if kind == _DYNAMIC else ():
                tag, value = _ENTRY.unpack_from(code, entry)
                if tag in _RUN_BY_THE_LOADER:
                    _ENTRY.pack_into(code, entry, _UNKNOWN_TAG, value)

    ssl, crypto = copied(folder, forbid)
    openssl = pgtls.OpenSsl(ssl, crypto)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if ssl in line and " r--p " in line:
            begin, end = (int(word, 16) for word in line.split()[0].split("-"))
            pgtls.protect(begin, end - begin, mmap.PROT_READ | mmap.PROT_EXEC)
    ask(openssl, text)


def overwritten(folder: str, text: str) -> None:
    """Use a copy that was written into the file of a harmless library, which was looked into before."""
    ssl, crypto = copied(folder)
    code = Path(ssl).read_bytes()
    Path(ssl).write_bytes(file_of("libz.so.1").read_bytes())
    if not (child := os.fork()):
        ctypes.CDLL(ssl)
        time.sleep(LOOKED_INTO_SECONDS)
        os._exit(0)
    os.waitpid(child, 0)
    Path(ssl).write_bytes(code)
    ask(pgtls.OpenSsl(ssl, crypto), text)


WAYS = {way.__name__: way for way in (private, renamed, made_executable, overwritten)}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        WAYS[sys.argv[1]](folder, sys.argv[2])
