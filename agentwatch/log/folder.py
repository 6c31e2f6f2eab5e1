"""The log as a folder of files: which segments there are, in order, and the log's id.

A folder may hold more than segments: ``writer.lock``, what recovery kept aside, Merkle tiles, checkpoints. Only names
that are exactly a segment's name are segments.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import TYPE_CHECKING, NamedTuple

import msgpack

from agentwatch.errors import AgentwatchError, LogError, NotFoundError, PrivilegeError, StoreError
from agentwatch.log import segment
from agentwatch.log.compressed import Compressed
from agentwatch.log.source import Plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agentwatch.log.source import Source

LOCK_NAME = "writer.lock"
PRUNED = "pruned"
PRUNE = "prune"
HOLDS = "holds"
ANCHORS = "anchors"
SET_ASIDE = "broken-"
"""How the name of a folder begins in which there is a whole log that was not continued."""
TORN = "torn"
"""Kept aside at opening: what a crash left of a write."""
UNSYNCED = "unsynced"
"""Kept aside while running: a segment of which no record was acknowledged because the disk failed it."""

_ASIDE = re.compile(rf"[0-9]{{20}}\.segment\.({TORN}|{UNSYNCED})(\.[0-9]+)?\Z")
_TEMPORARY = re.compile(r"\..+\.new\Z")


class SegmentFile(NamedTuple):
    """A segment by its name; it may be compressed, ``open_source`` knows."""

    first_seq: int
    path: Path


def list_segments(log_dir: Path) -> list[SegmentFile]:
    """Return the segments in order. Raises NotFoundError, PrivilegeError, StoreError.

    Where a segment is there both as it was written and compressed, it is the former that counts.
    """
    try:
        names = [path.name for path in log_dir.iterdir()]
    except FileNotFoundError as e:
        raise NotFoundError(f"there is no log at {log_dir}; the recorder makes it (agentwatch record)") from e
    except OSError as e:
        raise failure(e, f"cannot list the log {log_dir}") from e
    # Names sort so that the plain one is the first of both; from the last on, it replaces the other.
    found = {
        first: log_dir / name for name in sorted(names, reverse=True) if (first := segment.parse_name(name)) is not None
    }
    return [SegmentFile(first, found[first]) for first in sorted(found)]


def is_aside(name: str) -> bool:
    """Tell whether a file name is one that recovery gives to what it keeps aside."""
    return _ASIDE.match(name) is not None


def is_temporary(name: str) -> bool:
    """Tell whether a file name is one that ``temporary_path`` gives: a file that was not finished."""
    return _TEMPORARY.match(name) is not None


def temporary_path(path: Path) -> Path:
    """Return the name that a file has until it is whole."""
    return path.with_name(f".{path.name}.new")


def open_source(path: Path) -> Source:
    """Open a segment, plain or compressed. Raises FileNotFoundError if it is gone, else as ``failure`` says.

    One that was compressed since it was listed is opened all the same: its bytes are the same, too.
    """
    first_seq = segment.parse_name(path.name) or 0
    try:
        fd = open_segment(path)
    except FileNotFoundError:
        if segment.is_compressed(path.name):
            raise
        path = path.with_name(path.name + segment.COMPRESSED)
        fd = open_segment(path)
    try:
        return Compressed(fd, first_seq) if segment.is_compressed(path.name) else Plain(fd)
    except OSError as e:
        os.close(fd)
        raise failure(e, f"cannot read the segment {path}") from e


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Source]:
    """Open a segment for a block, in which errors of reading become those of the tree. Raises as ``open_source``."""
    source = open_source(path)
    try:
        yield source
    except segment.UnsupportedVersionError as e:
        raise unsupported(path, e) from e
    except OSError as e:
        raise failure(e, f"cannot read the segment {path}") from e
    finally:
        source.close()


def created_ns(item: SegmentFile) -> int | None:
    """Return when a segment was created, CLOCK_REALTIME; None if its header is damaged."""
    with reading(item.path) as source:
        try:
            return segment.Header.parse(source.pread(segment.HEADER_BYTES, 0)).created_ns
        except ValueError:
            return None


def open_segment(path: Path) -> int:
    """Return a file descriptor for the file as it is. Raises FileNotFoundError if it is gone, else as ``failure``."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as e:
        raise failure(e, f"cannot open the segment {path}") from e


def find_log_id(segments: list[SegmentFile]) -> bytes | None:
    """Return the log's id from the first header that is right; else what a damaged one claims; else None.

    A segment that vanished meanwhile is passed over.
    """
    claimed: bytes | None = None
    for item in segments:
        try:
            with reading(item.path) as source:
                head = source.pread(segment.HEADER_BYTES, 0)
                return segment.Header.parse(head).log_id
        except FileNotFoundError:
            continue
        except ValueError:
            claimed = claimed or segment.claimed_log_id(head)
    return claimed


def replace_file(path: Path, data: bytes, *, mode: int, gid: int, durable: bool = False) -> None:
    """Write a file as a whole under another name, then give it its own. Raises OSError.

    ``durable``: its content is on disk before it has its name; the name itself is when the folder is fsynced.
    """
    temporary = temporary_path(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchown(fd, -1, gid)
        os.fchmod(fd, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fdatasync(fd)
    finally:
        os.close(fd)
    temporary.replace(path)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def folder_mode(mode: int) -> int:
    """Return the mode of a folder whose files have this one: who may read these may pass."""
    return mode | (mode & 0o444) >> 2


def read_pruned(log_dir: Path) -> list[tuple[int, int]]:
    """Return the ranges [first, next) of records that were pruned, as the copy of the newest ``prune`` record says.

    It is a copy for convenience: ``verify`` goes by the record itself. Raises LogError if it is none, PrivilegeError.
    """
    path = log_dir / PRUNED
    try:
        return pruned_ranges(path.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as e:
        raise failure(e, f"cannot read what was pruned ({path})") from e
    except ValueError as e:
        raise LogError(
            f"{path} is not a copy of a prune record; agentwatch verify says whether the log is whole"
        ) from e


def pruned_ranges(payload: bytes) -> list[tuple[int, int]]:
    """Return the ranges that a ``prune`` record names. Raises ValueError if it is none."""
    try:
        record = msgpack.unpackb(payload, strict_map_key=False)
        kind, ranges = record["kind"], [(first, end) for first, end in record["pruned"]]
    except (KeyError, TypeError, msgpack.UnpackException, RecursionError) as e:
        raise ValueError("it is not a prune record") from e
    if kind != PRUNE or any(type(number) is not int for pair in ranges for number in pair):
        raise ValueError("it is not a prune record with ranges of numbers")
    return ranges


def unsupported(path: Path, error: segment.UnsupportedVersionError) -> LogError:
    """Return the error for a segment of a later format."""
    return LogError(f"{path} has {error}, which this agentwatch does not know; read it with the one that wrote it")


def failure(error: OSError, doing: str) -> AgentwatchError:
    """Return the error of the tree that fits an OSError; ``doing`` begins its message."""
    reason = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return PrivilegeError(f"{doing}: {reason}; run as root, or as a member of the log's reader group")
    if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EISDIR):
        return LogError(f"{doing}: {reason}; a log is a folder of plain segment files")
    return StoreError(f"{doing}: {reason}")
