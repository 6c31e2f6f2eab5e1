"""The reader's side of a BPF ring buffer: a pinned map in, batches of events with their positions out.

Follows Documentation/bpf/ringbuf.rst: a page that the consumer writes, a page that the producers write, and the data
twice in a row so that no event wraps. An event is read in place by one slice of the mapping, with no call per event.

Positions count bytes since the ring was made and never wrap in practice; they identify an event for the life of
the pin. Reading does not free space: ``release`` does, when what was read is safe. A reader that dies before that
finds everything again.

Loads of positions and headers are single aligned machine words. On x86-64 that is all the ordering the protocol
needs (total store order); other architectures would need barriers that Python does not have, and are refused.
"""

from __future__ import annotations

import mmap
import platform
import select
from typing import NamedTuple

from agentwatch.errors import KernelError
from agentwatch.kernel import bpf

_PAGE = mmap.PAGESIZE
_BUSY = 1 << 31
_DISCARDED = 1 << 30
_HEADER_BYTES = 8


class Batch(NamedTuple):
    """Events that were read: (position, bytes) of each, and the position after the last."""

    events: list[tuple[int, bytes]]
    end: int


class Ring:
    """A mapped ring. ``position`` is where the next read begins."""

    def __init__(self, fd: int) -> None:
        if platform.machine() not in ("x86_64", "AMD64"):
            raise KernelError(f"reading the ring in place needs x86-64, this is {platform.machine()}")
        self.fd = fd
        self.size = bpf.map_entries(fd)
        self._consumer_page = mmap.mmap(fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._rest = mmap.mmap(fd, _PAGE + 2 * self.size, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE)
        self._consumer = memoryview(self._consumer_page)[:8].cast("Q")
        self._producer = memoryview(self._rest)[:8].cast("Q")
        self._words = memoryview(self._rest)[_PAGE:].cast("I")
        self.position: int = self._consumer[0]
        self._poll = select.epoll()
        self._poll.register(fd, select.EPOLLIN)

    @property
    def released(self) -> int:
        """The position up to which space was given back."""
        return self._consumer[0]

    @property
    def backlog(self) -> int:
        """Bytes that were written and not read."""
        return self._producer[0] - self.position

    @property
    def fill(self) -> int:
        """Bytes that the producers cannot use: written, and not given back."""
        return self._producer[0] - self._consumer[0]

    def read(self, limit: int) -> Batch:
        """Read what is there, up to about ``limit`` bytes; stops at an event that is still being written."""
        mask = self.size - 1
        words, rest = self._words, self._rest
        position = self.position
        end = min(self._producer[0], position + limit)
        events: list[tuple[int, bytes]] = []
        append = events.append
        while position < end:
            at = position & mask
            length = words[at >> 2]
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED:
                begin = _PAGE + at + _HEADER_BYTES
                used = words[(at + _HEADER_BYTES) >> 2]  # aw_header.len: a reservation may be larger than its event
                append((position, rest[begin : begin + min(used, size)]))
            position += (size + _HEADER_BYTES + 7) & ~7
        self.position = position
        return Batch(events, position)

    def release(self, position: int) -> None:
        """Give the space before ``position`` back to the producers."""
        self._consumer[0] = position

    def wait(self, seconds: float) -> None:
        """Sleep until the kernel says that much has gathered, at the most ``seconds``."""
        self._poll.poll(seconds)

    def close(self) -> None:
        """Unmap. The descriptor stays the caller's."""
        self._poll.close()
        for view in (self._consumer, self._producer, self._words):
            view.release()
        self._consumer_page.close()
        self._rest.close()
