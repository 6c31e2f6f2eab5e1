"""The cgroup v2 tree as directories: identifiers, processes, making and removing.

Paths are absolute directories below a cgroup2 mount, whether it is the only one or the ``unified`` part of a hybrid
one (``config.find_cgroup2_mount``). A cgroup's identifier is the inode of its directory, the value that
``bpf_get_current_cgroup_id`` gives (kernel commit 67c0496e87d1). A cgroup that vanishes while it is read is empty.
Failures are OSError; the caller knows what it was about.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

REMOVE_ATTEMPTS = 20
REMOVE_PAUSE_SECONDS = 0.005
"""An exiting task is gone from cgroup.procs a moment before its cgroup may be removed."""

_VANISHED = (errno.ENOENT, errno.ENODEV)


def cgroup_id(path: Path) -> int:
    """Return the kernel's identifier of a cgroup."""
    return path.stat().st_ino


def processes(path: Path) -> list[int]:
    """Return the tgids in a cgroup and everything below it, in ascending order."""
    found: set[int] = set()
    for directory in subtree(path):
        try:
            found.update(int(line) for line in (directory / "cgroup.procs").read_bytes().split())
        except OSError as e:
            # EOPNOTSUPP: a threaded cgroup; its processes are listed in the domain above it.
            if e.errno not in (*_VANISHED, errno.EOPNOTSUPP):
                raise
    found.discard(0)  # a process outside our pid namespace
    return sorted(found)


def subtree(path: Path) -> list[Path]:
    """Return a cgroup and all below it, parents first."""
    return [Path(directory) for directory, _, _ in os.walk(path)]


def populated(path: Path) -> bool:
    """Tell whether a process lives in a cgroup or below it."""
    try:
        return "populated 1" in (path / "cgroup.events").read_text().splitlines()
    except OSError as e:
        if e.errno in _VANISHED:
            return False
        raise


def make(path: Path) -> int:
    """Make a cgroup, and its parents where they are missing; return its identifier.

    Raises FileExistsError if it is there already.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.mkdir(mode=0o755)
    return cgroup_id(path)


def place(path: Path, pid: int = 0) -> None:
    """Move a process (0: the calling one) with all its threads into a cgroup."""
    (path / "cgroup.procs").write_text(str(pid))


def remove(path: Path) -> bool:
    """Remove a cgroup and the empty ones below it; False if a process still lives there."""
    for _ in range(REMOVE_ATTEMPTS):
        try:
            for directory in reversed(subtree(path)):
                directory.rmdir()
        except OSError as e:
            if e.errno in _VANISHED:
                return True
            if e.errno != errno.EBUSY:
                raise
            if populated(path):
                return False
            time.sleep(REMOVE_PAUSE_SECONDS)
        else:
            return True
    return False


def path_of(identifier: int, root: Path) -> str | None:
    """Return the path below ``root`` of the cgroup with this identifier; None if there is none.

    Walks the tree (an inode in each directory entry, no stat): for an identifier that no event explained.
    """
    waiting = [str(root)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.inode() == identifier:
                        return os.path.relpath(entry.path, root)
                    waiting.append(entry.path)
    return None
