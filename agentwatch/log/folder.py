"""The log as a folder of files: which segments there are, in order, and the log's id.

A folder may hold more than segments: ``writer.lock``, what recovery kept aside, and later Merkle tiles,
checkpoints and compressed segments. Only names that are exactly a segment's name are segments.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.errors import AgentwatchError, LogError, NotFoundError, PrivilegeError, StoreError
from agentwatch.log import segment

if TYPE_CHECKING:
    from pathlib import Path

LOCK_NAME = "writer.lock"
TORN = "torn"
"""Kept aside at opening: what a crash left of a write."""
UNSYNCED = "unsynced"
"""Kept aside while running: a segment of which no record was acknowledged because the disk failed it."""

_ASIDE = re.compile(rf"[0-9]{{20}}\.segment\.({TORN}|{UNSYNCED})(\.[0-9]+)?\Z")


class SegmentFile(NamedTuple):
    """A segment by its name."""

    first_seq: int
    path: Path


def list_segments(log_dir: Path) -> list[SegmentFile]:
    """Return the segments in order. Raises NotFoundError, PrivilegeError, StoreError."""
    try:
        names = [path.name for path in log_dir.iterdir()]
    except FileNotFoundError as e:
        raise NotFoundError(f"there is no log at {log_dir}; the recorder makes it (agentwatch record)") from e
    except OSError as e:
        raise failure(e, f"cannot list the log {log_dir}") from e
    found = [SegmentFile(first, log_dir / name) for name in names if (first := segment.parse_name(name)) is not None]
    return sorted(found)


def is_aside(name: str) -> bool:
    """Tell whether a file name is one that recovery gives to what it keeps aside."""
    return _ASIDE.match(name) is not None


def open_segment(path: Path) -> int:
    """Return a file descriptor for reading. Raises FileNotFoundError if it is gone, else as ``failure`` says."""
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
            fd = open_segment(item.path)
        except FileNotFoundError:
            continue
        try:
            head = os.pread(fd, segment.HEADER_BYTES, 0)
        except OSError as e:
            raise failure(e, f"cannot read the segment {item.path}") from e
        finally:
            os.close(fd)
        try:
            return segment.Header.parse(head).log_id
        except segment.UnsupportedVersionError as e:
            raise unsupported(item.path, e) from e
        except ValueError:
            claimed = claimed or segment.claimed_log_id(head)
    return claimed


def replace_file(path: Path, data: bytes, *, mode: int, gid: int, durable: bool = False) -> None:
    """Write a file as a whole under another name, then give it its own. Raises OSError.

    ``durable``: its content is on disk before it has its name; the name itself is when the folder is fsynced.
    """
    temporary = path.with_name(f".{path.name}.new")
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
