"""Where pinned objects lie: names in, paths and open descriptors out; and what a host needs mounted for it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agentwatch.errors import KernelError, PrivilegeError, ProbesNotLoaded
from agentwatch.kernel import bpf, hooks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.config import Config

STATUS_FILE = "probes.json"
LOCK_FILE = "probes.lock"
LOCK_SECONDS = 10
_LOCK_PAUSE_SECONDS = 0.02
_MOUNTS = Path("/proc/self/mounts")
_TRACEFS = Path("/sys/kernel/tracing")
_SLOT_BYTES = 4
_MAX_SLOTS = 1024
"""More than a program array of ours has."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load left behind in ``run_dir/probes.json``: what is watched, by which build, since when."""

    version: str
    abi: int
    watch: str
    cgroup_id: int
    probe_mode: str
    ring_bytes: int
    boot_id: str
    loaded_at: int
    """CLOCK_REALTIME, ns; with boot_id the name of the ring."""
    upgraded_at: int
    """When the programs came that are there now; CLOCK_REALTIME, ns."""
    source_sha256: str
    layout_sha256: str
    """Of what the maps look like: builds that agree in it can share them."""
    slots: dict[str, int]
    """Program -> its place in its program array."""
    scanned_files: int
    """Files that were looked into for TLS libraries, in so many seconds; and those that are libraries, by path."""
    scanned_seconds: float
    libraries: list[str]
    scan_problem: str | None
    """Why one that was found could not be hooked."""


def maps_dir(config: Config) -> Path:
    """Return where the maps are pinned."""
    return config.pin_dir / "maps"


def links_dir(config: Config) -> Path:
    """Return where the links are pinned."""
    return config.pin_dir / "links"


def programs_dir(config: Config) -> Path:
    """Return where the programs are pinned that are attached to files (``hooks.LIBRARY_PROGRAMS``)."""
    return config.pin_dir / "programs"


def files_dir(config: Config) -> Path:
    """Return where the links are pinned that attach them."""
    return config.pin_dir / "files"


def make_dirs(config: Config) -> None:
    """Make the folders of the pins."""
    config.pin_dir.mkdir(mode=0o700, parents=True)
    for directory in (maps_dir, links_dir, programs_dir, files_dir):
        directory(config).mkdir(mode=0o700)


def is_loaded(config: Config) -> bool:
    """Whether probes are pinned; raises PrivilegeError when that cannot be seen."""
    try:
        return any(links_dir(config).iterdir())
    except FileNotFoundError:
        return False
    except PermissionError as e:
        raise PrivilegeError(f"cannot look into {config.pin_dir}: run as root") from e


def require(config: Config) -> None:
    """Raise ProbesNotLoaded unless probes are pinned."""
    if not is_loaded(config):
        raise ProbesNotLoaded(f"no probes are loaded at {config.pin_dir}; load them: agentwatch probes load")


def open_map(config: Config, name: str) -> int:
    """Open a pinned map; the caller closes the descriptor."""
    return bpf.obj_get(maps_dir(config) / name)


def write_status(config: Config, loaded: Loaded) -> None:
    """Leave ``loaded`` for status and the recorder."""
    config.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = config.run_dir / STATUS_FILE
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(loaded), file)
    temporary.replace(path)


def have_status(config: Config) -> bool:
    """Whether a load left something: unloading removes it last."""
    return (config.run_dir / STATUS_FILE).exists()


def read_status(config: Config) -> Loaded:
    """Return what the last load left. Raises ProbesNotLoaded if there is nothing to read."""
    try:
        return Loaded(**json.loads((config.run_dir / STATUS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as e:
        raise ProbesNotLoaded(
            f"{config.run_dir / STATUS_FILE} cannot be read ({e}); unload and load the probes again: agentwatch probes"
        ) from e


@contextlib.contextmanager
def changing(config: Config, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of those who change or compare what is pinned; yield whether it was got.

    The recorder's watchdog must not take an upgrade that is half done for an attack. It holds the lock for
    milliseconds: who waits does so for LOCK_SECONDS at the most, so that a recorder that hangs cannot prevent anything.
    """
    config.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(config.run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + (LOCK_SECONDS if wait else 0)
        while not (got := _try_lock(descriptor)) and time.monotonic() < deadline:
            time.sleep(_LOCK_PAUSE_SECONDS)
        yield got
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove(config: Config) -> int:
    """End capture and unpin everything, links first; return how many links there were.

    A recorder that runs holds the links as well, so unpinning alone would not detach them.
    """
    with changing(config):
        _end_capture(config)
        links = 0
        for directory in sorted(_folders(config), key=lambda folder: folder != links_dir(config)):
            for pin in directory.iterdir():
                pin.unlink()
                links += directory.name == "links"
            directory.rmdir()
        if config.pin_dir.is_dir():
            config.pin_dir.rmdir()
        (config.run_dir / STATUS_FILE).unlink(missing_ok=True)
    return links


def _folders(config: Config) -> list[Path]:
    """Return the folders of pins that there are, also those of another version."""
    return list(config.pin_dir.iterdir()) if config.pin_dir.is_dir() else []


def _end_capture(config: Config) -> None:
    """Detach the cgroup links and empty the slots that the tracepoints call, as far as they can be opened."""
    for pin in links_dir(config).iterdir() if links_dir(config).is_dir() else ():
        with contextlib.suppress(KernelError):
            link = bpf.obj_get(pin)
            try:
                if bpf.link_info(link).cgroup:
                    bpf.link_detach(link, pin.name)
            finally:
                os.close(link)
    for name in hooks.DISPATCHED.values():
        with contextlib.suppress(KernelError, ProbesNotLoaded):
            slots = open_map(config, name)
            try:
                for slot, _ in bpf.map_items(slots, _SLOT_BYTES, _SLOT_BYTES, _MAX_SLOTS):
                    bpf.map_delete(slots, slot)
            finally:
                os.close(slots)


def prepare_mounts(config: Config) -> None:
    """Mount bpffs and tracefs where they are missing. Raises KernelError if pin_dir is on something else."""
    _mount_if_missing("tracefs", _TRACEFS)
    if config.pin_dir.is_relative_to("/sys/fs/bpf"):
        _mount_if_missing("bpf", Path("/sys/fs/bpf"))
    if _file_system_of(config.pin_dir) != "bpf":
        raise KernelError(f"pin_dir {config.pin_dir} is not on a bpf file system; choose a folder below /sys/fs/bpf")


def _file_system_of(path: Path) -> str:
    mounts = [line.split()[1:3] for line in _MOUNTS.read_text(encoding="utf-8").splitlines()]
    return max((m for m in mounts if path.is_relative_to(m[0])), key=lambda m: len(m[0]))[1]


def _mount_if_missing(kind: str, target: Path) -> None:
    mounts = (line.split()[1:3] for line in _MOUNTS.read_text(encoding="utf-8").splitlines())
    if [str(target), kind] in mounts:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", bytes(target), kind.encode(), 0, None):
        raise KernelError(f"cannot mount {kind} on {target}: {os.strerror(ctypes.get_errno())}")
