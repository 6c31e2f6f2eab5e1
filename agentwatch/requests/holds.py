"""Which sessions are under legal hold: the file ``holds`` of the log, one id a line (docs/log-format.md).

What always holds: the file is replaced as a whole and durably. One that is not understood is an error, never "none":
what is held must not be removed because of a slip of the pen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentwatch.errors import LogError
from agentwatch.log import folder
from agentwatch.log.access import Access
from agentwatch.requests.wire import is_session

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

FILE = folder.HOLDS
MAX_HOLDS = 10_000
"""Sessions that may be held: the file is read whole, and written whole for each of them."""


def read_holds(log_dir: Path) -> frozenset[str]:
    """Return the ids of the sessions that are held. Raises LogError, PrivilegeError, StoreError."""
    path = log_dir / FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return frozenset()
    except OSError as e:
        raise folder.failure(e, f"cannot read which sessions are held ({path})") from e
    lines = content.decode(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not is_session(line):
            raise LogError(f"line {number} of {path} is no session id; correct it: nothing is pruned until then")
    return frozenset(lines)


def write_holds(log_dir: Path, held: AbstractSet[str], *, reader_gid: int | None = None) -> None:
    """Make these the sessions that are held; on disk when it returns. For the recorder. Raises LogError, StoreError."""
    if len(held) > MAX_HOLDS:
        raise LogError(f"more than {MAX_HOLDS} sessions would be held; release some, or keep the whole log")
    path = log_dir / FILE
    content = "".join(f"{session}\n" for session in sorted(held)).encode()
    try:
        Access(reader_gid).write(path, content)
    except OSError as e:
        raise folder.failure(e, f"cannot write which sessions are held ({path})") from e
