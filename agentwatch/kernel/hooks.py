"""The literal table of hooks: which program of probes/ is attached where.

``probes/README.md`` tells what each one sees.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class ProgramType(IntEnum):
    """The kernel's ``enum bpf_prog_type``, as far as it is used."""

    KPROBE = 2
    """Also of uprobes."""
    TRACEPOINT = 5
    CGROUP_SKB = 8
    CGROUP_SOCK = 9
    RAW_TRACEPOINT = 17
    CGROUP_SOCK_ADDR = 18


class AttachType(IntEnum):
    """The kernel's ``enum bpf_attach_type``, as far as it is used."""

    CGROUP_INET_INGRESS = 0
    CGROUP_INET_EGRESS = 1
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    CGROUP_INET_SOCK_RELEASE = 34
    PERF_EVENT = 41
    UPROBE_MULTI = 48


class Hook(NamedTuple):
    """One attachment: a program, its type, and a tracepoint's name or a cgroup attach type."""

    program: str
    type: ProgramType
    target: str | AttachType

    @property
    def link(self) -> str:
        """The name of the pinned link."""
        return f"{self.program}-{self.target}".replace("/", "-") if isinstance(self.target, str) else self.program


_RAW, _TP = ProgramType.RAW_TRACEPOINT, ProgramType.TRACEPOINT
_SKB, _ADDR = ProgramType.CGROUP_SKB, ProgramType.CGROUP_SOCK_ADDR

# Fork comes first and exit last: a process that begins while the others are being attached is not forgotten.
HOOKS: tuple[Hook, ...] = (
    Hook("on_fork", _RAW, "sched_process_fork"),
    Hook("on_cgroup_attach", _RAW, "cgroup_attach_task"),
    Hook("on_cgroup_mkdir", _RAW, "cgroup_mkdir"),
    Hook("on_cgroup_rmdir", _RAW, "cgroup_rmdir"),
    Hook("on_cgroup_populated", _RAW, "cgroup_notify_populated"),
    Hook("on_exec", _RAW, "sched_process_exec"),
    Hook("on_exec_file", _RAW, "sched_process_exec"),
    Hook("on_exit_mmap", _TP, "syscalls/sys_exit_mmap"),
    Hook("on_exit_execve", _TP, "syscalls/sys_exit_execve"),
    Hook("on_exit_execveat", _TP, "syscalls/sys_exit_execveat"),
    Hook("on_exit_read", _TP, "syscalls/sys_exit_read"),
    Hook("on_enter_connect", _TP, "syscalls/sys_enter_connect"),
    Hook("on_exit_connect", _TP, "syscalls/sys_exit_connect"),
    Hook("on_set_state", _RAW, "inet_sock_set_state"),
    Hook("on_sock_send", _RAW, "sock_send_length"),
    Hook("on_sock_recv", _RAW, "sock_recv_length"),
    Hook("on_enter_ptrace", _TP, "syscalls/sys_enter_ptrace"),
    Hook("on_enter_vm_writev", _TP, "syscalls/sys_enter_process_vm_writev"),
    Hook("on_enter_pidfd_getfd", _TP, "syscalls/sys_enter_pidfd_getfd"),
    Hook("on_exit_mmsg", _TP, "syscalls/sys_exit_sendmmsg"),
    Hook("on_exit_mmsg", _TP, "syscalls/sys_exit_recvmmsg"),
    Hook("on_connect4", _ADDR, AttachType.CGROUP_INET4_CONNECT),
    Hook("on_connect6", _ADDR, AttachType.CGROUP_INET6_CONNECT),
    Hook("on_sendmsg4", _ADDR, AttachType.CGROUP_UDP4_SENDMSG),
    Hook("on_sendmsg6", _ADDR, AttachType.CGROUP_UDP6_SENDMSG),
    Hook("on_sock_release", ProgramType.CGROUP_SOCK, AttachType.CGROUP_INET_SOCK_RELEASE),
    Hook("on_egress", _SKB, AttachType.CGROUP_INET_EGRESS),
    Hook("on_ingress", _SKB, AttachType.CGROUP_INET_INGRESS),
    Hook("on_exit_tls", _RAW, "sched_process_exit"),
    Hook("on_exit", _RAW, "sched_process_exit"),
)

LIBRARY_PROGRAMS = ("on_tls_enter", "on_tls_return")
"""Programs that are attached to files, one after another while the probes run; what is attached is pinned for that."""

DISPATCHED = {
    ProgramType.RAW_TRACEPOINT: "raw_programs",
    ProgramType.TRACEPOINT: "tracepoint_programs",
    ProgramType.KPROBE: "uprobe_programs",
}
"""Types whose links cannot change their program: what is attached calls a slot of this map."""

CONTINUATIONS = {
    "on_more_pieces": ("continuation", ProgramType.RAW_TRACEPOINT, -1),
    "on_tls_more": ("tls_continuation", ProgramType.KPROBE, int(AttachType.UPROBE_MULTI)),
    "on_rows": ("followers", ProgramType.CGROUP_SKB, int(AttachType.CGROUP_INET_INGRESS)),
    "on_search": ("searchers", ProgramType.CGROUP_SKB, int(AttachType.CGROUP_INET_INGRESS)),
}
"""Programs that other programs go on with: the map whose only slot they are in, their type, and what to attach to."""


def slots(before: dict[str, int] | None = None) -> dict[str, int]:
    """Return the slot of each program that has one; a program keeps what it had before."""
    taken = dict(before or {})
    for program in dispatched():
        taken.setdefault(program, max(taken.values(), default=-1) + 1)
    return taken


def dispatched() -> dict[str, ProgramType]:
    """Return the programs that have a slot, and their types."""
    found = {hook.program: hook.type for hook in HOOKS if hook.type in DISPATCHED}
    return found | dict.fromkeys(LIBRARY_PROGRAMS, ProgramType.KPROBE)


MAPS = (
    "raw_programs",
    "tracepoint_programs",
    "uprobe_programs",
    "ring",
    "counters",
    "losses",
    "shares",
    "policies",
    "stopped",
    "tags",
    "owners",
    "flows",
    "unix_flows",
    "followers",
    "searchers",
    "connecting",
    "pending",
    "unix_sockets",
    "readers",
    "udp_peers",
    "diverged",
    "mmsg_index",
    "scratch",
    "tls_calls",
    "tls_sessions",
    "tls_verdicts",
    "files",
    "settings",
    "waiting",
    "tls_continuation",
    "continuation",
    "unannounced",
    "abi",
)
