"""What a connection has prepared and bound: statement and portal names, in bounded memory.

The maps are changed when the *server* confirms (ParseComplete, BindComplete, CloseComplete): a Parse that failed or was
skipped then needs no rolling back, and a name means what it meant to the server at that moment. At a limit the oldest
entry is forgotten: executions of it come out with text None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentwatch.protocols.postgres_text import Cut

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentwatch.protocols.base import Instant
    from agentwatch.protocols.postgres_text import Text

MAX_PREPARED = 10_000
"""Prepared statements remembered for one connection; a driver's own cache holds hundreds."""
MAX_PREPARED_BYTES = 64 * 1024 * 1024
"""Bytes of text remembered for one connection."""
MAX_PORTALS = 1_000
"""Portals remembered; all of them end with their transaction."""


class Prepared:
    """A prepared statement. ``stale``: what the server has under this name may be another one (bytes were missed)."""

    __slots__ = ("name", "oids", "stale", "text")

    def __init__(self, name: bytes, text: Text | None, oids: tuple[int, ...]) -> None:
        self.name = name
        self.text = text
        self.oids = oids
        self.stale = False

    def size(self) -> int:
        """Return the bytes that it holds."""
        if self.text is None:
            return 0
        return len(self.text.kept) if isinstance(self.text, Cut) else len(self.text)


class Portal:
    """A bound statement, and what its executions have given so far.

    ``body`` and ``pos`` are the Bind message and where its parameters begin (None: too long to be kept).
    ``rows``, ``offset``, ``at`` and ``done_at`` describe executions that ended with PortalSuspended.
    """

    __slots__ = ("at", "body", "done_at", "finished", "name", "offset", "pos", "prepared", "rows", "suspended")

    def __init__(self, name: bytes, prepared: Prepared, body: bytes | None, pos: int) -> None:
        self.name = name
        self.prepared = prepared
        self.body = body
        self.pos = pos
        self.rows = 0
        self.offset = 0
        self.at: Instant = 0
        self.done_at: Instant = 0
        self.suspended = False
        self.finished = False


class Names:
    """Both maps of one connection."""

    __slots__ = ("_bytes", "portals", "prepared")

    def __init__(self) -> None:
        self.prepared: dict[bytes, Prepared] = {}
        self.portals: dict[bytes, Portal] = {}
        self._bytes = 0

    def prepare(self, statement: Prepared) -> None:
        """Remember what a name now stands for."""
        self.forget(statement.name)
        self.prepared[statement.name] = statement
        self._bytes += statement.size()
        while len(self.prepared) > MAX_PREPARED or (self._bytes > MAX_PREPARED_BYTES and len(self.prepared) > 1):
            self.forget(next(iter(self.prepared)))

    def forget(self, name: bytes) -> None:
        """Forget a prepared statement; portals of it live on."""
        old = self.prepared.pop(name, None)
        if old is not None:
            self._bytes -= old.size()

    def statement(self, name: bytes | None) -> Prepared:
        """Return what a name stands for; an unknown one (None: one that could not be read) has no text."""
        if name is None:
            return Prepared(b"", None, ())
        return self.prepared.get(name) or Prepared(name, None, ())

    def bind(self, portal: Portal) -> list[Portal]:
        """Remember a portal; return those that ended by it."""
        ended = [old] if (old := self.portals.pop(portal.name, None)) else []
        self.portals[portal.name] = portal
        if len(self.portals) > MAX_PORTALS:
            ended.append(self.portals.pop(next(iter(self.portals))))
        return ended

    def portal(self, name: bytes) -> Portal:
        """Return what a portal's name stands for; an unknown one has no text."""
        return self.portals.get(name) or Portal(name, Prepared(b"", None, ()), None, 0)

    def end_portals(self) -> Iterable[Portal]:
        """Forget all portals: their transaction ended."""
        portals, self.portals = self.portals, {}
        return portals.values()

    def mark_stale(self) -> None:
        """Note that a Parse or Close may have been missed: the unnamed ones are surely others by now."""
        self.forget(b"")
        for statement in self.prepared.values():
            statement.stale = True
        self.portals.clear()
