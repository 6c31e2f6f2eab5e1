"""A typed wrapper over libbpf's system call functions: descriptors and paths in, values or KernelError out.

libbpf.so.1 comes with Debian's python3-bpfcc (libbpf1). Nothing here maps LLVM, so the recorder stays small.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agentwatch.errors import KernelError, PrivilegeError, ProbesNotLoaded

if TYPE_CHECKING:
    from collections.abc import Iterator

LIBRARY = "libbpf.so.1"

_PERF_TYPE_TRACEPOINT = 2
_PERF_ATTR_BYTES = 112  # PERF_ATTR_SIZE_VER5: has every field set below
_PERF_FLAG_FD_CLOEXEC = 8
_SYS_PERF_EVENT_OPEN = 298
_TRACEFS = Path("/sys/kernel/tracing")
_MAP_INFO = struct.Struct("<IIIIII16s")
_LINK_INFO = struct.Struct("<III")
_BTF_INFO = struct.Struct("<QII")
_BPF_NOEXIST = 1
_BTF_ID_IN_MAP_INFO = 64
_LINK_CGROUP_AT = 16
_PROGRAM_TAG_AT, _TAG_BYTES = 8, 8
_INFO_BYTES = 256
_SYS_BPF, _BPF_LINK_CREATE, _BPF_TRACE_UPROBE_MULTI = 321, 28, 48
_ATTR_BYTES = 128
_UPROBE_MULTI = struct.Struct("<IIII4QIII")
"""union bpf_attr: program, 0, attach type, 0; path, offsets, reference counters, cookies; count, flags, process."""

LINK_RAW_TRACEPOINT = 1
LINK_CGROUP = 3


class Link(NamedTuple):
    """What the kernel tells about a link. ``cgroup``: its target's id; 0: detached, or not a cgroup link."""

    kind: int
    id: int
    program: int
    """Id of the program."""
    cgroup: int
    attach_type: int


@cache
def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL(LIBRARY, use_errno=True)
    except OSError as e:
        raise KernelError(f"cannot load {LIBRARY} ({e}); install libbpf1 (apt-get install libbpf1)") from e
    path, fd, data = ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p
    for name, arguments in {
        "bpf_obj_get": (path,),
        "bpf_obj_pin": (fd, path),
        "bpf_link_create": (fd, fd, ctypes.c_int, data),
        "bpf_link_update": (fd, fd, data),
        "bpf_link_detach": (fd,),
        "bpf_raw_tracepoint_open": (path, fd),
        "bpf_map_lookup_elem": (fd, data, data),
        "bpf_map_update_elem": (fd, data, data, ctypes.c_uint64),
        "bpf_map_delete_elem": (fd, data),
        "bpf_map_get_next_key": (fd, data, data),
        "bpf_obj_get_info_by_fd": (fd, data, ctypes.POINTER(ctypes.c_uint32)),
        "bpf_btf_get_fd_by_id": (ctypes.c_uint32,),
        "bpf_prog_get_fd_by_id": (ctypes.c_uint32,),
    }.items():
        function = getattr(lib, name)
        function.argtypes = arguments
        function.restype = ctypes.c_int
    return lib


def _check(result: int, doing: str) -> int:
    if result >= 0:
        return result
    code = ctypes.get_errno() or -result
    if code in (errno.EPERM, errno.EACCES):
        raise PrivilegeError(f"{doing}: {os.strerror(code)}; agentwatch's kernel side needs root")
    raise KernelError(f"{doing}: {os.strerror(code)}")


def obj_get(path: Path) -> int:
    """Open a pinned object; the caller closes the descriptor. Raises ProbesNotLoaded if there is none."""
    result: int = _library().bpf_obj_get(bytes(path))
    if result < 0 and ctypes.get_errno() == errno.ENOENT:
        raise ProbesNotLoaded(f"no probe object is pinned at {path}; load the probes: agentwatch probes load")
    return _check(result, f"opening the pin {path}")


def obj_pin(fd: int, path: Path) -> None:
    """Pin an object under bpffs."""
    _check(_library().bpf_obj_pin(fd, bytes(path)), f"pinning {path}")


def attach_cgroup(program: int, cgroup: int, attach_type: int, name: str) -> int:
    """Attach a program to a cgroup directory's descriptor; return the link."""
    return _check(_library().bpf_link_create(program, cgroup, attach_type, None), f"attaching {name} to the watch root")


def link_update(link: int, program: int, name: str) -> None:
    """Replace the program of a cgroup link, between two of its runs."""
    _check(_library().bpf_link_update(link, program, None), f"replacing {name}")


def link_detach(link: int, name: str) -> None:
    """Detach a cgroup link, whoever else holds it; links of tracepoints cannot be detached (EOPNOTSUPP)."""
    _check(_library().bpf_link_detach(link), f"detaching {name}")


def attach_raw_tracepoint(program: int, tracepoint: str) -> int:
    """Attach a program to a raw tracepoint; return the link."""
    result: int = _library().bpf_raw_tracepoint_open(tracepoint.encode(), program)
    return _check(result, f"attaching to the tracepoint {tracepoint}")


def attach_tracepoint(program: int, tracepoint: str, attach_type: int) -> int:
    """Attach a program to ``category/name``; return a link that can be pinned (since Linux 5.15)."""
    try:
        number = int((_TRACEFS / "events" / tracepoint / "id").read_text(encoding="ascii"))
    except OSError as e:
        raise KernelError(f"the kernel has no tracepoint {tracepoint} ({e.strerror} below {_TRACEFS})") from e
    # struct perf_event_attr: type, size, config, then sample_period = 1; the rest is zero
    attributes = struct.pack("<IIQQ", _PERF_TYPE_TRACEPOINT, _PERF_ATTR_BYTES, number, 1).ljust(_PERF_ATTR_BYTES, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    # The program runs on every CPU, whichever one the event is opened on.
    event = libc.syscall(_SYS_PERF_EVENT_OPEN, attributes, -1, 0, -1, _PERF_FLAG_FD_CLOEXEC)
    _check(event, f"opening the tracepoint {tracepoint}")
    try:
        link: int = _library().bpf_link_create(program, event, attach_type, None)
        return _check(link, f"attaching to the tracepoint {tracepoint}")
    finally:
        os.close(event)


def attach_uprobes(program: int, path: str, offsets: list[int], cookies: list[int], *, at_return: bool) -> int:
    """Attach a program to places in a file, for every process that maps it; return the one link (since Linux 6.6).

    ``offsets`` are in the file. libbpf offers this from 1.3 on, Debian 12 has 1.1: hence the bare system call.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    places = (ctypes.c_uint64 * len(offsets))(*offsets)
    words = (ctypes.c_uint64 * len(cookies))(*cookies)
    addresses = (ctypes.addressof(name), ctypes.addressof(places), 0, ctypes.addressof(words))
    request = _UPROBE_MULTI.pack(program, 0, _BPF_TRACE_UPROBE_MULTI, 0, *addresses, len(offsets), int(at_return), 0)
    attributes = ctypes.create_string_buffer(request, _ATTR_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    link: int = libc.syscall(_SYS_BPF, _BPF_LINK_CREATE, attributes, _ATTR_BYTES)
    return _check(link, f"attaching to {path}")


def _info(fd: int, doing: str, buffer: Any = None) -> Any:
    """Return what the kernel tells about an object, at most _INFO_BYTES."""
    buffer = buffer or ctypes.create_string_buffer(_INFO_BYTES)
    length = ctypes.c_uint32(len(buffer))
    _check(_library().bpf_obj_get_info_by_fd(fd, buffer, ctypes.byref(length)), doing)
    return buffer


def map_entries(fd: int) -> int:
    """Return a map's max_entries (for a ring: its size in bytes)."""
    return int(_MAP_INFO.unpack_from(_info(fd, "asking about a map"))[4])


def map_value_bytes(fd: int) -> int:
    """Return the size of a map's values."""
    return int(_MAP_INFO.unpack_from(_info(fd, "asking about a map"))[3])


def map_id(fd: int) -> int:
    """Return a map's id."""
    return int(_MAP_INFO.unpack_from(_info(fd, "asking about a map"))[1])


def link_info(fd: int) -> Link:
    """Return what the kernel tells about a link."""
    info = _info(fd, "asking about a link")
    kind, number, program = _LINK_INFO.unpack_from(info)
    cgroup, attach_type = struct.unpack_from("<QI", info, _LINK_CGROUP_AT) if kind == LINK_CGROUP else (0, 0)
    return Link(kind, number, program, cgroup, attach_type)


def program_tag(program: int) -> str | None:
    """Return the kernel's tag of a program (of its instructions, in hex); None if there is no program of this id."""
    fd: int = _library().bpf_prog_get_fd_by_id(program)
    if fd < 0 and ctypes.get_errno() == errno.ENOENT:
        return None
    _check(fd, "opening a program by its id")
    try:
        info: bytes = _info(fd, "asking about a program").raw
    finally:
        os.close(fd)
    return info[_PROGRAM_TAG_AT : _PROGRAM_TAG_AT + _TAG_BYTES].hex()


def map_btf(fd: int) -> bytes:
    """Return the BTF blob that a map's key and value types come from."""
    btf_id = struct.unpack_from("<I", _info(fd, "asking about a map"), _BTF_ID_IN_MAP_INFO)[0]
    btf = _check(_library().bpf_btf_get_fd_by_id(btf_id), "opening the program's BTF")
    try:
        size = 1 << 20
        blob = ctypes.create_string_buffer(size)
        request = ctypes.create_string_buffer(_BTF_INFO.pack(ctypes.addressof(blob), size, 0).ljust(_INFO_BYTES, b"\0"))
        _info(btf, "reading the program's BTF", request)
        return blob.raw[: _BTF_INFO.unpack_from(request)[1]]
    finally:
        os.close(btf)


def map_lookup(fd: int, key: bytes, value_bytes: int) -> bytes | None:
    """Return the value of a key, None if there is none. ``value_bytes``: for a per-CPU map those of all CPUs."""
    value = ctypes.create_string_buffer(value_bytes)
    if _library().bpf_map_lookup_elem(fd, key, value) < 0:
        if ctypes.get_errno() == errno.ENOENT:
            return None
        _check(-1, "reading a map")
    return value.raw


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Set the value of a key."""
    _check(_library().bpf_map_update_elem(fd, key, value, 0), "writing a map")


def map_insert(fd: int, key: bytes, value: bytes) -> None:
    """Set the value of a key that is not there yet; one that is there keeps its value."""
    if _library().bpf_map_update_elem(fd, key, value, _BPF_NOEXIST) < 0 and ctypes.get_errno() != errno.EEXIST:
        _check(-1, "writing a map")


def map_delete(fd: int, key: bytes) -> None:
    """Remove a key; one that is not there is no error."""
    if _library().bpf_map_delete_elem(fd, key) < 0 and ctypes.get_errno() != errno.ENOENT:
        _check(-1, "deleting from a map")


def map_items(fd: int, key_bytes: int, value_bytes: int, limit: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a hash map, at the most ``limit``.

    A map that changes meanwhile may show an entry twice or not at all: for callers that look again.
    """
    before: bytes | None = None
    after = ctypes.create_string_buffer(key_bytes)
    for _ in range(limit):
        if _library().bpf_map_get_next_key(fd, before, after) < 0:
            return
        before = after.raw
        value = map_lookup(fd, before, value_bytes)
        if value is not None:
            yield before, value
