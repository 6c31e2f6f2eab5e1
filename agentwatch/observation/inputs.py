"""What interpreters read as their input, put together into lines.

In: events with a piece each, of one byte or of 32 KiB. Out: lines, each with what ended it. The lines do not depend on
how the input was cut into pieces. Memory is bounded by the limits below; plain values, survives ``pickle``.

A shell that reads its script from a file goes back to where the next command begins before it executes one, and reads
the rest again: bytes that were just read at the same place of a file are one input, not two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from agentwatch.kernel.abi import Input, InputSource, Omitted

MAX_LINE_BYTES = 64 * 1024
"""Of a line that are kept; the rest of it is counted."""
MAX_READERS = 1024
"""Inputs with something unfinished at one time; beyond it the oldest one's line ends where it is."""
IDLE_NS = 1_000_000_000
"""An unfinished line is recorded when nothing came for so long: a prompt was answered, or a command is being typed."""

NEWLINE, EOF, EXEC, EXIT, IDLE, OMITTED, SEEK, LIMIT = (
    "newline", "eof", "exec", "exit", "idle", "omitted", "seek", "limit",
)  # fmt: skip
"""What ended a line."""

SOURCES: dict[int, str] = {
    InputSource.FROM_PIPE: "pipe",
    InputSource.FROM_TTY: "tty",
    InputSource.FROM_FILE: "file",
    InputSource.FROM_SOCKET: "socket",
}
REASONS: dict[int, str] = {
    Omitted.OMITTED_ECHO_OFF: "echo-off",
    Omitted.OMITTED_LIMIT: "limit",
    Omitted.OMITTED_MEMORY: "user-memory",
}

_LF = re.compile(rb"\n")
_ENTER = re.compile(rb"\r\n|\r|\n")
"""A terminal in raw mode, as line editors use it, sends what the Enter key sends."""


class Line(NamedTuple):
    """One line without its end. ``text`` is None when nothing of it was kept; then ``reason`` says why."""

    text: bytes | None
    length: int
    source: str
    input: int
    ended_by: str
    reason: str | None
    tgid: int
    tid: int
    cgroup: int
    began: int
    """CLOCK_BOOTTIME of the read that its first byte came with."""

    @property
    def truncated(self) -> bool:
        """Whether bytes of it are missing."""
        return self.text is None or len(self.text) < self.length or self.ended_by == OMITTED


@dataclass(slots=True)
class _Reader:
    """One input of one process."""

    source: str
    input: int
    tgid: int
    buffer: bytearray = field(default_factory=bytearray)
    length: int = 0
    """Bytes of the unfinished line, kept or not."""
    reason: str | None = None
    tid: int = 0
    cgroup: int = 0
    began: int = 0
    latest: int = 0
    after_cr: bool = False
    last: bytes = b""
    """The last piece that was read of a file, and where it lay."""
    last_at: int = 0

    @property
    def is_done(self) -> bool:
        """Whether what comes next does not depend on what came before."""
        return not (self.length or self.after_cr or self.last)

    def line(self, ended_by: str) -> Line:
        """End the line that is under way."""
        text = None if self.reason else bytes(self.buffer)
        made = Line(
            text=text,
            length=self.length,
            source=self.source,
            input=self.input,
            ended_by=ended_by,
            reason=self.reason,
            tgid=self.tgid,
            tid=self.tid,
            cgroup=self.cgroup,
            began=self.began,
        )
        self.buffer.clear()
        self.length = 0
        self.reason = None
        return made


class InputLines:
    """The lines that are under way, by process and input."""

    def __init__(self) -> None:
        self._readers: dict[int, dict[int, _Reader]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(self, e: Input) -> list[Line]:
        """Return the lines that a piece completes."""
        lines: list[Line] = []
        reader = self._reader(e, lines)
        reader.latest = e.h.boottime
        if not e.total:
            self._finish(reader, EOF, lines)
            self._forget(reader)
            return lines
        if e.omitted:
            _omit(reader, e, lines)
        else:
            data = _unread(reader, e, lines) if e.source == InputSource.FROM_FILE else e.data
            if data:
                _add(reader, e, data, lines)
        if reader.is_done:
            self._forget(reader)
        return lines

    def ended(self, tgid: int, ended_by: str) -> list[Line]:
        """Return what a process has read of a line, when it ends or becomes another program."""
        lines: list[Line] = []
        for reader in [*self._readers.get(tgid, {}).values()]:
            self._finish(reader, ended_by, lines)
            self._forget(reader)
        return lines

    def idle(self, now: int) -> list[Line]:
        """Return lines for which nothing came since IDLE_NS."""
        lines: list[Line] = []
        late = [r for readers in self._readers.values() for r in readers.values() if now - r.latest >= IDLE_NS]
        for reader in late:
            self._finish(reader, IDLE, lines)
            if reader.is_done:
                self._forget(reader)
        return lines

    @staticmethod
    def _finish(reader: _Reader, ended_by: str, lines: list[Line]) -> None:
        if reader.length:
            lines.append(reader.line(ended_by))

    def _reader(self, e: Input, lines: list[Line]) -> _Reader:
        readers = self._readers.get(e.h.tgid)
        reader = readers.get(e.inode) if readers else None
        if reader is None:
            if self._count >= MAX_READERS:
                oldest = next(iter(next(iter(self._readers.values())).values()))
                self._finish(oldest, LIMIT, lines)
                self._forget(oldest)
            reader = _Reader(SOURCES.get(e.source, "?"), e.inode, e.h.tgid)
            self._readers.setdefault(e.h.tgid, {})[e.inode] = reader
            self._count += 1
        return reader

    def _forget(self, reader: _Reader) -> None:
        readers = self._readers[reader.tgid]
        del readers[reader.input]
        self._count -= 1
        if not readers:
            del self._readers[reader.tgid]


def _begin(reader: _Reader, e: Input) -> None:
    reader.tid, reader.cgroup, reader.began = e.h.tid, e.h.cgroup, e.h.boottime


def _omit(reader: _Reader, e: Input, lines: list[Line]) -> None:
    """Count what was not copied: one record for a data set that goes by, or for a password."""
    reason = REASONS.get(e.omitted, "?")
    if reader.length and reader.reason != reason:
        lines.append(reader.line(OMITTED))
    if not reader.length:
        _begin(reader, e)
    reader.reason = reason
    reader.length += e.total
    reader.after_cr = False
    reader.last = b""


def _unread(reader: _Reader, e: Input, lines: list[Line]) -> bytes:
    """Return what of a piece of a file was not read before."""
    data, back = e.data, e.offset - reader.last_at
    if 0 < back <= len(reader.last):
        known = reader.last[back:]
        if data[: len(known)] == known:
            reader.last, reader.last_at = e.data, e.offset
            return data[len(known) :]
        if data == known[: len(data)]:
            return b""
    if reader.length:
        lines.append(reader.line(SEEK))
    reader.last, reader.last_at = e.data, e.offset
    return data


def _add(reader: _Reader, e: Input, data: bytes, lines: list[Line]) -> None:
    if reader.reason:
        lines.append(reader.line(OMITTED))
    is_tty = e.source == InputSource.FROM_TTY
    start = int(reader.after_cr and data.startswith(b"\n"))
    reader.after_cr = is_tty and data.endswith(b"\r")
    for end in (_ENTER if is_tty else _LF).finditer(data, start):
        _extend(reader, e, data[start : end.start()])
        lines.append(reader.line(NEWLINE))
        start = end.end()
    if start < len(data):
        _extend(reader, e, data[start:])


def _extend(reader: _Reader, e: Input, data: bytes) -> None:
    if not reader.length:
        _begin(reader, e)
    reader.buffer += data[: MAX_LINE_BYTES - len(reader.buffer)]
    reader.length += len(data)
