"""Compile, load, attach and pin the probes, then get out of the way.

The only module that imports bcc. BCC maps LLVM into the process (about 120 MB), so this runs in a short-lived
command: what it leaves behind are pins under bpffs, and capture goes on with no process of ours at all.
Links are pinned last and in the order of hooks.HOOKS; a failure on the way unpins everything.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import resource
import struct
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentwatch import __version__
from agentwatch.errors import BusyError, KernelError, PrivilegeError, ProbeLoadError
from agentwatch.kernel import abi, bpf, build, hooks, pins
from agentwatch.kernel.btf import Btf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.config import Config

_CONTINUATION = "on_more_pieces"
_SEED_ROUNDS = 16
"""Looks for processes that were there before; each round finds only what was forked by those it just found."""
_ERROR_LINES = 12


def load(config: Config) -> pins.Loaded:
    """Load and pin the probes; return what was loaded.

    Raises PrivilegeError (not root), BusyError (there are pins already), KernelError (something is missing) or
    ProbeLoadError (the compiler or the verifier refused; the message ends with its last lines).
    """
    if os.geteuid() != 0:
        raise PrivilegeError("loading probes needs root: run it with sudo")
    pins.prepare_mounts(config)
    if pins.is_loaded(config):
        raise BusyError(f"probes are loaded at {config.pin_dir} already; unload them first: agentwatch probes unload")
    watch = _watch(config)
    directory = build.probes_dir()
    text = build.source(directory)
    flags = build.flags(text, Btf.of_kernel(), watch)
    with contextlib.suppress(ValueError):  # kernels before 5.11 charge maps to it; refused without CAP_SYS_RESOURCE
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    pins.remove(config)  # what a load that was killed may have left
    try:
        with _quiet() as output:
            try:
                _load(config, directory, text, flags)
            except Exception as e:
                if isinstance(e, KernelError | PrivilegeError):
                    raise
                raise ProbeLoadError(f"the probes did not load: {e}\n{_last_lines(output)}") from e
        _seed(config)
    except BaseException:
        pins.remove(config)
        raise
    loaded = pins.Loaded(
        version=__version__,
        abi=abi.VERSION,
        watch=config.watch,
        cgroup_id=watch.cgroup_id,
        probe_mode="tracepoint",
        ring_bytes=config.ring_bytes,
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        loaded_at=time.time_ns(),
        source_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )
    pins.write_status(config, loaded)
    return loaded


def _watch(config: Config) -> build.Watch:
    """Make the watch root if it is missing and say what the probes compare with."""
    try:
        config.watch_path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise KernelError(f"cannot make the watch root {config.watch_path}: {e.strerror}") from e
    return build.Watch(config.watch_path.stat().st_ino, _level(config.watch_path), config.ring_bytes)


def _level(cgroup: Path) -> int:
    """Return how deep a cgroup lies below the kernel's own root, whatever part of it is mounted here."""
    best: tuple[str, str] | None = None
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _, rest = line.partition(" - ")
        root, point = fields.split()[3:5]
        if rest.startswith("cgroup2 ") and cgroup.is_relative_to(point) and len(point) > len(best[1] if best else ""):
            best = root, point
    if best is None:
        raise KernelError(f"{cgroup} is not on a cgroup2 file system; set cgroup_root to its mount")
    return len(Path(best[0]).parts) - 1 + len(cgroup.relative_to(best[1]).parts)


def _load(config: Config, directory: Path, text: str, flags: list[str]) -> None:
    os.environ["BCC_KERNEL_SOURCE"] = str(directory / "headers")
    try:
        from bcc import BPF  # noqa: PLC0415 -- maps LLVM; only a load may pay for it
    except ImportError as e:
        raise ProbeLoadError("python3-bpfcc is not installed; install it: apt-get install python3-bpfcc") from e
    module = BPF(text=text, cflags=flags)
    try:
        _pin_and_attach(config, module)
    finally:
        module.cleanup()


def _pin_and_attach(config: Config, module: Any) -> None:
    programs: dict[str, int] = {}
    for hook in hooks.HOOKS:
        if hook.program not in programs:
            attach_type = -1 if isinstance(hook.target, str) else int(hook.target)
            programs[hook.program] = module.load_func(hook.program, int(hook.type), attach_type=attach_type).fd
    config.pin_dir.mkdir(mode=0o700, parents=True)
    pins.maps_dir(config).mkdir(mode=0o700)
    pins.links_dir(config).mkdir(mode=0o700)
    for name in hooks.MAPS:
        bpf.obj_pin(module[name].map_fd, pins.maps_dir(config) / name)
    slot = struct.pack("<I", 0)
    bpf.map_update(module["rings"].map_fd, slot, struct.pack("<I", module["ring"].map_fd))
    more = module.load_func(_CONTINUATION, int(hooks.ProgramType.RAW_TRACEPOINT)).fd
    bpf.map_update(module["continuation"].map_fd, slot, struct.pack("<I", more))
    cgroup = os.open(config.watch_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for hook in hooks.HOOKS:
            link = _attach(hook, programs[hook.program], cgroup)
            try:
                bpf.obj_pin(link, pins.links_dir(config) / hook.link)
            finally:
                os.close(link)
    finally:
        os.close(cgroup)


def _attach(hook: hooks.Hook, program: int, cgroup: int) -> int:
    if not isinstance(hook.target, str):
        return bpf.attach_cgroup(program, cgroup, int(hook.target), hook.program)
    if hook.type is hooks.ProgramType.RAW_TRACEPOINT:
        return bpf.attach_raw_tracepoint(program, hook.target)
    return bpf.attach_tracepoint(program, hook.target, int(hooks.AttachType.PERF_EVENT))


def _seed(config: Config) -> None:
    """Tag the processes that were in the watched cgroups before the probes were.

    The hooks are attached already, so a child forked meanwhile is tagged by its parent or found in the next round.
    """
    tags = pins.open_map(config, "tags")
    try:
        known: set[int] = set()
        for _ in range(_SEED_ROUNDS):
            found = dict(_members(config.watch_path))
            if found.keys() <= known:
                return
            for tgid in found.keys() - known:
                bpf.map_update(tags, struct.pack("<I", tgid), struct.pack("<Q", found[tgid]))
            known |= found.keys()
    finally:
        os.close(tags)


def _members(root: Path) -> Iterator[tuple[int, int]]:
    """Yield (tgid, cgroup id) of every process in the tree."""
    for directory, _, _ in os.walk(root):
        with contextlib.suppress(OSError):  # a cgroup may go away, and a threaded one has no list
            text = (Path(directory) / "cgroup.procs").read_text(encoding="ascii")
            cgroup = Path(directory).stat().st_ino
            yield from ((int(line), cgroup) for line in text.split())


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Keep what the compiler and the verifier print (up to 300,000 lines) off the terminal."""
    with tempfile.TemporaryFile() as output:
        saved = os.dup(2)
        os.dup2(output.fileno(), 2)
        try:
            yield output
        finally:
            ctypes.CDLL(None).fflush(None)
            os.dup2(saved, 2)
            os.close(saved)


def _last_lines(output: Any) -> str:
    ctypes.CDLL(None).fflush(None)
    output.seek(0)
    return "\n".join(output.read().decode(errors="replace").splitlines()[-_ERROR_LINES:])
