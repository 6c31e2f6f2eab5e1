"""The bytes of a segment as they were written, whatever the file on disk is like: the seam under scan.py.

In: an open file. Out: bytes by offset. Two kinds of file are behind it: one that is as the writer left it (``Plain``,
here), and one that was compressed since (``compressed.Compressed``). ``folder.open_source`` opens either.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class Source(Protocol):
    """A segment to read. Methods raise OSError, and nothing because of what is in the file."""

    @property
    def flaw(self) -> str:
        """What is wrong with the file around the bytes, in words; empty if nothing is."""

    def size(self) -> int:
        """Return how many bytes there are now."""

    def pread(self, size: int, offset: int, /) -> bytes:
        """Return ``size`` bytes from ``offset`` on, fewer only where the segment ends."""

    def flaw_at(self, offset: int, /) -> str:
        """Return why zeros stand for the bytes at ``offset``, or why more should follow the last; empty if not so."""

    def hint(self, seq: int, /) -> tuple[int, int] | None:
        """Return a (seq, offset) at or before ``seq`` where the file says that a record begins; None: it does not say.

        It is to be tried, not trusted.
        """

    def hints(self, offset: int, /) -> Iterator[tuple[int, int]]:
        """Yield such hints behind ``offset``, in order."""

    def close(self) -> None:
        """Let go of the file."""


class Plain:
    """A segment as the writer wrote it, also while it grows. ``close`` closes the descriptor, nothing else does."""

    flaw = ""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def size(self) -> int:
        """As in Source."""
        return os.fstat(self._fd).st_size

    def pread(self, size: int, offset: int, /) -> bytes:
        """As in Source."""
        return pread(self._fd, size, offset)

    def flaw_at(self, _offset: int, /) -> str:
        """As in Source: what is wrong in a plain file only its checksums tell."""
        return ""

    def hint(self, _seq: int, /) -> tuple[int, int] | None:
        """As in Source."""
        return None

    def hints(self, _offset: int, /) -> Iterator[tuple[int, int]]:
        """As in Source."""
        return iter(())

    def close(self) -> None:
        """As in Source."""
        os.close(self._fd)


def pread(fd: int, size: int, offset: int) -> bytes:
    """Return ``size`` bytes of a file from ``offset`` on, fewer only where it ends. Raises OSError."""
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
