"""What a server skips: after an error in the extended protocol everything up to the next Sync, also what comes later.

In: the message that failed, then the skipped ones. Out: each statement that was sent and skipped, once. Always: what
belongs to the statement that failed (the Bind and Execute of a failed Parse, the Execute of a failed Bind, another
Execute of the same portal) is part of that statement and no second one; and names that were prepared or bound while
the server skipped mean nothing afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentwatch.protocols.base import Outcome, Statement
from agentwatch.protocols.postgres_batch import Query, statements
from agentwatch.protocols.postgres_names import Names, Portal, Prepared
from agentwatch.protocols.postgres_requests import BIND, DESCRIBE, EXECUTE, PARSE, QUERY, Entry

if TYPE_CHECKING:
    from agentwatch.protocols.postgres_statements import Maker

_OF_STATEMENT = ord("S")


class Skip:
    """One stretch from an error to a Sync."""

    __slots__ = ("_failed", "_names")

    def __init__(self) -> None:
        self._names = Names()
        self._failed: Prepared | Portal | None = None

    def begin(self, head: Entry, known: Names) -> Portal | None:
        """Return what the failed message was about; None when that is no statement."""
        kind = head[0]
        if kind == PARSE or (kind == DESCRIBE and head[3] == _OF_STATEMENT):
            prepared = head[4] if kind == PARSE else known.statement(head[4])
            self._failed = prepared
            if kind == PARSE:
                self._names.prepare(prepared)
            return Portal(b"", prepared, None, 0)
        if kind == BIND:
            statement, body, pos = head[4]
            portal = Portal(head[3], known.statement(statement), body, pos)
        elif kind in (DESCRIBE, EXECUTE):
            portal = known.portal(head[4] if kind == DESCRIBE else head[3])
        else:
            return None
        self._names.bind(portal)
        self._failed = portal
        return portal

    def take(self, entry: Entry, known: Names, make: Maker) -> list[Statement]:
        """Return the statements of a message that was skipped."""
        kind, offset, at, first, second = entry
        if kind == QUERY:
            return statements(make, Query(first, offset, at), [], None, Outcome.DISCARDED)
        if kind == PARSE:
            self._names.prepare(second)
        elif kind == BIND:
            statement, body, pos = second
            prepared = self._names.prepared.get(statement) or known.statement(statement)
            portal = Portal(first, prepared, body, pos)
            self._names.bind(portal)
            if self._failed is prepared:
                self._failed = portal
        elif kind == EXECUTE:
            portal = self._names.portals.get(first) or known.portal(first)
            if portal is not self._failed:
                self._failed = portal
                return [make.execution(portal, Outcome.DISCARDED, None, None, at, None, offset)]
        return []
