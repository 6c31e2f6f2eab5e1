"""tls_unseen.py WAY TEXT: have a statement executed over TLS by calls into a library that no probe is at."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pg  # type: ignore[import-not-found] # it lies beside this script
import pgtls  # type: ignore[import-not-found]

if TYPE_CHECKING:
    from collections.abc import Callable

HARMLESS = "SELECT 'harmless'"
HOOKED = (
    "SSL_write", "SSL_write_ex", "SSL_write_early_data", "SSL_sendfile", "SSL_read", "SSL_read_ex",
    "SSL_read_early_data", "SSL_peek", "SSL_peek_ex", "SSL_do_handshake", "SSL_free",
)  # fmt: skip
_EXECUTABLE, _LOADED = 1, 1  # p_flags, p_type
_DYNAMIC, _UNKNOWN_TAG = 2, 0x6000_1000
_RUN_BY_THE_LOADER = (12, 13, 25, 26)  # DT_INIT, DT_FINI, and their arrays
_PROGRAM_HEADER, _ENTRY = struct.Struct("<IIQQQQQQ"), struct.Struct("<QQ")

MAPPED: list[mmap.mmap] = []
"""What must not go away."""
libc = ctypes.CDLL(None, use_errno=True)


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


def whole(tls: pgtls.Tls, say: pgtls.Channel, text: str) -> None:
    """Say everything in one way."""
    tls.connect()
    pgtls.begin(say)
    pgtls.ask(say, text)
    say.write(pgtls.TERMINATE)
    tls.end()


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


def private(text: str) -> None:
    """Use a copy of the library, after the time that it takes to look into it."""
    with tempfile.TemporaryDirectory() as folder:
        openssl = pgtls.OpenSsl(*copied(folder))
        time.sleep(1)
        tls = pgtls.Tls(openssl)
        whole(tls, tls.plainly(), text)


# Copies that cannot be known


def renamed(text: str) -> None:
    """Use a copy in which the functions have other names, with the hashes that the loader knows the old ones by."""

    def rename(code: bytearray) -> None:
        for name in HOOKED:
            old = b"\0" + name.encode() + b"\0"
            assert old in code
            code[:] = code.replace(old, old.replace(b"SS", b"T2"))  # 33 * "S" + "S" == 33 * "T" + "2"

    with tempfile.TemporaryDirectory() as folder:
        openssl = pgtls.OpenSsl(*copied(folder, rename))
        for name in ("SSL_write", "SSL_read", "SSL_free"):
            setattr(openssl, name, pgtls.signed(getattr(openssl.libraries[1], name.replace("SS", "T2")), name))
        time.sleep(1)
        tls = pgtls.Tls(openssl)
        whole(tls, tls.plainly(), text)


def made_executable(text: str) -> None:
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

    with tempfile.TemporaryDirectory() as folder:
        ssl, crypto = copied(folder, forbid)
        openssl = pgtls.OpenSsl(ssl, crypto)
        for line in Path("/proc/self/maps").read_text().splitlines():
            if ssl in line and " r--p " in line:
                begin, end = (int(word, 16) for word in line.split()[0].split("-"))
                protect(begin, end - begin, mmap.PROT_READ | mmap.PROT_EXEC)
        time.sleep(1)
        tls = pgtls.Tls(openssl)
        whole(tls, tls.plainly(), text)


def overwritten(text: str) -> None:
    """Use a copy that was written into the file of a harmless library, which was looked into before."""
    with tempfile.TemporaryDirectory() as folder:
        ssl, crypto = copied(folder)
        code = Path(ssl).read_bytes()
        Path(ssl).write_bytes(file_of("libz.so.1").read_bytes())
        if not (child := os.fork()):
            ctypes.CDLL(ssl)
            time.sleep(1)
            os._exit(0)
        os.waitpid(child, 0)
        Path(ssl).write_bytes(code)
        openssl = pgtls.OpenSsl(ssl, crypto)
        time.sleep(1)
        tls = pgtls.Tls(openssl)
        whole(tls, tls.plainly(), text)


# Past the probes of the library that everybody uses


def bio(text: str) -> None:
    """Speak through a BIO of type SSL."""
    tls = pgtls.Tls()
    hidden(tls, tls.by_bio(), text)


def bio_only(text: str) -> None:
    """Say everything through a BIO of type SSL."""
    tls = pgtls.Tls()
    whole(tls, tls.by_bio(), text)


def jump(text: str) -> None:
    """Call the functions behind their first instruction."""
    tls = pgtls.Tls()
    hidden(tls, past_the_probe(tls), text)


def jump_only(text: str) -> None:
    """Say everything so."""
    tls = pgtls.Tls()
    whole(tls, past_the_probe(tls), text)


def past_the_probe(tls: pgtls.Tls) -> pgtls.Channel:
    """Return what calls SSL_write and SSL_read by code of one's own that does their first instruction itself."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    MAPPED.append(code)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(code))
    functions = []
    for name in ("SSL_write", "SSL_read"):
        function = address(getattr(tls.openssl, name))
        first = as_in_the_file(function, 4)
        assert first[:3] in (b"\x48\x83\xec", b"\xf3\x0f\x1e"), first.hex()  # sub $n,%rsp; endbr64
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
    plainly = tls.plainly()
    pgtls.begin(plainly)
    pgtls.ask(plainly, text)
    plainly.write(pgtls.TERMINATE)
    tls.end()


def remove_breakpoints(openssl: pgtls.OpenSsl) -> None:
    for name in ("SSL_write", "SSL_read"):
        function = address(getattr(openssl, name))
        protect(function & -mmap.PAGESIZE, 2 * mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        ctypes.memmove(function, as_in_the_file(function, 4), 4)


# Addresses


def address(function: Any) -> int:
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


def protect(begin: int, length: int, flags: int) -> None:
    if libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(length), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def plain(text):
    tls = pgtls.Tls()
    whole(tls, tls.plainly(), text)

WAYS = {
    way.__name__: way
    for way in (
        plain,
        private, renamed, made_executable, overwritten, bio, bio_only, jump, jump_only, unhooked, unhooked_only,
    )
}  # fmt: skip

if __name__ == "__main__":
    WAYS[sys.argv[1]](sys.argv[2])
