"""Files that are written as a whole and are on disk, name and content, when the call returns."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.log import folder

if TYPE_CHECKING:
    from pathlib import Path


class Access(NamedTuple):
    """Who may read: ``reader_gid`` None: the owner alone."""

    reader_gid: int | None = None

    @property
    def mode(self) -> int:
        """The mode of files."""
        return 0o600 if self.reader_gid is None else 0o640

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
        path.chmod(0o700 if self.reader_gid is None else 0o750)
        sync_folder(path.parent)

    def write(self, path: Path, content: bytes) -> None:
        """Write a file and its name durably. Raises OSError."""
        folder.replace_file(path, content, mode=self.mode, gid=self.gid, durable=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read(path: Path) -> bytes | None:
    """Return a file's content, None where there is none. Raises StoreError, PrivilegeError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise folder.failure(e, f"cannot read {path}") from e


def epochs_in(path: Path) -> list[tuple[int, Path]]:
    """Return the files of a folder of epochs by their sequence numbers, in order. Raises OSError."""
    if not path.is_dir():
        return []
    return sorted((int(item.name), item) for item in path.iterdir() if item.name.isascii() and item.name.isdigit())


def epoch_name(seq: int) -> str:
    """Return the name of the file of an epoch's record."""
    return f"{seq:020d}"
