"""One new segment being written: frames are collected, written, made durable. Errors come out as OSError.

What always holds:

* ``acked_seq`` grows only after fdatasync of the file, and fsync of the folder for a new file, have returned without an
  error;
* ``RESERVE_BYTES`` behind what was written are allocated already, where the file system can do that. Only a flush that
  says so may use them: for the last words on a full disk.
"""

from __future__ import annotations

import contextlib
import os

from agentwatch.log import segment, space

RESERVE_BYTES = 1024 * 1024
"""Some thousand records: those that wait when the disk fills up, and what is to be said about it."""
STEP_BYTES = 4 * 1024 * 1024
"""Allocated ahead at a time, so that it is not a system call for every commit."""


class Appender:
    """A segment that this process created. ``doing`` names the system call under way, for whoever catches its error."""

    def __init__(self, dir_fd: int, header: segment.Header, mode: int, gid: int) -> None:
        """Create the file. Raises FileExistsError; never opens one that is there."""
        self.name = segment.segment_name(header.first_seq)
        self.first_seq = self.next_seq = self.acked_seq = header.first_seq
        self.size = segment.HEADER_BYTES
        self.doing = "open"
        self._seed = segment.seed(header.log_id)
        self._dir_fd = dir_fd
        self._entry_durable = False
        self._written = 0
        self._allocated = 0
        """Bytes of the file that have their blocks; as many as one likes where that cannot be asked for."""
        self._unwritten = [header.pack()]
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.name, flags, 0o600, dir_fd=dir_fd)
        try:
            # Not by umask: that is the caller's, and can only take away.
            os.fchown(self._fd, -1, gid)
            os.fchmod(self._fd, mode)
        except OSError:
            os.close(self._fd)
            raise

    def put(self, payload: bytes) -> None:
        """Add a record to what the next ``flush`` writes."""
        data = segment.frame(payload, self.next_seq, self._seed)
        self._unwritten.append(data)
        self.size += len(data)
        self.next_seq += 1

    def flush(self, *, reserve: bool = False) -> None:
        """Write what was put, make it durable, and only then count it as acknowledged.

        After an error of a write the rest stays, and may be flushed again if the disk was only full. ``reserve``: the
        space that was kept back may be used.
        """
        self.doing = "fallocate"
        self._allocate(reserve=reserve)
        self.doing = "pwrite"
        self._write()
        self.doing = "fdatasync"
        os.fdatasync(self._fd)
        if not self._entry_durable:
            self.doing = "fsync of the folder"
            os.fsync(self._dir_fd)
            self._entry_durable = True
        self.acked_seq = self.next_seq

    def close(self) -> None:
        """Let go of the file, and of what was allocated behind its end."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._written)
        os.close(self._fd)

    def _allocate(self, *, reserve: bool) -> None:
        wanted = self.size if reserve else self.size + RESERVE_BYTES
        if wanted <= self._allocated:
            return
        for ahead in (wanted + STEP_BYTES, wanted):
            try:
                done = space.allocate(self._fd, self._allocated, ahead - self._allocated)
            except OSError:
                if ahead > wanted:
                    continue  # what is needed may still be there
                raise
            self._allocated = ahead if done else 1 << 62
            return

    def _write(self) -> None:
        # At explicit positions: after a short or failed write the rest goes exactly where it belongs.
        data = memoryview(b"".join(self._unwritten))
        at = 0
        try:
            while at < len(data):
                at += os.pwrite(self._fd, data[at:], self._written + at)
        finally:
            self._written += at
            self._unwritten = [bytes(data[at:])] if at < len(data) else []
