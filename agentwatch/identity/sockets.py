"""Sockets that processes held before a watch began: tgids in, descriptors with addresses and cookies out.

The descriptors come from /proc/<pid>/fd, the addresses and the kernel's cookies from socket diagnostics (sock_diag(7),
through pyroute2), asked in each network namespace that the processes live in. A socket that diagnostics do
not know (netlink, packet, a kernel without the diagnostics of its family) is returned without addresses, never
left out. Addresses are written as in docs/records.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyroute2 import DiagSocket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_INET = (
    (socket.AF_INET, socket.IPPROTO_TCP, "tcp"),
    (socket.AF_INET, socket.IPPROTO_UDP, "udp"),
    (socket.AF_INET6, socket.IPPROTO_TCP, "tcp"),
    (socket.AF_INET6, socket.IPPROTO_UDP, "udp"),
)
_TCP_LISTEN = 10
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Socket(NamedTuple):
    """One descriptor of a socket. What diagnostics could not tell is None.

    ``family`` is AF_INET, AF_INET6 or AF_UNIX; ``transport`` is ``tcp``, ``udp`` or ``unix``; ``local`` and
    ``peer`` are None where there is none (unbound, not connected); ``cookie`` is what bpf_get_socket_cookie gives.
    """

    pid: int
    fd: int
    inode: int
    family: int | None = None
    transport: str | None = None
    local: str | None = None
    peer: str | None = None
    cookie: int | None = None
    listening: bool = False


class _Known(NamedTuple):
    family: int
    transport: str
    local: str | None
    peer: str | None
    cookie: int
    listening: bool


def existing(pids: Iterable[int]) -> list[Socket]:
    """Return the sockets that these processes hold now, by pid and descriptor. Processes that ended have none."""
    held = [(pid, fd, inode) for pid in pids for fd, inode in _descriptors(pid)]
    known: dict[int, _Known] = {}
    for namespace in _namespaces({pid for pid, _, _ in held}):
        known.update(_diagnose_in(namespace))
    result = []
    for pid, fd, inode in held:
        found = known.get(inode)
        result.append(Socket(pid, fd, inode, *found) if found else Socket(pid, fd, inode))
    return result


def _descriptors(pid: int) -> Iterator[tuple[int, int]]:
    with contextlib.suppress(OSError):  # the process ended
        for path in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda path: int(path.name)):
            with contextlib.suppress(OSError):  # the descriptor was closed
                target = str(path.readlink())
                if target.startswith("socket:["):
                    yield int(path.name), int(target[8:-1])


def _namespaces(pids: set[int]) -> list[Path]:
    """Return one /proc path for each network namespace."""
    found: dict[int, Path] = {}
    for pid in pids:
        path = Path(f"/proc/{pid}/ns/net")
        with contextlib.suppress(OSError):
            found.setdefault(path.stat().st_ino, path)
    return list(found.values())


def _diagnose_in(namespace: Path) -> dict[int, _Known]:
    """Ask in another network namespace: in a thread of its own, which takes the namespace with it when it ends."""
    if namespace.samefile("/proc/self/ns/net"):
        return _diagnose()
    known: dict[int, _Known] = {}

    def ask() -> None:
        with contextlib.suppress(OSError), namespace.open("rb") as f:
            if _libc.setns(f.fileno(), _CLONE_NEWNET) == 0:
                known.update(_diagnose())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return known


def _diagnose() -> dict[int, _Known]:
    known: dict[int, _Known] = {}
    with DiagSocket() as diagnostics:
        diagnostics.bind()
        for family, protocol, transport in _INET:
            for message in diagnostics.get_sock_stats(family=family, protocol=protocol):
                known[message["idiag_inode"]] = _inet(message, transport)
        unix = diagnostics.get_sock_stats(family=socket.AF_UNIX)
        names = {message["udiag_ino"]: _unix_name(message) for message in unix}
        for message in unix:
            peer = names.get(message.get_attr("UNIX_DIAG_PEER"))
            listening = message["udiag_state"] == _TCP_LISTEN
            inode = message["udiag_ino"]
            known[inode] = _Known(int(socket.AF_UNIX), "unix", names[inode], peer, message["udiag_cookie"], listening)
    known.pop(0, None)  # sockets without a descriptor (TIME_WAIT)
    return known


def _inet(message: Any, transport: str) -> _Known:
    family = message["idiag_family"]
    return _Known(
        family=family,
        transport=transport,
        local=_address(family, message["idiag_src"], message["idiag_sport"]),
        peer=_address(family, message["idiag_dst"], message["idiag_dport"]),
        cookie=message["idiag_cookie"],
        listening=transport == "tcp" and message["idiag_state"] == _TCP_LISTEN,
    )


def _address(family: int, address: str, port: int) -> str | None:
    if not port:
        return None
    return f"[{address}]:{port}" if family == socket.AF_INET6 else f"{address}:{port}"


def _unix_name(message: Any) -> str | None:
    name = message.get_attr("UNIX_DIAG_NAME")
    if not name:
        return None
    # pyroute2 takes the NUL off that begins an abstract name, and gives bytes where they are not UTF-8. Only a path
    # has an inode in a file system.
    name = os.fsdecode(name)
    return f"unix:{name}" if message.get_attr("UNIX_DIAG_VFS") else f"unix:@{name}"
