"""D-Bus marshalling: bytes and a signature in, values out.

Strings, paths and signatures come out as ``bytes``, numbers as ``int`` or ``float``, arrays as lists (``ay`` as bytes),
structs and dict entries as tuples, a variant as its value. Raises ``Short`` where the bytes end too early and
``Malformed`` where they break the rules that matter for finding the next value. Strings are not checked for UTF-8.
Specification: D-Bus Specification 0.42, "Marshaling (Wire Format)".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 64
"""Containers within each other: the specification's limit."""
_MAX_ARRAY_BYTES = 64 << 20
_NUMBERS = {"y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I"}
_ALIGNMENT = {
    **{code: struct.calcsize(f"={number}") for code, number in _NUMBERS.items()},
    "s": 4,
    "o": 4,
    "g": 1,
    "a": 4,
    "(": 8,
    "{": 8,
    "v": 1,
}
_CLOSING = {"(": ")", "{": "}"}
_LENGTHS = {"s": "u", "o": "u", "g": "y"}


class Malformed(Exception):
    """The bytes are no value of their signature."""


class Short(Malformed):
    """The bytes end within a value."""


def types(signature: str) -> Iterator[str]:
    """Yield the complete types of a signature, one after the other."""
    at = 0
    while at < len(signature):
        end = _end(signature, at, 0)
        yield signature[at:end]
        at = end


def _end(signature: str, at: int, depth: int) -> int:
    code = signature[at : at + 1]
    if code not in _ALIGNMENT or not code or depth > MAX_DEPTH:
        raise Malformed(signature)
    if code == "a":
        return _end(signature, at + 1, depth + 1)
    closing = _CLOSING.get(code)
    at += 1
    if closing is None:
        return at
    if signature[at : at + 1] == closing:
        raise Malformed(signature)  # an empty struct: an array of them would have no end
    while signature[at : at + 1] != closing:
        at = _end(signature, at, depth + 1)
    return at + 1


class Values:
    """Values read one after the other; ``position`` is that of the next one, counted from an 8-byte boundary."""

    __slots__ = ("_data", "_order", "position")

    def __init__(self, data: bytes, *, little: bool, position: int = 0) -> None:
        self._data = data
        self._order = "<" if little else ">"
        self.position = position

    def align(self, boundary: int) -> None:
        """Step to the next multiple of ``boundary``."""
        self.position = -(-self.position // boundary) * boundary

    def read(self, kind: str, depth: int = 0) -> Any:
        """Return the next value, of one complete type."""
        code = kind[:1]
        if depth > MAX_DEPTH or code not in _ALIGNMENT:
            raise Malformed(kind)
        self.align(_ALIGNMENT[code])
        if code in _NUMBERS:
            return struct.unpack(self._order + _NUMBERS[code], self._take(_ALIGNMENT[code]))[0]
        if code in _LENGTHS:
            length: int = self.read(_LENGTHS[code])
            return self._take(length + 1)[:-1]
        if code == "v":
            return self._variant(depth)
        if code == "a":
            if kind == "ay":
                return self._take(self._array_length("y"))
            return list(self.elements(kind[1:], depth))
        return tuple(self.read(one, depth + 1) for one in types(kind[1:-1]))

    def elements(self, kind: str, depth: int = 0) -> Iterator[Any]:
        """Yield the elements of the next value, an array: those before the place where the bytes end, too."""
        end = self._array_length(kind)
        end += self.position
        while self.position < end:
            yield self.read(kind, depth + 1)
        if self.position != end:
            raise Malformed(kind)

    def _array_length(self, kind: str) -> int:
        length: int = self.read("u")
        if length > _MAX_ARRAY_BYTES:
            raise Malformed(kind)
        self.align(_ALIGNMENT.get(kind[:1], 1))
        return length

    def _variant(self, depth: int) -> Any:
        signature = self.read("g").decode("latin-1")
        if not signature or _end(signature, 0, 0) != len(signature):
            raise Malformed(signature)
        return self.read(signature, depth + 1)

    def _take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self._data):
            raise Short
        taken = self._data[self.position : end]
        self.position = end
        return taken
