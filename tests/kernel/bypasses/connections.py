"""Ways to have a connection, or to use one: connections.py WAY TEXT has a statement executed."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import time
from pathlib import Path

import pg  # type: ignore[import-not-found] # it lies beside this script

_SSL_REQUEST = struct.pack(">II", 8, 80877103)
_MPTCP = 262
_PR_SET_NAME = 15
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438

libc = ctypes.CDLL(None, use_errno=True)


def must(result: int) -> int:
    """Return the result of a call of libc, or raise what it failed with."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def bytewise(text: str) -> None:
    """Send each byte with a call of its own."""
    s = pg.connect()
    if s.family == socket.AF_INET:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    message = pg.query(text)
    for i in range(len(message)):
        s.send(message[i : i + 1])
    pg.ready(s)


def forget(text: str) -> None:
    """End without waiting for the answer."""
    s = pg.connect()
    s.sendall(pg.query(text))
    os._exit(0)


def refused_tls(text: str) -> None:
    """Ask for TLS, be refused, go on plainly."""
    s = pg.new_socket()
    s.connect(pg.address())
    s.sendall(_SSL_REQUEST)
    assert s.recv(1) == b"N"
    s.sendall(pg.hello())
    pg.ready(s)
    pg.ask(s, text)


def fast_open(text: str) -> None:
    """Connect by sending."""
    s = pg.new_socket()
    s.sendto(pg.hello(), socket.MSG_FASTOPEN, pg.address())
    pg.ready(s)
    pg.ask(s, text)


def mptcp(text: str) -> None:
    """Use a Multipath TCP socket."""
    s = pg.new_socket(_MPTCP)
    s.connect(pg.address())
    s.sendall(pg.hello())
    pg.ready(s)
    pg.ask(s, text)


def fork(text: str) -> None:
    """Let a child that never executes anything use the parent's connection."""
    s = pg.connect()
    if not (child := os.fork()):
        pg.ask(s, text)
        os._exit(0)
    os.waitpid(child, 0)


def double_fork(text: str) -> None:
    """Become a daemon first."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    time.sleep(0.3)
    pg.ask(pg.connect(), text)


def comm(text: str) -> None:
    """Take the name of a kernel thread."""
    must(libc.prctl(_PR_SET_NAME, b"kworker/0:0", 0, 0, 0))
    pg.ask(pg.connect(), text)


def namespaces(text: str) -> None:
    """Be root in user, mount, pid, ipc and uts namespaces of one's own."""
    must(libc.unshare(_NEWUSER | _NEWNS | _NEWPID | _NEWIPC | _NEWUTS))
    if not (child := os.fork()):
        pg.ask(pg.connect(), text)
        os._exit(0)
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def received(text: str) -> None:
    """Get a connection from an accomplice: from PASSED, a listening Unix socket."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(os.environ["PASSED"])
        _, fds, _, _ = socket.recv_fds(s, 1, 1)
    use(socket.socket(fileno=fds[0]), text)


def use(s: socket.socket, text: str) -> None:
    """Speak on a socket that is connected and has not been used."""
    s.sendall(pg.hello())
    pg.ready(s)
    pg.ask(s, text)


def stdin(text: str) -> None:
    """Use a connection that was there before: standard input."""
    use(socket.socket(fileno=0), text)


def given(_text: str) -> None:
    """Give one's own connection to an accomplice at PASSED, and wait until it has used it."""
    s = pg.connect()
    with socket.socket(socket.AF_UNIX) as accomplice:
        accomplice.connect(os.environ["PASSED"])
        socket.send_fds(accomplice, [b"x"], [s.fileno()])
        accomplice.recv(1)


def getfd(text: str) -> None:
    """Take descriptor TAKEN_FD from the process TAKEN_PID, which belongs to the same user."""
    pidfd = must(libc.syscall(_PIDFD_OPEN, int(os.environ["TAKEN_PID"]), 0))
    fd = must(libc.syscall(_PIDFD_GETFD, pidfd, int(os.environ["TAKEN_FD"]), 0))
    use(socket.socket(fileno=fd), text)


def moved(text: str) -> None:
    """Wait to be moved out of the cgroup CGROUP, then connect."""
    while os.environ["CGROUP"] in Path("/proc/self/cgroup").read_text():
        time.sleep(0.01)
    pg.ask(pg.connect(), text)


def function_call(_text: str) -> None:
    """Call version() by a FunctionCall message, which is no statement."""
    s = pg.connect()
    body = struct.pack(">IHHH", 89, 0, 0, 0)
    s.sendall(b"F" + struct.pack(">I", len(body) + 4) + body)
    sys.stdout.write(pg.ready(s).decode("latin-1"))
    s.sendall(b"X\0\0\0\4")


def huge(text: str) -> None:
    """Put a statement between comments, larger than what is kept."""
    padding = "x" * (9 << 20)
    pg.ask(pg.connect(), f"/*{padding}*/ {text} /*{padding}*/")


WAYS = {
    way.__name__: way
    for way in (
        bytewise, forget, refused_tls, fast_open, mptcp, fork, double_fork, comm, namespaces, received,
        stdin, given, getfd, moved, function_call, huge,
    )
}  # fmt: skip

if __name__ == "__main__":
    WAYS[sys.argv[1]](sys.argv[2])
