"""Find functions by name in the symbol tables of an ELF image: names in, addresses and sizes out.

Exported functions are looked up as the dynamic loader does it (DT_GNU_HASH, or all of DT_SYMTAB where that is
missing), so section headers are neither needed nor trusted for them. For the rest there is .symtab, also the one in
.gnu_debugdata. A lookup touches a few words per name; a table is searched for the names' bytes first, and its symbols
are read only if one of them is there.

Only defined functions count (STT_FUNC: the address of an STT_GNU_IFUNC is that of its resolver), local ones too.
"""

from __future__ import annotations

import lzma
import struct
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.kernel import elf_image
from agentwatch.kernel.elf_image import DT_GNU_HASH, DT_HASH, DT_STRSZ, DT_STRTAB, DT_SYMTAB, Image

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_CHAIN = 256
"""Symbols of one hash bucket that are looked at. Linkers aim at a few; some forty were the most in large libraries."""
MAX_DEBUGDATA_BYTES = 64 << 20
"""Bytes of unpacked .gnu_debugdata; what is longer is cut. Packers keep names of functions only: a few MB."""
MAX_LZMA_BYTES = 80 << 20
"""Memory for unpacking it: xz's own largest preset needs 65 MiB."""

_SYMBOL = struct.Struct("<IBBHQQ")
_SYMBOLS_BYTES = 4096 * _SYMBOL.size
_GNU_HASH = struct.Struct("<IIII")
_HASH = struct.Struct("<II")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

_SHN_UNDEF = 0
_SHT_SYMTAB = 2
_STT_FUNC = 2
_TYPE_MASK = 0xF
_ENDS = (0, ord("@"))


class Symbol(NamedTuple):
    """A function: its address in the image and its size in bytes (0 where the table does not say)."""

    name: str
    address: int
    size: int


class _Table(NamedTuple):
    """A symbol table and its names: file offsets and sizes in bytes."""

    symbols: int
    symbols_size: int
    names: int
    names_size: int


def exported(image: Image, names: frozenset[str]) -> Iterator[Symbol]:
    """Yield the functions of these names that the dynamic loader finds."""
    symbols, strings, hashes = (_dynamic_table(image, tag) for tag in (DT_SYMTAB, DT_STRTAB, DT_GNU_HASH))
    if symbols is None or strings is None:
        return
    table = _Table(symbols, _dynamic_size(image, symbols, strings), strings, image.dynamic.get(DT_STRSZ, 0))
    if hashes is None:
        yield from _scan(image, table, names)
        return
    for name in names:
        for index in _candidates(image, hashes, _gnu_hash(name)):
            yield from _symbol_named(image, table, index, name)


def _dynamic_table(image: Image, tag: int) -> int | None:
    address = image.dynamic.get(tag)
    return image.offset(address) if address else None


def _dynamic_size(image: Image, symbols: int, strings: int) -> int:
    """Return the size of DT_SYMTAB: from DT_HASH, else up to the names, which linkers write right after it."""
    hashes = _dynamic_table(image, DT_HASH)
    if hashes is not None:
        return image.unpack(_HASH, hashes)[1] * _SYMBOL.size
    return max(strings - symbols, 0)


@cache
def _gnu_hash(name: str) -> int:
    value = 5381
    for byte in name.encode():
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value


def _candidates(image: Image, table: int, value: int) -> Iterator[int]:
    """Yield the indices of symbols with this hash: bloom filter, bucket, chain."""
    buckets, first, words, shift = image.unpack(_GNU_HASH, table)
    if not buckets or not words:
        return
    bloom = table + _GNU_HASH.size
    (word,) = image.unpack(_U64, bloom + value // 64 % words * _U64.size)
    if not word >> value % 64 & word >> (value >> shift) % 64 & 1:
        return
    start = bloom + words * _U64.size
    (index,) = image.unpack(_U32, start + value % buckets * _U32.size)
    if index < max(first, 1):
        return
    chain = image.read(start + (buckets + index - first) * _U32.size, MAX_CHAIN * _U32.size)
    for number, (other,) in enumerate(_U32.iter_unpack(chain[: len(chain) // _U32.size * _U32.size])):
        if other | 1 == value | 1:
            yield index + number
        if other & 1:
            return


def _symbol_named(image: Image, table: _Table, index: int, name: str) -> Iterator[Symbol]:
    at, info, _, section, value, size = image.unpack(_SYMBOL, table.symbols + index * _SYMBOL.size)
    text = name.encode() + b"\0"
    if _is_function(info, section, value) and image.read(table.names + at, len(text)) == text:
        yield Symbol(name, value, size)


def _is_function(info: int, section: int, value: int) -> bool:
    return info & _TYPE_MASK == _STT_FUNC and section != _SHN_UNDEF and value != 0


def _scan(image: Image, table: _Table, names: frozenset[str]) -> Iterator[Symbol]:
    """Yield the functions of these names in a table of any order."""
    places = _places(image, table, names)
    if not places:
        return
    end = min(table.symbols_size, elf_image.MAX_TABLE_BYTES) // _SYMBOL.size * _SYMBOL.size
    for start in range(0, min(end, max(image.size - table.symbols, 0)), _SYMBOLS_BYTES):
        content = image.read(table.symbols + start, min(_SYMBOLS_BYTES, end - start))
        content = content[: len(content) // _SYMBOL.size * _SYMBOL.size]
        # A third of the time of unpacking them. Native order is the file's: it is this machine's ABI.
        if places.keys().isdisjoint(memoryview(content).cast("I")[:: _SYMBOL.size // _U32.size].tolist()):
            continue
        for at, info, _, section, value, size in _SYMBOL.iter_unpack(content):
            if at in places and _is_function(info, section, value):
                yield Symbol(places[at], value, size)


def _places(image: Image, table: _Table, names: frozenset[str]) -> dict[int, str]:
    """Return which offsets among the names begin with a wanted one that ends there, or at the "@" of a version.

    Linkers merge names that end alike, so one can begin anywhere.
    """
    needles = {name.encode(): name for name in names}
    found = {}
    for at, needle in image.search(table.names, table.names_size, needles):
        end = image.read(table.names + at + len(needle), 1)
        if end and end[0] in _ENDS and at + len(needle) < table.names_size:
            found[at] = needles[needle]
    return found


def listed(image: Image, names: frozenset[str]) -> Iterator[Symbol]:
    """Yield the functions of these names in .symtab."""
    for section in image.sections:
        if section.type == _SHT_SYMTAB and section.link < len(image.sections):
            strings = image.sections[section.link]
            yield from _scan(image, _Table(section.offset, section.size, strings.offset, strings.size), names)
            return  # there is only one; more of them would be an endless errand


def debug_listed(image: Image, names: frozenset[str]) -> Iterator[Symbol]:
    """Yield the functions of these names in .gnu_debugdata, whose addresses are those of the outer image."""
    section = image.named.get(b".gnu_debugdata")
    if section is None:
        return
    inner = elf_image.of_bytes(_unpack(image.read(section.offset, min(section.size, MAX_DEBUGDATA_BYTES))))
    if inner is not None:
        yield from listed(inner, names)


def _unpack(packed: bytes) -> bytes:
    """Return the content of an xz stream, cut where it is too long; nothing if it is damaged."""
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_LZMA_BYTES)
    try:
        return decompressor.decompress(packed, MAX_DEBUGDATA_BYTES)
    except (lzma.LZMAError, MemoryError):
        return b""


def find(image: Image, names: Iterable[str]) -> Iterator[Symbol]:
    """Yield the functions of these names in every table; one that is in two of them comes twice."""
    wanted = frozenset(name for name in names if name)
    yield from exported(image, wanted)
    yield from listed(image, wanted)
    yield from debug_listed(image, wanted)
