"""The bytes of a segment file: names, header, frames. Pure functions; README.md has the format byte by byte.

In: payloads and their sequence numbers. Out: bytes, and back. Nothing here opens a file. Integers are
big-endian. What always holds:

* a frame's check covers the log's id, its length, its payload and its sequence number, so that a frame that was
  altered, moved, repeated or copied from another log is not a frame;
* a payload has at least one byte, so that zeros are never a frame;
* no decision depends on a byte that a check has not covered.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from crc32c import crc32c

MAGIC = b"\x89AWLOG\r\n"
"""Not text, and altered by a transfer that rewrites line ends or clears the eighth bit (as PNG does it)."""
VERSION = 1
HEADER_BYTES = 64
FRAME_BYTES = 8
"""Length and check, before each payload."""
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
"""A statement's text is kept to 16 MiB and its parameters come on top. More is a damaged length."""
MIN_FRAME_BYTES = FRAME_BYTES + 1
LOG_ID_BYTES = 16
MAX_SEQ = 10**18
"""Far above what can be written; names have room for it."""
COMPRESSED = ".zst"
"""Behind the name of a segment that was compressed when it was sealed (compressed.py)."""

_HEADER = struct.Struct(">8sIQQ16s16sI")
_FRAME = struct.Struct(">II")
_LENGTH = struct.Struct(">I")
_CHECK = _LENGTH
_NAME = re.compile(rf"([0-9]{{20}})\.segment({re.escape(COMPRESSED)})?\Z")
_U32 = 0xFFFFFFFF


class UnsupportedVersionError(ValueError):
    """The header is whole and was written by a version that this one does not know."""


class Header(NamedTuple):
    """The first 64 bytes of a segment.

    ``created_ns`` is CLOCK_REALTIME; ``boot_id`` and ``log_id`` are 16 bytes each.
    """

    first_seq: int
    created_ns: int
    boot_id: bytes
    log_id: bytes

    def pack(self) -> bytes:
        """Return the stored form."""
        body = _HEADER.pack(MAGIC, VERSION, self.first_seq, self.created_ns, self.boot_id, self.log_id, 0)[:-4]
        return body + _CHECK.pack(crc32c(body))

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """Return the header that ``data`` begins with. Raises ValueError, which says what is wrong with it."""
        if len(data) < HEADER_BYTES:
            raise ValueError("the header is cut short")
        magic, version, first_seq, created_ns, boot_id, log_id, check = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise ValueError("it does not begin as a segment does")
        if crc32c(data[: HEADER_BYTES - 4]) != check:
            raise ValueError("the header's checksum does not match")
        if version != VERSION:
            raise UnsupportedVersionError(f"format version {version}")
        return cls(first_seq, created_ns, boot_id, log_id)


def claimed_log_id(data: bytes) -> bytes | None:
    """Return the log id of a header whose checksum fails: the best guess where no other segment tells it."""
    if len(data) < HEADER_BYTES or not any(data[:HEADER_BYTES]):
        return None
    log_id: bytes = _HEADER.unpack_from(data)[5]
    return log_id


def segment_name(first_seq: int) -> str:
    """Return the file name of the segment that begins with this record; names sort as numbers do."""
    return f"{first_seq:020d}.segment"


def parse_name(name: str) -> int | None:
    """Return the first sequence number that a segment's name tells, compressed or not; None for other names."""
    match = _NAME.match(name)
    return int(match[1]) if match else None


def is_compressed(name: str) -> bool:
    """Tell whether a segment's name is that of a compressed one."""
    return name.endswith(COMPRESSED)


def seed(log_id: bytes) -> int:
    """Return the checksum's state after the log's id, with which the check of every frame begins."""
    return crc32c(log_id)


def frame(payload: bytes, seq: int, seed: int) -> bytes:
    """Return the frame of a payload: length, check, payload."""
    length = _LENGTH.pack(len(payload))
    check = (crc32c(payload, crc32c(length, seed)) + seq) & _U32
    return length + _CHECK.pack(check) + payload


def frame_length(data: bytes, offset: int) -> int | None:
    """Return the payload length that the frame at ``offset`` claims; None if it is cut short or cannot be one."""
    if offset + FRAME_BYTES > len(data):
        return None
    length: int = _LENGTH.unpack_from(data, offset)[0]
    return length if 0 < length <= MAX_PAYLOAD_BYTES else None


def claimed_seq(data: bytes, offset: int, length: int, seed: int) -> int:
    """Return the low 32 bits of the sequence number under which the frame at ``offset`` would be right.

    The check is checksum plus sequence number, so a frame found behind damage says itself which record it is.
    """
    body = offset + FRAME_BYTES
    crc = crc32c(data[body : body + length], crc32c(data[offset : offset + 4], seed))
    check: int = _CHECK.unpack_from(data, offset + 4)[0]
    return (check - crc) & _U32


class Taken(NamedTuple):
    """What a block gave: payloads in order, bytes used, and whether the next frame is wrong (else: cut short)."""

    payloads: list[bytes]
    used: int
    bad: bool
    wanted: int
    """Bytes that the frame at ``used`` claims to have in all; 0 where its length cannot be read."""


def take_frames(block: bytes, seq: int, seed: int, limit: int) -> Taken:
    """Take whole, right frames from the beginning of ``block``, at most ``limit``; the first of them is ``seq``."""
    payloads: list[bytes] = []
    size = len(block)
    offset = 0
    unpack = _FRAME.unpack_from
    # One loop without calls into this module: this is the whole cost of reading a log.
    while len(payloads) < limit and offset + FRAME_BYTES <= size:
        length, check = unpack(block, offset)
        if not 0 < length <= MAX_PAYLOAD_BYTES:
            return Taken(payloads, offset, bad=True, wanted=0)
        end = offset + FRAME_BYTES + length
        if end > size:
            return Taken(payloads, offset, bad=False, wanted=FRAME_BYTES + length)
        payload = block[offset + FRAME_BYTES : end]
        if (crc32c(payload, crc32c(block[offset : offset + 4], seed)) + seq) & _U32 != check:
            return Taken(payloads, offset, bad=True, wanted=FRAME_BYTES + length)
        payloads.append(payload)
        seq += 1
        offset = end
    return Taken(payloads, offset, bad=False, wanted=0)
