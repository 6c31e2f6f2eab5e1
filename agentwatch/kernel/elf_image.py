"""Read an ELF file's headers: a descriptor or bytes in; segments, named sections and dynamic entries out.

Follows the System V ABI (gABI, chapters 4 and 5) and its x86-64 supplement, for 64-bit little-endian files of that
machine. What is not such a file is no image at all. The file may be anybody's, made to mislead: every offset is
checked where it is used, bytes past the end are zeros or missing, and each table has a limit.

The file is read, not mapped: whoever can write to it could cut it meanwhile, and a mapping would answer with SIGBUS.
The one thing that can raise is the reading itself (OSError).
"""

from __future__ import annotations

import os
import stat
import struct
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Read = Callable[[int, int], bytes]

MAX_HEADERS = 1024
"""Program or section headers looked at. Linkers write some ten and some forty; the rest is not looked at."""
MAX_DYNAMIC = 1024
"""Dynamic entries looked at. A library with a hundred dependencies has some hundred and thirty."""
MAX_TABLE_BYTES = 256 << 20
"""Bytes of one table that are searched. The largest known (C++ names of a statically linked server) are near it."""
MAX_OCCURRENCES = 65_536
"""Places where a table may hold the wanted names; a table made of nothing else is not searched to its end."""

_STEM_BYTES = 4
"""Names of one library begin alike; a search for each of them reads the table as often as there are names."""
_MAX_STEMS = 1 << 20
"""Places of such beginnings, as of MAX_OCCURRENCES."""
_CHUNK_BYTES = 1 << 20
_MAX_SECTION_NAMES_BYTES = 65_536

_IDENT = b"\x7fELF\x02\x01"  # 64-bit, little-endian
_HEADER = struct.Struct("<16x HHIQQQ IHHHHHH")
_SEGMENT = struct.Struct("<IIQQ8xQ16x")
_SECTION = struct.Struct("<II8xQQQI20x")
_DYNAMIC = struct.Struct("<QQ")
_WORD = struct.Struct("<Q")

_ET_EXEC, _ET_DYN, _EM_X86_64 = 2, 3, 62
_PT_LOAD, _PT_DYNAMIC, _PF_X = 1, 2, 1
_SHT_NOBITS = 8
_R_X86_64_RELATIVE = 8

DT_HASH, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_STRSZ, DT_GNU_HASH = 4, 5, 6, 7, 8, 10, 0x6FFFFEF5


class Segment(NamedTuple):
    """A program header; sizes and offsets in bytes."""

    type: int
    flags: int
    offset: int
    address: int
    file_size: int


class Section(NamedTuple):
    """A section header; ``name`` is an offset in the section names, ``link`` the index of a related section."""

    name: int
    type: int
    address: int
    offset: int
    size: int
    link: int


class Image:
    """One ELF file. Offsets are those in the file, addresses those that its segments ask for."""

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self.size = size
        header = self.unpack(_HEADER, 0)
        self.type, self.machine, _, _, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, self._names_at = header
        self.segments = [Segment(*fields) for fields in self._table(_SEGMENT, phoff, phnum, phentsize)]
        self.sections = [Section(*fields) for fields in self._table(_SECTION, shoff, shnum, shentsize)]
        self.loads = [segment for segment in self.segments if segment.type == _PT_LOAD]

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes, fewer where the file ends before."""
        return self._read(offset, min(length, self.size - offset)) if 0 <= offset < self.size else b""

    def unpack(self, layout: struct.Struct, offset: int) -> tuple[int, ...]:
        """Return the fields of a structure; what lies past the end of the file is zero."""
        return layout.unpack(self.read(offset, layout.size).ljust(layout.size, b"\0"))

    def _table(self, layout: struct.Struct, offset: int, count: int, entry_size: int) -> Iterator[tuple[int, ...]]:
        if not offset or entry_size != layout.size:
            return
        content = self.read(offset, min(count, MAX_HEADERS) * layout.size)
        yield from layout.iter_unpack(content[: len(content) // layout.size * layout.size])

    @cached_property
    def named(self) -> dict[bytes, Section]:
        """The sections that have a name and bytes in the file; of several with one name the first."""
        if not self._names_at < len(self.sections):
            return {}
        table = self.sections[self._names_at]
        names = self.read(table.offset, min(table.size, _MAX_SECTION_NAMES_BYTES))
        found: dict[bytes, Section] = {}
        for section in self.sections:
            name = names[section.name : max(names.find(0, section.name), section.name)]
            if name and section.type != _SHT_NOBITS:
                found.setdefault(name, section)
        return found

    @cached_property
    def dynamic(self) -> dict[int, int]:
        """The entries that the dynamic loader reads, by tag; of several with one tag the last, as it has it."""
        for segment in self.segments:
            if segment.type == _PT_DYNAMIC:
                start = self.offset(segment.address)
                count = min(segment.file_size // _DYNAMIC.size, MAX_DYNAMIC)
                return {} if start is None else dict(self._dynamic(start, count))
        return {}

    def _dynamic(self, start: int, count: int) -> Iterator[tuple[int, int]]:
        for tag, value in self._table(_DYNAMIC, start, count, _DYNAMIC.size):
            if not tag:
                return
            yield tag, value

    def offset(self, address: int) -> int | None:
        """Return where in the file the byte of an address is, None where no segment has it."""
        return _inside(self.loads, address)

    def code_offset(self, address: int, length: int = 1) -> int | None:
        """Return where in the file the code at an address is, None if it is not all in one executable segment."""
        found = _inside((load for load in self.loads if load.flags & _PF_X), address, length)
        return found if found is not None and found + length <= self.size else None

    def address(self, offset: int) -> int | None:
        """Return at which address a byte of the file is."""
        for load in self.loads:
            if load.offset <= offset < load.offset + load.file_size:
                return offset - load.offset + load.address
        return None

    def at(self, address: int, length: int) -> bytes:
        """Return the bytes at an address, none where no segment has it."""
        offset = self.offset(address)
        return b"" if offset is None else self.read(offset, length)

    def pointer(self, address: int) -> int:
        """Return the pointer at an address as the loader leaves it, before it adds where it put the file; 0 if none.

        A position-independent file may hold zero there, and the value in a relocation.
        """
        (value,) = _WORD.unpack(self.at(address, _WORD.size).ljust(_WORD.size, b"\0"))
        return value or self._relocated(address)

    def _relocated(self, address: int) -> int:
        table = self.offset(self.dynamic.get(DT_RELA, 0))
        if table is None:
            return 0
        entry = _DYNAMIC.pack(address, _R_X86_64_RELATIVE)
        for at, _ in self.search(table, self.dynamic.get(DT_RELASZ, 0), (entry,)):
            if at % (_DYNAMIC.size + _WORD.size) == 0:
                return self.unpack(_WORD, table + at + _DYNAMIC.size)[0]
        return 0

    def search_loads(self, needles: Iterable[bytes]) -> Iterator[int]:
        """Yield the file offsets of strings in what is loaded: for files that do not say where things are."""
        yield from islice(self._search_loads(tuple(needles)), MAX_OCCURRENCES)

    def _search_loads(self, needles: tuple[bytes, ...]) -> Iterator[int]:
        left = MAX_TABLE_BYTES  # for all, as headers can name the same bytes a thousand times
        for load in self.loads:
            yield from (load.offset + at for at, _ in self.search(load.offset, min(load.file_size, left), needles))
            left -= min(load.file_size, left)

    def search(self, start: int, size: int, needles: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
        """Find strings in a part of the file: yield places, counted from its start, and what is there.

        Memory does not depend on ``size``. Needles that begin alike are looked for as one.
        Places are in no order.
        """
        stems: dict[bytes, list[bytes]] = {}
        for needle in needles:
            stems.setdefault(needle[:_STEM_BYTES], []).append(needle)
        overlap = max((len(needle) for group in stems.values() for needle in group), default=1) - 1
        left, found = _MAX_STEMS, 0
        for chunk in range(0, min(size, MAX_TABLE_BYTES, self.size - start), _CHUNK_BYTES):
            content = self.read(start + chunk, min(_CHUNK_BYTES + overlap, size - chunk))
            for stem, group in stems.items():
                for at in _occurrences(content, stem, _CHUNK_BYTES):
                    left -= 1
                    for needle in group:
                        if content.startswith(needle, at):
                            found += 1
                            yield chunk + at, needle
                    if not left or found >= MAX_OCCURRENCES:
                        return


def _inside(loads: Iterable[Segment], address: int, length: int = 1) -> int | None:
    for load in loads:
        if load.address <= address and address + length <= load.address + load.file_size:
            return address - load.address + load.offset
    return None


def _occurrences(content: bytes, needle: bytes, end: int) -> Iterator[int]:
    """Yield where a needle begins before ``end``, also where occurrences overlap."""
    at = content.find(needle)
    while 0 <= at < end:
        yield at
        at = content.find(needle, at + 1)


def _parse(read: Read, size: int) -> Image | None:
    if size < _HEADER.size or read(0, len(_IDENT)) != _IDENT:
        return None
    image = Image(read, size)
    return image if image.machine == _EM_X86_64 and image.type in (_ET_EXEC, _ET_DYN) else None


def of_file(fd: int) -> Image | None:
    """Return the image of an open regular file; None where it is none. Its file position stays."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return None
    return _parse(lambda offset, length: os.pread(fd, length, offset), status.st_size)


def of_bytes(content: bytes) -> Image | None:
    """Return the image of a file held in memory; None where it is none."""
    return _parse(lambda offset, length: content[offset : offset + length], len(content))
