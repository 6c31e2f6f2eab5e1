"""Statement messages of PostgreSQL: what was asked and what was answered in, ``Statement`` out.

A simple Query of one statement gives one Statement with the text of the Query, untouched. A Query of several gives one for each,
cut as pg_stat_statements cuts them, with these attributes: ``postgresql.query_index`` (from 0), ``postgresql.query_count``,
``postgresql.query_text_offset`` (bytes, of this text in the Query), ``postgresql.query_separator`` (what stood between this text and the
next: ``;``, white space, comments) and on the first ``postgresql.query_prefix`` (white space before it, where there is some). So the
Query, which is what the server's log shows, is ``prefix + text + separator + text + separator ...``.
Where the server answered another number of statements than were found, the Query stays one Statement with its whole text and
the outcome of the whole: what cannot be proved to belong to a part is not said of a part. So it stays too when the server
refused the text for a syntax error in a later statement: it then read no statement at all, and logs the whole.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from agentwatch.protocols.base import Instant, Outcome, Param, Statement
from agentwatch.protocols.postgres_split import is_single, split
from agentwatch.protocols.postgres_text import Cut, Text

_SYNTAX_ERROR = "42601"


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

    def statement(  # noqa: PLR0913 - one argument for each thing that a record says
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

    def query(  # noqa: PLR0913 - as above
        self,
        text: Text,
        offset: int,
        sent_at: Instant,
        results: list[Result],
        error: Failure | None,
        done_at: Instant | None,
        rest: Outcome,
    ) -> list[Statement]:
        """Return the statements of a simple Query.

        ``results`` are the answers in order; ``error`` is the one that stopped it, at ``done_at``; ``rest`` is the outcome of
        statements without an answer when there was no error.
        """
        whole = (text, offset, sent_at, results, error, done_at, rest)
        if isinstance(text, Cut):
            return [self._whole(*whole, certain=False)]
        pieces = [(0, len(text))] if is_single(text) else split(text, standard_strings=self.standard_strings)
        if pieces is None or len(pieces) <= 1:
            return [self._whole(*whole, certain=pieces is not None)]
        answered = len(results)
        whole_done = error is None and rest is Outcome.OK
        if answered != len(pieces) if whole_done else answered + (error is not None) > len(pieces):
            return [self._whole(*whole, certain=True)]
        if error is not None and not answered and _fails_later(text, pieces[0][1], error):
            return [self._whole(*whole, certain=True)]
        statements: list[Statement] = []
        for index, (start, end) in enumerate(pieces):
            result = results[index] if index < answered else None
            attributes = _batch_attributes(text, pieces, index)
            part = text[start:end]
            if result is not None:
                made = self.statement(part, None, Outcome.OK, result, None, sent_at, result.at, offset, attributes)
            elif error is not None and index == answered:
                made = self.statement(part, None, Outcome.ERROR, None, error, sent_at, done_at, offset, attributes)
            else:
                outcome = Outcome.DISCARDED if error else rest
                made = self.statement(part, None, outcome, None, None, sent_at, None, offset, attributes)
            statements.append(made)
        return statements

    def _whole(  # noqa: PLR0913 - as above
        self,
        text: Text,
        offset: int,
        sent_at: Instant,
        results: list[Result],
        error: Failure | None,
        done_at: Instant | None,
        rest: Outcome,
        *,
        certain: bool,
    ) -> Statement:
        attributes: dict[str, str | int | bool] = {}
        if len(results) > 1 or (results and error):
            attributes["postgresql.query_count"] = len(results) + (error is not None)
        if error is not None:
            return self.statement(text, None, Outcome.ERROR, None, error, sent_at, done_at, offset, attributes)
        if len(results) == 1:
            only = results[0]
            # A text that was not read to its end may hold more than the one statement that was answered.
            known = Outcome.OK if certain else rest
            return self.statement(text, None, known, only, None, sent_at, only.at, offset, attributes)
        last = results[-1].at if results and rest is Outcome.OK else done_at
        return self.statement(text, None, rest, None, None, sent_at, last, offset, attributes)


def _fails_later(text: bytes, first_end: int, error: Failure) -> bool:
    """Tell whether a syntax error lies behind the first statement: then the server saw no statement, only the text."""
    return (
        error.code == _SYNTAX_ERROR and len(text.decode("utf-8", "replace")[: error.position - 1].encode()) > first_end
    )


def _batch_attributes(text: bytes, pieces: list[tuple[int, int]], index: int) -> dict[str, str | int | bool]:
    start, end = pieces[index]
    following = pieces[index + 1][0] if index + 1 < len(pieces) else len(text)
    attributes: dict[str, str | int | bool] = {
        "postgresql.query_index": index,
        "postgresql.query_count": len(pieces),
        "postgresql.query_text_offset": start,
        "postgresql.query_separator": text[end:following].decode("utf-8", "replace"),
    }
    if index == 0 and start:
        attributes["postgresql.query_prefix"] = text[:start].decode("utf-8", "replace")
    return attributes
