"""The API of Docker and Podman over HTTP/1.1, both directions in, what the daemon is asked out; see ``base.Decoder``.

Each request that changes something comes out as ``Delegated`` with the status that answered it; those that only read
once for each path with its ids left out, up to a limit. What is to be executed is told by the requests that create a
container, or an exec in one; variables of the environment without their values.

A connection that is handed over (``Upgrade: tcp``, as attach and exec do) is not read any further. A request that asks
for that holds back what the client sends behind it until the answer is seen. Specification: Docker Engine API v1.47
(moby api/swagger.yaml), Podman's libpod API v4.
"""

from __future__ import annotations

from typing import NamedTuple

from agentwatch.protocols import docker_requests, http1
from agentwatch.protocols.base import Delegated, Direction, Instant, Message, Omitted, Opaque

MAX_PATHS = 64
"""Distinct requests of a connection that only read and are told."""
MAX_UNANSWERED = 64
"""Requests that wait for their answer; beyond it the oldest is told without."""
MAX_HELD_BYTES = 64 * 1024
"""Bytes held back behind a request that may hand the connection over."""
_SWITCHING, _FINAL = 101, 200
_RAW_STREAMS = (b"application/vnd.docker.raw-stream", b"application/vnd.docker.multiplexed-stream")


class _Asked(NamedTuple):
    """A request that was not answered yet."""

    message: Delegated | None
    method: bytes
    upgrade: bool


class DockerDecoder:
    """One connection of a client to a daemon; ``joined`` if its beginning was not seen."""

    name = "docker"

    def __init__(self, *, joined: bool = False) -> None:
        self._requests = http1.Reader(keep=http1.MAX_BODY_BYTES)
        self._responses: http1.Reader | None = http1.Reader()
        self._head: http1.Head | None = None
        self._waiting: list[_Asked] = []
        self._held = False
        self._told: set[str] | None = set()
        self._joined = joined
        self._over = False

    def feed(self, direction: Direction, data: bytes, at: Instant) -> list[Message]:
        """Take the next bytes of one direction; return what became complete by them."""
        out: list[Message] = []
        if self._over or not data:
            return out
        if direction is Direction.OUT:
            self._requests.add(data)
            self._ask(at, out)
        elif self._responses is not None:
            self._responses.add(data)
            self._answer(at, out)
        return out

    def gap(self, direction: Direction, length: int, at: Instant) -> list[Message]:
        """Take note of bytes that were not seen: without the answers requests are told all the same."""
        out: list[Message] = []
        if self._over:
            return out
        if direction is Direction.IN:
            if self._responses is not None and not self._responses.gap(length):
                self._lose_answers(at, out)
        elif self._held or not self._requests.gap(length):
            self._end("not-understood", at, out)
        return out

    def close(self, at: Instant) -> list[Message]:
        """Take note that the connection ended."""
        out: list[Message] = []
        if not self._over:
            self._flush(at, out)
        self._over = True
        return out

    # -- requests

    def _ask(self, at: Instant, out: list[Message]) -> None:
        while not (self._held or self._over) and (event := self._requests.next_event()) is not None:
            if isinstance(event, http1.Head):
                self._head = event
                self._requests.body(http1.request_body(event))
            elif isinstance(event, http1.End):
                self._asked(event, at, out)
            else:
                self._end("not-understood", at, out)
        if self._held and self._requests.waiting > MAX_HELD_BYTES:
            self._end("upgraded", at, out)

    def _asked(self, end: http1.End, at: Instant, out: list[Message]) -> None:
        head, self._head = self._head, None
        assert head is not None  # noqa: S101 -- a body has a head
        if head.status:
            self._end("not-understood", at, out)  # a response, from the client
            return
        upgrade = b"upgrade" in head.all(b"connection") or bool(head.all(b"upgrade"))
        asked = docker_requests.request(head, end, at)
        told = self._marked(asked) if self._is_to_tell(asked, at, out) else None
        self._waiting.append(_Asked(told, head.method, upgrade))
        if self._responses is None:
            self._flush(at, out)
            if upgrade:
                self._end("upgraded", at, out)
        elif len(self._waiting) > MAX_UNANSWERED:
            self._lose_answers(at, out)
        else:
            self._held = upgrade

    def _is_to_tell(self, asked: Delegated, at: Instant, out: list[Message]) -> bool:
        if not docker_requests.only_reads(asked):
            return True
        if self._told is None or asked.operation in self._told:
            return False
        if len(self._told) >= MAX_PATHS:
            self._told = None
            out.append(Omitted("requests that only read", at, asked.offset))
            return False
        self._told.add(asked.operation)
        return True

    def _marked(self, message: Delegated) -> Delegated:
        return message._replace(detail=message.detail | {"joined": True}) if self._joined else message

    # -- responses

    def _answer(self, at: Instant, out: list[Message]) -> None:
        while self._responses is not None and not self._over and (event := self._responses.next_event()) is not None:
            if isinstance(event, http1.Head):
                self._answered(event, at, out)
            elif isinstance(event, http1.Broken):
                self._lose_answers(at, out)

    def _answered(self, head: http1.Head, at: Instant, out: list[Message]) -> None:
        assert self._responses is not None  # noqa: S101 -- it gave the head
        if not self._waiting or not head.status:
            self._lose_answers(at, out)  # it answers something that was not seen
            return
        if head.status < _FINAL and head.status != _SWITCHING:
            self._responses.body(0)
            return
        asked = self._waiting.pop(0)
        if asked.message is not None:
            out.append(asked.message._replace(detail=asked.message.detail | {"status": head.status}))
        framing = http1.response_body(head, asked.method)
        raw = framing == http1.UNTIL_CLOSE and any(kind in _RAW_STREAMS for kind in head.all(b"content-type"))
        if head.status == _SWITCHING or raw:
            self._end("upgraded", at, out)
            return
        self._responses.body(framing)
        if asked.upgrade and self._held:
            self._held = False
            self._ask(at, out)

    def _lose_answers(self, at: Instant, out: list[Message]) -> None:
        """Go on with the requests alone."""
        self._responses = None
        self._flush_waiting(out)
        if self._held:
            self._end("upgraded", at, out)

    def _flush(self, at: Instant, out: list[Message]) -> None:
        """Return what waits for an answer, and the request whose end was not seen."""
        self._flush_waiting(out)
        end = self._requests.unfinished()
        if self._head is not None and end is not None and not self._head.status:
            out.append(self._marked(docker_requests.request(self._head, end, at)))
            self._head = None

    def _flush_waiting(self, out: list[Message]) -> None:
        out += [asked.message for asked in self._waiting if asked.message is not None]
        self._waiting = []

    def _end(self, reason: str, at: Instant, out: list[Message]) -> None:
        self._flush(at, out)
        into = 0 if self._responses is None else self._responses.waiting
        out.append(Opaque(reason, at, (self._requests.waiting, into)))
        self._over = True
        self._requests, self._responses = http1.Reader(), None
