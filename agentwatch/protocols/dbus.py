"""D-Bus as a client speaks it, both directions in, what it has others do out; see ``base.Decoder`` for the rules.

Calls that make a process run, or that change what will run, come out as ``Delegated`` with the command where they
name one (``dbus_calls``). Every other method call is told once for each destination, interface and member, as
operation ``call``, up to a limit. What the bus answers is not read, and the authentication is stepped over.

Where bytes of the client are missing, messages are looked for from there on; what is found is marked ``joined``.
Specification: D-Bus Specification 0.42, "Message Protocol" and "Authentication Protocol".
"""

from __future__ import annotations

import re

from agentwatch.protocols import dbus_calls
from agentwatch.protocols.base import Delegated, Direction, Instant, Message, Omitted, Opaque
from agentwatch.protocols.dbus_frames import Call, Frames

MAX_AUTH_BYTES = 16 * 1024
"""Of an authentication: the bus itself allows no more."""
MAX_CALLS = 64
"""Distinct other calls of a connection that are told."""
_BEGIN = re.compile(rb"\r\nBEGIN(?:\r\n|[ \t])")
"""Where messages begin: one service takes words behind it, another does not, and no client sends any."""


class DbusDecoder:
    """One connection of a client to a bus, or to a service directly; ``joined`` if its beginning was not seen."""

    name = "dbus"

    def __init__(self, *, joined: bool = False) -> None:
        self._frames = Frames(framed=not joined)
        self._auth: bytearray | None = None if joined else bytearray()
        self._joined = joined
        self._told: dict[tuple[bytes | None, ...], None] | None = {}
        self._over = False

    def feed(self, direction: Direction, data: bytes, at: Instant) -> list[Message]:
        """Take the next bytes of one direction; return what became complete by them."""
        if self._over or direction is Direction.IN:
            return []
        out: list[Message] = []
        if self._auth is not None:
            self._auth += data
            data = self._after_authentication(at, out)
        if self._auth is None and data:
            self._tell(self._frames.feed(data), at, out)
            if self._frames.broken:
                self._give_up(self._frames.pending, at, out)
        return out

    def gap(self, direction: Direction, length: int, at: Instant) -> list[Message]:
        """Take note of bytes that were not seen: those of the bus do not matter."""
        out: list[Message] = []
        if self._over or direction is Direction.IN:
            return out
        if self._auth is not None:
            self._frames = Frames(framed=False, position=len(self._auth) + length)
            self._auth = None
        else:
            self._tell(self._frames.gap(length), at, out)
        self._joined = self._joined or not self._frames.framed
        return out

    def close(self, at: Instant) -> list[Message]:
        """Take note that the connection ended."""
        out: list[Message] = []
        if not self._over:
            self._tell(self._frames.close(), at, out)
        self._over = True
        return out

    def _after_authentication(self, at: Instant, out: list[Message]) -> bytes:
        """Return what follows the authentication, once that is over."""
        assert self._auth is not None  # noqa: S101 -- asked for only then
        begin = _BEGIN.search(self._auth)
        end = len(self._auth) if begin is None else begin.end()
        if end > MAX_AUTH_BYTES:
            self._give_up(len(self._auth), at, out)
            return b""
        if begin is None:
            return b""
        if not begin[0].endswith(b"\n"):
            self._give_up(len(self._auth), at, out)
            return b""
        rest = bytes(self._auth[end:])
        self._auth = None
        self._frames.position = end
        return rest

    def _give_up(self, unread: int, at: Instant, out: list[Message]) -> None:
        self._over = True
        self._auth = None
        self._frames = Frames(framed=False)
        out.append(Opaque("not-understood", at, (unread, 0)))

    def _tell(self, calls: list[Call], at: Instant, out: list[Message]) -> None:
        for call in calls:
            asked = dbus_calls.delegated(call, at)
            if not asked and self._is_new(call, at, out):
                asked = [dbus_calls.other(call, at)]
            out += [self._marked(one) for one in asked]

    def _is_new(self, call: Call, at: Instant, out: list[Message]) -> bool:
        key = (call.destination, call.interface, call.member)
        if self._told is None or key in self._told:
            return False
        if len(self._told) >= MAX_CALLS:
            self._told = None
            out.append(Omitted("method calls", at, call.offset))
            return False
        self._told[key] = None
        return True

    def _marked(self, message: Delegated) -> Delegated:
        return message._replace(detail=message.detail | {"joined": True}) if self._joined else message
