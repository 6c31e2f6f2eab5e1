"""Find functions of TLS libraries in ELF files: a descriptor and names in, where to attach probes out.

Whatever the file is, the answer is only what it proves: a damaged, cut or hostile file gives fewer functions or
none, in bounded time and memory, and never an error. A file of another machine than x86-64 gives none. Only the
reading itself can raise (OSError).

It reads the format by itself because thousands of files are looked at when recording starts: going through the
symbols with pyelftools takes 44 ms for libssl and 9 s for node, this takes 0.4 and 60 ms (most files: 0.15 ms).
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.kernel import elf_image, elf_symbols, golang, pclntab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.kernel.elf_image import Image
    from agentwatch.kernel.elf_symbols import Symbol

MAX_SYMBOLS = 128
"""Symbols of wanted names that are used, the rest is not: each is a probe. A name is in a file once, or a few times
if it was linked into it twice, and so in each of its tables."""


class Function(NamedTuple):
    """A function to probe; offsets are those in the file, not addresses."""

    name: str
    """"SSL_write", or "crypto/tls.(*Conn).Write"."""
    offset: int
    """Of its first instruction."""
    returns: tuple[int, ...]
    """Of its return instructions: at least one for a function of Go, none for any other."""


def functions(fd: int, wanted: frozenset[str]) -> tuple[Function, ...]:
    """Return the functions of these names in an open regular file, in the order of their offsets.

    A name with a dot is one of Go, looked for in executables of Go 1.17 or newer only. There is one function for
    each offset: of several wanted names for one the first in sorted order. A name can have several offsets.
    """
    image = elf_image.of_file(fd)
    if image is None:
        return ()
    found: dict[int, Symbol] = {}
    for symbol in islice(_symbols(image, wanted), MAX_SYMBOLS):
        offset = image.code_offset(symbol.address)
        if offset is not None:
            found[offset] = min(symbol, found.get(offset, symbol))
    return tuple(_functions(image, found))


def _symbols(image: Image, wanted: frozenset[str]) -> Iterator[Symbol]:
    go = frozenset(filter(_is_go, wanted))
    if not go or not golang.supported(image):
        yield from elf_symbols.find(image, wanted - go)
        return
    stripped = True
    for symbol in elf_symbols.find(image, wanted):
        stripped = stripped and symbol.name not in go
        yield symbol
    if stripped:
        yield from pclntab.find(image, go)


def _is_go(name: str) -> bool:
    """Tell the names apart: in Go a package and a dot come first, in C there are no dots."""
    return "." in name


def _functions(image: Image, found: dict[int, Symbol]) -> Iterator[Function]:
    for offset, symbol in sorted(found.items()):
        returns = golang.returns(image, symbol) if _is_go(symbol.name) else ()
        if returns or not _is_go(symbol.name):
            yield Function(symbol.name, offset, returns)
