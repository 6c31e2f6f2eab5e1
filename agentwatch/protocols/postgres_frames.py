"""One direction of a PostgreSQL connection as messages: bytes in, frames out.

In: the bytes of one direction after the startup packets, in any pieces. Out: ``Frame`` tuples, one for each message
(or one for a run of DataRow or CopyData messages). Always: cost is linear in the bytes, a piece that holds exactly
whole messages is not copied into a buffer, bodies that nobody needs (rows, COPY data, passwords) are stepped over
and never stored, and what is stored is bounded by the limits below.

Specification: PostgreSQL documentation, "Frontend/Backend Protocol", sections Message Formats and
Message Data Types; the limits of a server are in src/backend/tcop/postgres.c (SocketBackend).
"""

from __future__ import annotations

import re
import struct
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NamedTuple

from agentwatch.protocols.postgres_text import MAX_TEXT_BYTES, LongBody

if TYPE_CHECKING:
    from agentwatch.protocols.base import Skipped

MAX_BIND_BYTES = 16 * 1024 * 1024
"""A Bind beyond this keeps its names and loses its parameters: they would be held until the answer."""
MAX_ERROR_BYTES = 1024 * 1024
"""An ErrorResponse beyond this is read from its first 64 KiB: code and message come first."""

HEADER_BYTES = 5
LENGTH_BYTES = 4
READY_BYTES = 6
_LARGE = 0x3FFFFFFF + 4
"""What a server takes: PQ_LARGE_MESSAGE_LIMIT (MaxAllocSize - 1), and the length itself."""
_SMALL = 10000 + 4
"""PQ_SMALL_MESSAGE_LIMIT."""
_PARSE_EXTRA = 320 * 1024
"""Room for a statement's name and 65,535 type OIDs beside the text of a Parse."""
_NEVER = 1 << 62

_header = struct.Struct(">BI").unpack_from
_length = struct.Struct(">I").unpack_from


class Frame(NamedTuple):
    """One message. ``offset`` is that of its type byte in the stream.

    ``body`` is the body (bytes), or for a body that was stepped over its length, for DataRow the number of
    rows and for CopyData the sum of the bytes; a ``LongBody`` for one beyond the limit.
    """

    kind: int
    body: bytes | int | LongBody
    offset: int


BROKEN = 0
"""The kind of the last frame of a stream that is not made of PostgreSQL messages."""

_WHOLE, _SKIP, _RUN_COUNT, _RUN_BYTES = range(4)


class _Kinds:
    """What is known of each message type of a direction, as tables by type byte."""

    def __init__(self, rows: list[tuple[str, int, int, int, int]]) -> None:
        self.low = [_NEVER] * 256
        self.high = [0] * 256
        self.mode = [_SKIP] * 256
        self.long = [_NEVER] * 256
        for kinds, low, high, mode, long in rows:
            for kind in kinds.encode():
                self.low[kind], self.high[kind], self.mode[kind], self.long[kind] = low, high, mode, long


_FRONTEND = _Kinds(
    [
        ("Q", 5, _LARGE, _WHOLE, MAX_TEXT_BYTES + 5),
        ("P", 8, _LARGE, _WHOLE, MAX_TEXT_BYTES + _PARSE_EXTRA),
        ("B", 12, _LARGE, _WHOLE, MAX_BIND_BYTES),
        ("E", 9, _SMALL, _WHOLE, _NEVER),
        ("DC", 6, _SMALL, _WHOLE, _NEVER),
        ("SHXc", 4, 4, _WHOLE, _NEVER),
        ("f", 4, _SMALL, _SKIP, _NEVER),
        ("F", 14, _LARGE, _SKIP, _NEVER),
        ("p", 4, 65535 + 4, _SKIP, _NEVER),  # never read: it carries passwords
        ("d", 4, _LARGE, _RUN_BYTES, _NEVER),
    ]
)
_BACKEND = _Kinds(
    [
        ("D", 6, _LARGE, _RUN_COUNT, _NEVER),
        ("d", 4, _LARGE, _RUN_BYTES, _NEVER),
        ("C", 5, 4 + 1024, _WHOLE, _NEVER),
        ("Z", 5, 5, _WHOLE, _NEVER),
        ("123nIsc", 4, 4, _WHOLE, _NEVER),
        ("t", 6, 6 + 4 * 65535, _WHOLE, _NEVER),
        ("E", 5, _LARGE, _WHOLE, MAX_ERROR_BYTES),
        ("S", 6, _LARGE, _WHOLE, 65536),
        ("TANVv", 5, _LARGE, _SKIP, _NEVER),
        ("R", 8, _LARGE, _SKIP, _NEVER),  # never read: authentication
        ("K", 8, 4 + 4 + 256, _SKIP, _NEVER),
        ("GHW", 7, 7 + 2 * 65535, _SKIP, _NEVER),
    ]
)
_KINDS = (_FRONTEND, _BACKEND)
_NAMES = {ord("Q"): 0, ord("P"): 1, ord("B"): 2}
"""Messages that keep their meaning when they are cut behind so many names."""


class Reading(Enum):
    """What some bytes look like."""

    FITS = auto()
    NO = auto()
    NOT_YET = auto()


_QUERY = ord("Q")
_TEXT_BYTES = 8
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_ENOUGH_HEADERS = 3


def read_headers(direction: int, data: bytes) -> Reading:
    """Tell whether ``data`` begins at a message of the direction (0: client, 1: server).

    Every header in it must be one. It fits with a whole message in it, with three headers, or with the header of a
    long message whose text has begun and holds no byte that a text cannot hold.
    """
    kinds = _KINDS[direction]
    pos = 0
    headers = 0
    while len(data) - pos >= HEADER_BYTES:
        kind, length = _header(data, pos)
        if not kinds.low[kind] <= length <= kinds.high[kind]:
            return Reading.NO
        headers += 1
        body = data[pos + HEADER_BYTES : pos + 1 + length]
        if direction == 0 and kind == _QUERY and len(body) == length - 4 and body.find(b"\0") != length - 5:
            return Reading.NO
        pos += 1 + length
        if headers == _ENOUGH_HEADERS or pos == len(data):
            return Reading.FITS
        if pos > len(data):
            # Its end is not here: believed if it is the text of a Query, which is never that long by chance.
            begun = direction == 0 and kind == _QUERY and len(body) >= _TEXT_BYTES and not _CONTROL.search(body)
            return Reading.FITS if begun else Reading.NOT_YET
    if pos < len(data) and kinds.high[data[pos]] == 0:
        return Reading.NO
    return Reading.FITS if headers > 1 else Reading.NOT_YET


class Frames:
    """The framing of one direction. ``position`` is the offset of the next byte in the stream.

    ``framed`` is False while the position of the next message is unknown: then bytes only pass by, and
    ``tail`` holds the last six of them (a ReadyForQuery has six).
    """

    __slots__ = ("_buffer", "_direction", "_long", "_need", "_skip", "_start", "framed", "position", "tail")

    def __init__(self, direction: int, *, position: int = 0, framed: bool = True) -> None:
        self._direction = direction
        self._buffer = bytearray()
        self._need = 0
        self._skip = 0
        self._start = 0
        self._long: LongBody | None = None
        self.position = position
        self.framed = framed
        self.tail = b""

    @property
    def at_boundary(self) -> bool:
        """True where the next byte begins a message."""
        return self.framed and not (self._buffer or self._skip or self._long)

    @property
    def to_come(self) -> int:
        """How many bytes the message lacks that is kept until its end."""
        return self._long.missing if self._long is not None else max(0, self._need - len(self._buffer))

    @property
    def kept(self) -> int:
        """How many bytes of it there are."""
        return max(0, self.position - self._start) if self.to_come else 0

    def lose(self) -> None:
        """Forget where messages begin."""
        self.framed = False
        self._reset()
        self.tail = b""

    def align(self) -> None:
        """Take the present position as the beginning of a message."""
        self.framed = True
        self._reset()
        self.tail = b""

    def _reset(self) -> None:
        self._buffer = bytearray()
        self._need = self._skip = 0
        self._long = None

    def gap(self, length: int) -> list[Frame] | None:
        """Step over ``length`` bytes that were not seen; None when the framing is lost by it.

        A gap of known length inside the body of a message loses nothing but that body: rows and COPY data
        are not read anyway, and a Query, Parse or Bind comes out cut.
        """
        self.position += length
        if not self.framed or length <= 0:
            self.lose()
            return None
        if self._long is not None and length <= self._long.missing:
            return self._cut(self._long, self._long.missing - length)
        if self._long is None and self._skip >= length:
            self._skip -= length
            return []
        missing = self._need - len(self._buffer)
        if (
            self._need
            and length <= missing
            and self._buffer.count(0, HEADER_BYTES) >= _NAMES.get(self._buffer[0], _NEVER)
        ):
            body = LongBody(self._buffer[0], self._need - HEADER_BYTES)
            body.add(bytes(self._buffer[HEADER_BYTES:]))
            return self._cut(body, missing - length)
        self.lose()
        return None

    def skipped(self, run: Skipped) -> list[tuple[int, Any, int]] | None:
        """Step over a run of messages whose headers somebody else has read; None if it cannot begin here."""
        length, lead, rest, count, message = run
        mode = _KINDS[self._direction].mode[message]
        headers = HEADER_BYTES * count
        possible = length >= lead + headers if count else length + rest == lead
        here = self.framed and self._skip == lead and not self._buffer and self._long is None
        if not (here and possible and mode in (_RUN_COUNT, _RUN_BYTES)):
            return None
        start = self.position + lead
        self.position += length
        self._skip = rest
        if not count:
            return []
        return [(message, count if mode == _RUN_COUNT else length - lead - headers + rest, start)]

    def _cut(self, body: LongBody, rest: int) -> list[Frame]:
        body.damage()
        frames = [Frame(body.kind, body, self._start)]
        self._reset()
        self._skip = rest
        return frames

    # One loop with everything in it: a call for each message would double what a message costs.
    def feed(self, data: bytes) -> list[tuple[int, Any, int]]:  # noqa: C901, PLR0912, PLR0915
        """Take the next bytes; return the messages (``Frame`` as plain tuples) that are complete by them."""
        frames: list[tuple[int, Any, int]] = []
        size = len(data)
        if not self.framed:
            self.tail = (self.tail + data[-READY_BYTES:])[-READY_BYTES:]
            self.position += size
            return frames
        base = self.position
        self.position = base + size
        pos = 0
        if self._skip or self._buffer or self._long is not None:
            if self._buffer and not self._need:  # a header that came in pieces: at most four bytes before it
                data = bytes(self._buffer) + data
                base -= len(self._buffer)
                size = len(data)
                self._buffer = bytearray()
            else:
                pos = self._resume(data, frames)
        kinds = _KINDS[self._direction]
        low, high, modes, longs = kinds.low, kinds.high, kinds.mode, kinds.long
        while size - pos >= HEADER_BYTES:
            kind, length = _header(data, pos)
            if not low[kind] <= length <= high[kind]:
                self.lose()
                self.tail = data[pos + HEADER_BYTES :][-READY_BYTES:]
                frames.append((BROKEN, b"", base + pos))
                return frames
            end = pos + 1 + length
            mode = modes[kind]
            if mode == _WHOLE:
                if length > longs[kind]:
                    self._start = base + pos
                    self._long = LongBody(kind, length - 4)
                    pos += HEADER_BYTES + self._resume(data[pos + HEADER_BYTES :], frames)
                    continue
                if end > size:
                    self._buffer = bytearray(data[pos:])
                    self._need = 1 + length
                    self._start = base + pos
                    return frames
                frames.append((kind, data[pos + HEADER_BYTES : end], base + pos))
                pos = end
                continue
            first = pos
            pos = end
            if mode != _SKIP:
                count = 1
                limit = high[kind]
                while size - pos >= HEADER_BYTES and data[pos] == kind:
                    length = _length(data, pos + 1)[0]
                    if not LENGTH_BYTES <= length <= limit:
                        break
                    pos += 1 + length
                    count += 1
                value = count if mode == _RUN_COUNT else pos - first - HEADER_BYTES * count
            else:
                value = length - 4
            frames.append((kind, value, base + first))
            if pos > size:
                self._skip = pos - size
                return frames
        if pos < size:
            self._buffer = bytearray(data[pos:])
            self._start = base + pos
        return frames

    def _resume(self, data: bytes, frames: list[tuple[int, Any, int]]) -> int:
        """Go on with a message that began in an earlier piece; return where in ``data`` the next one begins."""
        size = len(data)
        if self._skip:
            step = min(self._skip, size)
            self._skip -= step
            return step
        if self._long is not None:
            step = min(self._long.missing, size)
            self._long.add(data[:step])
            if not self._long.missing:
                frames.append((self._long.kind, self._long, self._start))
                self._long = None
            return step
        step = min(self._need - len(self._buffer), size)
        self._buffer += data[:step]
        if len(self._buffer) == self._need:
            frames.append((self._buffer[0], bytes(self._buffer[HEADER_BYTES:]), self._start))
            self._buffer = bytearray()
            self._need = 0
        return step
