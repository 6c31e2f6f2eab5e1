"""Registrations: who a session is, told by ``agentwatch run`` to the recorder.

``run_dir/sessions/<cgroup_id>.json`` holds one JSON object with the fields of ``Registration``. It is there before
the session's first process enters the cgroup, mode 0600, and is only ever replaced as a whole (a file beside it,
then link or rename), so a reader sees a whole registration or none. Identifiers of cgroups do not survive a
boot: a registration of another boot is none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from agentwatch.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FILE_BYTES = 32 * 1024 * 1024
"""A registration holds one argv, which the kernel limits to 6 MiB; JSON escapes make it at most five times that."""


@functools.cache
def current_boot_id() -> str:
    """Return the identifier of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True, slots=True)
class Registration:
    """One session. ``cgroup`` is relative to cgroup_root, ``boottime`` is CLOCK_BOOTTIME in nanoseconds.

    ``argv`` is decoded as file names are (``os.fsencode`` gives the bytes). ``status`` is the exit status of the
    command, once it ended: 128 + N if signal N ended it.
    """

    session: str
    agent: str
    cgroup: str
    cgroup_id: int
    user: str | None
    uid: int | None
    login_uid: int | None
    argv: list[str] | None
    origin: str
    boottime: int
    status: int | None = None
    boot_id: str = field(default_factory=current_boot_id)


def write(run_dir: Path, registration: Registration) -> None:
    """Write a registration, replacing the one of the same cgroup. Raises StoreError."""
    with _storing(run_dir, registration) as (temporary, final):
        temporary.rename(final)


def claim(run_dir: Path, registration: Registration) -> Registration:
    """Write a registration unless its cgroup has one; return the one that holds. Raises StoreError.

    Recorder and ``agentwatch run`` may meet a new cgroup at the same time: both must mean the same session.
    """
    with _storing(run_dir, registration) as (temporary, final):
        for _ in range(3):
            try:
                final.hardlink_to(temporary)
            except FileExistsError:
                present = load(run_dir, registration.cgroup_id)
                if present is not None:
                    return present
                final.unlink(missing_ok=True)  # of an earlier boot
            else:
                return registration
    raise StoreError(f"registering a session: {final} is made by others again and again; is a second recorder running?")


def set_status(run_dir: Path, cgroup_id: int, status: int) -> None:
    """Add the command's exit status to a registration, if it is still there. Raises StoreError."""
    registration = load(run_dir, cgroup_id)
    if registration is not None:
        write(run_dir, dataclasses.replace(registration, status=status))


def load(run_dir: Path, cgroup_id: int) -> Registration | None:
    """Return the registration of a cgroup of this boot; None if there is none. Raises StoreError if it is broken."""
    path = _path(run_dir, cgroup_id)
    try:
        with path.open("rb") as f:
            content = f.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise StoreError(f"cannot read the session's registration {path}: {e.strerror}") from e
    registration = _parse(content)
    if registration is None or registration.cgroup_id != cgroup_id:
        raise StoreError(f"the session's registration {path} is damaged; remove it to let the recorder make a new one")
    return registration if registration.boot_id == current_boot_id() else None


def load_all(run_dir: Path) -> list[Registration]:
    """Return the registrations of this boot, the oldest first; damaged ones are left out."""
    found: list[Registration] = []
    with contextlib.suppress(FileNotFoundError):
        for path in (run_dir / "sessions").iterdir():
            if path.suffix == ".json" and path.stem.isdecimal():
                with contextlib.suppress(StoreError):
                    registration = load(run_dir, int(path.stem))
                    found += [registration] if registration else []
    return sorted(found, key=lambda registration: registration.boottime)


def remove(run_dir: Path, cgroup_id: int) -> None:
    """Remove a registration: its session ended and that is recorded."""
    _path(run_dir, cgroup_id).unlink(missing_ok=True)


def _path(run_dir: Path, cgroup_id: int) -> Path:
    return run_dir / "sessions" / f"{cgroup_id}.json"


@contextlib.contextmanager
def _storing(run_dir: Path, registration: Registration) -> Iterator[tuple[Path, Path]]:
    """Yield a temporary file with the registration and the path that it is for."""
    final = _path(run_dir, registration.cgroup_id)
    temporary: Path | None = None
    try:
        final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=final.parent, prefix=".registration-")
        temporary = Path(name)
        with os.fdopen(fd, "w", encoding="ascii") as f:
            json.dump(dataclasses.asdict(registration), f)
        yield temporary, final
    except OSError as e:
        raise StoreError(f"cannot write the session's registration {final}: {e.strerror}") from e
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _parse(content: bytes) -> Registration | None:
    try:
        table = json.loads(content)
        registration = Registration(**table)
    except (ValueError, TypeError, RecursionError):
        return None
    argv = registration.argv
    texts = (registration.session, registration.agent, registration.cgroup, registration.origin, registration.boot_id)
    good = (
        all(isinstance(value, str) for value in texts)
        and isinstance(registration.boottime, int)
        and (argv is None or (isinstance(argv, list) and all(isinstance(word, str) for word in argv)))
    )
    return registration if good else None


class _SessionIds:
    """UUIDv7 (RFC 9562 section 5.7): 48 bits of milliseconds, 12 bits that count (6.2 method 1), 62 random bits."""

    _COUNTER_BITS = 12

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0  # milliseconds and counter, one number that only grows

    def next(self, milliseconds: int) -> UUID:
        """Return an identifier above every one before it, also when the clock went back."""
        random = int.from_bytes(os.urandom(10), "big")
        with self._lock:
            # The counter begins in its lower half, so that 2,048 more fit before it carries into the time.
            fresh = milliseconds << self._COUNTER_BITS | random >> 69
            self._last = max(fresh, self._last + 1)
            stamp = self._last
        high = stamp >> self._COUNTER_BITS << 16 | 0x7000 | stamp & 0xFFF
        return UUID(int=high << 64 | 0b10 << 62 | random & (1 << 62) - 1)


_session_ids = _SessionIds()


def new_session_id() -> str:
    """Return a new UUIDv7; within a process each is greater than those before it."""
    return str(_session_ids.next(time.time_ns() // 1_000_000))
