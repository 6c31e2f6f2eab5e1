"""``anchors/`` of a log: its checkpoints with the cosignatures of a collector, as files ``SIZE.NAME``.

Kept are the newest ones and the last of each day (UTC, by the time in the cosignature's file): what an auditor needs
later is one from shortly before the moment in question, not one for each second.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.log import folder

if TYPE_CHECKING:
    from pathlib import Path

KEEP_NEWEST = 64
"""A minute of a busy host."""
PRUNE_EVERY = 64
"""Anchors stored between two looks at the folder."""

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]")
_ANCHOR = re.compile(r"([0-9]{1,19})\.(.+)\Z")


class _Anchor(NamedTuple):
    size: int
    day: str
    path: Path


class Anchors:
    """The anchors of the log in ``log_dir`` from one collector. Methods raise StoreError, PrivilegeError."""

    def __init__(self, log_dir: Path) -> None:
        self._folder = log_dir / folder.ANCHORS
        self._since_prune = PRUNE_EVERY

    def store(self, size: int, name: str, cosigned: str) -> Path:
        """Keep a cosigned checkpoint; ``name`` is the cosigner's. Return its path."""
        safe = _NOT_IN_A_NAME.sub("-", name).lstrip(".") or "-"
        path = self._folder / f"{size}.{safe}"
        try:
            log_dir = self._folder.parent.stat()
            if not self._folder.is_dir():
                self._folder.mkdir(log_dir.st_mode & 0o750)
            mode = 0o600 | log_dir.st_mode & 0o040
            folder.replace_file(path, cosigned.encode(), mode=mode, gid=self._folder.stat().st_gid)
            self._since_prune += 1
            if self._since_prune >= PRUNE_EVERY:
                self._prune(safe)
                self._since_prune = 0
        except OSError as e:
            raise folder.failure(e, f"cannot keep the cosigned checkpoint {path}") from e
        return path

    def _prune(self, name: str) -> None:
        found = sorted(self._of(name), reverse=True)
        for newer, anchor in zip(found[KEEP_NEWEST - 1 :], found[KEEP_NEWEST:], strict=False):
            if anchor.day == newer.day:
                anchor.path.unlink(missing_ok=True)

    def _of(self, name: str) -> list[_Anchor]:
        # Of this collector alone: timestamps, and other collectors' anchors, are not ours to remove.
        found = []
        for path in self._folder.iterdir():
            match = _ANCHOR.match(path.name)
            if match is not None and match[2] == name:
                day = time.strftime("%Y-%m-%d", time.gmtime(path.stat().st_mtime))
                found.append(_Anchor(int(match[1]), day, path))
        return found
