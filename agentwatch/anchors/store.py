"""What is in a log's ``anchors/``, newest first: read and parsed, none of it proved.

Names in, anchors out: ``SIZE.tsr`` with the ``SIZE.checkpoint`` that it stamps, and cosigned checkpoints
``SIZE.NAME``. What always holds for an Anchor: its checkpoint is one of the size that the name says, its timestamp is
about that checkpoint. Whose they are, and that this log has that tree, is for the caller to check. Other names are
passed over.
"""

from __future__ import annotations

import heapq
import os
import re
import stat
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.anchors import timestamp
from agentwatch.log import folder, note
from agentwatch.log.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime
    from pathlib import Path

FOLDER = folder.ANCHORS
TIMESTAMP = "tsr"
STAMPED = "checkpoint"
CONSISTENCY = "consistency"
"""In bundles: proofs, not anchors."""
MAX_ANCHORS = 100_000
"""Eleven years of one an hour. Of more, the newest are read and the rest is counted: names are held in memory."""

_NAME = re.compile(r"(0|[1-9][0-9]{0,18})\.([A-Za-z0-9_-][A-Za-z0-9._-]*)\Z")


class Anchor(NamedTuple):
    """A proof from elsewhere about a checkpoint.

    ``by``: the NAME of who cosigned, or ``tsr``. ``checkpoint``: the note. ``response``, ``claimed``: what the
    authority answered and the time it claims; None for a cosigned checkpoint.
    """

    name: str
    size: int
    by: str
    checkpoint: bytes
    response: bytes | None
    claimed: datetime | None


class Unfit(NamedTuple):
    """A file that is no anchor though it has the name of one, and why."""

    name: str
    problem: str


def read_anchors(log_dir: Path, limit: int = MAX_ANCHORS) -> Iterator[Anchor | Unfit]:
    """Yield what ``anchors/`` holds, by size, the largest first. Raises PrivilegeError, LogError, StoreError.

    Files are read one by one, so who has enough may stop. If there are more than ``limit`` names, the last one yielded
    is an Unfit that says how many were passed over.
    """
    anchors = log_dir / FOLDER
    try:
        with os.scandir(anchors) as entries:
            names, count = newest((entry.name for entry in entries), limit)
    except FileNotFoundError:
        return
    except OSError as e:
        raise folder.failure(e, f"cannot list {anchors}") from e
    for name in names:
        try:
            yield parse(name, lambda name: _read(anchors / name))
        except (OSError, ValueError) as e:
            yield Unfit(name, f"{anchors / name}: {e}")
    if count > len(names):
        yield Unfit(FOLDER, f"{anchors} holds {count} anchors; only the newest {len(names)} were read")


def newest(names: Iterable[str], limit: int = MAX_ANCHORS) -> tuple[list[str], int]:
    """Return the names that are anchors', the largest sizes first, ``limit`` at most; and how many there are."""
    count = 0

    def sizes() -> Iterator[tuple[int, str]]:
        nonlocal count
        for name in names:
            match = _NAME.match(name)
            if match is not None and match[2] != STAMPED and not name.endswith(f".{CONSISTENCY}"):
                count += 1
                yield int(match[1]), name

    return [name for _, name in heapq.nlargest(limit, sizes())], count


def parse(name: str, read: Callable[[str], bytes]) -> Anchor:
    """Return the anchor of a name that ``newest`` gave. Raises ValueError, and what ``read`` raises.

    ``read`` gives a file's bytes by name, from a folder or a bundle.
    """
    size, _, by = name.partition(".")
    if by != TIMESTAMP:
        checkpoint = read(name)
        _check_size(checkpoint, int(size))
        return Anchor(name, int(size), by, checkpoint, None, None)
    checkpoint = read(f"{size}.{STAMPED}")
    _check_size(checkpoint, int(size))
    response = read(name)
    return Anchor(name, int(size), by, checkpoint, response, timestamp.claimed(response, checkpoint))


def _check_size(checkpoint: bytes, size: int) -> None:
    found = Checkpoint.parse(note.parse(checkpoint).text).size
    if found != size:
        raise note.NoteError(f"the checkpoint is of {found} records, its name says {size}")


def _read(path: Path) -> bytes:
    # In a copy from elsewhere it may be anything: a pipe would be waited for, a link leads out of the log.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError("it is not a plain file")
        return os.pread(fd, max(note.MAX_NOTE_BYTES, timestamp.MAX_RESPONSE_BYTES) + 1, 0)
    finally:
        os.close(fd)
