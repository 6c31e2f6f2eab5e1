"""Statement messages of PostgreSQL: what was asked and what was answered in, ``Statement`` out.

What PostgreSQL alone has goes into the attributes, with the keys that docs/records.md names. The SQLSTATE, message
and severity of an ErrorResponse are its fields ``C``, ``M`` and ``V`` (``S``, which is translated, from servers
before 9.6).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.protocols.base import Instant, Outcome, Param, Statement
from agentwatch.protocols.postgres_params import bound
from agentwatch.protocols.postgres_text import Cut, Text

if TYPE_CHECKING:
    from agentwatch.protocols.postgres_names import Portal


class Failure(NamedTuple):
    """An ErrorResponse: SQLSTATE, message, severity, position in the query (characters from 1; 0: none)."""

    code: str | None
    message: str | None
    severity: str
    position: int

    @property
    def fatal(self) -> bool:
        """Tell whether the server ends the connection with it."""
        return self.severity in ("FATAL", "PANIC")


class Result(NamedTuple):
    """The answer to one statement: CommandComplete's tag (None: EmptyQueryResponse), DataRows, COPY."""

    tag: bytes | None
    rows: int
    at: Instant
    copy: str | None
    copy_bytes: int


def failure(body: bytes) -> Failure:
    """Read the fields of an ErrorResponse, which may be cut."""
    fields: dict[int, str] = {}
    for part in body.split(b"\0"):
        if part and part[0] in b"SVCMP":
            fields.setdefault(part[0], part[1:].decode("utf-8", "replace"))
    severity = fields.get(ord("V")) or fields.get(ord("S")) or ""
    position = fields.get(ord("P"), "")
    number = int(position) if position.isascii() and position.isdigit() and len(position) < 12 else 0  # noqa: PLR2004
    return Failure(fields.get(ord("C")), fields.get(ord("M")), severity, number)


@lru_cache(maxsize=1024)
def tag_and_rows(body: bytes) -> tuple[str, int | None]:
    """Return the command tag as text, and the number of rows that it ends with (None: it has none)."""
    tag = body.rstrip(b"\0").decode("utf-8", "replace")
    last = tag.rpartition(" ")[2]
    return tag, int(last) if last.isascii() and last.isdigit() and len(last) < 20 else None  # noqa: PLR2004


class Maker:
    """Makes the statements of one connection: it knows who is connected."""

    __slots__ = ("joined", "namespace", "standard_strings", "user")

    def __init__(self, *, joined: bool) -> None:
        self.joined = joined
        self.user: str | None = None
        self.namespace: str | None = None
        self.standard_strings = True

    def statement(  # noqa: PLR0913, PLR0917 - one argument for each thing that a record says
        self,
        text: Text | None,
        params: tuple[Param, ...] | None,
        outcome: Outcome,
        result: Result | None,
        error: Failure | None,
        sent_at: Instant,
        done_at: Instant | None,
        offset: int,
        attributes: dict[str, str | int | bool],
    ) -> Statement:
        """Return one Statement."""
        tag, rows = None, None
        if result is not None:
            rows = result.rows or None
            if result.tag is not None:
                tag, counted = tag_and_rows(result.tag)
                rows = rows if counted is None else counted
            if result.copy:
                attributes["postgresql.copy"] = result.copy
                attributes["postgresql.copy_bytes"] = result.copy_bytes
                if rows is not None and tag is not None and tag.startswith("COPY"):
                    attributes["postgresql.copy_rows"] = rows
        return Statement(
            text.kept if isinstance(text, Cut) else text,
            0 if text is None else text.length if isinstance(text, Cut) else len(text),
            text.sha256 if isinstance(text, Cut) else None,
            params,
            self.user,
            self.namespace,
            outcome,
            rows,
            tag,
            error.code if error else None,
            error.message if error else None,
            sent_at,
            done_at,
            offset,
            self.joined,
            attributes,
        )

    def execution(  # noqa: PLR0913, PLR0917 - as above
        self,
        portal: Portal,
        outcome: Outcome,
        result: Result | None,
        error: Failure | None,
        sent_at: Instant,
        done_at: Instant | None,
        offset: int,
    ) -> Statement:
        """Return the Statement of an Execute."""
        prepared = portal.prepared
        attributes: dict[str, str | int | bool] = {}
        if prepared.name:
            attributes["postgresql.statement_name"] = prepared.name.decode("utf-8", "replace")
        if portal.name:
            attributes["postgresql.portal"] = portal.name.decode("utf-8", "replace")
        if prepared.stale:
            attributes["postgresql.statement_stale"] = True
        params = None if portal.body is None else bound(portal.body, portal.pos, prepared.oids)
        return self.statement(prepared.text, params, outcome, result, error, sent_at, done_at, offset, attributes)

    def suspended(self, portal: Portal, done_at: Instant, error: Failure | None) -> Statement:
        """Return the Statement of a portal whose client did not ask for the rest of its rows."""
        result = Result(None, portal.rows, done_at, None, 0)
        outcome = Outcome.ERROR if error else Outcome.OK
        made = self.execution(portal, outcome, result, error, portal.at, done_at, portal.offset)
        made.attributes["postgresql.suspended"] = True
        return made
