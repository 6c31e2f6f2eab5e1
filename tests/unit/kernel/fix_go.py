"""Parts of Go executables written by hand, also as no go of today writes them; for fix_elf.executable."""

from __future__ import annotations

import lzma
import struct

from tests.unit.kernel.fix_elf import PARTS, address_of, executable, symbol

CODE = bytes.fromhex("4883ec08 b8c3c3c3c3 c3 c20800 f3c3 cccc")  # sub; mov with four c3 in it; ret; ret 8; rep ret
RETURNS = (9, 10, 13)
ENTRY = 0x40
"""Where the second function is in the text."""


def build_info(text: str) -> bytes:
    return b"\xff Go buildinf:\x08\x02" + bytes(16) + bytes([len(text)]) + text.encode() + b"\0"


def pointed_build_info(text: str, flags: int = 0) -> bytes:
    """Write what Go until 1.17 did: a pointer to a string's header, here both right behind it."""
    start = address_of(".go.buildinfo")
    strings = struct.pack("<QQ", start + 48, len(text)) + text.encode()
    return b"\xff Go buildinf:\x08" + bytes([flags]) + struct.pack("<QQ", start + 32, 0) + strings


def pclntab(magic: int, text: int) -> bytes:
    """Write a table of the functions a.A, of ENTRY bytes, and a.B, as long as CODE; the third entry is the end."""
    names = b"a.A\0a.B\0"
    old = magic == 0xFFFFFFFA
    header = 8 + (7 if old else 8) * 8
    entries = 3 * 16 if old else 3 * 8
    first, second, end = (at + (text if old else 0) for at in (0, ENTRY, ENTRY + len(CODE)))
    entry, description = ("<QQ", "<Qi") if old else ("<II", "<Ii")
    table = struct.pack(entry, first, entries) + struct.pack(entry, second, entries + 16) + struct.pack(entry, end, 0)
    table += struct.pack(description, first, 0).ljust(16, b"\0") + struct.pack(description, second, 4)
    words = [2, 0, *([] if old else [text]), header, header + 8, header + 8, header + 8, header + 8]
    return struct.pack(f"<IHBB{len(words)}Q", magic, 0, 1, 8, *words) + names + table


def go_parts(info: bytes, table: bytes) -> dict[str, bytes]:
    return {".text": CODE.ljust(ENTRY, b"\xcc") + CODE, ".go.buildinfo": info, ".gopclntab": table}


def module(text: int) -> bytes:
    table = address_of(".gopclntab")
    return struct.pack("<QQ", table, table + 72).ljust(176, b"\0") + struct.pack("<Q", text)


def gnu_hash(names: list[str]) -> bytes:
    """Write a hash table of one bucket for symbols from the second on, with a bloom filter that lets all pass."""
    chain = []
    for name in names:
        value = 5381
        for byte in name.encode():
            value = value * 33 + byte & 0xFFFFFFFF
        chain.append(value & ~1)
    chain[-1] |= 1
    return struct.pack(f"<4IQI{len(chain)}I", 1, 1, 1, 6, (1 << 64) - 1, 1, *chain)


def with_everything(*, stripped: bool, headers: bool) -> bytes:
    """Write an executable that has a.B in all that can have it, and SSL_write in the tables of C."""
    text = address_of(".text")
    names = b"\0SSL_write\0a.B\0"
    table = bytes(24) + symbol(1, text, ENTRY) + symbol(11, text + ENTRY, len(CODE))
    inner = executable({".text": b"", ".symtab": table, ".strtab": names})
    rela = struct.pack("<QQQ", address_of(".gopclntab") + 24, 8, text)
    tags = {5: ".dynstr", 6: ".dynsym", 7: ".rela", 0x6FFFFEF5: ".gnu.hash"}
    dynamic = b"".join(struct.pack("<QQ", tag, address_of(part)) for tag, part in tags.items())
    parts = {
        **go_parts(build_info("go1.26"), pclntab(0xFFFFFFF1, 0)),
        ".dynamic": dynamic + struct.pack("<6Q", 8, len(rela), 10, len(names), 0, 0),
        ".gnu.hash": gnu_hash(["SSL_write", "a.B"]),
        ".dynsym": table[:48] if stripped else table,
        ".dynstr": names,
        ".rela": rela,
        ".go.module": module(text),
    }
    if not stripped:
        parts |= {".symtab": table, ".strtab": names, ".gnu_debugdata": lzma.compress(inner)}
    assert parts.keys() <= set(PARTS)
    return executable(parts, headers=headers)
