"""ELF files for tests: compiled by gcc or written byte by byte, and where their functions are, by pyelftools."""

from __future__ import annotations

import os
import struct
import subprocess
from typing import TYPE_CHECKING

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from agentwatch.kernel import elf

if TYPE_CHECKING:
    from pathlib import Path

BASE = 0x400000
SPACE = 0x400
PARTS = (
    ".text",
    ".dynamic",
    ".gnu.hash",
    ".dynsym",
    ".dynstr",
    ".symtab",
    ".strtab",
    ".rela",
    ".go.buildinfo",
    ".gopclntab",
    ".go.module",
    ".gnu_debugdata",
    ".shstrtab",
)
"""In this order in the file, each in a space of its own, so that the content of one can name the address of another."""

LINKS = {".symtab": ".strtab"}
TYPES = {".symtab": 2}


def functions(file: Path | bytes, wanted: set[str]) -> tuple[elf.Function, ...]:
    if isinstance(file, bytes):
        fd = os.memfd_create("elf")
        os.write(fd, file)
    else:
        fd = os.open(file, os.O_RDONLY)
    try:
        return elf.functions(fd, frozenset(wanted))
    finally:
        os.close(fd)


def offsets(file: Path | bytes, wanted: set[str]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for function in functions(file, wanted):
        found.setdefault(function.name, set()).add(function.offset)
    return found


def true_offsets(path: Path, wanted: set[str]) -> dict[str, set[int]]:
    """Ask pyelftools the same, for names that do not share an address."""
    found: dict[str, set[int]] = {}
    with path.open("rb") as stream:
        file = ELFFile(stream)
        for table in file.iter_sections():
            for symbol in table.iter_symbols() if isinstance(table, SymbolTableSection) else ():
                name = symbol.name.partition("@")[0]
                if name in wanted and symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] != "SHN_UNDEF":
                    found.setdefault(name, set()).update(file.address_offsets(symbol["st_value"]))
    return found


def run(*command: str | Path) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def compile_c(path: Path, source: str, *flags: str) -> Path:
    """Compile to a library, or with -no-pie to an executable."""
    code = path.with_suffix(".c")
    code.write_text(source)
    run("gcc", "-O1", *(("-shared", "-fPIC") if "-no-pie" not in flags else ()), "-o", path, code, *flags)
    return path


def copied(path: Path, name: str, *flags: str) -> Path:
    """Run objcopy."""
    made = path.with_name(name)
    run("objcopy", *flags, path, made)
    return made


def without_section_headers(content: bytes) -> bytes:
    changed = bytearray(content)
    struct.pack_into("<Q", changed, 0x28, 0)  # e_shoff
    struct.pack_into("<HH", changed, 0x3C, 0, 0)  # e_shnum, e_shstrndx
    return bytes(changed)


def without_dynamic(content: bytes) -> bytes:
    """Make PT_DYNAMIC a PT_NULL, so that only section headers tell of symbols."""
    changed = bytearray(content)
    start, (count,) = struct.unpack_from("<Q", content, 0x20)[0], struct.unpack_from("<H", content, 0x38)
    for at in range(start, start + count * 56, 56):
        if struct.unpack_from("<I", content, at) == (2,):
            struct.pack_into("<I", changed, at, 0)
    return bytes(changed)


def space_of(part: str) -> int:
    """Return the file offset of a part."""
    return SPACE * (PARTS.index(part) + 1)


def address_of(part: str) -> int:
    return BASE + space_of(part)


def symbol(name: int, address: int, size: int = 0, *, info: int = 0x12, section: int = 1) -> bytes:
    return struct.pack("<IBBHQQ", name, info, 0, section, address, size)


def executable(parts: dict[str, bytes], *, headers: bool = True) -> bytes:
    """Write an executable of one segment that is all of the file."""
    names = b"\0" + b"".join(part.encode() + b"\0" for part in PARTS)
    parts = {**parts, ".shstrtab": names}
    file = bytearray(space_of(PARTS[-1]) + SPACE)
    for part, content in parts.items():
        assert len(content) <= SPACE, part
        file[space_of(part) : space_of(part) + len(content)] = content
    segments = [(1, 7, 0, BASE, len(file))]
    if ".dynamic" in parts:
        segments.append((2, 4, space_of(".dynamic"), address_of(".dynamic"), len(parts[".dynamic"])))
    program = b"".join(struct.pack("<IIQQQQQQ", t, f, o, a, a, size, size, 8) for t, f, o, a, size in segments)
    present = [part for part in PARTS if part in parts]
    sections = [bytes(64)]
    for part in present:
        link = 1 + present.index(LINKS[part]) if part in LINKS else 0
        where = address_of(part), space_of(part), len(parts[part])
        sections.append(
            struct.pack("<IIQQQQIIQQ", names.index(part.encode()), TYPES.get(part, 1), 0, *where, link, 0, 1, 0)
        )
    count, shoff = (len(sections), len(file)) if headers else (0, 0)
    sizes = (64, 56, len(segments), 64, count, max(count - 1, 0))
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, address_of(".text"), 64, shoff, 0, *sizes)
    file[: len(header + program)] = header + program
    return bytes(file) + (b"".join(sections) if headers else b"")
