"""Bound parameters as PostgreSQL prints them: a Bind message in, a tuple of values out.

Out, for each parameter: None for NULL; an int or float where the type is known to be one and nothing is lost; text
as the server's output function writes it (DateStyle ISO, timestamptz in UTC); bytes for a binary value of a type
that is not known here, or one that is not what its type says. A value in text format is the client's own text, in
the server's spelling where that is known (postgres_spelling). Always: never raises on any bytes.

Specification: the protocol's Bind message, and the typsend functions in src/backend/utils/adt. The decoding is our
own and not psycopg's: its loaders give Python values, from which the server's spelling would have to be made again.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from agentwatch.protocols.postgres_spelling import spelled
from agentwatch.protocols.postgres_types import BINARY, FLOAT_OIDS, INTEGER_OIDS, BadValue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentwatch.protocols.base import Param

_int16 = struct.Struct(">h").unpack_from
_int32 = struct.Struct(">i").unpack_from


def names(body: bytes) -> tuple[bytes, bytes, int] | None:
    """Return portal, statement name and where the rest of a Bind begins; None if it is not a Bind."""
    portal_end = body.find(b"\0")
    statement_end = body.find(b"\0", portal_end + 1)
    if portal_end < 0 or statement_end < 0:
        return None
    return body[:portal_end], body[portal_end + 1 : statement_end], statement_end + 1


def bound(body: bytes, pos: int, oids: Sequence[int]) -> tuple[Param, ...] | None:
    """Return the parameters of a Bind whose names end before ``pos``; None if the message is not well formed.

    ``oids`` are the parameter types as far as they are known (0: not known); it may be shorter than the list.
    """
    try:
        formats_count = _int16(body, pos)[0]
        if formats_count < 0:
            return None
        formats = struct.unpack_from(f">{formats_count}h", body, pos + 2)
        pos += 2 + 2 * formats_count
        count = _int16(body, pos)[0] & 0xFFFF
        pos += 2
        if not count:
            return ()
        values: list[Param] = []
        known = len(oids)
        size = len(body)
        for number in range(count):
            length = _int32(body, pos)[0]
            pos += 4
            if length < 0:
                values.append(None)
                continue
            end = pos + length
            if end > size:
                return None
            raw = body[pos:end]
            pos = end
            oid = oids[number] if number < known else 0
            which = 0 if formats_count == 1 else number  # one format is for all; none: all are text
            binary = which < formats_count and formats[which] == 1
            values.append(from_binary(raw, oid) if binary else from_text(raw, oid))
    except struct.error:
        return None
    return tuple(values)


def from_text(raw: bytes, oid: int) -> Param:
    """Return a value that was sent in text format."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return raw
    if not oid:
        return text
    try:
        if oid in INTEGER_OIDS:
            integer = int(text)
            return integer if str(integer) == text else text
        if oid in FLOAT_OIDS:
            number = float(text)
            if repr(number) == text and math.isfinite(number):
                return number
    except ValueError:
        pass
    return spelled(text, oid)


def from_binary(raw: bytes, oid: int) -> Param:
    """Return a value that was sent in binary format; ``raw`` itself when it cannot be decoded."""
    decode = BINARY.get(oid)
    if decode is None:
        return raw
    try:
        return decode(raw)
    except (BadValue, struct.error, ValueError, LookupError, ArithmeticError, RecursionError):
        return raw
