"""Compile, load, attach and pin the probes, then get out of the way.

The only module that imports bcc. BCC maps LLVM into the process (about 120 MB), so this runs in a short-lived
command: what it leaves behind are pins under bpffs, and capture goes on with no process of ours at all.
Links are pinned last and in the order of hooks.HOOKS; a failure on the way unpins everything.

What is attached to a tracepoint is a line that calls a slot of a program array, because the kernel replaces the program
of a cgroup link and of a slot between two runs, but not that of a tracepoint's link. So newer probes take the place of
older ones without a moment in which an event meets none of them, or both. Cilium replaces its programs in this way.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import os
import resource
import struct
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentwatch import __version__
from agentwatch.errors import BusyError, KernelError, PrivilegeError, ProbeLoadError, ProbesNotLoaded
from agentwatch.kernel import abi, bpf, build, hooks, pins, uprobes
from agentwatch.kernel.btf import Btf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.config import Config

_SEED_ROUNDS = 16
"""Looks for processes that were there before; each round finds only what was forked by those it just found."""
_ERROR_LINES = 12
_TAG = struct.Struct("<Q24x")
"""``struct tag`` of maps.h, with nothing known yet but the cgroup."""


def load(config: Config) -> pins.Loaded:
    """Load and pin the probes; return what was loaded.

    Raises PrivilegeError (not root), BusyError (there are pins already), KernelError (something is missing) or
    ProbeLoadError (the compiler or the verifier refused; the message ends with its last lines).
    """
    _prepare(config, "loading")
    if pins.is_loaded(config):
        raise BusyError(
            f"probes are loaded at {config.pin_dir} already; replace them: agentwatch probes upgrade, "
            "or unload them first: agentwatch probes unload"
        )
    build_ = _Build(config, config.ring_bytes, hooks.slots())
    pins.remove(config)  # what a load that was killed may have left
    pins.make_dirs(config)
    try:
        with _compiled(build_) as module:
            _attach_all(build_, module)
        scan = _hook_libraries(config, _seed(config))
    except BaseException:
        pins.remove(config)
        raise
    now = time.time_ns()
    loaded = pins.Loaded(
        version=__version__,
        abi=abi.VERSION,
        watch=config.watch,
        cgroup_id=build_.watch.cgroup_id,
        probe_mode="tracepoint",
        ring_bytes=config.ring_bytes,
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        loaded_at=now,
        upgraded_at=now,
        source_sha256=build_.sha256,
        layout_sha256=build.layout(build_.directory),
        slots=build_.slots,
        scanned_files=scan.files,
        scanned_seconds=scan.seconds,
        libraries=[library.path for library in scan.libraries],
        scan_problem=scan.problem,
    )
    pins.write_status(config, loaded)
    return loaded


def upgrade(config: Config) -> pins.Loaded:
    """Replace the loaded probes by this build's, between two events; return what is loaded now.

    The maps stay, and with them the ring and everything that is known: nothing is lost, nothing is seen twice, and a
    recorder goes on. Raises ProbesNotLoaded, and KernelError if the maps of the two builds differ, beside what ``load``
    raises; then the old probes are still there.
    """
    _prepare(config, "replacing")
    pins.require(config)
    before = pins.read_status(config)
    build_ = _Build(config, before.ring_bytes, hooks.slots(before.slots))
    layout = build.layout(build_.directory)
    if (before.abi, before.layout_sha256) != (abi.VERSION, layout) or before.watch != config.watch:
        raise KernelError(
            f"the probes at {config.pin_dir} (version {before.version}, watching {before.watch}) keep their state in "
            "another form; unload and load them: what happens in between is not recorded"
        )
    if missing := [name for name in hooks.MAPS if not (pins.maps_dir(config) / name).exists()]:
        raise KernelError(
            f"the pins of the maps {', '.join(missing)} are gone from {config.pin_dir}: what the probes know cannot be "
            "taken up; unload and load them: what happens in between is not recorded"
        )
    with _compiled(build_) as module:
        programs = _load_all(module)
        with pins.changing(config):
            _replace_all(build_, module, programs)
            loaded = dataclasses.replace(
                before,
                version=__version__,
                upgraded_at=time.time_ns(),
                source_sha256=build_.sha256,
                slots=build_.slots,
            )
            pins.write_status(config, loaded)
    return loaded


def _prepare(config: Config, doing: str) -> None:
    if os.geteuid() != 0:
        raise PrivilegeError(f"{doing} probes needs root: run it with sudo")
    pins.prepare_mounts(config)
    with contextlib.suppress(ValueError):  # kernels before 5.11 charge maps to it; refused without CAP_SYS_RESOURCE
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class _Build:
    """What is compiled, and for what."""

    def __init__(self, config: Config, ring_bytes: int, slots: dict[str, int]) -> None:
        self.config = config
        self.slots = slots
        self.directory = build.probes_dir()
        self.watch = _watch(config, ring_bytes)
        self.text = f"{build.source(self.directory)}\n{build.dispatchers(slots)}\n"
        self.flags = build.flags(self.text, Btf.of_kernel(), self.watch)
        self.sha256 = hashlib.sha256(self.text.encode()).hexdigest()


@contextlib.contextmanager
def _compiled(build_: _Build) -> Iterator[Any]:
    """Compile; yield BCC's module. Whatever goes wrong until its end is a ProbeLoadError with the compiler's words."""
    with _quiet() as output:
        try:
            module = _compile(build_)
            try:
                yield module
            finally:
                module.cleanup()
        except Exception as e:
            if isinstance(e, KernelError | PrivilegeError):
                raise
            raise ProbeLoadError(f"the probes did not load: {e}\n{_last_lines(output)}") from e


def _watch(config: Config, ring_bytes: int) -> build.Watch:
    """Make the watch root if it is missing and say what the probes compare with."""
    try:
        config.watch_path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise KernelError(f"cannot make the watch root {config.watch_path}: {e.strerror}") from e
    root = config.watch_path
    return build.Watch(root.stat().st_ino, _level(root), ring_bytes, pins.maps_dir(config))


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


def _compile(build_: _Build) -> Any:
    os.environ["BCC_KERNEL_SOURCE"] = str(build_.directory / "headers")
    try:
        from bcc import BPF  # noqa: PLC0415 -- maps LLVM; only a load may pay for it
    except ImportError as e:
        raise ProbeLoadError("python3-bpfcc is not installed; install it: apt-get install python3-bpfcc") from e
    return BPF(text=build_.text, cflags=build_.flags)


def _attach_all(build_: _Build, module: Any) -> None:
    """Load every program and attach it for the first time."""
    programs = _load_all(module)
    _fill(module, "rings", 0, module["ring"].map_fd)
    _fill_slots(build_, module, programs)
    for hook in hooks.HOOKS:
        _attach_and_pin(build_, module, hook, programs[hook.program])
    for name in hooks.LIBRARY_PROGRAMS:
        bpf.obj_pin(_load_uprobe(module, build.dispatcher(name)), pins.programs_dir(build_.config) / name)


def _replace_all(build_: _Build, module: Any, programs: dict[str, int]) -> None:
    """Put every program in the place of the one that is there; attach what is not, or no longer."""
    _fill(module, "rings", 0, module["ring"].map_fd)
    _fill_slots(build_, module, programs)
    links = pins.links_dir(build_.config)
    for hook in hooks.HOOKS:
        if not _replace(links / hook.link, hook, programs[hook.program]):
            _attach_and_pin(build_, module, hook, programs[hook.program])
    for pin in set(links.iterdir()) - {links / hook.link for hook in hooks.HOOKS}:
        pin.unlink()  # a hook that this build does not have


def _replace(pin: Path, hook: hooks.Hook, program: int) -> bool:
    """Give a pinned link the program, where links have one; whether there is such a link and it is attached."""
    try:
        link = bpf.obj_get(pin)
    except ProbesNotLoaded:
        return False
    try:
        if isinstance(hook.target, str):
            return True
        if not bpf.link_info(link).cgroup:
            pin.unlink()  # somebody detached it, and that is for good
            return False
        bpf.link_update(link, program, hook.program)
    finally:
        os.close(link)
    return True


def _load_all(module: Any) -> dict[str, int]:
    """Have the kernel verify everything before anything changes."""
    programs = {
        name: module.load_func(name, int(kind), attach_type=attach_type).fd
        for name, (_, kind, attach_type) in hooks.CONTINUATIONS.items()
    }
    for hook in hooks.HOOKS:
        if hook.program not in programs:
            attach_type = -1 if isinstance(hook.target, str) else int(hook.target)
            programs[hook.program] = module.load_func(hook.program, int(hook.type), attach_type=attach_type).fd
    for name in hooks.LIBRARY_PROGRAMS:
        programs[name] = _load_uprobe(module, name)
    return programs


def _load_uprobe(module: Any, name: str) -> int:
    kind, attach_type = hooks.ProgramType.KPROBE, hooks.AttachType.UPROBE_MULTI
    fd: int = module.load_func(name, int(kind), attach_type=int(attach_type)).fd
    return fd


def _fill_slots(build_: _Build, module: Any, programs: dict[str, int]) -> None:
    for name, (table, _, _) in hooks.CONTINUATIONS.items():
        _fill(module, table, 0, programs[name])
    for program, kind in hooks.dispatched().items():
        _fill(module, hooks.DISPATCHED[kind], build_.slots[program], programs[program])


def _fill(module: Any, table: str, slot: int, fd: int) -> None:
    bpf.map_update(module[table].map_fd, struct.pack("<I", slot), struct.pack("<I", fd))


def _attach_and_pin(build_: _Build, module: Any, hook: hooks.Hook, program: int) -> None:
    if hook.type in hooks.DISPATCHED:
        program = module.load_func(build.dispatcher(hook.program), int(hook.type)).fd
    cgroup = os.open(build_.config.watch_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        link = _attach(hook, program, cgroup)
        try:
            bpf.obj_pin(link, pins.links_dir(build_.config) / hook.link)
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


def _hook_libraries(config: Config, processes: set[int]) -> uprobes.Scan:
    """Attach to the TLS libraries that are installed, and to those that watched processes have mapped already."""
    attacher = uprobes.Uprobes(config)
    try:
        found = attacher.scan_processes(sorted(processes))
        scan = attacher.scan(config.tls.scan)
    finally:
        attacher.close()
    return scan._replace(libraries=(*found, *scan.libraries))


def _seed(config: Config) -> set[int]:
    """Tag the processes that were in the watched cgroups before the probes were; return them.

    The hooks are attached already, so a child forked meanwhile is tagged by its parent or found in the next round.
    """
    tags = pins.open_map(config, "tags")
    try:
        known: set[int] = set()
        for _ in range(_SEED_ROUNDS):
            found = dict(_members(config.watch_path))
            if found.keys() <= known:
                break
            for tgid in found.keys() - known:
                bpf.map_update(tags, struct.pack("<I", tgid), _TAG.pack(found[tgid]))
            known |= found.keys()
    finally:
        os.close(tags)
    return known


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
