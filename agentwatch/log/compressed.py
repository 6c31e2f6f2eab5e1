"""A sealed segment in zstd's seekable format: docs/log-format.md, "Compressed segments".

In: the bytes of a segment. Out: the compressed file, in pieces (``pack``); and from such a file the bytes again, from
any offset on (``Compressed``). What always holds:

* any zstd gives the segment back byte for byte;
* a block (an independent zstd frame, cut where a record begins) that is not right reads as zeros of the length that it
  should have: everything else stays where it was, so that damage costs the records of its block and no others;
* nothing in the file is believed beyond the limits below: what it claims is not allocated before it is checked.

https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md
"""

from __future__ import annotations

import operator
import os
import struct
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import zstandard

from agentwatch.errors import LogError
from agentwatch.log import scan, segment
from agentwatch.log.source import pread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agentwatch.log.source import Source

LEVEL = 3
BLOCK_BYTES = 64 * 1024
"""Before compression. Smaller blocks compress worse, larger ones make it dearer to read one record."""
MAX_BLOCK_BYTES = segment.HEADER_BYTES + segment.FRAME_BYTES + segment.MAX_PAYLOAD_BYTES
"""One record is never cut."""
MAX_SEGMENT_BYTES = 256 * 1024 * 1024
"""Before compression: four times what a writer makes. A file that claims more is damaged; reading on behind damage may
take this much memory."""
MAX_BLOCKS = 2 * MAX_SEGMENT_BYTES // BLOCK_BYTES + 2
"""A block ends because the next record would make it too large: two in a row have more than BLOCK_BYTES."""
MAX_FILE_BYTES = MAX_SEGMENT_BYTES + MAX_SEGMENT_BYTES // 128
"""What does not compress becomes a little larger: a header, a checksum and the table's entries for each block."""
CACHED_BYTES = 2 * 1024 * 1024
"""Decompressed blocks kept, twice what a walk reads at a time; that used longest ago goes, the newest always stays."""

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_FRAME_HEADER_BYTES = 18
"""The longest there is."""
_DESCRIPTOR_MASK, _DESCRIPTOR = 0b11111, 0b00100
"""Of a frame's header: with a checksum, without a dictionary, reserved bits zero."""
_CHECKSUM_BYTES = 4
_BLOCK_RLE, _BLOCK_RESERVED = 1, 3
_MAX_STEPS = 1 << 17
"""Headers looked at to find the frames of a file without a table; zstd makes no more than one for 8 KiB."""
_HINTS_MAGIC, _TABLE_MAGIC = 0x184D2A5A, 0x184D2A5E
_SKIPPABLE = struct.Struct("<II")
_HINT = struct.Struct(">Q")
_SIZES = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
_FOOTER_MAGIC = 0x8F92EAB1
_U32 = 0xFFFFFFFF


def pack(source: Source, log_id: bytes | None, first_seq: int) -> Iterator[bytes]:
    """Yield the compressed file of a segment that is not written to any more, piece by piece.

    Raises LogError for a segment with damage in it, which stays as it was found, or one that is too large; OSError.
    """
    cuts = _cuts(source, log_id, first_seq)
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)
    sizes = []
    for (_, begin), (_, end) in pairwise(cuts):
        data = source.pread(end - begin, begin)
        if len(data) != end - begin:
            raise LogError("the segment became shorter while it was compressed; is a recorder writing to it?")
        packed = compressor.compress(data)
        sizes.append(_SIZES.pack(len(packed), len(data)))
        yield packed
    yield _skippable(_HINTS_MAGIC, b"".join(_HINT.pack(seq) for seq, _ in cuts[:-1]))
    yield _skippable(_TABLE_MAGIC, b"".join(sizes) + _FOOTER.pack(len(sizes), 0, _FOOTER_MAGIC))


def _skippable(magic: int, content: bytes) -> bytes:
    return _SKIPPABLE.pack(magic, len(content)) + content


def _cuts(source: Source, log_id: bytes | None, first_seq: int) -> list[tuple[int, int]]:
    # (first seq, offset) of each block, then of the end.
    cuts = [(first_seq, 0)]
    for event in scan.walk(source, log_id, first_seq):
        if isinstance(event, scan.Damage):
            raise LogError(
                f"it is damaged at byte {event.offset} ({event.how}) and stays as it is; see agentwatch verify"
            )
        if isinstance(event, scan.Records):
            end = event.offset
            for seq, payload in enumerate(event.payloads, event.seq):
                begin, end = end, end + segment.FRAME_BYTES + len(payload)
                # The header has the first record with it, however large that one is.
                if end - cuts[-1][1] > BLOCK_BYTES and seq > first_seq:
                    cuts.append((seq, begin))
            continue
        end = event.offset + event.length
        headless = event.offset < segment.HEADER_BYTES
        if headless or not event.plain or event.length > MAX_BLOCK_BYTES or end > MAX_SEGMENT_BYTES:
            raise LogError(f"{event.length} bytes from byte {event.offset} on are no record; it stays as it is")
        if event.length and end - cuts[-1][1] > BLOCK_BYTES:
            cuts.append((event.seq, event.offset))
        cuts.append((event.seq, end))
    return cuts


class _Blocks(NamedTuple):
    """The zstd frames of a file: where each is, its length, and how much it has in it."""

    places: Sequence[int]
    packed_bytes: Sequence[int]
    plain_bytes: Sequence[int]


class Compressed:
    """The segment in a compressed file: a ``Source``. Not for use by several threads at once."""

    def __init__(self, fd: int, first_seq: int) -> None:
        """Take over an open file; ``first_seq`` is what its name says. Raises OSError: it is the caller's still."""
        self.flaw = ""
        self._fd = fd
        self._seqs: Sequence[int] = ()
        try:
            self._blocks, self._seqs = _read_table(fd, first_seq)
        except ValueError as e:
            self.flaw = str(e)
            self._blocks = _find_blocks(fd)
        *self._offsets, self._size = accumulate(self._blocks.plain_bytes, initial=0)
        self._decompressor = zstandard.ZstdDecompressor()
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cached_bytes = 0

    def size(self) -> int:
        """As in Source."""
        return self._size

    def pread(self, size: int, offset: int, /) -> bytes:
        """As in Source."""
        end = min(offset + size, self._size)
        pieces = []
        number = self._number(offset)
        while offset < end:
            begin = offset - self._offsets[number]
            piece = (self._block(number) or bytes(self._blocks.plain_bytes[number]))[begin : begin + end - offset]
            pieces.append(piece)
            offset += len(piece)
            number += 1
        return b"".join(pieces)

    def flaw_at(self, offset: int, /) -> str:
        """As in Source."""
        if offset >= self._size:
            return self.flaw
        number = self._number(offset)
        if self._block(number):
            return ""
        return f"its zstd frame at byte {self._blocks.places[number]} is not what was written"

    def hint(self, seq: int, /) -> tuple[int, int] | None:
        """As in Source; None for the first block, which begins with the header."""
        number = bisect_right(self._seqs, seq) - 1
        return (self._seqs[number], self._offsets[number]) if number > 0 else None

    def hints(self, offset: int, /) -> Iterator[tuple[int, int]]:
        """As in Source."""
        for number in range(bisect_right(self._offsets, offset), len(self._seqs)):
            yield self._seqs[number], self._offsets[number]

    def wrong_hint(self, log_id: bytes) -> str:
        """Return what is wrong with the sequence numbers in the file, which a walk does not read; empty if nothing is.

        Every block is decompressed for it.
        """
        seed = segment.seed(log_id)
        for number, (seq, offset) in enumerate(self.hints(0), 1):
            block = self._block(number)
            length = segment.frame_length(block, 0)
            if length is None or segment.FRAME_BYTES + length > len(block):
                # Zeros, or what a crash left of a record: the walk says what there is to say.
                continue
            if segment.claimed_seq(block, 0, length, seed) != seq & _U32:
                return f"it says that record {seq} is at byte {offset} (before compression), and it is not"
        return ""

    def close(self) -> None:
        """As in Source."""
        os.close(self._fd)

    def _number(self, offset: int) -> int:
        return bisect_right(self._offsets, offset) - 1

    def _block(self, number: int) -> bytes:
        # Empty for a block that is not right, so that remembering it costs nothing.
        data = self._cache.get(number)
        if data is not None:
            self._cache.move_to_end(number)
            return data
        data = self._cache[number] = self._decompress(number)
        self._cached_bytes += len(data)
        while self._cached_bytes > CACHED_BYTES and len(self._cache) > 1:
            self._cached_bytes -= len(self._cache.popitem(last=False)[1])
        return data

    def _decompress(self, number: int) -> bytes:
        packed = pread(self._fd, self._blocks.packed_bytes[number], self._blocks.places[number])
        plain_bytes = self._blocks.plain_bytes[number]
        if packed[4:5] == b"" or packed[4] & _DESCRIPTOR_MASK != _DESCRIPTOR:
            return b""
        # The size that the frame claims is what would be allocated.
        if _content_bytes(packed) != plain_bytes:
            return b""
        try:
            data = self._decompressor.decompress(packed, allow_extra_data=False)
        except zstandard.ZstdError:
            return b""
        return data if len(data) == plain_bytes else b""


def _read_table(fd: int, first_seq: int) -> tuple[_Blocks, Sequence[int]]:
    # Raises ValueError, which says what is wrong with it, if any of it cannot be believed.
    size = os.fstat(fd).st_size
    if size > MAX_FILE_BYTES:
        raise ValueError("it is larger than any segment")
    footer = pread(fd, _FOOTER.size, max(0, size - _FOOTER.size))
    if len(footer) < _FOOTER.size or footer[4:] != _FOOTER.pack(0, 0, _FOOTER_MAGIC)[4:]:
        raise ValueError("it does not end with a seek table")
    count = _FOOTER.unpack(footer)[0]
    head = _SKIPPABLE.size
    hints_bytes, table_bytes = head + count * _HINT.size, head + count * _SIZES.size + _FOOTER.size
    begin = size - table_bytes - hints_bytes
    if not 0 < count <= MAX_BLOCKS or begin < 0:
        raise ValueError("its seek table is damaged")
    data = pread(fd, hints_bytes + table_bytes, begin)
    hints, table = data[:hints_bytes], data[hints_bytes:]
    if table[:head] != _SKIPPABLE.pack(_TABLE_MAGIC, table_bytes - head):
        raise ValueError("its seek table is damaged")
    sizes = struct.unpack(f"<{2 * count}I", table[head : -_FOOTER.size])
    *places, end = accumulate(sizes[::2], initial=0)
    blocks = _Blocks(places, sizes[::2], sizes[1::2])
    if end != begin or not _are_credible(blocks):
        raise ValueError("its seek table is damaged")
    seqs = struct.unpack(f">{count}Q", hints[head:])
    right = hints[:head] == _SKIPPABLE.pack(_HINTS_MAGIC, hints_bytes - head)
    right &= seqs[0] == first_seq and seqs[-1] - first_seq <= scan.MAX_RECORDS_LOST
    if not right or not all(map(operator.lt, seqs, seqs[1:])):
        raise ValueError("its table of sequence numbers is damaged")
    return blocks, seqs


def _are_credible(blocks: _Blocks) -> bool:
    # zstd adds less than this to what it cannot compress.
    most = MAX_BLOCK_BYTES + MAX_BLOCK_BYTES // 128
    sizes = min(blocks.plain_bytes) > 0 and max(blocks.plain_bytes) <= MAX_BLOCK_BYTES
    return sizes and max(blocks.packed_bytes) <= most and sum(blocks.plain_bytes) <= MAX_SEGMENT_BYTES


def _find_blocks(fd: int) -> _Blocks:
    # Without a table: the zstd frames, one after another. Behind one that is broken, the next that looks like one.
    data = pread(fd, MAX_FILE_BYTES, 0) if os.fstat(fd).st_size <= MAX_FILE_BYTES else b""
    steps = iter(range(_MAX_STEPS))
    found: list[tuple[int, int, int]] = []
    total = 0
    at = data.find(_ZSTD_MAGIC)
    while at >= 0 and next(steps, None) is not None:
        end = _frame_end(data, at, steps)
        following = data.find(_ZSTD_MAGIC, end or at + len(_ZSTD_MAGIC))
        end = end or (following if following >= 0 else len(data))
        plain_bytes = _content_bytes(data[at : at + _FRAME_HEADER_BYTES])
        if 0 < plain_bytes <= min(MAX_BLOCK_BYTES, MAX_SEGMENT_BYTES - total):
            found.append((at, end - at, plain_bytes))
            total += plain_bytes
        at = following
    return _Blocks(*zip(*found, strict=True)) if found else _Blocks((), (), ())


def _content_bytes(frame: bytes) -> int:
    # As the frame's header says; -1 if it does not.
    try:
        return zstandard.frame_content_size(frame)
    except zstandard.ZstdError:
        return -1


def _frame_end(data: bytes, at: int, steps: Iterator[int]) -> int | None:
    # RFC 8878, section 3.1.1: the header, blocks with three bytes before each, a checksum. None if it is not whole.
    try:
        at += zstandard.frame_header_size(data[at : at + _FRAME_HEADER_BYTES])
    except zstandard.ZstdError:
        return None
    for _ in steps:
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        at += 3 + (1 if kind == _BLOCK_RLE else size)
        if kind == _BLOCK_RESERVED or at > len(data):
            return None
        if last:
            at += _CHECKSUM_BYTES
            return at if at <= len(data) else None
    return None
