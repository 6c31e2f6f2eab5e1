"""What is done with a segment once it is sealed: it is compressed, and marked as append-only.

In: a segment that is not written to any more. Out: ``NAME.segment.zst`` in its place. What always holds:

* the original is removed only after the compressed file was made durable, read back from the disk and found to be the
  same, byte for byte; killed or refused anywhere before, the original is there and counts;
* a segment with damage in it stays as it was found;
* a segment that is pruned meanwhile does not come back.

The mark (``chattr +a``) keeps a sealed file from being changed or removed by mistake, by anyone but who may take it off
again: root with CAP_LINUX_IMMUTABLE.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import struct
import threading
from collections import deque
from typing import TYPE_CHECKING

from agentwatch.errors import AgentwatchError, LogError, StoreError
from agentwatch.log import folder, segment
from agentwatch.log.compressed import Compressed, pack
from agentwatch.log.source import Plain

if TYPE_CHECKING:
    from pathlib import Path

    from agentwatch.log.source import Source

log = logging.getLogger(__name__)

COMPARE_BYTES = 1024 * 1024
MAX_ERRORS = 64
"""Errors a Sealer keeps for the recorder; the oldest goes first. All are logged."""
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
"""linux/fs.h, as on every 64-bit machine that Linux has eBPF for, except PowerPC, MIPS and SPARC."""
FS_APPEND_FL = 0x20
_FLAGS = struct.Struct("l")
_CANNOT = (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM)


def set_append_only(path: Path, *, on: bool) -> bool:
    """Set or clear the append-only attribute; False where the file system has none or the caller may not set it.

    Raises FileNotFoundError, OSError. A file that has it already is not touched.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        before = _FLAGS.unpack(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(_FLAGS.size)))[0]
        after = before | FS_APPEND_FL if on else before & ~FS_APPEND_FL
        if after != before:
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, _FLAGS.pack(after))
    except OSError as e:
        if e.errno in _CANNOT:
            return False
        raise
    finally:
        os.close(fd)
    return True


def compress(path: Path, *, log_id: bytes | None = None, append_only: bool = True) -> bool:
    """Put ``NAME.segment.zst`` in the place of a sealed segment; return whether it has the append-only attribute.

    ``log_id``: None, if the segment's own header is to be believed. Raises FileNotFoundError if the segment is gone;
    LogError if it is damaged or too large, or if what was written is not the same when it is read back; StoreError,
    PrivilegeError. After any of them the segment is as it was.
    """
    first_seq = segment.parse_name(path.name)
    if first_seq is None or segment.is_compressed(path.name):
        raise LogError(f"{path} is not a segment that could be compressed")
    source = Plain(folder.open_segment(path))
    target = path.with_name(path.name + segment.COMPRESSED)
    temporary = folder.temporary_path(target)
    try:
        _write(temporary, source, log_id, first_seq, path.lstat())
        _compare(temporary, source, first_seq)
        return _replace(path, temporary, target, append_only=append_only)
    except FileNotFoundError:
        raise
    except segment.UnsupportedVersionError as e:
        raise folder.unsupported(path, e) from e
    except LogError as e:
        raise LogError(f"cannot compress the segment {path}: {e}") from e
    except OSError as e:
        raise folder.failure(e, f"cannot compress the segment {path}") from e
    finally:
        source.close()
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write(temporary: Path, source: Source, log_id: bytes | None, first_seq: int, like: os.stat_result) -> None:
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchown(fd, like.st_uid, like.st_gid)
        os.fchmod(fd, stat.S_IMODE(like.st_mode))
        for piece in pack(source, log_id, first_seq):
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
        os.fsync(fd)
        # So that reading it back reads the disk and not the memory that it was written from.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _compare(temporary: Path, source: Source, first_seq: int) -> None:
    copy = Compressed(folder.open_segment(temporary), first_seq)
    try:
        size = source.size()
        same = not copy.flaw and copy.size() == size
        for offset in range(0, size, COMPARE_BYTES):
            same = same and source.pread(COMPARE_BYTES, offset) == copy.pread(COMPARE_BYTES, offset)
    finally:
        copy.close()
    if not same:
        raise LogError("what was written reads differently; the disk or the memory fails. The segment stays as it is")


def _replace(path: Path, temporary: Path, target: Path, *, append_only: bool) -> bool:
    if target.exists():
        # Left by a crash, or unpacked by hand; it could not be replaced while it is marked.
        set_append_only(target, on=False)
    temporary.replace(target)
    if not path.exists():
        # Pruned meanwhile. Who prunes removes the plain file first: one of us sees what the other one did.
        target.unlink(missing_ok=True)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    folder.fsync_folder(path.parent)
    path.unlink(missing_ok=True)
    folder.fsync_folder(path.parent)
    return append_only and set_append_only(target, on=True)


class Sealer:
    """Compress the sealed segments of a log, one at a time, in a thread of its own.

    Attributes: ``errors`` (an AgentwatchError for each time that a segment could not be compressed; to be taken out by
    the caller), ``compressed`` (how many were). A segment that is damaged is not tried again; what the disk refused is,
    when the next segment begins.
    """

    def __init__(self, log_dir: Path, *, append_only: bool = True) -> None:
        """Only the process that writes the log may have one. Nothing happens before the first ``tick``."""
        self.errors: deque[AgentwatchError] = deque(maxlen=MAX_ERRORS)
        self.compressed = 0
        self._log_dir = log_dir
        self._append_only = append_only
        self._refused: set[Path] = set()
        self._current_first_seq = -1
        self._due = threading.Event()
        self._closing = False
        # A daemon: a process that ends without ``close`` loses nothing by it.
        self._thread = threading.Thread(target=self._run, name="sealer", daemon=True)
        self._thread.start()

    def tick(self, current_first_seq: int) -> None:
        """Have all segments compressed that begin before this one, the one that is written to or is to be next.

        Cheap; does not wait.
        """
        if current_first_seq != self._current_first_seq:
            self._current_first_seq = current_first_seq
            self._due.set()

    def close(self) -> None:
        """Wait for the segment under way and end; what is left to do, the next Sealer does."""
        self._closing = True
        self._due.set()
        self._thread.join()

    def _run(self) -> None:
        begun = False
        while self._due.wait() and not self._closing:
            self._due.clear()
            try:
                if not begun:
                    self._take_over()
                    begun = True
                self._compress_all()
            except AgentwatchError as e:
                self._keep(e)
            except Exception as e:  # noqa: BLE001 -- nobody would see this thread end; recording must go on
                self._keep(StoreError(f"cannot compress the log {self._log_dir}: {type(e).__name__}: {e}"))

    def _take_over(self) -> None:
        # What a Sealer before this one left unfinished.
        for item in folder.list_segments(self._log_dir):
            if self._append_only and segment.is_compressed(item.path.name):
                set_append_only(item.path, on=True)
        for path in self._log_dir.iterdir():
            if folder.is_temporary(path.name) and segment.parse_name(path.name[1:].removesuffix(".new")) is not None:
                path.unlink()

    def _compress_all(self) -> None:
        segments = folder.list_segments(self._log_dir)
        log_id = folder.find_log_id(segments)
        for item in segments:
            name = item.path.name
            if self._closing or item.first_seq >= self._current_first_seq:
                return
            if segment.is_compressed(name) or item.path in self._refused:
                continue
            try:
                compress(item.path, log_id=log_id, append_only=self._append_only)
                self.compressed += 1
            except FileNotFoundError:
                continue  # it was pruned
            except AgentwatchError as e:
                self._keep(e)
                if isinstance(e, LogError):
                    self._refused.add(item.path)

    def _keep(self, error: AgentwatchError) -> None:
        log.warning("%s", error)
        self.errors.append(error)
