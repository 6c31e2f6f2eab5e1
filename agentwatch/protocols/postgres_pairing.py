"""Requests of a client paired with the answers of a server: frames of both directions in, statements out.

A PostgreSQL server answers every message in order, so the requests wait in a queue and each answer belongs to its head. The
exceptions, all of which the server's own code shows (src/backend/tcop/postgres.c, src/backend/commands/copyfromparse.c):

* after an error in the extended protocol everything up to the next Sync is skipped, also what arrives later;
* a Sync or Flush that is read while the server copies in is never answered; where the copy fails it cannot be told whether
  one was read before, so such a Sync *may* be answered (``_MAYBE``);
* an error at Sync comes after CommandComplete: it is the commit of the implicit transaction, so the last statement of each
  group is held back until its ReadyForQuery.

While ``paired`` is False (after a gap, or joined in the middle) requests become statements of unknown outcome at once and
answers are not looked at. ``repair`` ends that, at a place where the decoder knows that nothing is under way.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

from agentwatch.protocols.base import Instant, Message, Outcome, Request, Statement
from agentwatch.protocols.postgres_names import Names, Portal, Prepared
from agentwatch.protocols.postgres_params import bound, names
from agentwatch.protocols.postgres_statements import Failure, Maker, Result, failure
from agentwatch.protocols.postgres_text import LongBody, Text, bounded

MAX_PENDING = 200_000
"""Messages that wait for an answer; a client that pipelines more loses the outcomes of all of them."""
MAX_PENDING_BYTES = 64 * 1024 * 1024
"""Bytes of texts and parameters that wait for an answer; as above."""
MAX_RESULTS = 20_000
"""Answers remembered of one Query; a Query with more statements is kept as one anyway."""
TRUSTED_TURNS = 8
"""After ``repair`` a client that goes on before the server was ready refutes what was assumed, for so many turns."""
UNBOUNDED = 1 << 60
"""An unknown number of answers is outstanding."""

_QUERY, _PARSE, _BIND, _EXECUTE, _DESCRIBE, _CLOSE = b"QPBEDC"
_SYNC, _FUNCTION, _COPY_DATA, _COPY_DONE, _COPY_FAIL = b"SFdcf"
_START, _MAYBE = b"^~"  # no message types: the startup, and a Sync that may or may not be answered
_ROW, _COMPLETE, _READY, _ERROR, _EMPTY, _SUSPENDED = b"DCZEIs"
_PARSED, _BOUND, _CLOSED, _NO_DATA, _ROW_DESCRIPTION, _PARAMETERS = b"123nTt"
_COPY_IN, _COPY_OUT, _COPY_BOTH, _FUNCTION_RESULT, _SETTING = b"GHWVS"
_ASYNC = frozenset(b"ANSKRv")
_COPIES = {_COPY_IN: "in", _COPY_OUT: "out", _COPY_BOTH: "both"}
_STATUS = {ord(c): c for c in "ITE"}

_Entry = tuple[int, int, Instant, Any, Any]
"""A request that waits: message type, offset, sent at, and two values that depend on the type."""


class Pairing:
    """The requests of one connection that wait for an answer, and what is known of it."""

    def __init__(self, *, joined: bool) -> None:
        self.make = Maker(joined=joined)
        self.paired = not joined
        self.quiet = False
        """The last thing the server said was ReadyForQuery."""
        self.outstanding = UNBOUNDED if joined else 0
        """How many ReadyForQuery are to come, at most; exactly so many while paired."""
        self.pipelines = False
        """This client has been seen to go on before the server was ready."""
        self.terminated = False
        self._names = Names()
        self._queue: deque[_Entry] = deque()
        self._status = ""
        self._rows = 0
        self._copy: str | None = None
        self._copied_out = 0
        self._copied_in = 0
        self._results: list[Result] = []
        self._result_count = 0
        self._error: tuple[Failure, Instant] | None = None
        self._held: Statement | None = None
        self._skipping = False
        self._skip_names: Names | None = None
        self._folded: Prepared | Portal | None = None
        self._maybe_skipped = False
        self._maybes = 0
        self._copy_ends = 0
        self._pending_bytes = 0
        self._points_since_answer = 0
        self._trusted_turns = TRUSTED_TURNS

    def started(self, at: Instant, offset: int) -> None:
        """Wait for the ReadyForQuery that ends the startup."""
        self._queue.append((_START, offset, at, None, None))
        self.outstanding += 1

    # Requests.

    def ask(self, frames: list[tuple[int, Any, int]], at: Instant, out: list[Message]) -> None:
        """Take messages of the client."""
        queue = self._queue
        for kind, body, offset in frames:
            if kind == _COPY_DATA:
                self._copied_in += body
                continue
            entry = self._entry(kind, body, offset, at)
            if entry is None:
                continue
            if kind == _FUNCTION:
                out.append(Request("function_call", at, offset, {}))
            if self._skipping:
                self._skip_later(entry, out)
                continue
            if not self.paired:
                self._unpaired(entry, out)
                continue
            if entry[0] == _COPY_DONE:
                if queue:
                    queue.append(entry)
                    self._copy_ends += 1
                continue
            if kind == _SYNC:
                self.outstanding += 1
            elif self.outstanding and self._copy is None:
                self.pipelines = True
                if self._trusted_turns < TRUSTED_TURNS:
                    self.lose(out)
                    self.outstanding = UNBOUNDED
                    self._unpaired(entry, out)
                    continue
            if kind in (_QUERY, _FUNCTION):
                self.outstanding += 1
            queue.append(entry)
            if len(queue) > MAX_PENDING or (self._pending_bytes > MAX_PENDING_BYTES and self._count_bytes()):
                self.lose(out)

    def _entry(self, kind: int, body: Any, offset: int, at: Instant) -> _Entry | None:
        """Return a message as it waits in the queue; None for one that asks for nothing."""
        if kind == _EXECUTE:
            return kind, offset, at, body[: body.find(b"\0")], None
        if kind == _SYNC or kind == _FUNCTION:
            return kind, offset, at, None, None
        if kind == _BIND:
            head = body if type(body) is bytes else body.head
            found = names(head)
            portal, statement, pos = found or (b"", b"", 0)
            self._pending_bytes += len(head)
            readable = found is not None and head is body
            return kind, offset, at, portal, (statement, body if readable else None, pos)
        if kind == _QUERY:
            return kind, offset, at, self._query_text(body), None
        if kind == _DESCRIBE or kind == _CLOSE:
            return kind, offset, at, body[0], body[1:].partition(b"\0")[0]
        if kind == _PARSE:
            prepared = _prepared(body)
            self._pending_bytes += prepared.size()
            return kind, offset, at, prepared.name, prepared
        if kind == _COPY_DONE or kind == _COPY_FAIL:
            copied, self._copied_in = self._copied_in, 0
            return _COPY_DONE, offset, at, copied, kind == _COPY_FAIL
        return None

    def _query_text(self, body: bytes | LongBody) -> Text:
        if isinstance(body, LongBody):
            text: Text = body.text
            self._pending_bytes += 2 * len(body.head)
            return text
        self._pending_bytes += len(body)
        end = body.find(b"\0")
        return bounded(body[:end] if end >= 0 else body)

    def _count_bytes(self) -> bool:
        """Count again what waits, for answers have come since; tell whether it is too much."""
        total = 0
        for kind, _, _, first, second in self._queue:
            if kind == _QUERY:
                total += len(first.kept if not isinstance(first, bytes) else first)
            elif kind == _PARSE:
                total += second.size()
            elif kind == _BIND and second[1] is not None:
                total += len(second[1])
        self._pending_bytes = total
        return total > MAX_PENDING_BYTES

    # Answers.

    def answer(self, frames: list[tuple[int, Any, int]], at: Instant, out: list[Message]) -> None:
        """Take messages of the server. One that does not fit what was asked loses the pairing."""
        queue = self._queue
        for kind, body, _ in frames:
            if kind == _ROW:
                self._rows += body
                self.quiet = False
                continue
            if kind in _ASYNC:
                if kind == _SETTING:
                    self._setting(body)
                continue
            self.quiet = kind == _READY
            if not self.paired:
                if kind == _READY and self.outstanding < UNBOUNDED:
                    self.outstanding = max(0, self.outstanding - 1)
                continue
            if self._maybes or self._maybe_skipped:
                self._settle_maybes(kind, out)
            if queue:
                fits = self._take(kind, body, queue[0], at, out)
            else:
                fits = self._unasked(kind, body)
            if not fits:
                self.lose(out)
                self.outstanding = UNBOUNDED
                self.quiet = kind == _READY

    def _take(self, kind: int, body: Any, head: _Entry, at: Instant, out: list[Message]) -> bool:
        """Take one answer to the head of the queue; False when it cannot be one."""
        if kind == _COMPLETE:
            return self._completed(head, body, at, out)
        if kind == _READY:
            return self._ready(head, body, out)
        asked = head[0]
        if kind == _BOUND:
            if asked != _BIND:
                return False
            self._queue.popleft()
            self._rows = 0
            self._bind(self._names, head, at, out)
        elif kind == _ROW_DESCRIPTION or kind == _NO_DATA:
            if asked == _DESCRIBE:
                self._queue.popleft()
            else:
                return asked == _QUERY and kind == _ROW_DESCRIPTION
        elif kind == _PARSED:
            if asked != _PARSE:
                return False
            self._queue.popleft()
            self._names.prepare(head[4])
        elif kind == _ERROR:
            self._failed(head, failure(_bytes(body)), at, out)
        elif kind == _EMPTY:
            return self._completed(head, None, at, out)
        else:
            return self._other(kind, body, head, at, out)
        return True

    def _unasked(self, kind: int, body: Any) -> bool:
        """Take an answer while nothing waits: an error for the connection, or the end of a copy."""
        if kind == _ERROR:
            self._fatal(failure(_bytes(body)))
            return True
        return self.terminated or kind == _COPY_DATA or kind == _COPY_DONE

    def _other(self, kind: int, body: Any, head: _Entry, at: Instant, out: list[Message]) -> bool:
        """Take one of the rarer answers."""
        if kind == _COPY_DATA:
            self._copied_out += body
        elif kind in _COPIES:
            if head[0] not in (_QUERY, _EXECUTE):
                return False
            self._copy = _COPIES[kind]
            self._copied_out = 0
        elif kind == _PARAMETERS:
            if head[0] != _DESCRIBE:
                return False
            _parameter_types(self._names.statement(head[4]), body)
        elif kind == _SUSPENDED:
            if head[0] != _EXECUTE:
                return False
            self._queue.popleft()
            self._suspend(head, at)
        elif kind == _CLOSED:
            if head[0] != _CLOSE:
                return False
            self._queue.popleft()
            self._close(head, out)
        else:
            return kind == _COPY_DONE or (kind == _FUNCTION_RESULT and head[0] == _FUNCTION)
        return True

    def _setting(self, body: Any) -> None:
        if body == b"standard_conforming_strings\0off\0":
            self.make.standard_strings = False
        elif body == b"standard_conforming_strings\0on\0":
            self.make.standard_strings = True

    # Statements that ended.

    def _completed(self, head: _Entry, tag: bytes | None, at: Instant, out: list[Message]) -> bool:
        kind = head[0]
        if kind != _QUERY and kind != _EXECUTE:
            return False
        copy, copied = self._copy, 0
        if copy is not None:
            copied = self._copied_out
            if copy != "out":
                ended = self._copy_in_done()
                if ended is None and copy == "in":
                    return False
                copied += ended or 0
            self._copy = None
        result = Result(tag, self._rows, at, copy, copied)
        self._rows = 0
        if kind == _QUERY:
            self._result_count += 1
            if self._result_count <= MAX_RESULTS:
                self._results.append(result)
            return True
        self._queue.popleft()
        portal = self._names.portal(head[3])
        if portal.finished:
            return True
        portal.finished = True
        offset, sent_at = head[1], head[2]
        if portal.suspended:
            offset, sent_at, portal.suspended = portal.offset, portal.at, False
        made = self._execution(portal, Outcome.OK, result, None, sent_at, at, offset)
        if portal.rows:
            made = made._replace(rows=portal.rows + result.rows)  # the tag counts the last part alone
        self._hold(made, out)
        return True

    def _copy_in_done(self) -> int | None:
        """Remove the Syncs that the server read as part of the copied data; return the bytes that were copied."""
        head = self._queue.popleft()
        while self._queue and self._queue[0][0] in (_SYNC, _MAYBE):
            self._maybes -= self._queue[0][0] == _MAYBE
            self._queue.popleft()
            self.outstanding -= 1
        copied: int | None = None
        if self._queue and self._queue[0][0] == _COPY_DONE:
            copied = self._queue.popleft()[3]
            self._copy_ends -= 1
        self._queue.appendleft(head)
        return copied

    def _execution(  # noqa: PLR0913 - one argument for each thing that a record says
        self,
        portal: Portal,
        outcome: Outcome,
        result: Result | None,
        error: Failure | None,
        sent_at: Instant,
        done_at: Instant | None,
        offset: int,
    ) -> Statement:
        prepared = portal.prepared
        attributes: dict[str, str | int | bool] = {}
        if prepared.name:
            attributes["postgresql.statement_name"] = prepared.name.decode("utf-8", "replace")
        if portal.name:
            attributes["postgresql.portal"] = portal.name.decode("utf-8", "replace")
        if prepared.stale:
            attributes["postgresql.statement_stale"] = True
        params = None if portal.body is None else bound(portal.body, portal.pos, prepared.oids)
        return self.make.statement(prepared.text, params, outcome, result, error, sent_at, done_at, offset, attributes)

    def _hold(self, statement: Statement | None, out: list[Message]) -> None:
        """Keep a statement back until the next one or its ReadyForQuery."""
        if self._held is not None:
            out.append(self._held)
        self._held = statement

    def _ready(self, head: _Entry, body: bytes, out: list[Message]) -> bool:
        kind = head[0]
        status = _STATUS.get(body[0], "")
        if kind == _SYNC or kind == _MAYBE:
            self._queue.popleft()
            if kind == _MAYBE:
                self._maybes -= 1
                self._maybe_answered()
        elif kind == _QUERY:
            if not self._result_count and self._error is None:
                return False
            self._queue.popleft()
            self._end_query(head, Outcome.OK, out)
            if self._copy_ends:
                self._drop_copy_ends()
        elif kind == _START or kind == _FUNCTION:
            self._queue.popleft()
        else:
            return False
        self.outstanding -= 1
        self._trusted_turns += 1
        self._status = status
        if status == "I" and self._names.portals:
            self._end_portals(out)
        if self._held is not None:
            self._held.attributes["postgresql.transaction_status"] = status
            out.append(self._held)
            self._held = None
        return True

    def _drop_copy_ends(self) -> None:
        while self._queue and self._queue[0][0] == _COPY_DONE:
            self._queue.popleft()
            self._copy_ends -= 1

    def _end_query(self, head: _Entry, rest: Outcome, out: list[Message]) -> None:
        """Give out the statements of a Query; the last of them is held."""
        results, error = self._results, self._error
        _, offset, sent_at, text, _ = head
        # A simple Query ends the unnamed statement and the unnamed portal.
        self._names.forget(b"")
        if portal := self._names.portals.pop(b"", None):
            self._end_portal(portal, out)
        if len(results) == 1 and error is None and rest is Outcome.OK:
            only = results[0]
            made = self.make.statement(text, None, Outcome.OK, only, None, sent_at, only.at, offset, {})
            self._hold(made, out)
        else:
            failed, done_at = error or (None, None)
            for made in self.make.query(text, offset, sent_at, results, failed, done_at, rest):
                self._hold(made, out)
        self._results = []
        self._result_count = 0
        self._error = None
        self._rows = 0
        self._copy = None

    # Portals.

    def _bind(self, names_: Names, entry: _Entry, at: Instant, out: list[Message]) -> Portal:
        statement, body, pos = entry[4]
        portal = Portal(entry[3], names_.statement(statement), body, pos)
        portal.done_at = at
        for old in names_.bind(portal):
            self._end_portal(old, out)
        return portal

    def _suspend(self, head: _Entry, at: Instant) -> None:
        portal = self._names.portal(head[3])
        if not portal.suspended:
            portal.suspended = True
            portal.offset, portal.at = head[1], head[2]
        portal.rows += self._rows
        portal.done_at = at
        self._rows = 0
        self._names.portals[portal.name] = portal

    def _close(self, head: _Entry, out: list[Message]) -> None:
        if head[3] == ord("S"):
            self._names.forget(head[4])
        elif portal := self._names.portals.pop(head[4], None):
            self._end_portal(portal, out)

    def _end_portal(self, portal: Portal, out: list[Message]) -> None:
        """Give out a statement whose client did not ask for the rest of its rows."""
        if portal.suspended:
            result = Result(None, portal.rows, portal.done_at, None, 0)
            made = self._execution(portal, Outcome.OK, result, None, portal.at, portal.done_at, portal.offset)
            made.attributes["postgresql.suspended"] = True
            out.append(made)

    def _end_portals(self, out: list[Message]) -> None:
        for portal in self._names.end_portals():
            self._end_portal(portal, out)

    # Errors.

    def _fatal(self, error: Failure) -> None:
        if error.fatal:
            self.terminated = True
            self._skipping = True

    def _failed(self, head: _Entry, error: Failure, at: Instant, out: list[Message]) -> None:
        kind = head[0]
        if kind == _QUERY:
            self._error = (error, at)
            self._copy = None
        elif kind in (_SYNC, _MAYBE):
            self._fail_commit(error, at, out)
        elif kind not in (_START, _FUNCTION):
            self._queue.popleft()
            self._fail_extended(head, error, at, out)
        self._fatal(error)
        if self.terminated:
            self._end_all(out)

    def _fail_commit(self, error: Failure, at: Instant, out: list[Message]) -> None:
        """Give the error of an implicit transaction's commit to its last statement."""
        suspended = [portal for portal in self._names.portals.values() if portal.suspended]
        if self._held is not None:
            if self._held.outcome is Outcome.OK:
                self._held = self._held._replace(
                    outcome=Outcome.ERROR, status_code=error.code, error=error.message, done_at=at
                )
        elif suspended:
            portal = suspended[-1]
            portal.suspended = False
            result = Result(None, portal.rows, at, None, 0)
            self._hold(self._execution(portal, Outcome.ERROR, result, error, portal.at, at, portal.offset), out)

    def _fail_extended(self, head: _Entry, error: Failure, at: Instant, out: list[Message]) -> None:
        portal = self._failed_portal(head, at, out)
        if portal is not None:
            result = None
            offset, sent_at = head[1], head[2]
            if portal.suspended:
                result = Result(None, portal.rows, at, None, 0)
                offset, sent_at, portal.suspended = portal.offset, portal.at, False
            elif self._copy is not None:
                result = Result(None, 0, at, self._copy, self._failed_copy_bytes())
            self._hold(self._execution(portal, Outcome.ERROR, result, error, sent_at, at, offset), out)
        if self._copy in ("in", "both"):
            self._doubt_syncs(certain=error.code == "57014" and self._copy_end_is_failure())
        self._copy = None
        self._rows = 0
        self._skipping = True
        self._skip_queue(out)

    def _failed_portal(self, head: _Entry, at: Instant, out: list[Message]) -> Portal | None:
        """Return what the failed message was about, and fold what follows of it into the one statement."""
        kind = head[0]
        skipped = self._skip_names = Names()
        if kind == _PARSE:
            prepared: Prepared = head[4]
            skipped.prepare(prepared)
            self._folded = prepared
            return Portal(b"", prepared, None, 0)
        if kind == _BIND:
            portal = self._bind(self._names, head, at, out)
            self._names.portals.pop(portal.name, None)
            skipped.bind(portal)
        elif kind == _DESCRIBE and head[3] == ord("S"):
            described = self._names.statement(head[4])
            self._folded = described
            return Portal(b"", described, None, 0)
        elif kind in (_DESCRIBE, _EXECUTE):
            portal = self._names.portal(head[4] if kind == _DESCRIBE else head[3])
            skipped.bind(portal)
        else:
            return None
        self._folded = portal
        return portal

    def _failed_copy_bytes(self) -> int:
        for entry in self._queue:
            if entry[0] == _COPY_DONE:
                return self._copied_out + int(entry[3])
        return self._copied_out + self._copied_in

    def _copy_end_is_failure(self) -> bool:
        return any(entry[0] == _COPY_DONE and entry[4] for entry in self._queue)

    def _doubt_syncs(self, *, certain: bool) -> None:
        """Mark the Syncs that the server may have read, and so never answers, before its copy failed."""
        entries = list(self._queue)
        end = next((i for i, entry in enumerate(entries) if entry[0] == _COPY_DONE), len(entries))
        for index, entry in enumerate(entries):
            if entry[0] != _SYNC or index >= end:
                break
            if certain:
                entries[index] = (_COPY_DONE, *entry[1:])
                self._copy_ends += 1
                self.outstanding -= 1
            else:
                entries[index] = (_MAYBE, *entry[1:])
                self._maybes += 1
        self._queue.clear()
        self._queue.extend(entries)

    def _maybe_answered(self) -> None:
        """Pass the doubt on: the ReadyForQuery was that of this Sync, or of the next."""
        queue = self._queue
        following = next((i for i, entry in enumerate(queue) if entry[0] not in (_MAYBE, _COPY_DONE)), None)
        if following is None:
            return
        if queue[following][0] == _SYNC:
            queue[following] = (_MAYBE, *queue[following][1:])
            self._maybes += 1
        elif queue[0][0] != _MAYBE:
            self._maybe_skipped = True

    def _settle_maybes(self, kind: int, out: list[Message]) -> None:
        """Use an answer to tell what became of a Sync in doubt."""
        queue = self._queue
        if kind == _READY:
            if self._maybe_skipped and queue and queue[0][0] not in (_SYNC, _MAYBE, _QUERY):
                self._skipping, self._skip_names = True, Names()
                self._skip_queue(out)
        else:
            while queue and queue[0][0] in (_MAYBE, _COPY_DONE):
                if queue.popleft()[0] == _MAYBE:
                    self._maybes -= 1
                    self.outstanding -= 1
                else:
                    self._copy_ends -= 1
        self._maybe_skipped = False

    # What the server skips.

    def _skip_queue(self, out: list[Message]) -> None:
        """Take what already waits, up to the next Sync, as skipped."""
        queue = self._queue
        while queue and queue[0][0] not in (_SYNC, _MAYBE):
            entry = queue.popleft()
            if entry[0] == _COPY_DONE:
                self._copy_ends -= 1
            elif entry[0] in (_QUERY, _FUNCTION):
                self.outstanding -= 1
            self._discard(entry, out)
        if queue:
            self._end_skip()

    def _skip_later(self, entry: _Entry, out: list[Message]) -> None:
        """Take a message that came while the server skips."""
        if entry[0] == _SYNC and not self.terminated:
            self._end_skip()
            self.outstanding += 1
            self._queue.append(entry)
            return
        self._discard(entry, out)

    def _end_skip(self) -> None:
        self._skipping = False
        self._skip_names = None
        self._folded = None

    def _discard(self, entry: _Entry, out: list[Message]) -> None:
        """Give out a statement that was sent and skipped."""
        kind = entry[0]
        skipped = self._skip_names = self._skip_names or Names()
        if kind == _QUERY:
            for made in self.make.query(entry[3], entry[1], entry[2], [], None, None, Outcome.DISCARDED):
                self._hold(None, out)
                out.append(made)
        elif kind == _PARSE:
            skipped.prepare(entry[4])
        elif kind == _BIND:
            statement, body, pos = entry[4]
            prepared = skipped.prepared.get(statement) or self._names.statement(statement)
            portal = Portal(entry[3], prepared, body, pos)
            skipped.bind(portal)
            if self._folded is prepared:
                self._folded = portal
        elif kind == _EXECUTE:
            portal = skipped.portals.get(entry[3]) or self._names.portal(entry[3])
            if portal is not self._folded:
                self._hold(None, out)
                out.append(self._execution(portal, Outcome.DISCARDED, None, None, entry[2], None, entry[1]))
                self._folded = portal

    # Loss of pairing.

    def _unpaired(self, entry: _Entry, out: list[Message]) -> None:
        """Take a request whose answer will not be recognised."""
        kind = entry[0]
        if kind in (_SYNC, _QUERY, _FUNCTION):
            self.outstanding += 1
            self._points_since_answer += 1
            self.pipelines = self.pipelines or self._points_since_answer > 1
        self._unknown(entry, out)

    def _unknown(self, entry: _Entry, out: list[Message]) -> None:
        kind = entry[0]
        if kind == _QUERY:
            out.extend(self.make.query(entry[3], entry[1], entry[2], [], None, None, Outcome.UNKNOWN))
            self._names.forget(b"")
        elif kind == _PARSE:
            entry[4].stale = bool(entry[4].name)
            self._names.prepare(entry[4])
        elif kind == _BIND:
            self._bind(self._names, entry, entry[2], out)
        elif kind == _EXECUTE:
            portal = self._names.portal(entry[3])
            if not portal.finished:
                portal.finished = True
                out.append(self._execution(portal, Outcome.UNKNOWN, None, None, entry[2], None, entry[1]))
        elif kind == _CLOSE and entry[3] == ord("S"):
            self._names.forget(entry[4])

    def lose(self, out: list[Message], *, requests_missed: bool = False) -> None:
        """Give out what waits with an unknown outcome, and pair nothing until ``repair``."""
        self._end_all(out)
        self.paired = False
        self.quiet = False
        if requests_missed:
            self.outstanding = UNBOUNDED
            self._end_portals(out)
            self._names.mark_stale()

    def heard(self) -> None:
        """Note that the server said something."""
        self._points_since_answer = 0

    def repair(self) -> bool:
        """Begin to pair again, where the server is ready and the client begins; tell whether that is proved.

        The server is ready for the *last* request only if it owes no other ReadyForQuery: so it is by count, or
        because this client has always waited for the server before it went on.
        """
        if not self.quiet or (self.pipelines and self.outstanding):
            return False
        self._trusted_turns = 0 if self.outstanding else TRUSTED_TURNS
        self.paired = True
        self.outstanding = 0
        return True

    def _end_all(self, out: list[Message]) -> None:
        """Give out everything that waits: after a fatal error as skipped, else as unknown."""
        held = self._held
        if held is not None and held.outcome is Outcome.OK and self._status != "T" and not self.terminated:
            self._held = held._replace(outcome=Outcome.UNKNOWN)  # its commit was not seen
        self._hold(None, out)
        rest = Outcome.DISCARDED if self.terminated else Outcome.UNKNOWN
        entries = list(self._queue)
        self._queue.clear()
        first = True
        paired, self.paired = self.paired, False
        for entry in entries:
            if first and entry[0] == _QUERY:
                self._end_query(entry, rest, out)
            elif self.terminated:
                self._discard(entry, out)
            else:
                self._unknown(entry, out)
            first = False
        self._hold(None, out)
        self.paired = paired
        self._rows = self._pending_bytes = self._maybes = self._copy_ends = 0
        self._copy = None
        self._maybe_skipped = False
        if not self.terminated:
            self._end_skip()

    def close(self, out: list[Message]) -> None:
        """Give out everything: the connection ended."""
        self._end_all(out)
        self._end_portals(out)


def _bytes(body: bytes | LongBody) -> bytes:
    return body.head if isinstance(body, LongBody) else body


def _prepared(body: bytes | LongBody) -> Prepared:
    """Read a Parse."""
    if isinstance(body, LongBody):
        text: Text | None = body.text if body.name is not None else None
        return Prepared(body.name or b"", text, _oids(body.rest))
    name_end = body.find(b"\0")
    text_end = body.find(b"\0", name_end + 1)
    if name_end < 0 or text_end < 0:
        return Prepared(body[: max(name_end, 0)], bounded(body[name_end + 1 :]), ())
    return Prepared(body[:name_end], bounded(body[name_end + 1 : text_end]), _oids(body[text_end + 1 :]))


def _oids(counted: bytes) -> tuple[int, ...]:
    count = min(int.from_bytes(counted[:2], "big"), (len(counted) - 2) // 4)
    return struct.unpack_from(f">{count}I", counted, 2) if count > 0 else ()


def _parameter_types(statement: Prepared, body: bytes) -> None:
    """Note the types that the server inferred; they are final, those of the Parse were requests."""
    statement.oids = _oids(body)
