"""Bring a log into order before a writer appends to it: what a crash left is set aside, damage is left as it is.

In: the log's folder, locked by the caller. Out: a Recovery: where to go on. What always holds:

* nothing is lost: bytes that are cut off are first copied to a file beside the segment, made durable there, and no
  file that is already there is overwritten; a file without a whole record is renamed, not removed;
* only the end of the newest segment is cut, and only where no provable record follows;
* a segment with damage in it is not touched; writing goes on in a new one;
* what Recovery counts as in the log has been made durable, or is named in ``faults``.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.log import folder, scan, segment
from agentwatch.log.reader import damaged

if TYPE_CHECKING:
    from pathlib import Path

    from agentwatch.errors import SegmentDamaged
    from agentwatch.log.source import Source

COPY_BYTES = 1024 * 1024


class Fault(NamedTuple):
    """The disk failed a segment. Records ``first_seq`` to ``first_seq + records - 1`` were not acknowledged by it."""

    path: Path
    operation: str
    errno: int
    message: str
    first_seq: int
    records: int


@dataclass(slots=True)
class Recovery:
    """What recovery found; ``torn_bytes`` were set aside in the files ``aside``."""

    next_seq: int = 0
    log_id: bytes | None = None
    torn_bytes: int = 0
    aside: list[Path] = field(default_factory=list)
    damage: list[SegmentDamaged] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def recover(log_dir: Path, dir_fd: int) -> Recovery:
    """Recover the log. Raises OSError, and what ``folder`` raises."""
    result = Recovery()
    segments = folder.list_segments(log_dir)
    result.log_id = folder.find_log_id(segments)
    while segments and not _recover_last(segments.pop(), dir_fd, result):
        pass
    if result.aside:
        os.fsync(dir_fd)
    return result


def _recover_last(last: folder.SegmentFile, dir_fd: int, result: Recovery) -> bool:
    # True: this segment stays, the log ends with it. False: it held nothing and is out of the way.
    name = last.path.name
    if segment.is_compressed(name):
        _accept_compressed(last, result)
        return True
    fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        tail, any_records, damage = _walk(fd, last, result.log_id)
        result.damage += damage
        if not any_records and not damage and tail.plain:
            size = os.fstat(fd).st_size
            if size:
                result.aside.append(set_aside(last.path, dir_fd, folder.TORN))
                result.torn_bytes += size
            else:
                # A file without a byte has nothing to keep.
                os.unlink(name, dir_fd=dir_fd)
            return False
        _go_on_behind(last, tail, result)
        if tail.plain and tail.length and not damage:
            result.aside.append(_cut(fd, last.path, tail, dir_fd))
            result.torn_bytes += tail.length
        _make_durable(fd, last, tail.seq, result)
    finally:
        os.close(fd)
    return True


def _accept_compressed(last: folder.SegmentFile, result: Recovery) -> None:
    # It was whole and durable when it was compressed: nothing of it is cut off, and it may be marked as append-only.
    source = folder.open_source(last.path)
    try:
        tail, _, damage = _walk(source, last, result.log_id)
    finally:
        source.close()
    result.damage += damage
    _go_on_behind(last, tail, result)


def _go_on_behind(last: folder.SegmentFile, tail: scan.Tail, result: Recovery) -> None:
    result.next_seq = tail.seq
    if not tail.plain:
        # Records may lie in there that nobody can count: their numbers are not given out again.
        result.next_seq += max(1, tail.length // segment.MIN_FRAME_BYTES)
        unreadable = scan.Damage(tail.seq, tail.offset, result.next_seq, tail.offset + tail.length, tail.how)
        result.damage.append(damaged(last.path, unreadable))


def _walk(
    source: Source | int, last: folder.SegmentFile, log_id: bytes | None
) -> tuple[scan.Tail, bool, list[SegmentDamaged]]:
    tail = scan.Tail(last.first_seq, 0, 0, plain=True, how="")
    any_records = False
    damage: list[SegmentDamaged] = []
    try:
        for event in scan.walk(source, log_id, last.first_seq):
            if isinstance(event, scan.Tail):
                tail = event
            elif isinstance(event, scan.Damage):
                damage.append(damaged(last.path, event))
            else:
                any_records = True
    except segment.UnsupportedVersionError as e:
        raise folder.unsupported(last.path, e) from e
    return tail, any_records, damage


def _make_durable(fd: int, last: folder.SegmentFile, end: int, result: Recovery) -> None:
    # The writer before may have died between write and fdatasync. If it cannot be made durable now, that is not
    # tried again: which of these records the disk has is not known, and the fault says so.
    try:
        os.fsync(fd)
    except OSError as e:
        count = end - last.first_seq
        result.faults.append(Fault(last.path, "fsync", e.errno or 0, str(e.strerror), last.first_seq, count))


def _cut(fd: int, path: Path, tail: scan.Tail, dir_fd: int) -> Path:
    # The copy is durable before the cut, so that a crash in between leaves both.
    name, copy = _create_aside(path.name, dir_fd, folder.TORN)
    try:
        _copy(fd, copy, tail.offset, tail.length)
        os.fsync(copy)
    finally:
        os.close(copy)
    os.fsync(dir_fd)
    os.ftruncate(fd, tail.offset)
    return path.with_name(name)


def _copy(source: int, target: int, offset: int, length: int) -> None:
    end = offset + length
    while offset < end:
        data = os.pread(source, min(COPY_BYTES, end - offset), offset)
        if not data:
            raise OSError(errno.EIO, "the segment became shorter while its end was copied")
        offset += os.write(target, data)


def set_aside(path: Path, dir_fd: int, why: str) -> Path:
    """Rename a segment so that it is none; return its new path. Overwrites nothing."""
    name, fd = _create_aside(path.name, dir_fd, why)
    os.close(fd)
    os.rename(path.name, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    return path.with_name(name)


def _create_aside(name: str, dir_fd: int, why: str) -> tuple[str, int]:
    # The first free name of NAME.why, NAME.why.2, ...; created at once so that it is ours.
    number = 1
    while True:
        aside = f"{name}.{why}" if number == 1 else f"{name}.{why}.{number}"
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            return aside, os.open(aside, flags, 0o600, dir_fd=dir_fd)
        except FileExistsError:
            number += 1
