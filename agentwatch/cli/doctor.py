"""``agentwatch doctor``: what this host lacks, what that costs, and what to do about it."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from agentwatch import recorder
from agentwatch.cli.common import pass_config
from agentwatch.cli.output import print_json
from agentwatch.errors import AgentwatchError, KernelError
from agentwatch.kernel import bpf, build, hooks, pins
from agentwatch.kernel.btf import VMLINUX, Btf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentwatch.config import Config

LOW_SPACE_BYTES = 1 << 30
"""Below this much free space for the log the doctor complains: some hours of a busy agent."""
_TRACEPOINTS = Path("/sys/kernel/tracing/events")


class Finding(NamedTuple):
    """One capability: whether it is there; if not, what its lack costs and what to do."""

    name: str
    ok: bool
    detail: str
    cost: str = ""
    remedy: str = ""


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@pass_config
def command(config: Config, *, as_json: bool) -> None:
    """Check everything that agentwatch needs of this host.

    For each thing that is missing: what it costs and what to do. Exit status: 0 nothing is missing, 1 something is.
    """
    healthy = True
    for finding in findings(config):
        healthy = healthy and finding.ok
        if as_json:
            print_json(finding._asdict())
            continue
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.detail}")
        if not finding.ok:
            click.echo(f"     costs: {finding.cost}\n     do:    {finding.remedy}")
    raise SystemExit(0 if healthy else 1)


def findings(config: Config) -> Iterator[Finding]:
    """Yield a finding for each check; a check that cannot be made is itself a finding."""
    for check in CHECKS:
        try:
            yield check(config)
        except AgentwatchError as e:
            yield Finding(check.__name__.strip("_").replace("_", " "), ok=False, detail=str(e), cost="not known")


def _root(_config: Config) -> Finding:
    return Finding(
        "root",
        os.geteuid() == 0,
        f"running as uid {os.geteuid()}",
        "probes cannot be loaded, the log cannot be written or read",
        "run it with sudo",
    )


@functools.cache
def _kernel_types() -> Btf:
    return Btf.of_kernel()  # takes 0.4 s


def _type_information(config: Config) -> Finding:
    """Whether the kernel has every member that the probes read."""
    cost, remedy = "the probes cannot be compiled", "use a kernel with CONFIG_DEBUG_INFO_BTF=y (5.8 or later)"
    if not VMLINUX.exists():
        return Finding("kernel type information", ok=False, detail=f"{VMLINUX} is missing", cost=cost, remedy=remedy)
    try:
        build.flags(
            build.source(build.probes_dir()),
            _kernel_types(),
            build.Watch(0, 0, config.ring_bytes, pins.maps_dir(config)),
        )
    except KernelError as e:
        return Finding("kernel type information", ok=False, detail=str(e), cost=cost, remedy=remedy)
    return Finding("kernel type information", ok=True, detail=f"{VMLINUX} has what the probes read")


def _hooks(_config: Config) -> Finding:
    """Whether the kernel has every tracepoint that is hooked."""
    names = {str(hook.target).rsplit("/", 1)[-1] for hook in hooks.HOOKS if isinstance(hook.target, str)}
    if not _TRACEPOINTS.is_dir():
        return Finding(
            "tracepoints", ok=True, detail="tracefs is not mounted yet; loading the probes mounts it and checks"
        )
    present = {path.parent.name for path in _TRACEPOINTS.glob("*/*/id")}
    missing = sorted(names - present)
    return Finding(
        "tracepoints",
        not missing,
        f"missing: {', '.join(missing)}" if missing else f"all {len(names)} are there",
        "what these hooks see is not captured, so the probes do not load",
        "use a later kernel (sock_send_length and sock_recv_length came with 6.3)",
    )


def _uprobes(_config: Config) -> Finding:
    """Whether the kernel can attach a program to functions in a file by one link."""
    return uprobe_links(_kernel_types())


def uprobe_links(types: Btf) -> Finding:
    """Tell from a kernel's types whether TLS libraries can be hooked."""
    # since 89ae89f53d20 ("bpf: Add multi uprobe link"), with CONFIG_UPROBES
    possible = types.struct_size("bpf_uprobe_multi_link") is not None
    return Finding(
        "uprobes",
        possible,
        f"TLS libraries can{'' if possible else 'not'} be hooked (uprobe_multi links)",
        "what is said over TLS is not read: it is recorded as opaque",
        "use a kernel with CONFIG_UPROBES=y (6.6 or later)",
    )


def _compiler(_config: Config) -> Finding:
    return Finding(
        "BCC",
        importlib.util.find_spec("bcc") is not None,
        "python3-bpfcc is installed" if importlib.util.find_spec("bcc") else "python3-bpfcc is not installed",
        "the probes cannot be compiled",
        "apt-get install python3-bpfcc, and make the virtual environment with --system-site-packages",
    )


def _libbpf(_config: Config) -> Finding:
    try:
        ctypes.CDLL(bpf.LIBRARY)
    except OSError as e:
        return Finding("libbpf", False, str(e), "the recorder cannot open the pins", "apt-get install libbpf1")  # noqa: FBT003 -- ok
    return Finding("libbpf", ok=True, detail=f"{bpf.LIBRARY} is installed")


def _cgroups(config: Config) -> Finding:
    controllers = config.cgroup_root / "cgroup.controllers"
    return Finding(
        "cgroup v2",
        controllers.exists(),
        f"{config.cgroup_root} is {'a' if controllers.exists() else 'no'} cgroup2 mount",
        "agents cannot be watched or told apart",
        "mount cgroup2 (mount -t cgroup2 none DIR) and set cgroup_root",
    )


def _agents(config: Config) -> Finding:
    return Finding(
        "agents",
        bool(config.agents),
        f"{len(config.agents)} configured in {config.path or 'no file (built-in defaults)'}",
        "what happens below the watch root is recorded as the agent 'unidentified'",
        "add an [[agent]] table with a name and a cgroup pattern",
    )


def _probes(config: Config) -> Finding:
    loaded = pins.is_loaded(config)
    return Finding(
        "probes",
        loaded,
        f"pinned at {config.pin_dir}" if loaded else f"not pinned at {config.pin_dir}",
        "nothing is captured",
        "agentwatch probes load",
    )


def _recorder(config: Config) -> Finding:
    running = recorder.is_running(config.run_dir)
    return Finding(
        "recorder",
        running,
        "running" if running else "stopped",
        "the kernel buffers up to ring_bytes; what comes after that is lost and counted",
        "agentwatch record (or start its service)",
    )


def _log(config: Config) -> Finding:
    """Whether the log is private, and has room."""
    cost, remedy = "others could read or change the record", f"chown root {config.log_dir}; chmod 0700 {config.log_dir}"
    try:
        status = config.log_dir.stat()
    except FileNotFoundError:
        return Finding("log", ok=True, detail=f"{config.log_dir} is made when the recorder first starts")
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != 0 or mode & 0o027:
        return Finding("log", ok=False, detail=f"{config.log_dir} has mode {mode:04o}", cost=cost, remedy=remedy)
    space = os.statvfs(config.log_dir)
    free = space.f_bavail * space.f_frsize
    return Finding(
        "log",
        free >= LOW_SPACE_BYTES,
        f"{config.log_dir} is private, {free >> 20} MiB are free",
        "recording stops when the file system is full",
        "make room, or move log_dir",
    )


CHECKS: tuple[Callable[[Config], Finding], ...] = (
    _root,
    _type_information,
    _hooks,
    _uprobes,
    _compiler,
    _libbpf,
    _cgroups,
    _agents,
    _probes,
    _recorder,
    _log,
)
