"""What a client asked for and has no answer to yet: messages in, a queue of requests out.

Besides the requests the queue holds two things that are never answered, or perhaps not: the place where the client
ended a COPY (``COPY_END``), and a Sync of which it cannot be told whether the server read it as part of the copied
data, which is never answered (``MAYBE``; src/backend/commands/copyfromparse.c, CopyGetData).
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

from agentwatch.protocols.base import Instant
from agentwatch.protocols.postgres_names import Prepared
from agentwatch.protocols.postgres_params import names
from agentwatch.protocols.postgres_text import Cut, LongBody, Text, bounded

MAX_PENDING = 200_000
"""Messages that wait for an answer; a client that pipelines more loses the outcomes of all of them."""
MAX_PENDING_BYTES = 64 * 1024 * 1024
"""Bytes of texts and parameters that wait for an answer; as above."""

QUERY, PARSE, BIND, EXECUTE, DESCRIBE, CLOSE = b"QPBEDC"
SYNC, FUNCTION, COPY_DATA, COPY_END, _COPY_FAIL = b"SFdcf"
START, MAYBE = b"^~"  # no message types: the startup, and a Sync that may or may not be answered

Entry = tuple[int, int, Instant, Any, Any]
"""A request that waits: message type, offset, sent at, and two values that depend on the type:

Query: text. Parse: name, ``Prepared``. Bind: portal, (statement, body or None, where its parameters begin).
Execute: portal. Describe, Close: ``S`` or ``P``, name. COPY_END: bytes that were copied, whether it was a CopyFail.
"""

_DESCRIBES = frozenset((DESCRIBE, CLOSE))
_POINTS = frozenset((SYNC, FUNCTION))
_COPY_ENDS = frozenset((COPY_END, _COPY_FAIL))


class Waiting:
    """The queue of requests of one connection, oldest first."""

    __slots__ = ("_bytes", "copied", "copy_ends", "maybes", "queue")

    def __init__(self) -> None:
        self.queue: deque[Entry] = deque()
        self.copied = 0
        """Bytes of COPY data that the client has sent since it last asked or ended a copy."""
        self.copy_ends = 0
        self.maybes = 0
        self._bytes = 0

    def clear(self) -> list[Entry]:
        """Return and forget everything that waits."""
        entries = list(self.queue)
        self.queue.clear()
        self.copy_ends = self.maybes = self._bytes = 0
        return entries

    def entry(self, kind: int, body: Any, offset: int, at: Instant) -> Entry | None:  # noqa: PLR0911 - one for each type
        """Return a message as it waits; None for one that asks for nothing."""
        if kind == EXECUTE:
            self.copied = 0
            return kind, offset, at, body[: body.find(b"\0")], None
        if kind in _POINTS:
            return kind, offset, at, None, None
        if kind == BIND:
            return self._bind(body, offset, at)
        if kind == QUERY:
            self.copied = 0
            text = _query_text(body)
            self._bytes += _size(text)
            return kind, offset, at, text, None
        if kind in _DESCRIBES:
            return kind, offset, at, body[0], body[1:].partition(b"\0")[0]
        if kind == PARSE:
            prepared = _prepared(body)
            self._bytes += prepared.size()
            return kind, offset, at, prepared.name, prepared
        if kind in _COPY_ENDS:
            copied, self.copied = self.copied, 0
            return COPY_END, offset, at, copied, kind == _COPY_FAIL
        return None

    def _bind(self, body: bytes | LongBody, offset: int, at: Instant) -> Entry:
        head = body.head if isinstance(body, LongBody) else body
        self._bytes += len(head)
        found = names(head)
        if found is None:  # names that cannot be read stand for nothing
            return BIND, offset, at, b"", (None, None, 0)
        portal, statement, pos = found
        return BIND, offset, at, portal, (statement, body if head is body else None, pos)

    def full(self) -> bool:
        """Tell whether too much waits."""
        return len(self.queue) > MAX_PENDING or (self._bytes > MAX_PENDING_BYTES and self._too_many_bytes())

    def _too_many_bytes(self) -> bool:
        # Answers have come since the bytes were counted: count again.
        total = 0
        for kind, _, _, first, second in self.queue:
            if kind == QUERY:
                total += _size(first)
            elif kind == PARSE:
                total += second.size()
            elif kind == BIND and second[1] is not None:
                total += len(second[1])
        self._bytes = total
        return total > MAX_PENDING_BYTES

    def drop_copy_ends(self) -> None:
        """Drop the ends of copies that failed before."""
        while self.queue and self.queue[0][0] == COPY_END:
            self.queue.popleft()
            self.copy_ends -= 1

    def end_copy(self) -> tuple[int, int | None]:
        """Take what belongs to a copy that was completed by the request at the head.

        Return the number of Syncs that the server read within the data, and the bytes copied (None: the client has
        not ended the copy).
        """
        head = self.queue.popleft()
        eaten = 0
        while self.queue and self.queue[0][0] in (SYNC, MAYBE):
            self.maybes -= self.queue.popleft()[0] == MAYBE
            eaten += 1
        copied: int | None = None
        if self.queue and self.queue[0][0] == COPY_END:
            copied = self.queue.popleft()[3]
            self.copy_ends -= 1
        self.queue.appendleft(head)
        return eaten, copied

    def failed_copy(self) -> tuple[int, bool]:
        """Return how many bytes a copy that failed was sent, and whether the client had given it up."""
        for entry in self.queue:
            if entry[0] == COPY_END:
                return int(entry[3]), bool(entry[4])
        return self.copied, False

    def doubt_syncs(self, *, eaten: bool) -> int:
        """Mark the Syncs that the server may have read before its copy failed; return how many surely were."""
        entries = list(self.queue)
        sure = 0
        for index, entry in enumerate(entries):
            if entry[0] != SYNC:
                break
            if eaten:
                entries[index] = (COPY_END, *entry[1:])
                sure += 1
            else:
                entries[index] = (MAYBE, *entry[1:])
                self.maybes += 1
        self.copy_ends += sure
        self.queue.clear()
        self.queue.extend(entries)
        return sure

    def pass_doubt_on(self) -> bool:
        """Doubt the next Sync too: the ReadyForQuery was that of a Sync in doubt, or of the next.

        Tell whether requests lie between them, which then were skipped, or were not.
        """
        following = next((i for i, entry in enumerate(self.queue) if entry[0] not in (MAYBE, COPY_END)), None)
        if following is None:
            return False
        if self.queue[following][0] == SYNC:
            self.queue[following] = (MAYBE, *self.queue[following][1:])
            self.maybes += 1
            return False
        return self.queue[0][0] != MAYBE

    def drop_maybes(self) -> int:
        """Drop Syncs in doubt from the head: what was answered now is behind them; return how many."""
        dropped = 0
        while self.queue and self.queue[0][0] in (MAYBE, COPY_END):
            if self.queue.popleft()[0] == MAYBE:
                self.maybes -= 1
                dropped += 1
            else:
                self.copy_ends -= 1
        return dropped


def oids(counted: bytes) -> tuple[int, ...]:
    """Read a count and so many type OIDs, as far as they are there."""
    count = min(int.from_bytes(counted[:2], "big"), (len(counted) - 2) // 4)
    return struct.unpack_from(f">{count}I", counted, 2) if count > 0 else ()


def _size(text: Text) -> int:
    return len(text.kept) if isinstance(text, Cut) else len(text)


def _query_text(body: bytes | LongBody) -> Text:
    if isinstance(body, LongBody):
        return body.text
    end = body.find(b"\0")
    return bounded(body[:end] if end >= 0 else body)


def _prepared(body: bytes | LongBody) -> Prepared:
    if isinstance(body, LongBody):
        text: Text | None = body.text if body.name is not None else None
        return Prepared(body.name or b"", text, oids(body.rest))
    name_end = body.find(b"\0")
    text_end = body.find(b"\0", name_end + 1)
    if name_end < 0 or text_end < 0:
        return Prepared(body[: max(name_end, 0)], bounded(body[name_end + 1 :]), ())
    return Prepared(body[:name_end], bounded(body[name_end + 1 : text_end]), oids(body[text_end + 1 :]))
