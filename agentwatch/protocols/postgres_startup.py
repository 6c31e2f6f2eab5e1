"""The packets before the first PostgreSQL message: bytes in, one of four packets out.

A startup packet has a length and a code and no type byte. ``application_name``, user, database and the protocol
version are read; cancel keys are not. Specification: "Frontend/Backend Protocol", StartupMessage, SSLRequest,
GSSENCRequest, CancelRequest; src/include/libpq/pqcomm.h.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

MAX_PACKET_BYTES = 10_000
"""MAX_STARTUP_PACKET_LENGTH of the server."""
HEADER_BYTES = 8
TLS_HANDSHAKE = 0x16

SSL_REQUEST = 80877103
GSSENC_REQUEST = 80877104
CANCEL_REQUEST = 80877102
_VERSION_3 = 3
_MAX_CANCEL_BYTES = 12 + 256

_header = struct.Struct(">II").unpack_from


class Startup(NamedTuple):
    """A StartupMessage: the protocol version and the client's parameters."""

    version: str
    parameters: dict[str, str]


def packet_length(data: bytes | bytearray) -> int | None:
    """Return the length of the packet that ``data`` begins with, 0 while it cannot be told; None if it is none."""
    if len(data) < HEADER_BYTES:
        # The length is below 10,000: its first two bytes are zero.
        return 0 if not any(data[:2]) else None
    length, code = _header(data)
    if code in (SSL_REQUEST, GSSENC_REQUEST):
        return length if length == HEADER_BYTES else None
    if code == CANCEL_REQUEST:
        return length if 12 < length <= _MAX_CANCEL_BYTES else None  # noqa: PLR2004 - length, code, process
    if code >> 16 == _VERSION_3:
        return length if HEADER_BYTES < length <= MAX_PACKET_BYTES else None
    return None


def code_of(packet: bytes) -> int:
    """Return the code of a packet."""
    code: int = _header(packet)[1]
    return code


def cancelled_process(packet: bytes) -> int:
    """Return the backend's process id of a CancelRequest."""
    return int.from_bytes(packet[8:12], "big")


def startup(packet: bytes) -> Startup:
    """Read a StartupMessage."""
    code = code_of(packet)
    parts = packet[HEADER_BYTES:].split(b"\0")
    parameters: dict[str, str] = {}
    for name, value in zip(parts[::2], parts[1::2], strict=False):
        if not name:
            break
        parameters[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return Startup(f"{code >> 16}.{code & 0xFFFF}", parameters)
