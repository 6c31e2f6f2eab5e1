"""Whether some process holds a file's flock, without taking it: a question must not make an answer fail.

A lock that was tried for a moment would refuse the recorder that starts in that moment; /proc/locks tells as well.
"""

from __future__ import annotations

import os
from pathlib import Path

_LOCKS = Path("/proc/locks")


def is_held(path: Path) -> bool:
    """Whether a process of this host holds an flock on ``path``. Raises OSError except for a missing file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    lines = _LOCKS.read_text(encoding="ascii").splitlines()
    return any(" FLOCK " in line and f" {wanted} " in line for line in lines)
