"""Who may read a log beside its owner, and files and folders that are made so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.log import folder

if TYPE_CHECKING:
    from pathlib import Path


class Access(NamedTuple):
    """Who may read: the members of ``reader_gid``; None: the owner alone."""

    reader_gid: int | None = None

    @property
    def mode(self) -> int:
        """The mode of files."""
        return 0o600 if self.reader_gid is None else 0o640

    @property
    def folder_mode(self) -> int:
        """The mode of folders."""
        return folder.folder_mode(self.mode)

    @property
    def gid(self) -> int:
        """The group of files and folders."""
        return os.getegid() if self.reader_gid is None else self.reader_gid

    def make_folder(self, path: Path) -> None:
        """Make a folder, and those above it, where there is none. Raises OSError."""
        if path.is_dir():
            return
        self.make_folder(path.parent)
        path.mkdir(0o700)
        os.chown(path, -1, self.gid)
        path.chmod(self.folder_mode)
        folder.fsync_folder(path.parent)

    def write(self, path: Path, content: bytes) -> None:
        """Write a file as a whole, and its name, durably. Raises OSError."""
        folder.replace_file(path, content, mode=self.mode, gid=self.gid, durable=True)
        folder.fsync_folder(path.parent)
