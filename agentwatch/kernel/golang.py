"""Tell executables of Go, and where their functions return: an ELF image in, a version and file offsets out.

A uretprobe puts another return address on the stack. Go moves its stacks and walks over them, and the process would
crash. What is attached to instead are the return instructions themselves, so a function counts only if every one of
them is known: its code is disassembled from the first byte to the last.

Only executables of Go 1.17 or newer count: from there on arguments and results are in registers on amd64 (Go's
internal ABI), before that they are on the stack.

For who attaches: a function whose stack has to grow calls for that and begins again, so that its first instruction
can be reached twice by one call.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capstone import Cs

    from agentwatch.kernel.elf_image import Image
    from agentwatch.kernel.elf_symbols import Symbol

MIN_MINOR = 17
"""The first release of Go 1 that passes arguments in registers on amd64."""
MAX_VERSION_BYTES = 256
"""A version that names experiments too has some forty."""
MAX_FUNCTION_BYTES = 16_384
"""Code of one function; the larger ones of crypto/tls have some 5,000 bytes. One that has more does not count."""
MAX_RETURNS = 64
"""Return instructions of one function, each a probe; crypto/tls has some ten. One that has more does not count."""

_BUILD_INFO = b"\xff Go buildinf:"
_BUILD_INFO_ALIGNMENT = 16
_FLAGS_AT, _POINTER_AT, _INLINE_AT = 15, 16, 32
_POINTER_BYTES = 8
_BIG_ENDIAN, _INLINE = 1, 2
_VERSION = re.compile(r"\bgo1\.(\d{1,4})")

_RETURNS = (b"\xc3", b"\xc2", b"\xf3\xc3", b"\xf2\xc3")  # ret, ret imm16, rep ret, bnd ret


def version(image: Image) -> str | None:
    """Return the Go that the file was built with, as "go1.19.8"; None if there is none (Go 1.12 and older too).

    Follows debug/buildinfo: until Go 1.17 there is a pointer to the string, afterwards the string itself.
    """
    at = _build_info(image)
    if at is None:
        return None
    info = image.read(at, _INLINE_AT + 2 + MAX_VERSION_BYTES).ljust(_INLINE_AT + 2, b"\0")
    flags = info[_FLAGS_AT]
    text = _inline(info[_INLINE_AT:]) if flags & _INLINE else _pointed(image, info, flags)
    return text.partition(b"\0")[0].decode(errors="replace") or None


def _build_info(image: Image) -> int | None:
    """Return where the build information is in the file."""
    section = image.named.get(b".go.buildinfo")
    if section is not None:
        return section.offset if image.read(section.offset, len(_BUILD_INFO)) == _BUILD_INFO else None
    if image.named:
        return None
    return next((at for at in image.search_loads([_BUILD_INFO]) if at % _BUILD_INFO_ALIGNMENT == 0), None)


def _inline(text: bytes) -> bytes:
    """Return the string behind its length, a varint of one or two bytes."""
    length, start = text[0], 1
    if length & 0x80:
        length, start = length & 0x7F | text[1] << 7, 2
    return text[start : start + length] if length <= MAX_VERSION_BYTES else b""


def _pointed(image: Image, info: bytes, flags: int) -> bytes:
    """Return the string that a pointer leads to: an address and a length."""
    if flags & _BIG_ENDIAN:
        return b""
    header = int.from_bytes(info[_POINTER_AT : _POINTER_AT + _POINTER_BYTES], "little")
    length = int.from_bytes(image.at(header + _POINTER_BYTES, _POINTER_BYTES), "little")
    return image.at(image.pointer(header), length) if length <= MAX_VERSION_BYTES else b""


def supported(image: Image) -> bool:
    """Return whether the file is Go's, and of a release whose functions can be read from here."""
    match = _VERSION.search(version(image) or "")
    return match is not None and int(match[1]) >= MIN_MINOR


def returns(image: Image, function: Symbol) -> tuple[int, ...]:
    """Return the file offsets of all return instructions of a function; none if they are not all to be known."""
    start = image.code_offset(function.address, function.size)
    if start is None or not 0 < function.size <= MAX_FUNCTION_BYTES:
        return ()
    code = image.read(start, function.size)
    found, end = [], 0
    for at, size, _, _ in _disassembler().disasm_lite(code, 0):
        end = at + size
        if code.startswith(_RETURNS, at):
            found.append(start + at)
    return tuple(found) if end == function.size and len(found) <= MAX_RETURNS else ()


@cache
def _disassembler() -> Cs:
    # Only here: its library is large, and most hosts never need it.
    from capstone import CS_ARCH_X86, CS_MODE_64, Cs  # noqa: PLC0415

    return Cs(CS_ARCH_X86, CS_MODE_64)
