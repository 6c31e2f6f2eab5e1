"""Speak PostgreSQL's protocol by hand, with a chosen system call for each direction: raw_client.py SOCKET DATABASE WAY.

Standard library only: runs as the agent's user with the system's Python. Prints what it sent, one statement a line.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Mmsghdr(ctypes.Structure):
    _fields_ = (("hdr", Msghdr), ("len", ctypes.c_uint32))


def pieces(data: bytes, count: int) -> list[bytes]:
    size = max(1, len(data) // count)
    return [data[i : i + size] for i in range(0, len(data), size)]


def sendmmsg(s: socket.socket, data: bytes) -> None:
    parts = pieces(data, 50)
    messages = (Mmsghdr * len(parts))()
    keep = []
    for message, part in zip(messages, parts, strict=True):
        halves = [part[: len(part) // 2], part[len(part) // 2 :]]
        buffers = [ctypes.create_string_buffer(half, max(1, len(half))) for half in halves]
        iov = (Iovec * 2)(*(Iovec(ctypes.addressof(b), len(h)) for b, h in zip(buffers, halves, strict=True)))
        keep.append((buffers, iov))
        message.hdr.iov, message.hdr.iovlen = iov, 2
    sent = libc.sendmmsg(s.fileno(), messages, len(parts), 0)
    if sent != len(parts):
        raise OSError(ctypes.get_errno(), f"sendmmsg sent {sent} of {len(parts)}")


def recvmmsg(s: socket.socket) -> bytes:
    buffers = [ctypes.create_string_buffer(64) for _ in range(4)]
    iov = [(Iovec * 1)(Iovec(ctypes.addressof(b), len(b))) for b in buffers]
    messages = (Mmsghdr * 4)()
    for message, one in zip(messages, iov, strict=True):
        message.hdr.iov, message.hdr.iovlen = one, 1
    got = libc.recvmmsg(s.fileno(), messages, 4, 0x10000, None)  # MSG_WAITFORONE
    return b"".join(bytes(buffers[i])[: messages[i].len] for i in range(got))


def recvmsg(s: socket.socket) -> bytes:
    buffers = [bytearray(size) for size in (1, 7, 0, 100, 4000)]
    got, *_ = s.recvmsg_into(buffers)
    return b"".join(bytes(b) for b in buffers)[:got]


def readv(s: socket.socket) -> bytes:
    buffers = [bytearray(size) for size in (3, 5, 2000)]
    got = os.readv(s.fileno(), buffers)
    return b"".join(bytes(b) for b in buffers)[:got]


def peeked(s: socket.socket) -> bytes:
    s.recv(3, socket.MSG_PEEK)
    return s.recv(4096)


Send = Callable[[socket.socket, bytes], object]
Receive = Callable[[socket.socket], bytes]
WAYS: dict[str, tuple[Send, Receive]] = {
    "write": (lambda s, d: os.write(s.fileno(), d), lambda s: os.read(s.fileno(), 4096)),
    "writev": (lambda s, d: os.writev(s.fileno(), pieces(d, 100)), readv),
    "sendto": (lambda s, d: s.send(d), lambda s: s.recv(4096)),
    "sendmsg": (lambda s, d: s.sendmsg(pieces(d, 1000)), recvmsg),
    "sendmmsg": (sendmmsg, recvmmsg),
    "peek": (lambda s, d: s.send(d), peeked),
}


def main() -> None:
    path, database, way = sys.argv[1:]
    send, receive = WAYS[way]
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    body = struct.pack(">I", 196608) + b"user\0postgres\0database\0" + database.encode() + b"\0\0"
    send(s, struct.pack(">I", len(body) + 4) + body)
    for number in range(3):
        text = f"SELECT {number} AS \"{way} {'x' * 40}\", '{'y' * (number * 3000)}'".encode()
        wait_ready(s, receive)
        send(s, b"Q" + struct.pack(">I", len(text) + 5) + text + b"\0")
        sys.stdout.write(text.decode() + "\n")
    wait_ready(s, receive)
    send(s, b"X\0\0\0\4")


def wait_ready(s: socket.socket, receive: Receive) -> None:
    data = b""
    while not data.endswith((b"Z\0\0\0\5I",)):
        more = receive(s)
        if not more:
            raise SystemExit("the server closed the connection")
        data += more


main()
