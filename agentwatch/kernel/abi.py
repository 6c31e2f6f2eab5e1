"""The mirror of probes/abi.h: layouts, enums, and the decoding of one event into a value.

tests/kernel/test_abi.py compares ``LAYOUTS`` and the enums with the BTF of the compiled program as whole sets, so that
the two cannot drift apart. Members are listed in order without implicit padding.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = 5


class EventKind(IntEnum):
    """``enum aw_event_kind``."""

    FORK = 1
    EXEC = 2
    ARGV = 3
    EXEC_FAILED = 4
    EXIT = 5
    CONNECT = 6
    WIRE = 7
    SOCK_END = 8
    UNIX_OPEN = 9
    UNIX = 10
    CGROUP = 11
    ROWS = 12
    INPUT = 13
    OUTSIDE = 14
    DIVERGENCE = 15
    UNIX_CALL = 16
    TLS = 17
    TLS_RECORD = 18
    TLS_END = 19
    MAPPED = 20


class Program(IntEnum):
    """``enum aw_program``."""

    P_FORK = 0
    P_EXEC = 1
    P_EXEC_FAILED = 2
    P_EXIT = 3
    P_CONNECT = 4
    P_EGRESS = 5
    P_INGRESS = 6
    P_SOCK_END = 7
    P_UNIX_SEND = 8
    P_UNIX_RECV = 9
    P_CGROUP = 10
    P_INPUT = 11
    P_UNIX_COPY = 12
    P_OUTSIDE = 13
    P_TLS = 14
    P_MAPPED = 15
    P_COUNT = 16


class Lost(IntEnum):
    """``enum aw_lost``: why an event, or a part of one, did not reach the ring."""

    LOST_RING = 0
    LOST_MEMORY = 1
    LOST_MAP = 2
    LOST_LIMIT = 3
    LOST_COUNT = 4


class Way(IntEnum):
    """``enum aw_direction``."""

    OUT = 0
    IN = 1


class Flag(IntFlag):
    """``enum aw_flag``."""

    F_USER_MEMORY = 1
    F_MEMFD = 2
    F_DELETED = 4
    F_SCM_RIGHTS = 8
    F_COMPAT = 16
    F_ASYNC = 32
    F_GROUP_DEAD = 64
    F_CORE = 128
    F_UNATTRIBUTED = 256
    F_SUPPRESSED = 512
    F_URGENT = 1024
    F_PEEKED = 2048
    F_OUTSIDE = 4096
    F_OTHER_MOUNTS = 8192


class CgroupOperation(IntEnum):
    """``enum aw_cgroup_operation``."""

    CG_MKDIR = 1
    CG_RMDIR = 2
    CG_ATTACH = 3
    CG_POPULATED = 4
    CG_EMPTY = 5


class Technique(IntEnum):
    """``enum aw_technique``: what a divergence is about."""

    T_IO_URING = 1
    T_SENDFILE = 2
    T_SPLICE = 3
    T_AIO = 4
    T_COMPAT = 5
    T_FOREIGN_TASK = 6
    T_UNKNOWN = 7
    T_PTRACE = 8
    T_VM_WRITEV = 9
    T_PIDFD_GETFD = 10


class Call(IntEnum):
    """``enum aw_call``: what a uprobe's cookie says of its function: one of the first five, and the rest."""

    CALL_WRITE = 1
    CALL_READ = 2
    CALL_IO = 3
    CALL_FREE = 4
    CALL_RECORD = 5
    CALL_KIND = 15
    COUNT_INT = 0
    COUNT_LONG = 16
    COUNT_ALL = 32
    COUNT_FOURTH = 64
    COUNT_FIFTH = 80
    COUNT_WHERE = 240
    CALL_GO = 256
    CALL_NO_BUFFER = 512


class InputSource(IntEnum):
    """``enum aw_input_source``: what a read was made from."""

    FROM_PIPE = 0
    FROM_TTY = 1
    FROM_FILE = 2
    FROM_SOCKET = 3


class Omitted(IntEnum):
    """``enum aw_omitted``: why bytes that were read are not in the event."""

    OMITTED_NOT = 0
    OMITTED_ECHO_OFF = 1
    OMITTED_LIMIT = 2
    OMITTED_MEMORY = 3


ENUMS: dict[str, type[IntEnum | IntFlag]] = {
    "aw_event_kind": EventKind,
    "aw_program": Program,
    "aw_lost": Lost,
    "aw_direction": Way,
    "aw_flag": Flag,
    "aw_cgroup_operation": CgroupOperation,
    "aw_technique": Technique,
    "aw_call": Call,
    "aw_input_source": InputSource,
    "aw_omitted": Omitted,
}

_HEADER = (
    ("len", "I"),
    ("kind", "H"),
    ("flags", "H"),
    ("boottime", "Q"),
    ("cgroup", "Q"),
    ("tgid", "I"),
    ("tid", "I"),
    ("serial", "I"),
    ("cpu", "H"),
    ("program", "B"),
    ("reserved", "B"),
)

LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "aw_header": _HEADER,
    "aw_fork": (("h", ""), ("ppid", "I"), ("uid", "I"), ("reserved", "Q"), ("comm", "16s")),
    "aw_exec": (
        ("h", ""),
        ("ppid", "I"),
        ("uid", "I"),
        ("gid", "I"),
        ("device", "I"),
        ("inode", "Q"),
        ("args_total", "I"),
        ("args_len", "I"),
        ("exe_len", "H"),
        ("cwd_len", "H"),
        ("filename_len", "H"),
        ("path_flags", "H"),
        ("comm", "16s"),
    ),
    "aw_argv": (("h", ""), ("offset", "I"), ("args_len", "I")),
    "aw_exec_failed": (("h", ""), ("error", "i"), ("argc_read", "I"), ("args_len", "I"), ("filename_len", "I")),
    "aw_exit": (("h", ""), ("exit_code", "I"), ("ppid", "I")),
    "aw_connect": (
        ("h", ""),
        ("cookie", "Q"),
        ("inode", "Q"),
        ("latency", "Q"),
        ("result", "i"),
        ("fd", "i"),
        ("family", "H"),
        ("protocol", "H"),
        ("remote_port", "H"),
        ("local_port", "H"),
        ("remote", "16s"),
        ("local", "16s"),
        ("path_len", "I"),
        ("path", "108s"),
    ),
    "aw_wire": (
        ("h", ""),
        ("cookie", "Q"),
        ("seq", "I"),
        ("ack", "I"),
        ("payload", "I"),
        ("captured", "I"),
        ("remote", "16s"),
        ("local", "16s"),
        ("remote_port", "H"),
        ("local_port", "H"),
        ("family", "B"),
        ("protocol", "B"),
        ("tcp_flags", "B"),
        ("direction", "B"),
    ),
    "aw_rows": (
        ("h", ""),
        ("cookie", "Q"),
        ("seq", "I"),
        ("length", "I"),
        ("lead", "I"),
        ("rest", "I"),
        ("rows", "I"),
        ("message", "B"),
        ("partial_len", "B"),
        ("partial", "4s"),
        ("reserved", "6s"),
    ),
    "aw_sock_end": (("h", ""), ("cookie", "Q"), ("protocol", "I"), ("reserved", "I")),
    "aw_unix_open": (
        ("h", ""),
        ("inode", "Q"),
        ("cookie", "Q"),
        ("peer_tgid", "I"),
        ("type", "I"),
        ("path_len", "I"),
        ("path", "108s"),
    ),
    "aw_unix": (
        ("h", ""),
        ("inode", "Q"),
        ("cookie", "Q"),
        ("total", "I"),
        ("offset", "I"),
        ("payload", "I"),
        ("captured", "I"),
        ("direction", "B"),
        ("by_reader", "B"),
        ("reserved", "H"),
        ("position", "I"),
    ),
    "aw_divergence": (
        ("h", ""),
        ("cookie", "Q"),
        ("inode", "Q"),
        ("technique", "I"),
        ("target", "I"),
        ("family", "H"),
        ("reserved", "6s"),
        ("comm", "16s"),
    ),
    "aw_input": (
        ("h", ""),
        ("inode", "Q"),
        ("offset", "Q"),
        ("total", "I"),
        ("captured", "I"),
        ("source", "B"),
        ("omitted", "B"),
        ("reserved", "6s"),
    ),
    "aw_tls": (
        ("h", ""),
        ("session", "Q"),
        ("cookie", "Q"),
        ("position", "Q"),
        ("writing", "Q"),
        ("total", "I"),
        ("offset", "I"),
        ("payload", "I"),
        ("captured", "I"),
        ("direction", "B"),
        ("reserved", "7s"),
    ),
    "aw_tls_record": (("h", ""), ("session", "Q"), ("total", "I"), ("captured", "I"), ("data", "32s")),
    "aw_tls_end": (("h", ""), ("session", "Q"), ("position", "2Q")),
    "aw_mapped": (
        ("h", ""),
        ("inode", "Q"),
        ("address", "Q"),
        ("device", "I"),
        ("path_len", "H"),
        ("stopped", "B"),
        ("path_flags", "B"),
        ("generation", "I"),
        ("reserved", "I"),
    ),
    "aw_cgroup": (("h", ""), ("id", "Q"), ("operation", "I"), ("path_len", "I")),
    "aw_counters": (
        ("seen", "Q"),
        ("submitted", "Q"),
        ("lost", "4Q"),
        ("lost_bytes", "4Q"),
        ("held", "Q"),
        ("counted_bytes", "Q"),
    ),
    "aw_loss_key": (("cgroup", "Q"), ("program", "I"), ("cause", "I")),
    "aw_loss": (("events", "Q"), ("bytes", "Q"), ("first", "Q"), ("last", "Q")),
}


def layout(name: str) -> struct.Struct:
    """Return the packing of a struct of abi.h."""
    members = LAYOUTS[name]
    header = "".join(code for _, code in _HEADER) if members[0] == ("h", "") else ""
    return struct.Struct("<" + header + "".join(code for _, code in members))


HEADER = layout("aw_header")


class Header(NamedTuple):
    """``struct aw_header``."""

    len: int
    kind: int
    flags: int
    boottime: int
    cgroup: int
    tgid: int
    tid: int
    serial: int
    cpu: int
    program: int
    reserved: int


class Fork(NamedTuple):
    """``struct aw_fork``."""

    h: Header
    ppid: int
    uid: int
    comm: bytes


class Exec(NamedTuple):
    """``struct aw_exec`` with what follows it; paths as the kernel has them, ``args`` as far as it is in this event."""

    h: Header
    ppid: int
    uid: int
    gid: int
    device: int
    inode: int
    args_total: int
    comm: bytes
    exe: bytes
    cwd: bytes
    filename: bytes
    args: bytes


class Argv(NamedTuple):
    """``struct aw_argv``: more bytes of the arguments of the last exec of this process."""

    h: Header
    offset: int
    args: bytes


class ExecFailed(NamedTuple):
    """``struct aw_exec_failed``."""

    h: Header
    error: int
    filename: bytes
    args: bytes


class Exit(NamedTuple):
    """``struct aw_exit``; ``exit_code`` as wait(2) has it."""

    h: Header
    exit_code: int
    ppid: int


class Connect(NamedTuple):
    """``struct aw_connect``."""

    h: Header
    cookie: int
    inode: int
    latency: int
    result: int
    fd: int
    family: int
    protocol: int
    remote_port: int
    local_port: int
    remote: bytes
    local: bytes
    path: bytes


class Outside(NamedTuple):
    """A ``struct aw_connect`` of kind OUTSIDE: a watched task uses an IP socket that was made outside the watch."""

    connect: Connect

    @property
    def h(self) -> Header:
        """The event's header."""
        return self.connect.h


class Wire(NamedTuple):
    """``struct aw_wire`` and its payload."""

    h: Header
    cookie: int
    seq: int
    ack: int
    payload: int
    remote: bytes
    local: bytes
    remote_port: int
    local_port: int
    family: int
    protocol: int
    tcp_flags: int
    direction: int
    data: bytes


class Rows(NamedTuple):
    """``struct aw_rows``: a run of messages that was stepped over; ``partial`` are the bytes behind it."""

    h: Header
    cookie: int
    seq: int
    length: int
    lead: int
    rest: int
    rows: int
    message: int
    partial: bytes


class SockEnd(NamedTuple):
    """``struct aw_sock_end``."""

    h: Header
    cookie: int


class UnixOpen(NamedTuple):
    """``struct aw_unix_open``."""

    h: Header
    inode: int
    cookie: int
    peer_tgid: int
    type: int
    path: bytes


class Unix(NamedTuple):
    """``struct aw_unix`` and its bytes; ``position`` of the whole call in the stream, where it is known."""

    h: Header
    inode: int
    total: int
    offset: int
    payload: int
    direction: int
    by_reader: bool
    position: int
    data: bytes


class UnixCall(NamedTuple):
    """A ``struct aw_unix`` of kind UNIX_CALL: a send whose bytes are told of when they are read."""

    h: Header
    inode: int
    total: int
    position: int


class Divergence(NamedTuple):
    """``struct aw_divergence``."""

    h: Header
    cookie: int
    inode: int
    technique: int
    target: int
    family: int
    comm: bytes


class Input(NamedTuple):
    """``struct aw_input`` and its bytes."""

    h: Header
    inode: int
    offset: int
    total: int
    source: int
    omitted: int
    data: bytes


class Tls(NamedTuple):
    """``struct aw_tls`` and its bytes: a piece of the plaintext of one call into a TLS library."""

    h: Header
    session: int
    cookie: int
    position: int
    total: int
    offset: int
    payload: int
    direction: int
    data: bytes
    writing: int = 0


class TlsRecord(NamedTuple):
    """``struct aw_tls_record``: the beginning of what a library without a socket gives to be sent."""

    h: Header
    session: int
    total: int
    data: bytes


class TlsEnd(NamedTuple):
    """``struct aw_tls_end``; ``position``: plaintext bytes out and in."""

    h: Header
    session: int
    position: tuple[int, int]


class Mapped(NamedTuple):
    """``struct aw_mapped``: a file is mapped to be executed that nobody has looked into; ``stopped``: it waits."""

    h: Header
    inode: int
    address: int
    device: int
    stopped: bool
    path: bytes
    generation: int = 0


class Cgroup(NamedTuple):
    """``struct aw_cgroup``."""

    h: Header
    id: int
    operation: int
    path: bytes


Event = (
    Fork
    | Exec
    | Argv
    | ExecFailed
    | Exit
    | Connect
    | Wire
    | Rows
    | SockEnd
    | UnixOpen
    | Unix
    | UnixCall
    | Input
    | Cgroup
    | Outside
    | Divergence
    | Tls
    | TlsRecord
    | TlsEnd
    | Mapped
)

_FORK, _EXEC, _ARGV, _EXEC_FAILED = (layout(f"aw_{n}") for n in ("fork", "exec", "argv", "exec_failed"))
_EXIT, _CONNECT, _WIRE, _SOCK_END = (layout(f"aw_{n}") for n in ("exit", "connect", "wire", "sock_end"))
_UNIX_OPEN, _UNIX, _INPUT, _CGROUP = (layout(f"aw_{n}") for n in ("unix_open", "unix", "input", "cgroup"))
_ROWS, _DIVERGENCE = (layout(f"aw_{n}") for n in ("rows", "divergence"))
_TLS, _TLS_RECORD, _TLS_END, _MAPPED = (layout(f"aw_{n}") for n in ("tls", "tls_record", "tls_end", "mapped"))
COUNTERS, LOSS_KEY, LOSS = layout("aw_counters"), layout("aw_loss_key"), layout("aw_loss")
_CUT_EXE, _CUT_CWD = 1, 2


def _path(components: bytes, *, cut: bool) -> bytes:
    """Return a path from leaf-first components; one that was cut begins with ``...`` instead of the root."""
    names = components.split(b"\0")[:-1]
    names.reverse()
    return (b".../" if cut else b"/") + b"/".join(names)


def _fork(data: bytes) -> Fork:
    *h, ppid, uid, _, comm = _FORK.unpack_from(data)
    return Fork(Header(*h), ppid, uid, comm)


def _exec(data: bytes) -> Exec:
    *h, ppid, uid, gid, device, inode, total, args_len, exe_len, cwd_len, filename_len, cut, comm = _EXEC.unpack_from(
        data
    )
    exe = _EXEC.size
    cwd = exe + exe_len
    filename = cwd + cwd_len
    args = filename + filename_len
    return Exec(
        Header(*h),
        ppid,
        uid,
        gid,
        device,
        inode,
        total,
        comm,
        _path(data[exe:cwd], cut=bool(cut & _CUT_EXE)),
        _path(data[cwd:filename], cut=bool(cut & _CUT_CWD)),
        data[filename:args].rstrip(b"\0"),
        data[args : args + args_len],
    )


def _argv(data: bytes) -> Argv:
    *h, offset, args_len = _ARGV.unpack_from(data)
    return Argv(Header(*h), offset, data[_ARGV.size : _ARGV.size + args_len])


def _exec_failed(data: bytes) -> ExecFailed:
    *h, error, _, args_len, filename_len = _EXEC_FAILED.unpack_from(data)
    args = _EXEC_FAILED.size + filename_len
    return ExecFailed(Header(*h), error, data[_EXEC_FAILED.size : args].rstrip(b"\0"), data[args : args + args_len])


def _exit(data: bytes) -> Exit:
    *h, code, ppid = _EXIT.unpack_from(data)
    return Exit(Header(*h), code, ppid)


def _connect(data: bytes) -> Connect:
    (*h, cookie, inode, latency, result, fd, family, protocol, remote_port, local_port, remote, local, n, path) = (
        _CONNECT.unpack_from(data)
    )
    return Connect(
        Header(*h),
        cookie,
        inode,
        latency,
        result,
        fd,
        family,
        protocol,
        remote_port,
        local_port,
        remote,
        local,
        path[:n],
    )


def _wire(data: bytes) -> Wire:
    (*h, cookie, seq, ack, payload, captured, remote, local, remote_port, local_port, family, protocol, tcp, way) = (
        _WIRE.unpack_from(data)
    )
    end = _WIRE.size + captured
    return Wire(
        Header(*h),
        cookie,
        seq,
        ack,
        payload,
        remote,
        local,
        remote_port,
        local_port,
        family,
        protocol,
        tcp,
        way,
        data[_WIRE.size : end],
    )


def _rows(data: bytes) -> Rows:
    *h, cookie, seq, length, lead, rest, rows, message, partial_len, partial, _ = _ROWS.unpack_from(data)
    return Rows(Header(*h), cookie, seq, length, lead, rest, rows, message, partial[:partial_len])


def _sock_end(data: bytes) -> SockEnd:
    *h, cookie, _, _ = _SOCK_END.unpack_from(data)
    return SockEnd(Header(*h), cookie)


def _unix_open(data: bytes) -> UnixOpen:
    *h, inode, cookie, peer_tgid, kind, path_len, path = _UNIX_OPEN.unpack_from(data)
    return UnixOpen(Header(*h), inode, cookie, peer_tgid, kind, path[:path_len])


def _unix(data: bytes) -> Unix:
    *h, inode, _, total, offset, payload, captured, way, by_reader, _, position = _UNIX.unpack_from(data)
    captured_data = data[_UNIX.size : _UNIX.size + captured]
    return Unix(Header(*h), inode, total, offset, payload, way, bool(by_reader), position, captured_data)


def _unix_call(data: bytes) -> UnixCall:
    *h, inode, _, total, _, _, _, _, _, _, position = _UNIX.unpack_from(data)
    return UnixCall(Header(*h), inode, total, position)


def _outside(data: bytes) -> Outside:
    return Outside(_connect(data))


def _divergence(data: bytes) -> Divergence:
    *h, cookie, inode, technique, target, family, _, comm = _DIVERGENCE.unpack_from(data)
    return Divergence(Header(*h), cookie, inode, technique, target, family, comm)


def _input(data: bytes) -> Input:
    *h, inode, offset, total, captured, source, omitted, _ = _INPUT.unpack_from(data)
    return Input(Header(*h), inode, offset, total, source, omitted, data[_INPUT.size : _INPUT.size + captured])


def _cgroup(data: bytes) -> Cgroup:
    *h, cgroup_id, operation, path_len = _CGROUP.unpack_from(data)
    return Cgroup(Header(*h), cgroup_id, operation, data[_CGROUP.size : _CGROUP.size + path_len].rstrip(b"\0"))


def _tls(data: bytes) -> Tls:
    *h, session, cookie, position, writing, total, offset, payload, captured, way, _ = _TLS.unpack_from(data)
    captured_data = data[_TLS.size : _TLS.size + captured]
    return Tls(Header(*h), session, cookie, position, total, offset, payload, way, captured_data, writing)


def _tls_record(data: bytes) -> TlsRecord:
    *h, session, total, captured, begin = _TLS_RECORD.unpack_from(data)
    return TlsRecord(Header(*h), session, total, begin[:captured])


def _tls_end(data: bytes) -> TlsEnd:
    *h, session, out, into = _TLS_END.unpack_from(data)
    return TlsEnd(Header(*h), session, (out, into))


def _mapped(data: bytes) -> Mapped:
    *h, inode, address, device, path_len, stopped, flags, generation, _ = _MAPPED.unpack_from(data)
    path = _path(data[_MAPPED.size : _MAPPED.size + path_len], cut=bool(flags & _CUT_EXE))
    return Mapped(Header(*h), inode, address, device, bool(stopped), path, generation)


_DECODERS: dict[int, Callable[[bytes], Event]] = {
    EventKind.FORK: _fork,
    EventKind.EXEC: _exec,
    EventKind.ARGV: _argv,
    EventKind.EXEC_FAILED: _exec_failed,
    EventKind.EXIT: _exit,
    EventKind.CONNECT: _connect,
    EventKind.WIRE: _wire,
    EventKind.ROWS: _rows,
    EventKind.SOCK_END: _sock_end,
    EventKind.UNIX_OPEN: _unix_open,
    EventKind.UNIX: _unix,
    EventKind.UNIX_CALL: _unix_call,
    EventKind.INPUT: _input,
    EventKind.CGROUP: _cgroup,
    EventKind.OUTSIDE: _outside,
    EventKind.DIVERGENCE: _divergence,
    EventKind.TLS: _tls,
    EventKind.TLS_RECORD: _tls_record,
    EventKind.TLS_END: _tls_end,
    EventKind.MAPPED: _mapped,
}
_KIND_AT = 4


def decode(data: bytes) -> Event | None:
    """Return the event in ``data`` (which may be longer than the event), None if it is none that we know."""
    try:
        return _DECODERS[data[_KIND_AT] | data[_KIND_AT + 1] << 8](data)
    except (KeyError, IndexError, struct.error):
        return None
