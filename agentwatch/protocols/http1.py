"""HTTP/1.1 framing of one direction: bytes in, heads and bodies out.

The caller takes events with ``next_event``, and after each head says how its body is framed (``body``): only it
knows what a response answers. Bytes wait in a bounded buffer until they are asked for, so a caller can stop where the
connection may turn into something else. Lines may end with LF alone and headers may be folded, as servers accept it.
Specification: RFC 9112.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import NamedTuple

MAX_HEAD_BYTES = 64 * 1024
"""Start line and headers, and likewise the trailers."""
MAX_BODY_BYTES = 1 << 20
"""Of a body that is kept; the rest is counted."""
MAX_SIZE_LINE_BYTES = 1024
"""A chunk's size with its extensions."""
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) ([^\x00-\x20\x7f]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: .*)?", re.DOTALL)
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?", re.DOTALL)
_NUMBER = re.compile(rb"[0-9]{1,18}")
_LINE_END = b"\n"


class Head(NamedTuple):
    """The first lines of a message. ``offset`` is where it begins in the stream; header names are in lower case.

    A request has ``method`` and ``target``, a response ``status``; the others are empty or 0. ``minor``: of HTTP/1.x.
    """

    offset: int
    minor: int
    method: bytes
    target: bytes
    status: int
    headers: tuple[tuple[bytes, bytes], ...]

    def all(self, name: bytes) -> list[bytes]:
        """Return the members of a header that may be a list, in lower case."""
        joined = b",".join(value for key, value in self.headers if key == name)
        return [member.strip().lower() for member in joined.split(b",") if member.strip()]


class End(NamedTuple):
    """A body ended. ``length`` counts its bytes, of which ``body`` has the first; ``complete``: all were seen."""

    body: bytes
    length: int
    complete: bool


class Broken(NamedTuple):
    """The bytes are not HTTP/1.1 from here on."""


Event = Head | End | Broken
CHUNKED = -1
UNTIL_CLOSE = -2


def request_body(head: Head) -> int | None:
    """Return the length of a request's body, or CHUNKED; None where that is not clear."""
    coding = head.all(b"transfer-encoding")
    if coding:
        # Of HTTP/1.0 some servers ignore it: then the body would be the next request.
        return CHUNKED if coding == [b"chunked"] and head.minor else None
    return _content_length(head, 0)


def response_body(head: Head, method: bytes) -> int | None:
    """Return the length of the body of a response to a request by ``method``, CHUNKED or UNTIL_CLOSE."""
    if method == b"HEAD" or head.status < 200 or head.status in (204, 304):  # noqa: PLR2004 -- RFC 9112, section 6.3
        return 0
    coding = head.all(b"transfer-encoding")
    if coding:
        return CHUNKED if coding[-1] == b"chunked" else UNTIL_CLOSE
    return _content_length(head, UNTIL_CLOSE)


def _content_length(head: Head, default: int) -> int | None:
    told = set(head.all(b"content-length"))
    if not told:
        return default
    length = told.pop()
    return int(length) if not told and _NUMBER.fullmatch(length) else None


class _State(Enum):
    HEAD = auto()
    BODY = auto()
    SIZE = auto()
    CHUNK = auto()
    CHUNK_END = auto()
    TRAILER = auto()
    WAIT = auto()
    BROKEN = auto()


class Reader:
    """One direction. ``keep``: bytes of each body that are kept."""

    __slots__ = (
        "_body",
        "_buffer",
        "_complete",
        "_keep",
        "_left",
        "_length",
        "_lines",
        "_position",
        "_searched",
        "_size",
        "_state",
    )

    def __init__(self, *, keep: int = 0) -> None:
        self._buffer = bytearray()
        self._keep = keep
        self._position = 0
        self._state = _State.HEAD
        self._searched = 0
        self._lines: list[bytes] = []
        self._size = 0
        self._left = 0
        self._body = bytearray()
        self._length = 0
        self._complete = True

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        self._buffer += data
        self._position += len(data)

    @property
    def waiting(self) -> int:
        """Bytes that were not read yet."""
        return len(self._buffer)

    def next_event(self) -> Event | None:
        """Return what comes next, None while more bytes are needed, or ``body`` was not called yet."""
        if self._state is _State.WAIT:
            return None
        while True:
            before = self._state, len(self._buffer)
            event = self._step()
            if event is not None:
                return event
            if before == (self._state, len(self._buffer)):
                return None

    def body(self, framing: int | None) -> None:
        """Say how the body of the last head is framed: its length, CHUNKED, UNTIL_CLOSE, or None: nobody can tell."""
        self._body, self._length, self._complete = bytearray(), 0, True
        self._lines, self._size = [], 0
        self._left = 0 if framing is None else framing
        self._state = _State.BROKEN if framing is None else _State.SIZE if framing == CHUNKED else _State.BODY

    def gap(self, length: int) -> bool:
        """Step over bytes that were not seen, where they lie within a body; False where nothing is certain then."""
        self._position += length
        inside = self._state in (_State.BODY, _State.CHUNK)
        if not inside or self._buffer or (self._left != UNTIL_CLOSE and not 0 < length <= self._left):
            self._state = _State.BROKEN
            return False
        self._length += length
        self._left -= length if self._left != UNTIL_CLOSE else 0
        self._complete = False  # and nothing more is kept: what comes after the hole would stand in the wrong place
        return True

    def unfinished(self) -> End | None:
        """Return the body whose end was not seen, None if there is none."""
        if self._state in (_State.HEAD, _State.WAIT, _State.BROKEN):
            return None
        return End(bytes(self._body), self._length, complete=False)

    def _step(self) -> Event | None:
        if self._state is _State.BROKEN:
            return Broken()
        if self._state is _State.HEAD:
            return self._head()
        if self._state in (_State.BODY, _State.CHUNK):
            return self._bytes()
        return self._chunk_line()

    def _head(self) -> Event | None:
        offset = self._position - len(self._buffer) - self._size
        while (line := self._line(MAX_HEAD_BYTES - self._size)) is not None:
            if not line and not self._lines:
                self._size = 0  # empty lines before a request are to be ignored
                offset = self._position - len(self._buffer)
            elif not line:
                head = _parse(self._lines, offset)
                self._state = _State.BROKEN if head is None else _State.WAIT
                self._lines, self._size = [], 0
                return head or Broken()
            else:
                self._lines.append(line)
        return Broken() if self._state is _State.BROKEN else None

    def _line(self, limit: int) -> bytes | None:
        """Return the next line without its end, None while it is not here, or where it is too long: then broken."""
        end = self._buffer.find(_LINE_END, self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            if len(self._buffer) > limit:
                self._state = _State.BROKEN
            return None
        self._searched = 0
        if end > limit:
            self._state = _State.BROKEN
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._size += end + 1
        return line.removesuffix(b"\r")

    def _bytes(self) -> Event | None:
        taken = len(self._buffer) if self._left == UNTIL_CLOSE else min(self._left, len(self._buffer))
        if self._complete:
            room = self._keep - len(self._body)
            self._body += self._buffer[: min(taken, room)]
        self._length += taken
        del self._buffer[:taken]
        if self._left != UNTIL_CLOSE:
            self._left -= taken
        if self._left:
            return None
        if self._state is _State.CHUNK:
            self._state = _State.CHUNK_END
            return None
        return self._end()

    def _chunk_line(self) -> Event | None:
        limit = MAX_SIZE_LINE_BYTES if self._state is not _State.TRAILER else MAX_HEAD_BYTES - self._size
        line = self._line(limit)
        if line is None:
            return None
        if self._state is _State.TRAILER:
            return None if line else self._end()
        if self._state is _State.CHUNK_END:
            self._state = _State.BROKEN if line else _State.SIZE
            return None
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            self._state = _State.BROKEN
            return None
        self._left = int(size[1], 16)
        self._state = _State.CHUNK if self._left else _State.TRAILER
        self._size = 0
        return None

    def _end(self) -> End:
        self._state = _State.HEAD
        self._size = self._searched = 0
        self._lines = []
        return End(bytes(self._body), self._length, self._complete)


def _parse(lines: list[bytes], offset: int) -> Head | None:
    first, *rest = lines
    request, status = _REQUEST_LINE.fullmatch(first), _STATUS_LINE.fullmatch(first)
    headers: list[tuple[bytes, bytes]] = []
    for line in rest:
        if line[:1] in (b" ", b"\t") and headers:
            name, value = headers[-1]
            headers[-1] = (name, value + b" " + line.strip())
            continue
        name, colon, value = line.partition(b":")
        if not colon:
            return None
        headers.append((name.strip().lower(), value.strip()))
    if request is not None:
        return Head(offset, int(request[3]), request[1], request[2], 0, tuple(headers))
    if status is not None:
        return Head(offset, int(status[1]), b"", b"", int(status[2]), tuple(headers))
    return None
