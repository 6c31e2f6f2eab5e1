"""Find Go functions by name in runtime.pclntab: an ELF image and names in, addresses and sizes out.

It is the table that the runtime makes its tracebacks from, so stripped executables have it too. The formats are those
of Go 1.16, 1.18 and 1.20 (debug/gosym/pclntab.go, runtime/symtab.go). From 1.18 on it counts from the start of the
text; where that cannot be proved nothing is found, for a probe at a guessed place would break the process.
"""

from __future__ import annotations

import struct
from itertools import islice, pairwise
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.kernel.elf_symbols import Symbol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.kernel.elf_image import Image

    Entries = list[tuple[int, int]]

MAX_FUNCTIONS = 1 << 20
"""Entries that are looked at; the largest executables have some hundred thousand."""

MAX_MODULES = 8
"""Places looked at as if runtime.moduledata were there; there is one in an executable."""

_HEADER = struct.Struct("<IHBB8Q")
_WORDS_AT = 8
_POINTER_BYTES = 8
_FIXED = (0, 1, _POINTER_BYTES)  # padding, smallest instruction of x86, size of a pointer
_NAME_OFFSET = struct.Struct("<I")

_BATCH = 4096
_WINDOW_BYTES = 4 << 20
"""What the descriptions of a batch may span. One has some sixty bytes, so these are a tenth of it."""

_MODULE_TEXT = 22 * _POINTER_BYTES
"""Where runtime.moduledata has the start of the text."""


class _Format(NamedTuple):
    """What differs between the formats: indices of header words, and how a function is written."""

    text: int | None
    names: int
    functions: int
    entry: struct.Struct
    name_at: int


_RELATIVE = _Format(2, 3, 7, struct.Struct("<II"), 4)
_FORMATS = {
    0xFFFFFFFA: _Format(None, 2, 6, struct.Struct("<QQ"), 8),  # Go 1.16
    0xFFFFFFF0: _RELATIVE,  # Go 1.18
    0xFFFFFFF1: _RELATIVE,  # Go 1.20
}


class _Table(NamedTuple):
    """A pclntab: its file offset and address, its format, and the words of its header."""

    offset: int
    address: int
    format: _Format
    words: tuple[int, ...]

    @property
    def names(self) -> int:
        """How far behind the start the names are; the next part begins where they end."""
        return self.words[self.format.names]

    @property
    def functions(self) -> int:
        """How far behind the start the functions are."""
        return self.words[self.format.functions]


def find(image: Image, names: frozenset[str]) -> Iterator[Symbol]:
    """Yield the functions of these names. The size of one includes the padding behind it."""
    table = _table(image)
    if table is None:
        return
    places = _places(image, table, names)
    text = _text(image, table) if places else None
    if text is not None:
        yield from _functions(image, table, places, text)


def _table(image: Image) -> _Table | None:
    for name, section in image.named.items():
        if name.endswith(b".gopclntab"):  # until Go 1.25 .data.rel.ro.gopclntab in position-independent executables
            return _table_at(image, section.offset)
    starts = [struct.pack("<IHBB", magic, *_FIXED) for magic in _FORMATS]
    tables = (_table_at(image, at) for at in image.search_loads(starts))
    return next((table for table in tables if table is not None), None)


def _table_at(image: Image, offset: int) -> _Table | None:
    magic, *rest = image.unpack(_HEADER, offset)
    layout, address, words = _FORMATS.get(magic), image.address(offset), rest[len(_FIXED) :]
    if layout is None or address is None or tuple(rest[: len(_FIXED)]) != _FIXED:
        return None
    parts = words[layout.names : layout.functions + 1]
    return _Table(offset, address, layout, tuple(words)) if parts[0] and parts == sorted(parts) else None


def _places(image: Image, table: _Table, names: frozenset[str]) -> dict[bytes, str]:
    """Return where the names are among all names: four bytes each, as a function has it."""
    needles = {name.encode() + b"\0": name for name in names}
    size = table.words[table.format.names + 1] - table.names
    found = image.search(table.offset + table.names, min(size, 0xFFFFFFFF), needles)
    return {_NAME_OFFSET.pack(at): needles[needle] for at, needle in found}


def _text(image: Image, table: _Table) -> int | None:
    """Return the address that the functions count from, None if that is not to be known."""
    if table.format.text is None:
        return 0
    return image.pointer(table.address + _WORDS_AT + table.format.text * _POINTER_BYTES) or _module_text(image, table)


def _module_text(image: Image, table: _Table) -> int | None:
    """Return the start of the text from runtime.moduledata: Go 1.26 and later write it nowhere else."""
    expected = {0: table.address, _POINTER_BYTES: table.address + table.names}
    for module in islice(_modules(image, table), MAX_MODULES):
        if all(image.pointer(module + at) == pointer for at, pointer in expected.items()):
            return image.pointer(module + _MODULE_TEXT) or None
    return None


def _modules(image: Image, table: _Table) -> Iterator[int]:
    """Yield the addresses where a runtime.moduledata may be; its first word points to the table."""
    if image.named:
        yield from (section.address for name, section in image.named.items() if name.endswith(b".go.module"))
        return
    for offset in image.search_loads([struct.pack("<Q", table.address)]):
        address = image.address(offset)
        if address is not None:
            yield address


def _functions(image: Image, table: _Table, places: dict[bytes, str], text: int) -> Iterator[Symbol]:
    """Yield the functions whose name is at one of these places."""
    entry, start = table.format.entry, table.offset + table.functions
    count = min(table.words[0], MAX_FUNCTIONS)
    for first in range(0, count, _BATCH):
        # With the entry that follows, whose address is where the last function ends.
        content = image.read(start + first * entry.size, (min(_BATCH, count - first) + 1) * entry.size)
        entries: Entries = list(entry.iter_unpack(content[: len(content) // entry.size * entry.size]))
        descriptions = [description for _, description in entries[:-1]]
        if not descriptions or max(descriptions) - min(descriptions) > _WINDOW_BYTES:
            return
        low = min(descriptions)
        window = image.read(start + low, max(descriptions) - low + table.format.name_at + _NAME_OFFSET.size)
        for (address, description), (end, _) in pairwise(entries):
            at = description - low + table.format.name_at
            name = places.get(window[at : at + _NAME_OFFSET.size])
            if name is not None:
                yield Symbol(name, text + address, end - address)
