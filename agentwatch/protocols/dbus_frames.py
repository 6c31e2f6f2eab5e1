"""The framing of D-Bus messages: bytes of one direction in, method calls with as much of their body as matters out.

A message has a fixed part of 16 bytes, header fields, and a body, whose lengths the fixed part tells; so a header that
cannot be read loses nothing but itself. Specification: D-Bus Specification 0.42, "Message Format".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from agentwatch.protocols.dbus_values import Malformed, Values

FIXED_BYTES = 16
MAX_MESSAGE_BYTES = 128 << 20
_MAX_FIELDS_BYTES = 64 << 20
MAX_HEADER_BYTES = 64 * 1024
"""Fixed part and header fields that are read; a real client's have some hundred bytes. A call with more is told as one
that could not be read."""
MAX_BODY_BYTES = 256 * 1024
"""Bytes of a body that are kept; what is read of a longer one is its beginning."""
_METHOD_CALL, _LAST_KIND = 1, 4
_VERSION = 1
_KNOWN_FLAGS = 0x07
_FIRST_FIELD_BYTES = 6
_PATH, _INTERFACE, _MEMBER, _DESTINATION, _SIGNATURE = 1, 2, 3, 6, 8
_FIELD_KINDS = {1: b"o", 2: b"s", 3: b"s", 4: b"s", 5: b"u", 6: b"s", 7: b"s", 8: b"g", 9: b"u"}


class Fixed(NamedTuple):
    """The first 16 bytes: lengths are in bytes, ``header`` with its padding."""

    little: bool
    kind: int
    header: int
    body: int


class Call(NamedTuple):
    """A method call. Names are None where they were not given; ``readable`` is False where nobody could tell.

    ``body`` has at most the first ``MAX_BODY_BYTES`` of ``body_length`` bytes, and fewer where bytes are missing.
    """

    offset: int
    path: bytes | None
    interface: bytes | None
    member: bytes | None
    destination: bytes | None
    signature: str
    little: bool
    body: bytes
    body_length: int
    readable: bool


def fixed_part(data: bytes | bytearray, at: int = 0) -> Fixed | None:
    """Read the fixed part of a message; None if it is none."""
    little = data[at] == ord("l")
    if not little and data[at] != ord("B"):
        return None
    kind, version = data[at + 1], data[at + 3]
    body, serial, fields = struct.unpack_from("<III" if little else ">III", data, at + 4)
    header = FIXED_BYTES + (fields + 7) // 8 * 8
    if not kind or version != _VERSION or not serial or fields > _MAX_FIELDS_BYTES or header + body > MAX_MESSAGE_BYTES:
        return None
    return Fixed(little, kind, header, body)


def looks_like_message(data: bytes | bytearray, at: int = 0) -> bool | None:
    """Tell whether a message begins at ``at``; None while there are too few bytes to tell.

    Stricter than ``fixed_part``: for places that are not known to begin a message.
    """
    begun = data[at : at + 4]
    order, kind, flags, version = begun + b"l\1\0\1"[len(begun) :]
    if order not in b"lB" or not 0 < kind <= _LAST_KIND or flags & ~_KNOWN_FLAGS or version != _VERSION:
        return False
    if len(data) - at < FIXED_BYTES + _FIRST_FIELD_BYTES:
        return None
    fixed = fixed_part(data, at)
    if fixed is None or fixed.header == FIXED_BYTES:
        return False
    code, length, kind, end = data[at + FIXED_BYTES : at + FIXED_BYTES + 4]
    return length == 1 and end == 0 and _FIELD_KINDS.get(code) == bytes((kind,))


class Frames:
    """The messages of one direction. ``framed`` is False while the position of the next one is unknown."""

    __slots__ = ("_buffer", "_fixed", "_skip", "broken", "framed", "position")

    def __init__(self, *, framed: bool, position: int = 0) -> None:
        self._buffer = bytearray()
        self._fixed: Fixed | None = None
        self._skip = 0
        self.position = position
        """Of the first byte of ``_buffer`` in the stream, or of the next one."""
        self.framed = framed
        self.broken = False
        """A message began where none can begin."""

    @property
    def pending(self) -> int:
        """Bytes that wait for the rest of their message."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Call]:
        """Take the next bytes; return the method calls that are complete by them."""
        calls: list[Call] = []
        step = min(self._skip, len(data))
        self._skip -= step
        self.position += step
        self._buffer += data[step:] if step else data
        while not self._skip and not self.broken and self._advance(calls):
            pass
        return calls

    def gap(self, length: int) -> list[Call]:
        """Step over bytes that were not seen (0: an unknown number)."""
        calls: list[Call] = []
        if self._skip and 0 < length <= self._skip:
            self._skip -= length
            self.position += length
            return calls
        fixed = self._fixed
        if fixed is not None and length > 0 and len(self._buffer) >= fixed.header:
            missing = fixed.header + fixed.body - len(self._buffer) - length
            if missing >= 0:
                self._finish(fixed, calls)
                self.position += len(self._buffer) + length
                self._buffer.clear()
                self._skip = missing
                return calls
        self._cut(calls)
        self.position += len(self._buffer) + length
        self._buffer.clear()
        self._skip = 0
        self.framed = False
        return calls

    def close(self) -> list[Call]:
        """Return the call whose end was not seen, if there is one."""
        calls: list[Call] = []
        self._cut(calls)
        return calls

    def _cut(self, calls: list[Call]) -> None:
        if self._fixed is not None:
            self._finish(self._fixed, calls)

    def _advance(self, calls: list[Call]) -> bool:
        """Take one step; False when more bytes are needed."""
        buffer = self._buffer
        if not self.framed and not self._seek():
            return False
        if len(buffer) < FIXED_BYTES:
            return False
        if self._fixed is None:
            self._fixed = fixed_part(buffer)
            if self._fixed is None:
                self.broken = True
                return False
        fixed = self._fixed
        kept = min(fixed.header, MAX_HEADER_BYTES)
        if fixed.kind != _METHOD_CALL:
            kept = FIXED_BYTES
        elif fixed.header <= MAX_HEADER_BYTES:
            kept += min(fixed.body, MAX_BODY_BYTES)
        if len(buffer) < kept:
            return False
        self._finish(fixed, calls)
        whole = fixed.header + fixed.body
        taken = min(whole, len(buffer))
        del buffer[:taken]
        self.position += taken
        self._skip = whole - taken
        return True

    def _finish(self, fixed: Fixed, calls: list[Call]) -> None:
        self._fixed = None
        if fixed.kind == _METHOD_CALL:
            calls.append(_call(fixed, self._buffer, self.position))

    def _seek(self) -> bool:
        """Drop bytes up to the beginning of a message; False when none is in sight."""
        buffer = self._buffer
        at = 0
        while True:
            found = [i for i in (buffer.find(b"l", at), buffer.find(b"B", at)) if i >= 0]
            at = min(found, default=len(buffer))
            fits = looks_like_message(buffer, at) if at < len(buffer) else None
            if fits is not False:
                break
            at += 1
        del buffer[:at]
        self.position += at
        self.framed = fits is True
        return self.framed


def _call(fixed: Fixed, data: bytes | bytearray, offset: int) -> Call:
    body = bytes(data[fixed.header : fixed.header + min(fixed.body, MAX_BODY_BYTES)])
    fields: dict[int, bytes] = {}
    readable = fixed.header <= min(len(data), MAX_HEADER_BYTES)
    if readable:
        values = Values(bytes(data[: fixed.header]), little=fixed.little, position=FIXED_BYTES - 4)
        try:
            fields.update((code, value) for code, value in values.elements("(yv)") if isinstance(value, bytes))
        except Malformed:
            readable = False
    return Call(
        offset,
        fields.get(_PATH),
        fields.get(_INTERFACE),
        fields.get(_MEMBER),
        fields.get(_DESTINATION),
        fields.get(_SIGNATURE, b"").decode("latin-1"),
        fixed.little,
        body,
        fixed.body,
        readable,
    )
