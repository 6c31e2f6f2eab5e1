"""Who is at the other end of a Unix socket: in, a connected socket; out, what the kernel says of the peer.

``uid``, ``gid`` and ``pid`` are of the moment of its ``connect`` and cannot be made up (unix(7), SO_PEERCRED; the uid
is the effective one). The rest is read from ``/proc`` afterwards: ``login_uid`` is inherited and only privilege changes
it, ``exe`` and ``comm`` are what the process chose to run by now. Nothing here waits for the peer or for a name
service: ``cmdline``, which is read from the peer's memory, is left alone, and a user who is not in ``/etc/passwd`` has
no name.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from agentwatch.records.encoding import text

_PASSWD = Path("/etc/passwd")
_UCRED = struct.Struct("iII")
_UNSET = 0xFFFF_FFFF
_SO_PEERPIDFD = 77
"""Linux 6.5, commit 7b26952a91cf; the socket module does not know it yet."""


class Credentials(NamedTuple):
    """struct ucred: ``pid`` is 0 for a process that has none in our pid namespace."""

    pid: int
    uid: int
    gid: int


class Peer(NamedTuple):
    """A peer. None: not known, because the process is gone or the host does not say."""

    pid: int
    uid: int
    gid: int
    user: str | None
    login_uid: int | None
    exe: str | bytes | None
    comm: str | bytes | None


def credentials(connection: socket.socket) -> Credentials:
    """Return who connected. Raises OSError."""
    return Credentials._make(_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def describe(connection: socket.socket, who: Credentials) -> Peer:
    """Return all that can be told of a peer. Never raises for what it does."""
    process = Path("/proc", str(who.pid))
    exe = comm = login_uid = None
    with contextlib.suppress(OSError):
        exe = text(os.fsencode((process / "exe").readlink()))
    with contextlib.suppress(OSError):
        comm = text((process / "comm").read_bytes().removesuffix(b"\n"))
    with contextlib.suppress(OSError, ValueError):
        login_uid = int((process / "loginuid").read_bytes())
    if _is_gone(connection):  # by now the number may be another process's, who must not stand in the record
        exe = comm = login_uid = None
    return Peer(*who, _name_of(who.uid), None if login_uid == _UNSET else login_uid, exe, comm)


def _is_gone(connection: socket.socket) -> bool:
    """Tell whether the peer's process has ended, where the kernel can say so; else no."""
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(pidfd)


def _name_of(uid: int) -> str | None:
    with contextlib.suppress(OSError):
        for line in _PASSWD.read_bytes().splitlines():
            name, _, rest = line.partition(b":")
            if rest.split(b":")[1:2] == [b"%d" % uid]:
                return name.decode(errors="replace")
    return None
