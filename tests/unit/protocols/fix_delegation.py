"""D-Bus messages and HTTP requests written by hand, from the specifications and not with the code under test."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from agentwatch.protocols.base import Delegated, Direction, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentwatch.protocols.base import Decoder

OUT, IN = Direction.OUT, Direction.IN
Turn = tuple[Direction, bytes]
AT = 7

AUTH = b"\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"
MANAGER = "org.freedesktop.systemd1.Manager"


class Marshal:
    """A D-Bus body: each method appends a value."""

    def __init__(self, order: str = "<") -> None:
        self.order = order
        self.data = b""

    def align(self, boundary: int) -> Marshal:
        self.data += bytes(-len(self.data) % boundary)
        return self

    def u(self, value: int) -> Marshal:
        self.align(4).data += struct.pack(f"{self.order}I", value)
        return self

    def b(self, value: bool) -> Marshal:  # noqa: FBT001
        return self.u(int(value))

    def s(self, value: str | bytes) -> Marshal:
        raw = value.encode() if isinstance(value, str) else value
        self.u(len(raw)).data += raw + b"\0"
        return self

    def g(self, value: str) -> Marshal:
        self.data += bytes([len(value)]) + value.encode() + b"\0"
        return self

    def variant(self, kind: str, write: Callable[[Marshal], object]) -> Marshal:
        self.g(kind)
        write(self)
        return self

    def array(self, boundary: int, *writes: Callable[[Marshal], object]) -> Marshal:
        self.u(0)
        at = len(self.data)
        self.align(boundary)
        start = len(self.data)
        for write in writes:
            write(self)
        length = struct.pack(f"{self.order}I", len(self.data) - start)
        self.data = self.data[: at - 4] + length + self.data[at:]
        return self

    def struct(self, *writes: Callable[[Marshal], object]) -> Marshal:
        self.align(8)
        for write in writes:
            write(self)
        return self


def call(  # noqa: PLR0913
    member: str | None,
    signature: str = "",
    body: bytes = b"",
    *,
    interface: str | None = MANAGER,
    destination: str | None = "org.freedesktop.systemd1",
    path: str = "/org/freedesktop/systemd1",
    order: str = "<",
    kind: int = 1,
) -> bytes:
    fields: list[tuple[int, str, str]] = [(1, "o", path)]
    fields += [(2, "s", interface)] if interface else []
    fields += [(3, "s", member)] if member else []
    fields += [(6, "s", destination)] if destination else []
    fields += [(8, "g", signature)] if signature else []
    head = Marshal(order)
    head.data = (b"l" if order == "<" else b"B") + bytes([kind, 0, 1])
    head.u(len(body)).u(1)
    head.array(8, *(_field(*field) for field in fields))
    return head.align(8).data + body


def _field(code: int, kind: str, value: str) -> Callable[[Marshal], object]:
    def write(m: Marshal) -> None:
        m.align(8)
        m.data += bytes([code])
        m.variant(kind, lambda v: v.g(value) if kind == "g" else v.s(value))

    return write


def exec_property(name: str, *commands: tuple[str, ...]) -> Callable[[Marshal], object]:
    def one(words: tuple[str, ...]) -> Callable[[Marshal], object]:
        return lambda m: m.struct(
            lambda v: v.s(words[0]), lambda v: v.array(4, *(_text(word) for word in words)), lambda v: v.b(value=False)
        )

    return lambda m: m.struct(
        lambda v: v.s(name), lambda v: v.variant("a(sasb)", lambda x: x.array(8, *map(one, commands)))
    )


def text_property(name: str, value: str) -> Callable[[Marshal], object]:
    return lambda m: m.struct(lambda v: v.s(name), lambda v: v.variant("s", lambda x: x.s(value)))


def names_property(name: str, *values: str) -> Callable[[Marshal], object]:
    return lambda m: m.struct(
        lambda v: v.s(name), lambda v: v.variant("as", lambda x: x.array(4, *(_text(one) for one in values)))
    )


def _text(value: str) -> Callable[[Marshal], object]:
    return lambda m: m.s(value)


def names(*values: str, order: str = "<") -> bytes:
    return Marshal(order).array(4, *(_text(one) for one in values)).data


def transient(
    unit: str,
    *properties: Callable[[Marshal], object],
    order: str = "<",
    also: Callable[[Marshal], object] | None = None,
) -> bytes:
    body = Marshal(order).s(unit).s("fail").array(8, *properties).array(8, *([also] if also else []))
    return call("StartTransientUnit", "ssa(sv)a(sa(sv))", body.data, order=order)


def http(method: str, target: str, body: Any = None, *headers: str, chunks: int = 0) -> bytes:
    raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {target} HTTP/1.1", "Host: docker", *headers]
    if chunks:
        lines.append("Transfer-Encoding: chunked")
        pieces = [raw[i : i + chunks] for i in range(0, len(raw), chunks)]
        raw = b"".join(b"%x;x=y\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nTrailer: x\r\n\r\n"
    elif body is not None:
        lines.append(f"Content-Length: {len(raw)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


def answer(status: int, body: bytes | None = b"", *headers: str) -> bytes:
    length = [] if body is None else [f"Content-Length: {len(body)}"]
    lines = [f"HTTP/1.1 {status} Whatever", *headers, *length]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def run(turns: list[Turn], decoder: Decoder) -> list[Message]:
    messages: list[Message] = []
    for direction, data in turns:
        messages += decoder.feed(direction, data, AT)
    return messages + decoder.close(AT)


def delegated(messages: list[Message]) -> list[Delegated]:
    return [message for message in messages if isinstance(message, Delegated)]


def bus_conversation(order: str = "<") -> list[Turn]:
    """Return a client's day: a login, housekeeping, a unit with two commands, one with a timer, and a signal."""
    unit = transient(
        "run-1.service",
        text_property("User", "bob"),
        names_property("Environment", "TOKEN=secret", "A=b"),
        exec_property("ExecStart", ("/bin/echo", "hello", "two words"), ("/bin/true",)),
        order=order,
    )
    timed = transient(
        "run-2.timer",
        text_property("Description", "x"),
        order=order,
        also=lambda m: m.struct(
            lambda v: v.s("run-2.service"), lambda v: v.array(8, exec_property("ExecStart", ("/bin/date",)))
        ),
    )
    hello = call("Hello", interface="org.freedesktop.DBus", destination="org.freedesktop.DBus", order=order)
    start = call("StartUnit", "ss", Marshal(order).s("cron.service").s("replace").data, order=order)
    return [
        (OUT, AUTH[:1]),
        (OUT, AUTH[1:26]),
        (IN, b"OK 1234deadbeef\r\nAGREE_UNIX_FD\r\n"),
        (OUT, AUTH[26:] + hello),
        (IN, bytes(range(100))),
        (OUT, unit + hello),
        (OUT, call("PropertiesChanged", kind=4, order=order) + timed),
        (OUT, start),
    ]


def docker_conversation() -> list[Turn]:
    """Return a client's day: a ping, a container created and started, an exec, and the connection handed over."""
    create = {
        "Image": "alpine",
        "Cmd": ["echo", "hello"],
        "Entrypoint": ["/bin/sh", "-c"],
        "Env": ["TOKEN=secret"],
        "HostConfig": {"Binds": ["/:/host"], "Privileged": True, "PidMode": "host"},
    }
    return [
        (OUT, http("HEAD", "/_ping")),
        (IN, answer(200, None, "Content-Length: 2")),
        (OUT, http("POST", "/v1.47/containers/create?name=c1", create)),
        (IN, answer(201, b'{"Id":"abc"}')),
        (OUT, http("POST", "/v1.47/containers/abc/start")),
        (IN, answer(204, None)),
        (OUT, http("GET", "/v1.47/containers/abc/json") + http("GET", "/v1.47/containers/def/json")),
        (IN, answer(200, None, "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n" + answer(404)),
        (OUT, http("POST", "/v1.47/containers/abc/exec", {"cmd": "date", "Privileged": True}, chunks=5)),
        (IN, answer(100, None) + answer(201, b"{}")),
        (OUT, http("POST", "/v1.47/exec/e1/start", {"Detach": False}, "Connection: Upgrade", "Upgrade: tcp")),
        (IN, answer(101, None, "Connection: Upgrade", "Upgrade: tcp") + b"raw"),
        (OUT, b"raw bytes"),
    ]
