"""Requests of a client paired with the answers of a server: frames of both directions in, statements out.

A PostgreSQL server answers every message in order, so the requests wait in a queue and each answer belongs to its
head. The exceptions, all of which the server's own code shows (src/backend/tcop/postgres.c):

* after an error in the extended protocol everything up to the next Sync is skipped (postgres_skip);
* a Sync that is read while the server copies in is never answered (postgres_requests);
* an error at Sync comes after CommandComplete: it is the commit of the implicit transaction, so the last statement of
  each group is held back until its ReadyForQuery;
* a portal that was suspended goes on with another Execute: it is one statement, given out when it ends.

While ``paired`` is False (after a gap, or joined in the middle) requests become statements of unknown outcome at once
and answers are not looked at. ``repair`` ends that, at a place where the decoder knows that nothing is under way.
"""

from __future__ import annotations

from typing import Any

from agentwatch.protocols.base import Instant, Message, Outcome, Request, Statement
from agentwatch.protocols.postgres_batch import Query, Stopped, statements
from agentwatch.protocols.postgres_names import Names, Portal
from agentwatch.protocols.postgres_requests import (
    BIND,
    CLOSE,
    COPY_DATA,
    COPY_END,
    DESCRIBE,
    EXECUTE,
    FUNCTION,
    MAYBE,
    PARSE,
    QUERY,
    START,
    SYNC,
    Entry,
    Waiting,
    oids,
)
from agentwatch.protocols.postgres_skip import Skip
from agentwatch.protocols.postgres_statements import Failure, Maker, Result, failure
from agentwatch.protocols.postgres_text import LongBody

MAX_RESULTS = 20_000
"""Answers remembered of one Query; a Query with more statements is kept as one anyway."""
TRUSTED_TURNS = 8
"""After ``repair`` a client that goes on before the server was ready refutes what was assumed, for so many turns."""
UNBOUNDED = 1 << 60
"""An unknown number of answers is outstanding."""

_ROW, _COMPLETE, _READY, _ERROR, _EMPTY, _SUSPENDED = b"DCZEIs"
_PARSED, _BOUND, _CLOSED, _NO_DATA, _ROW_DESCRIPTION, _PARAMETERS = b"123nTt"
_COPY_IN, _COPY_OUT, _COPY_BOTH, _FUNCTION_RESULT, _SETTING = b"GHWVS"
_ASYNC = frozenset(b"ANSKRv")
_COPIES = {_COPY_IN: "in", _COPY_OUT: "out", _COPY_BOTH: "both"}
_STATUS = {ord(c): c for c in "ITE"}
_OF_STATEMENT = ord("S")
_COPY_GIVEN_UP = "57014"
_POINTS = frozenset((SYNC, QUERY, FUNCTION))
"""What the server answers with ReadyForQuery."""
_SYNCS = frozenset((SYNC, MAYBE))
_BY_ITSELF = frozenset((START, FUNCTION))
"""What is answered, and is no statement."""
_DESCRIPTIONS = frozenset((_ROW_DESCRIPTION, _NO_DATA))
_RUNS = frozenset((QUERY, EXECUTE))
_SETTINGS = {b"standard_conforming_strings\0on\0": True, b"standard_conforming_strings\0off\0": False}


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
        """The server said that it ends the connection: what is sent now is never read."""
        self._names = Names()
        self._waiting = Waiting()
        self._skip: Skip | None = None
        self._held: Statement | None = None
        self._status = ""
        self._rows = 0
        self._copy: str | None = None
        self._copied_out = 0
        self._results: list[Result] = []
        self._result_count = 0
        self._stopped: Stopped | None = None
        self._maybe_skipped = False
        self._points_since_answer = 0
        self._trusted_turns = TRUSTED_TURNS

    def started(self, at: Instant, offset: int) -> None:
        """Wait for the ReadyForQuery that ends the startup."""
        self._waiting.queue.append((START, offset, at, None, None))
        self.outstanding += 1

    # Requests.

    def ask(self, frames: list[tuple[int, Any, int]], at: Instant, out: list[Message]) -> None:
        """Take messages of the client."""
        waiting = self._waiting
        for kind, body, offset in frames:
            if kind == COPY_DATA:
                waiting.copied += body
                continue
            entry = waiting.entry(kind, body, offset, at)
            if entry is None:
                continue
            if kind == FUNCTION:
                out.append(Request("function_call", at, offset, {}))
            if self._skip is not None:
                self._skip_later(self._skip, entry, out)
            elif not self.paired:
                self._unpaired(entry, out)
            else:
                self._wait(entry, out)

    def _wait(self, entry: Entry, out: list[Message]) -> None:
        waiting, kind = self._waiting, entry[0]
        if kind == COPY_END:
            if waiting.queue:
                waiting.queue.append(entry)
                waiting.copy_ends += 1
            return
        if self.outstanding and kind != SYNC and self._copy is None:
            self.pipelines = True
            if self._trusted_turns < TRUSTED_TURNS:
                self._lose_count(out)
                self._unpaired(entry, out)
                return
        if kind in _POINTS:
            self.outstanding += 1
        waiting.queue.append(entry)
        if waiting.full():
            self.lose(out)

    def _skip_later(self, skip: Skip, entry: Entry, out: list[Message]) -> None:
        """Take a message that came while the server skips."""
        if entry[0] == SYNC and not self.terminated:
            self._skip = None
            self.outstanding += 1
            self._waiting.queue.append(entry)
        else:
            self._discard(skip, entry, out)

    # Answers.

    def answer(self, frames: list[tuple[int, Any, int]], at: Instant, out: list[Message]) -> None:
        """Take messages of the server. One that does not fit what was asked loses the pairing."""
        queue = self._waiting.queue
        for kind, body, _ in frames:
            if kind == _ROW:
                self._rows += body
                self.quiet = False
                continue
            if kind in _ASYNC:
                if kind == _SETTING:
                    self.make.standard_strings = _SETTINGS.get(body, self.make.standard_strings)
                continue
            self.quiet = kind == _READY
            if not self.paired:
                if kind == _READY and self.outstanding < UNBOUNDED:
                    self.outstanding = max(0, self.outstanding - 1)
                continue
            if self._waiting.maybes or self._maybe_skipped:
                self._settle_doubt(kind, out)
            fits = self._take(kind, body, queue[0], at, out) if queue else self._unasked(kind, body)
            if not fits:
                self._lose_count(out)
                self.quiet = kind == _READY

    def _take(self, kind: int, body: Any, head: Entry, at: Instant, out: list[Message]) -> bool:
        """Take one answer to the head of the queue; False when it cannot be one."""
        asked = head[0]
        if kind == _COMPLETE:
            return asked in _RUNS and self._completed(head, body, at, out)
        if kind == _READY:
            return self._ready(head, body, out)
        if kind == _BOUND:
            if asked == BIND:
                self._rows = 0
                self._bind(self._waiting.queue.popleft(), at, out)
            return asked == BIND
        if kind in _DESCRIPTIONS:
            if asked == DESCRIBE:
                self._waiting.queue.popleft()
            return asked == DESCRIBE or (asked == QUERY and kind == _ROW_DESCRIPTION)
        if kind == _ERROR:
            self._failed(head, failure(_bytes(body)), at, out)
            return True
        return self._other(kind, body, head, at, out)

    def _other(self, kind: int, body: Any, head: Entry, at: Instant, out: list[Message]) -> bool:
        """Take one of the rarer answers."""
        needed = _ANSWERS.get(kind)
        if needed is not None and head[0] not in needed:
            return False
        if kind == _PARSED:
            self._names.prepare(self._waiting.queue.popleft()[4])
        elif kind == COPY_DATA:
            self._copied_out += body
        elif kind in _COPIES:
            self._copy = _COPIES[kind]
            self._copied_out = 0
        elif kind == _PARAMETERS:
            self._names.statement(head[4]).oids = oids(body)  # final; those of the Parse were requests
        elif kind == _SUSPENDED:
            self._suspend(self._waiting.queue.popleft(), at)
        elif kind == _CLOSED:
            self._close(self._waiting.queue.popleft(), out)
        elif kind == _EMPTY:
            return self._completed(head, None, at, out)
        return True

    def _unasked(self, kind: int, body: Any) -> bool:
        """Take an answer while nothing waits: an error for the connection, or the rest of a copy."""
        if kind == _ERROR:
            self._fatal(failure(_bytes(body)))
            return True
        return self.terminated or kind in (COPY_DATA, COPY_END)

    # Statements that ended.

    def _completed(self, head: Entry, tag: bytes | None, at: Instant, out: list[Message]) -> bool:
        copied = 0
        if self._copy is not None:
            copied = self._copied_out
            if self._copy != "out":
                eaten, sent = self._waiting.end_copy()
                self.outstanding -= eaten
                if sent is None and self._copy == "in":
                    return False  # a copy cannot be complete before the client ended it
                copied += sent or 0
        result = Result(tag, self._rows, at, self._copy, copied)
        self._rows = 0
        self._copy = None
        if head[0] == EXECUTE:
            self._waiting.queue.popleft()
            self._executed(head, result, out)
            return True
        self._result_count += 1
        if self._result_count <= MAX_RESULTS:
            self._results.append(result)
        return True

    def _executed(self, head: Entry, result: Result, out: list[Message]) -> None:
        portal = self._names.portal(head[3])
        if portal.finished:
            return
        portal.finished = True
        offset, sent_at = head[1], head[2]
        if portal.suspended:
            offset, sent_at, portal.suspended = portal.offset, portal.at, False
        made = self.make.execution(portal, Outcome.OK, result, None, sent_at, result.at, offset)
        if portal.rows:
            made = made._replace(rows=portal.rows + result.rows)  # the tag counts the last part alone
        self._hold(made, out)

    def _hold(self, statement: Statement | None, out: list[Message]) -> None:
        """Keep a statement back until the next one or its ReadyForQuery."""
        if self._held is not None:
            out.append(self._held)
        self._held = statement

    def _ready(self, head: Entry, body: bytes, out: list[Message]) -> bool:
        kind, queue = head[0], self._waiting.queue
        if kind == QUERY:
            if not self._result_count and self._stopped is None:
                return False
            queue.popleft()
            self._end_query(head, Outcome.OK, out)
            if self._waiting.copy_ends:
                self._waiting.drop_copy_ends()
        elif kind == MAYBE:
            queue.popleft()
            self._waiting.maybes -= 1
            self._maybe_skipped = self._waiting.pass_doubt_on()
        elif kind == SYNC or kind in _BY_ITSELF:
            queue.popleft()
        else:
            return False
        self.outstanding -= 1
        self._trusted_turns += 1
        self._status = status = _STATUS.get(body[0], "")
        if status == "I" and self._names.portals:
            self._end_portals(out)
        if self._held is not None:
            self._held.attributes["postgresql.transaction_status"] = status
            self._hold(None, out)
        return True

    def _end_query(self, head: Entry, rest: Outcome, out: list[Message]) -> None:
        """Give out the statements of a Query; the last of them is held."""
        _, offset, sent_at, text, _ = head
        results, stopped = self._results, self._stopped
        # A simple Query ends the unnamed statement and the unnamed portal.
        self._names.forget(b"")
        if portal := self._names.portals.pop(b"", None):
            self._end_portal(portal, out)
        if len(results) == 1 and stopped is None and rest is Outcome.OK:
            only = results[0]  # one answer: it was one statement, whatever the text looks like
            self._hold(self.make.statement(text, None, rest, only, None, sent_at, only.at, offset, {}), out)
        else:
            for made in statements(self.make, Query(text, offset, sent_at), results, stopped, rest):
                self._hold(made, out)
        self._results = []
        self._result_count = self._rows = 0
        self._stopped = self._copy = None

    # Portals.

    def _bind(self, entry: Entry, at: Instant, out: list[Message]) -> None:
        statement, body, pos = entry[4]
        portal = Portal(entry[3], self._names.statement(statement), body, pos)
        portal.done_at = at
        for old in self._names.bind(portal):
            self._end_portal(old, out)

    def _suspend(self, head: Entry, at: Instant) -> None:
        portal = self._names.portal(head[3])
        if not portal.suspended:
            portal.suspended = True
            portal.offset, portal.at = head[1], head[2]
        portal.rows += self._rows
        portal.done_at = at
        self._rows = 0
        self._names.portals[portal.name] = portal

    def _close(self, head: Entry, out: list[Message]) -> None:
        if head[3] == _OF_STATEMENT:
            self._names.forget(head[4])
        elif portal := self._names.portals.pop(head[4], None):
            self._end_portal(portal, out)

    def _end_portal(self, portal: Portal, out: list[Message]) -> None:
        """Give out a statement whose client did not ask for the rest of its rows."""
        if portal.suspended:
            out.append(self.make.suspended(portal, portal.done_at, None))

    def _end_portals(self, out: list[Message]) -> None:
        for portal in self._names.end_portals():
            self._end_portal(portal, out)

    # Errors.

    def _fatal(self, error: Failure) -> None:
        if error.fatal:
            self.terminated = True
            self._skip = self._skip or Skip()

    def _failed(self, head: Entry, error: Failure, at: Instant, out: list[Message]) -> None:
        kind = head[0]
        if kind == QUERY:
            self._stopped = Stopped(error, at, self._stopped_copy(at))
        elif kind in _SYNCS:
            self._fail_commit(error, at, out)
        elif kind not in _BY_ITSELF:
            self._waiting.queue.popleft()
            self._fail_extended(head, error, at, out)
        self._fatal(error)
        if self.terminated:
            self._end_all(out)

    def _stopped_copy(self, at: Instant) -> Result | None:
        if self._copy is None:
            return None
        sent, _ = self._waiting.failed_copy()
        result = Result(None, 0, at, self._copy, self._copied_out + sent)
        self._copy = None
        return result

    def _fail_commit(self, error: Failure, at: Instant, out: list[Message]) -> None:
        """Give the error of an implicit transaction's commit to its last statement."""
        suspended = [portal for portal in self._names.portals.values() if portal.suspended]
        if self._held is not None:
            if self._held.outcome is Outcome.OK:
                code, message = error.code, error.message
                self._held = self._held._replace(outcome=Outcome.ERROR, status_code=code, error=message, done_at=at)
        elif suspended:
            self._hold(self.make.suspended(suspended[-1], at, error), out)
            suspended[-1].suspended = False

    def _fail_extended(self, head: Entry, error: Failure, at: Instant, out: list[Message]) -> None:
        skip = self._skip = Skip()
        portal = skip.begin(head, self._names)
        copies_in = self._copy in ("in", "both")
        _, given_up = self._waiting.failed_copy()
        copy = self._stopped_copy(at)
        if portal is not None and portal.suspended:
            self._hold(self.make.suspended(portal, at, error), out)
            portal.suspended = False
        elif portal is not None:
            self._hold(self.make.execution(portal, Outcome.ERROR, copy, error, head[2], at, head[1]), out)
        if copies_in:
            self.outstanding -= self._waiting.doubt_syncs(eaten=given_up and error.code == _COPY_GIVEN_UP)
        self._rows = 0
        self._skip_queue(skip, out)

    def _skip_queue(self, skip: Skip, out: list[Message]) -> None:
        """Take what already waits, up to the next Sync, as skipped."""
        queue = self._waiting.queue
        while queue and queue[0][0] not in _SYNCS:
            entry = queue.popleft()
            self._waiting.copy_ends -= entry[0] == COPY_END
            self.outstanding -= entry[0] in _POINTS
            self._discard(skip, entry, out)
        if queue:
            self._skip = None

    def _discard(self, skip: Skip, entry: Entry, out: list[Message]) -> None:
        skipped = skip.take(entry, self._names, self.make)
        if skipped:
            self._hold(None, out)
            out.extend(skipped)

    def _settle_doubt(self, kind: int, out: list[Message]) -> None:
        """Use an answer to tell what became of a Sync in doubt."""
        queue = self._waiting.queue
        if kind != _READY:
            self.outstanding -= self._waiting.drop_maybes()
        elif self._maybe_skipped and queue and queue[0][0] not in _SYNCS and queue[0][0] != QUERY:
            self._skip = Skip()
            self._skip_queue(self._skip, out)
        self._maybe_skipped = False

    # Loss of pairing.

    def _unpaired(self, entry: Entry, out: list[Message]) -> None:
        """Take a request whose answer will not be recognised."""
        if entry[0] in _POINTS:
            self.outstanding += 1
            self._points_since_answer += 1
            self.pipelines = self.pipelines or self._points_since_answer > 1
        self._unknown(entry, out)

    def _unknown(self, entry: Entry, out: list[Message]) -> None:
        kind, offset, at, first, second = entry
        if kind == QUERY:
            out.extend(statements(self.make, Query(first, offset, at), [], None, Outcome.UNKNOWN))
            self._names.forget(b"")
        elif kind == PARSE:
            second.stale = bool(second.name)  # it may have failed, and the name may stand for what it did before
            self._names.prepare(second)
        elif kind == BIND:
            self._bind(entry, at, out)
        elif kind == EXECUTE:
            portal = self._names.portal(first)
            if not portal.finished:
                portal.finished = True
                out.append(self.make.execution(portal, Outcome.UNKNOWN, None, None, at, None, offset))
        elif kind == CLOSE and first == _OF_STATEMENT:
            self._names.forget(second)

    def lose(self, out: list[Message], *, requests_missed: bool = False) -> None:
        """Give out what waits with an unknown outcome, and pair nothing until ``repair``."""
        self._end_all(out)
        self.paired = self.quiet = False
        if requests_missed:
            self.outstanding = UNBOUNDED
            for portal in self._names.end_portals():
                if portal.suspended:  # it may have gone on unseen
                    made = self.make.suspended(portal, portal.done_at, None)
                    out.append(made._replace(outcome=Outcome.UNKNOWN))
            self._names.mark_stale()

    def _lose_count(self, out: list[Message]) -> None:
        """Lose the pairing because what was assumed of the connection is not so."""
        self.lose(out)
        self.outstanding = UNBOUNDED

    def heard(self) -> None:
        """Note that the server said something."""
        self._points_since_answer = 0

    def repair(self) -> bool:
        """Begin to pair again, where the server is ready and the client begins; tell whether that is so.

        The server is ready for the *last* request only if it owes no other ReadyForQuery: so it is by count, or
        because this client has always waited for the server before it went on.
        """
        if not self.quiet or (self.pipelines and self.outstanding):
            return False
        self._trusted_turns = 0 if self.outstanding else TRUSTED_TURNS
        self.paired = True
        self.outstanding = self._rows = 0
        return True

    def _end_all(self, out: list[Message]) -> None:
        """Give out everything that waits: after a fatal error as skipped, else as unknown."""
        held = self._held
        if held is not None and held.outcome is Outcome.OK and self._status != "T" and not self.terminated:
            self._held = held._replace(outcome=Outcome.UNKNOWN)  # its commit was not seen
        self._hold(None, out)
        entries = self._waiting.clear()
        if entries and entries[0][0] == QUERY:
            rest = Outcome.DISCARDED if self.terminated else Outcome.UNKNOWN
            self._end_query(entries.pop(0), rest, out)
            self._hold(None, out)
        for entry in entries:
            if self.terminated and self._skip is not None:
                self._discard(self._skip, entry, out)
            else:
                self._unknown(entry, out)
        self._rows = 0
        self._copy = None
        self._maybe_skipped = False
        if not self.terminated:
            self._skip = None

    def close(self, out: list[Message]) -> None:
        """Give out everything: the connection ended."""
        self._end_all(out)
        self._end_portals(out)


_ANSWERS: dict[int, frozenset[int]] = {
    _PARSED: frozenset((PARSE,)),
    _COPY_IN: _RUNS,
    _COPY_OUT: _RUNS,
    _COPY_BOTH: _RUNS,
    _PARAMETERS: frozenset((DESCRIBE,)),
    _SUSPENDED: frozenset((EXECUTE,)),
    _CLOSED: frozenset((CLOSE,)),
    _EMPTY: _RUNS,
    _FUNCTION_RESULT: frozenset((FUNCTION,)),
}
"""Which request each of the rarer answers can belong to; CopyData and CopyDone to any."""


def _bytes(body: bytes | LongBody) -> bytes:
    return body.head if isinstance(body, LongBody) else body
