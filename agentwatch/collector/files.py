"""Files of a host's folder or log: read where they are, epochs by their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentwatch.log import epochs, folder

if TYPE_CHECKING:
    from pathlib import Path


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
    found = ((epochs.parse_file_name(item.name), item) for item in path.iterdir())
    return sorted((seq, item) for seq, item in found if seq is not None)
