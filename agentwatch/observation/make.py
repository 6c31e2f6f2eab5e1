"""The fields of each kind of record, from kernel events and decoded messages (docs/records.md has them all).

Pure functions: values in, a part of a record out.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import struct
from typing import TYPE_CHECKING, Any

from agentwatch.kernel.abi import Flag, Technique
from agentwatch.observation import delegation
from agentwatch.protocols.base import Delegated, Direction, Omitted, Opened, Request, Statement
from agentwatch.records.encoding import text
from agentwatch.streams.flow import Missing

if TYPE_CHECKING:
    from agentwatch.identity.processes import Process
    from agentwatch.identity.tracker import Session
    from agentwatch.kernel import abi
    from agentwatch.observation.inputs import Line
    from agentwatch.streams.flow import Author, Flow, Item

Fields = dict[str, Any]

_VSOCK = struct.Struct("<HxxII")
"""struct sockaddr_vm up to svm_cid: family, port, context id."""
DIRECTIONS = ("out", "in")
_SYSTEM_NAMES = {"postgresql": "postgresql"}
_SIGNAL_BITS, _STATUS_SHIFT, _SHELL_SIGNAL = 0x7F, 8, 128


def text_of_path(path: bytes) -> str:
    r"""Return a path as text; bytes that are not UTF-8 are escaped as ``\\xNN``, which a record can hold."""
    return path.decode(errors="backslashreplace")


def words(argv: list[str]) -> list[str | bytes]:
    """Return arguments that were decoded as file names are, as a record holds them."""
    return [text(os.fsencode(word)) for word in argv]


def comm(value: bytes) -> str:
    """Return the kernel's name of a thread as text."""
    return text_of_path(value.split(b"\0", 1)[0])


def address(family: int, raw: bytes, port: int) -> str:
    """Return ``192.0.2.1:5432`` or ``[2001:db8::1]:5432``; a v4 address mapped into v6 as v4."""
    if family == socket.AF_INET:
        return f"{ipaddress.IPv4Address(raw[:4])}:{port}"
    v6 = ipaddress.IPv6Address(raw)
    return f"{v6.ipv4_mapped}:{port}" if v6.ipv4_mapped else f"[{v6}]:{port}"


def unix_peer(path: bytes) -> str:
    """Return ``unix:/path`` or ``unix:@abstract``; NULs inside an abstract name are shown as ``@``."""
    if path[:1] == b"\0":
        return "unix:@" + text_of_path(path[1:].rstrip(b"\0").replace(b"\0", b"@"))
    return "unix:" + text_of_path(path.split(b"\0", 1)[0])


def transport(protocol: int) -> str:
    """Return the name of an IP protocol number."""
    return {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}.get(protocol, f"ip-{protocol}")


def other_address(family: int, raw: bytes) -> tuple[str, str, None]:
    """Return transport and peer of a family that is neither IP nor Unix, from the bytes of its sockaddr."""
    if family == socket.AF_VSOCK and len(raw) >= _VSOCK.size:
        _, port, cid = _VSOCK.unpack_from(raw)
        return "vsock", f"vsock:{cid}:{port}", None
    return f"family-{family}", f"family-{family}:{raw[2:].hex()}", None


def connection(kind: str, identity: int) -> str:
    """Return the name of a connection: one value for each of the host and boot."""
    return f"{kind}-{identity}"


def exec_(e: abi.Exec, args: bytes, exec_id: int) -> Fields:
    """Return an exec's fields; ``args`` is what was captured of the argument bytes."""
    captured = len(args)
    argv = args.split(b"\0")
    if argv[-1:] == [b""]:
        argv.pop()  # each argument is ended by NUL; a last one without it was cut
    flags = e.h.flags
    return {
        "pid": e.h.tgid,
        "tid": e.h.tid,
        "exe": text_of_path(e.exe),
        "comm": comm(e.comm),
        "argv": [text(word) for word in argv],
        "argv_bytes": e.args_total,
        "argv_captured": captured,
        "filename": text_of_path(e.filename),
        "device": os.makedev(e.device >> 20, e.device & 0xFFFFF),
        "inode": e.inode,
        "memfd": bool(flags & Flag.F_MEMFD),
        "deleted": bool(flags & Flag.F_DELETED),
        "other_mounts": bool(flags & Flag.F_OTHER_MOUNTS),
        "cwd": text_of_path(e.cwd),
        "ppid": e.ppid,
        "uid": e.uid,
        "gid": e.gid,
        "exec_id": exec_id,
    }


def exec_failed(e: abi.ExecFailed) -> Fields:
    """Return a failed exec's fields."""
    return {
        "filename": text_of_path(e.filename),
        "argv": [text(word) for word in e.args.split(b"\0")[:-1]],
        "errno": -e.error,
        "error": os.strerror(-e.error),
    }


def exit_(e: abi.Exit, process: Process | None) -> Fields:
    """Return an exit's fields; ``process`` is what was known of it before."""
    number = e.exit_code & _SIGNAL_BITS
    code = e.exit_code >> _STATUS_SHIFT & 0xFF
    began = process.began if process else None
    return {
        "status": _SHELL_SIGNAL + number if number else code,
        "code": None if number else code,
        "signal": _signal_name(number) if number else None,
        "core": bool(e.h.flags & Flag.F_CORE),
        "duration_ns": e.h.boottime - began if began is not None else None,
        "exec_id": process.exec_id if process and _is_own_exec(process) else None,
        "ppid": e.ppid,
    }


def _is_own_exec(process: Process) -> bool:
    """Whether the process ran an exec itself (a fork keeps its parent's number and begins when it starts)."""
    return process.exec_id is not None and process.began != process.started


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"  # a real-time signal


def connect(e: abi.Connect) -> Fields:
    """Return a connect's fields."""
    if e.family == socket.AF_UNIX:
        kind, peer, local = "unix", unix_peer(e.path), None
        identity = e.inode
    elif e.family not in (socket.AF_INET, socket.AF_INET6):
        kind, peer, local = other_address(e.family, e.path)
        identity = e.inode
    else:
        kind = transport(e.protocol)
        peer = address(e.family, e.remote, e.remote_port)
        local = address(e.family, e.local, e.local_port) if e.local_port else None
        identity = e.cookie or e.inode
    fields: Fields = {
        "transport": kind,
        "peer": peer,
        "local": local,
        "connection": connection(kind, identity),
        "fd": e.fd if e.fd >= 0 else None,
        "errno": -e.result,
        "latency_ns": e.latency or None,
        "source": "user" if e.h.flags & Flag.F_USER_MEMORY else "kernel",
    }
    if e.result:
        fields["error"] = os.strerror(-e.result)
    return fields


TECHNIQUES: dict[int, str] = {
    Technique.T_IO_URING: "io_uring",
    Technique.T_SENDFILE: "sendfile",
    Technique.T_SPLICE: "splice",
    Technique.T_AIO: "aio",
    Technique.T_COMPAT: "32-bit-call",
    Technique.T_FOREIGN_TASK: "foreign-task",
    Technique.T_UNKNOWN: "unknown",
    Technique.T_PTRACE: "ptrace",
    Technique.T_VM_WRITEV: "process_vm_writev",
    Technique.T_PIDFD_GETFD: "pidfd_getfd",
}
SOCKET_FROM_OUTSIDE = "socket-from-outside"


def divergence(e: abi.Divergence, flow: Flow | None) -> Fields:
    """Return a divergence's fields; ``flow``: the connection that it is about, if it is known."""
    fields: Fields = {"technique": TECHNIQUES.get(e.technique, "unknown"), "comm": comm(e.comm)}
    if e.family == socket.AF_UNIX:
        fields |= {"connection": connection("unix", e.inode), "transport": "unix"}
    elif e.family:
        fields |= {"connection": connection("tcp", e.cookie), "transport": "tcp"}
    if flow is not None:
        fields |= {"connection": flow.connection, "transport": flow.transport, "peer": flow.peer}
    if e.target:
        fields["target_pid"] = e.target
    return fields


def place(flow: Flow) -> Fields:
    """Return which connection something is about."""
    return {"connection": flow.connection, "transport": flow.transport, "peer": flow.peer, "local": flow.local}


def command_input(line: Line) -> Fields:
    """Return the fields of a line that an interpreter read."""
    fields: Fields = {
        "text": None if line.text is None else text(line.text),
        "length": line.length,
        "truncated": line.truncated,
        "source": line.source,
        "input": line.input,
        "ended_by": line.ended_by,
    }
    if line.reason is not None:
        fields["reason"] = line.reason
    return fields


def session_start(session: Session) -> Fields:
    """Return the opening record's fields."""
    return {
        "cgroup": session.cgroup,
        "cgroup_id": session.cgroup_id,
        "user": session.user,
        "uid": session.uid,
        "login_uid": session.login_uid,
        "argv": None if session.argv is None else words(session.argv),
        "origin": session.origin,
        "preexisting": False,
    }


def session_end(session: Session) -> Fields:
    """Return the closing record's fields."""
    return {"cgroup": session.cgroup, "cgroup_id": session.cgroup_id, "status": session.status}


def opaque(flow: Flow, *, final: bool) -> Fields:
    """Return what is told of a connection that no decoder reads."""
    out, into = flow.totals()
    fields: Fields = {
        "connection": flow.connection,
        "transport": flow.transport,
        "peer": flow.peer,
        "reason": flow.why_unread,
        "bytes_out": out,
        "bytes_in": into,
        "final": final,
    }
    if flow.secured is not None:
        fields["tls"] = flow.secured.about()
    return fields


def item(flow: Flow, made: Item) -> tuple[str, int | None, Author | None, Fields] | None:
    """Return kind, time (None: now), author and fields of what a flow gave; None if it makes no record."""
    if isinstance(made, Missing):
        return "gap", None, None, _gap(flow, made.direction, made.length, made.cause)
    message = made.message
    if type(message) is Statement:
        return "statement", message.sent_at, made.author, _statement(flow, message)
    if type(message) is Request:
        fields = {"operation": message.operation, **_where(flow), "attributes": message.attributes}
        return "request", message.sent_at, made.author, fields
    if type(message) is Delegated:
        delegated = delegation.by_message(flow, message)
        return None if delegated is None else ("delegation", message.sent_at, made.author, delegated)
    if type(message) is Omitted:
        gap = {"cause": "limit", "count": None, "bytes": None, **_where(flow), "detail": f"more {message.what}"}
        return "gap", message.sent_at, made.author, gap
    assert type(message) is Opened  # noqa: S101 -- the union is complete
    return None


def _gap(flow: Flow, direction: Direction, length: int, cause: str) -> Fields:
    return {"cause": cause, "count": None, "bytes": length, **_where(flow), "direction": DIRECTIONS[direction]}


def _where(flow: Flow) -> Fields:
    return {
        "connection": flow.connection,
        "transport": flow.transport,
        "protocol": flow.reading.detected,
        "peer": flow.peer,
    }


def _statement(flow: Flow, s: Statement) -> Fields:
    kept = None if s.text is None else len(s.text)
    fields: Fields = {
        **_where(flow),
        "seen_by": flow.reading.seen_by,
        "db.system.name": _SYSTEM_NAMES.get(flow.reading.detected or "", flow.reading.detected),
        "db.namespace": s.namespace,
        "db.user": s.user,
        "db.query.text": None if s.text is None else text(s.text),
        "text_length": s.text_length,
        "truncated": kept is not None and kept < s.text_length,
        "params": None if s.params is None else list(s.params),
        "outcome": str(s.outcome),
        "rows": s.rows,
        "command_tag": s.command_tag,
        "db.response.status_code": s.status_code,
        "error": s.error,
        "duration_ns": None if s.done_at is None else s.done_at - s.sent_at,
        "offset": s.offset,
        "joined": s.joined,
        "attributes": s.attributes,
    }
    if s.text_sha256 is not None:
        fields["text_sha256"] = s.text_sha256
    return fields
