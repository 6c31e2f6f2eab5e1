"""Read BTF: the running kernel's struct layouts in, member offsets and enum values out.

Follows the kernel's Documentation/bpf/btf.rst. Only what the loader and the ABI test ask for is kept; the rest
of the 126,000 types of a kernel is walked over once (about 0.4 s). Members of anonymous structs and unions
are found as C finds them, so ``sock.__sk_common.skc_cookie`` and ``sock_common.skc_cookie`` both work.

A kernel is never judged by its version: the question is always whether a member exists.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from agentwatch.errors import KernelError

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_ENUMERATOR = struct.Struct("<Ii")

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _FUNC_PROTO, _VAR = 8, 9, 10, 11, 13, 14
_DATASEC, _DECL_TAG, _TYPE_TAG, _ENUM64 = 15, 17, 18, 19
_MODIFIERS = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
_POINTER_BYTES = 8


def _trailer(kind: int, vlen: int) -> int:
    """Return how many bytes follow the 12 common ones of a type."""
    if kind in (_STRUCT, _UNION, _DATASEC, _ENUM64):
        return 12 * vlen
    if kind in (_ENUM, _FUNC_PROTO):
        return 8 * vlen
    if kind == _ARRAY:
        return 12
    return 4 if kind in (_INT, _VAR, _DECL_TAG) else 0


class Member(NamedTuple):
    """One member of a struct: its name, offset and size in bytes."""

    name: str
    offset: int
    size: int


class Btf:
    """The types of one BTF blob."""

    def __init__(self, blob: bytes) -> None:
        try:
            magic, _version, _flags, header, types, types_len, strings, strings_len = _HEADER.unpack_from(blob)
        except struct.error as e:
            raise KernelError(f"BTF of {len(blob)} bytes is too short to have a header") from e
        if magic != _MAGIC:
            raise KernelError(f"not BTF: the magic number is {magic:#x}, not {_MAGIC:#x}")
        self._blob = blob
        self._strings = blob[header + strings : header + strings + strings_len]
        self._at = [0]
        """Offset of each type id; id 0 is void."""
        self._named: dict[bytes, list[int]] = {}
        self._walk(header + types, header + types + types_len)

    @classmethod
    def of_kernel(cls, path: Path = VMLINUX) -> Btf:
        """Read the running kernel's BTF. Raises KernelError where it has none."""
        try:
            return cls(path.read_bytes())
        except OSError as e:
            raise KernelError(
                f"cannot read the kernel's type information {path} ({e.strerror}); "
                "agentwatch needs a kernel built with CONFIG_DEBUG_INFO_BTF=y"
            ) from e

    def _walk(self, at: int, end: int) -> None:
        blob, unpack, append = self._blob, _TYPE.unpack_from, self._at.append
        strings, named = self._strings, self._named
        while at < end:
            name, info, _ = unpack(blob, at)
            kind = info >> 24 & 0x1F
            if name and kind in (_STRUCT, _UNION, _ENUM, _ENUM64):
                key = strings[name : strings.index(0, name)]
                named.setdefault(key, []).append(len(self._at))
            append(at)
            at += 12 + _trailer(kind, info & 0xFFFF)

    def _name(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(0, offset)].decode(errors="replace")

    def _type(self, type_id: int) -> tuple[int, int, int, int]:
        """Return kind, vlen, size-or-type and offset of a type, through typedefs and qualifiers."""
        while True:
            at = self._at[type_id]
            _, info, extra = _TYPE.unpack_from(self._blob, at)
            kind = info >> 24 & 0x1F
            if kind not in _MODIFIERS:
                return kind, info & 0xFFFF, extra, at
            type_id = extra

    def _find(self, name: str, kinds: tuple[int, ...]) -> int | None:
        for type_id in self._named.get(name.encode(), ()):
            if self._type(type_id)[0] in kinds:
                return type_id
        return None

    def size(self, type_id: int) -> int:
        """Return the size of a type in bytes."""
        kind, _, extra, at = self._type(type_id)
        if kind == _PTR:
            return _POINTER_BYTES
        if kind == _ARRAY:
            element, _, count = struct.unpack_from("<III", self._blob, at + 12)
            return int(count) * self.size(element)
        return extra

    def struct_size(self, name: str) -> int | None:
        """Return the size of a struct in bytes, None if there is no such struct."""
        type_id = self._find(name, (_STRUCT,))
        return None if type_id is None else self.size(type_id)

    def struct_names(self, prefix: str) -> set[str]:
        """Return the names of all structs that begin with ``prefix``."""
        found = (name.decode() for name in self._named if name.startswith(prefix.encode()))
        return {name for name in found if self._find(name, (_STRUCT,)) is not None}

    def enum_names(self, prefix: str) -> set[str]:
        """Return the names of all enums that begin with ``prefix``."""
        found = (name.decode() for name in self._named if name.startswith(prefix.encode()))
        return {name for name in found if self._find(name, (_ENUM,)) is not None}

    def members(self, name: str) -> list[Member] | None:
        """Return the members of a struct or union in order, None if there is none of that name."""
        type_id = self._find(name, (_STRUCT, _UNION))
        if type_id is None:
            return None
        return [Member(n, bits // 8, self.size(t)) for n, t, bits in self._members(type_id)]

    def _members(self, type_id: int) -> list[tuple[str, int, int]]:
        kind, vlen, _, at = self._type(type_id)
        if kind not in (_STRUCT, _UNION):
            return []
        bitfields = _TYPE.unpack_from(self._blob, at)[1] >> 31
        mask = 0xFFFFFF if bitfields else 0xFFFFFFFF
        raw = (_MEMBER.unpack_from(self._blob, at + 12 + 12 * i) for i in range(vlen))
        return [(self._name(name), member, bits & mask) for name, member, bits in raw]

    def _locate(self, type_id: int, member: str) -> tuple[int, int] | None:
        """Find a member, also inside anonymous structs; return (type, offset in bytes)."""
        for name, member_type, bits in self._members(type_id):
            if name == member:
                return member_type, bits // 8
            if not name and (inner := self._locate(member_type, member)):
                return inner[0], inner[1] + bits // 8
        return None

    def offset(self, path: str) -> int | None:
        """Return the offset in bytes of ``struct.member.member``, None if this kernel has no such member."""
        first, *rest = path.split(".")
        type_id = self._find(first, (_STRUCT, _UNION))
        total = 0
        for member in rest:
            found = None if type_id is None else self._locate(type_id, member)
            if found is None:
                return None
            type_id = found[0]
            total += found[1]
        return None if type_id is None else total

    def enum(self, name: str) -> dict[str, int] | None:
        """Return the names and values of an enum, None if there is no such enum."""
        type_id = self._find(name, (_ENUM,))
        if type_id is None:
            return None
        _, vlen, _, at = self._type(type_id)
        raw = (_ENUMERATOR.unpack_from(self._blob, at + 12 + 8 * i) for i in range(vlen))
        return {self._name(name_at): value for name_at, value in raw}
