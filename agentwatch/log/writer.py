"""Append records to a log: group commit, segments, and what to do when the disk fails.

In: payloads, each with at least one byte. Out: sequence numbers, and files as README.md describes them. What
always holds:

* a record below ``durable_seq`` is on disk: its segment was fdatasynced, the segment's entry in the folder fsynced;
* a record is waiting in memory until that is so. ``append`` without a ``commit`` promises nothing;
* fsync is never tried twice on the same file: after a failure the kernel may have dropped the pages and call them
  clean (https://wiki.postgresql.org/wiki/Fsync_Errors). That file is left as it is, what was not acknowledged
  is written again into a new segment, and the fault is kept in ``faults``;
* a full disk is not a fault: the rest waits and is written where it belongs once there is space. A megabyte that was
  allocated before is left for what has to be said about it (``commit(reserve=True)``);
* a writer appends only to segments that it created itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from agentwatch.errors import BusyError, LogError, PrivilegeError, StoreError
from agentwatch.log import folder, segment
from agentwatch.log.access import Access
from agentwatch.log.appender import Appender
from agentwatch.log.recovery import Fault, recover, set_aside
from agentwatch.log.sealing import set_append_only

if TYPE_CHECKING:
    from types import TracebackType

SEGMENT_BYTES = 64 * 1024 * 1024
SEGMENT_NS = 3600 * 10**9
COMMIT_BYTES = 64 * 1024
COMMIT_NS = 50 * 10**6
MAX_WAITING_BYTES = 256 * 1024 * 1024
"""What may wait in memory while the disk takes nothing; ``append`` refuses beyond it and the caller counts a gap."""
RETRY_NS = 10**9
"""After a StoreError ``commit_if_due`` lets the disk rest so long. ``commit`` tries at once."""
MAX_FAULTS = 256
"""Faults kept for the recorder; it takes them out after each commit. The oldest goes first."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_ASKS_FOR_SPACE = ("fallocate", "pwrite")
OnDurable = Callable[[int, list[bytes]], None]
"""Called with the first sequence number and the payloads of records that have become durable, in order."""


class LogWriter:
    """The one writer of the log in ``log_dir``. Not for use by several threads at once.

    Attributes: ``log_id``, ``next_seq``, ``durable_seq``; ``torn_bytes`` (set aside at opening; 0 normally), ``aside``
    (the files they are in), ``damage`` (a SegmentDamaged for each damage that opening found in the newest segment),
    ``faults`` (a Fault for each failure of the disk that was survived; to be taken out by the caller).
    """

    def __init__(  # noqa: PLR0913 -- facts about the log, each by its name
        self,
        log_dir: Path,
        *,
        reader_gid: int | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        segment_ns: int = SEGMENT_NS,
        log_id: bytes | None = None,
        least_seq: int = 0,
        on_durable: OnDurable | None = None,
    ) -> None:
        """Lock, create and recover. Raises BusyError, PrivilegeError, LogError, StoreError.

        ``log_id``: of a log that begins now. ``least_seq``: numbers before it were given out already, whatever is left
        of their records.
        """
        self._log_dir = log_dir
        self._segment_bytes = segment_bytes
        self._segment_ns = segment_ns
        self._access = Access(reader_gid)
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._oldest_ns = 0
        self._critical = False
        self._retry_ns = 0
        self._on_durable = on_durable
        self._segment: Appender | None = None
        self._segment_began_ns = 0
        with contextlib.ExitStack() as stack:
            try:
                self._dir_fd = _open_folder(log_dir, self._access)
                stack.callback(os.close, self._dir_fd)
                stack.callback(os.close, _lock(log_dir, self._dir_fd))
                self._permit_segments()
                found = recover(log_dir, self._dir_fd)
            except OSError as e:
                raise folder.failure(e, f"cannot open the log {log_dir} for writing") from e
            self._open_files = stack.pop_all()
        self.log_id = found.log_id or log_id or os.urandom(segment.LOG_ID_BYTES)
        self._boot_id = _boot_id()
        self.next_seq = self.durable_seq = max(found.next_seq, least_seq)
        self.torn_bytes = found.torn_bytes
        self.aside = found.aside
        self.damage = found.damage
        self.faults: deque[Fault] = deque(found.faults, MAX_FAULTS)

    def append(self, payload: bytes, *, critical: bool = False) -> int:
        """Take a record and return its sequence number. It waits in memory until the next commit.

        ``critical`` makes a commit due at once. Raises LogError for a payload that is empty or larger than
        ``segment.MAX_PAYLOAD_BYTES``, StoreError when too much is waiting; then the record was not taken.
        """
        size = len(payload)
        if not 0 < size <= segment.MAX_PAYLOAD_BYTES:
            raise LogError(f"a record of {size} bytes cannot be stored: 1 to {segment.MAX_PAYLOAD_BYTES} can")
        if self._waiting_bytes + size > MAX_WAITING_BYTES:
            raise StoreError(f"{self._waiting_bytes} bytes wait to be written to {self._log_dir}: the disk takes none")
        if not self._waiting:
            self._oldest_ns = time.monotonic_ns()
        self._waiting.append(payload)
        self._waiting_bytes += size
        self._critical |= critical
        seq = self.next_seq
        self.next_seq += 1
        return seq

    def commit_if_due(self, now_ns: int) -> bool:
        """Commit if the oldest record has waited 50 ms, 64 KiB wait, or a critical one does; True if it did.

        ``now_ns`` is CLOCK_MONOTONIC. Raises as ``commit`` does.
        """
        if not self._waiting or now_ns < self._retry_ns:
            return False
        due = self._critical or self._waiting_bytes >= COMMIT_BYTES or now_ns - self._oldest_ns >= COMMIT_NS
        if due:
            self.commit()
        return due

    @property
    def segment_seq(self) -> int:
        """The first record of the segment that is written to, or will be."""
        return self.durable_seq if self._segment is None else self._segment.first_seq

    @property
    def waiting_bytes(self) -> int:
        """Bytes of records that are not durable yet."""
        return self._waiting_bytes

    def commit(self, *, reserve: bool = False) -> None:
        """Make every record that was appended durable.

        ``reserve``: also with the space that is kept back for the last words. Raises StoreError if the disk is full or
        fails twice; what was not acknowledged keeps waiting, appending goes on, and the next commit tries again (on a
        new file, unless the disk was only full).
        """
        failed = False
        while self._waiting:
            try:
                self._store_some(reserve=reserve)
            except OSError as e:
                self._after_failure(e)
                if failed or e.errno in NO_SPACE:
                    self._retry_ns = time.monotonic_ns() + RETRY_NS
                    raise self._store_error(e) from e
                failed = True
        self._critical = False
        self._retry_ns = 0

    def close(self) -> None:
        """Commit and let go of the log. Raises as ``commit`` does; the log is closed even then."""
        try:
            self.commit()
        finally:
            self._seal()
            self._open_files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def retry(self) -> None:
        """Let the next ``commit_if_due`` try at once: there is room again, or there may be."""
        self._retry_ns = 0

    def drop_waiting(self) -> int:
        """Give up the records that are not durable; return how many. Their numbers are given out again."""
        dropped = self.next_seq - self.durable_seq
        if self._segment is not None and self._segment.next_seq != self._segment.acked_seq:
            self._seal()  # some of their bytes may be in it: a later segment takes their place
        self._waiting.clear()
        self._waiting_bytes = 0
        self.next_seq = self.durable_seq
        return dropped

    def _store_some(self, *, reserve: bool) -> None:
        # Fills one segment as far as it goes, so that no more than one file waits for its fdatasync.
        if self._segment is not None and self._is_full(self._segment):
            self._seal()
        current = self._segment or self._begin()
        for payload in self._waiting[current.next_seq - self.durable_seq :]:
            if not self._fits(current, payload):
                break
            current.put(payload)
        current.flush(reserve=reserve)
        first, done = self.durable_seq, current.acked_seq - self.durable_seq
        durable = self._waiting[:done]
        self._waiting_bytes -= sum(map(len, durable))
        del self._waiting[:done]
        self.durable_seq = current.acked_seq
        if self._on_durable is not None:
            self._on_durable(first, durable)

    def _fits(self, current: Appender, payload: bytes) -> bool:
        # Every segment takes one record, however large.
        more = segment.FRAME_BYTES + len(payload)
        return current.next_seq == current.first_seq or current.size + more <= self._segment_bytes

    def _is_full(self, current: Appender) -> bool:
        if current.next_seq != current.acked_seq or current.acked_seq == current.first_seq:
            return False
        aged = time.monotonic_ns() - self._segment_began_ns >= self._segment_ns
        return aged or not self._fits(current, self._waiting[0])

    def _begin(self) -> Appender:
        header = segment.Header(self.durable_seq, time.time_ns(), self._boot_id, self.log_id)
        try:
            current = Appender(self._dir_fd, header, self._access.mode, self._access.gid)
        except FileExistsError:
            # The disk failed a new segment before it held one acknowledged record.
            path = self._log_dir / segment.segment_name(self.durable_seq)
            self.aside.append(set_aside(path, self._dir_fd, folder.UNSYNCED))
            current = Appender(self._dir_fd, header, self._access.mode, self._access.gid)
        self._segment = current
        self._segment_began_ns = time.monotonic_ns()
        return current

    def _after_failure(self, error: OSError) -> None:
        current = self._segment
        if current is None:
            # No file could be made: nothing is in doubt.
            return
        if current.doing in _ASKS_FOR_SPACE and error.errno in NO_SPACE:
            return
        path = self._log_dir / current.name
        count = current.next_seq - current.acked_seq
        message = error.strerror or str(error)
        self.faults.append(Fault(path, current.doing, error.errno or 0, message, current.acked_seq, count))
        self._seal()

    def _seal(self) -> None:
        # A sealed segment is one that a later one follows; nothing is written to say so.
        if self._segment is not None:
            # What mattered was reported by fdatasync; an error of close says nothing more.
            with contextlib.suppress(OSError):
                self._segment.close()
            self._segment = None

    def _store_error(self, error: OSError) -> StoreError:
        what = "the disk is full; make space" if error.errno in NO_SPACE else "the disk fails; see the kernel's log"
        waiting = self.next_seq - self.durable_seq
        return StoreError(
            f"cannot write to the log {self._log_dir}: {error.strerror}: {what}. "
            f"{waiting} records wait in memory, all before them are safe"
        )

    def _permit_segments(self) -> None:
        # The reader group may have been configured after these were written.
        for item in folder.list_segments(self._log_dir):
            now = os.stat(item.path.name, dir_fd=self._dir_fd, follow_symlinks=False)
            if not stat.S_ISREG(now.st_mode):
                raise LogError(f"{item.path} is not a plain file; move it out of the log")
            if stat.S_IMODE(now.st_mode) != self._access.mode or now.st_gid != self._access.gid:
                marked = segment.is_compressed(item.path.name) and set_append_only(item.path, on=False)
                os.chown(item.path.name, -1, self._access.gid, dir_fd=self._dir_fd, follow_symlinks=False)
                os.chmod(item.path.name, self._access.mode, dir_fd=self._dir_fd)
                if marked:
                    set_append_only(item.path, on=True)


def _open_folder(log_dir: Path, access: Access) -> int:
    if not log_dir.exists():
        log_dir.mkdir(mode=0o700, parents=True)
        folder.fsync_folder(log_dir.parent)
    fd = os.open(log_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _refuse_unfit(log_dir, os.fstat(fd).st_uid)
        os.fchown(fd, -1, access.gid)
        os.fchmod(fd, access.folder_mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refuse_unfit(log_dir: Path, owner: int) -> None:
    if owner != os.geteuid():
        raise PrivilegeError(
            f"the folder {log_dir} belongs to user {owner}, who could change the log; "
            f"give it to user {os.geteuid()} (chown), or run as its owner"
        )
    names = [path.name for path in log_dir.iterdir()]
    if names and not any(name == folder.LOCK_NAME or segment.parse_name(name) is not None for name in names):
        # Closing a folder like /var/log to everybody else would be a bad way to learn of a typing error.
        raise LogError(f"the folder {log_dir} holds files but no log; give the log a folder of its own (log_dir)")


def _lock(log_dir: Path, dir_fd: int) -> int:
    # A file that readers cannot open: flock on the folder or a segment could be held by any of them.
    fd = os.open(folder.LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=dir_fd)
    try:
        os.fchmod(fd, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(fd)
        raise BusyError(f"another process writes to the log {log_dir}; stop that recorder first") from e
    except BaseException:
        os.close(fd)
        raise
    return fd


def _boot_id() -> bytes:
    return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes
