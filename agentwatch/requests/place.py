"""Where the socket is: ``run_dir``, which the reader group may pass through and not look into.

What lies in ``run_dir`` beside the socket is private by its own mode (0600, folders 0700).
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from agentwatch.errors import PrivilegeError, StoreError
from agentwatch.requests.wire import SOCKET_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SUN_PATH = 108
"""unix(7): bytes of an address, with the zero at its end."""


def prepare_run_dir(run_dir: Path, reader_gid: int | None) -> None:
    """Make the folder if need be, and let the reader group pass: 0710, else 0700. Raises PrivilegeError, StoreError.

    One that everybody may pass through was not made by us; it may be others' too and stays as it is.
    """
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if found.st_uid != os.geteuid():
                raise PrivilegeError(
                    f"{run_dir} belongs to user {found.st_uid}; give it to user {os.geteuid()} (chown)"
                )
            if not found.st_mode & 0o007:
                os.fchown(descriptor, -1, os.getegid() if reader_gid is None else reader_gid)
                os.fchmod(descriptor, 0o700 if reader_gid is None else 0o710)
        finally:
            os.close(descriptor)
    except OSError as e:
        raise StoreError(f"cannot prepare {run_dir} (run_dir): {e.strerror}") from e


@contextlib.contextmanager
def socket_address(run_dir: Path) -> Iterator[str]:
    """Yield the address of the socket, also where its path is longer than an address may be. Raises OSError."""
    path = str(run_dir / SOCKET_NAME)
    if len(os.fsencode(path)) < _SUN_PATH:
        yield path
        return
    descriptor = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)
