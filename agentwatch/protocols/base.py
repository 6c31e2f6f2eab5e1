"""What every protocol decoder takes in and gives out.

A decoder is a pure state machine: no sockets, clocks, threads or logging. It is fed the bytes of one
connection, both directions, in the order in which the kernel saw them, and returns messages. Five rules hold
for each of them, and each is tested:

* it never raises, whatever the bytes are: they come from the process that is being watched;
* its memory is bounded by the limits named in its own file;
* the messages do not depend on how the input was split into pieces;
* after a gap no statement is paired with the outcome of another one;
* a connection joined in its middle gives statements marked ``joined``, never silence.

Decoders must survive ``pickle`` (plain attributes, no closures, no generators): the recorder saves them so
that a restart continues in the middle of a connection.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple, Protocol

Instant = int
"""A time on CLOCK_BOOTTIME in nanoseconds."""


class Direction(IntEnum):
    """Which way the bytes went, seen from the watched process."""

    OUT = 0
    IN = 1


class Outcome(StrEnum):
    """What became of a statement."""

    OK = "ok"
    ERROR = "error"
    DISCARDED = "discarded"
    """Sent, but skipped by the server because of an earlier error (PostgreSQL: up to the next Sync)."""
    UNKNOWN = "unknown"
    """The answer was not seen: a gap, the connection ended, or capture was joined too late."""


class Skipped(NamedTuple):
    """Bytes of the server that were not copied because nobody reads them: a run of messages of one type.

    The first ``lead`` of the ``length`` bytes end a message that began before, ``messages`` begin in them, and
    the last of these goes on for ``rest`` bytes behind them. It is somebody else's claim, and may be wrong.
    """

    length: int
    lead: int
    rest: int
    messages: int
    message: int
    """The type byte."""


Param = None | bool | int | float | str | bytes
"""A bound value: NULL, a number, text as the server would print it, or bytes that could not be decoded."""


class Statement(NamedTuple):
    """One statement as the client sent it, with what the server answered.

    ``text`` is verbatim and not decoded; None when it is not known (prepared before capture began). Beyond
    the decoder's limit it holds prefix and suffix only: then ``text_length`` is larger than ``len(text)``
    and ``text_sha256`` covers the whole. ``offset`` is the position of the first byte of the message that asked
    for the execution, counted from the first byte seen of the OUT direction (attribution uses it).
    ``rows`` is the number of rows returned or affected, as the protocol tells it.
    """

    text: bytes | None
    text_length: int
    text_sha256: bytes | None
    params: tuple[Param, ...] | None
    user: str | None
    namespace: str | None
    outcome: Outcome
    rows: int | None
    command_tag: str | None
    status_code: str | None
    error: str | None
    sent_at: Instant
    done_at: Instant | None
    offset: int
    joined: bool
    attributes: dict[str, str | int | bool]
    """What only this protocol has; keys as in docs/records.md (``postgresql.statement_name``, ...)."""


class Opened(NamedTuple):
    """The connection said who it is: after the startup or handshake, never its authentication data."""

    user: str | None
    namespace: str | None
    attributes: dict[str, str | int | bool]


class Request(NamedTuple):
    """Something asked of a server that is not a statement (a cancel request, a replication command)."""

    operation: str
    sent_at: Instant
    offset: int
    attributes: dict[str, str | int | bool]


Detail = str | int | bool | list[str]


class Delegated(NamedTuple):
    """A daemon was asked to do something, perhaps to run a program: what comes of it is the daemon's child.

    ``channel`` is the kind of daemon as far as the protocol tells it (``dbus``, ``machined``, ``docker``, ``podman``,
    ``ssh``), ``command`` the words to be executed, None where none are named.
    """

    channel: str
    operation: str
    command: tuple[bytes, ...] | None
    detail: dict[str, Detail]
    sent_at: Instant
    offset: int


class Omitted(NamedTuple):
    """A limit is reached: things like ``what`` are understood from here on, but not returned."""

    what: str
    sent_at: Instant
    offset: int


class Opaque(NamedTuple):
    """From here on the decoder cannot read this connection, and why (``tls``, ``gssenc``, ``not-understood``).

    Bytes that arrive later are counted by the caller; the decoder ignores them. ``undecoded``: bytes out and in that
    the decoder was given already and did not read.
    """

    reason: str
    at: Instant
    undecoded: tuple[int, int] = (0, 0)


Message = Statement | Opened | Request | Delegated | Omitted | Opaque


class Decoder(Protocol):
    """The seam between streams and protocols."""

    name: str
    """The protocol's name in records: ``postgresql``, ``mysql``, ``redis`` ..."""

    def feed(self, direction: Direction, data: bytes, at: Instant) -> list[Message]:
        """Take the next bytes of one direction; return what became complete by them."""
        ...

    def gap(self, direction: Direction, length: int, at: Instant) -> list[Message]:
        """Take note that ``length`` bytes of one direction were not seen (0: an unknown number).

        The decoder resynchronises at a provable boundary. Statements whose outcome may lie in the gap
        are returned with ``Outcome.UNKNOWN``.
        """
        ...

    def close(self, at: Instant) -> list[Message]:
        """Take note that the connection ended; return what was still waiting for an outcome."""
        ...
