"""The statements of a simple Query: its text and the answers in, one Statement for each statement out.

A Query of one statement gives one Statement with the text of the Query, untouched. A Query of several gives one for
each, cut as pg_stat_statements cuts them, with these attributes: ``postgresql.query_index`` (from 0),
``postgresql.query_count``, ``postgresql.query_text_offset`` (bytes, of this text in the Query),
``postgresql.query_separator`` (what stood between this text and the next: ``;``, white space, comments) and on the
first ``postgresql.query_prefix`` (what stood before it, where something did). So the Query, which is what the
server's log shows, is ``prefix + text + separator + text + separator ...``.

Where the server answered another number of statements than were found, the Query stays one Statement with its whole
text and the outcome of the whole: what cannot be proved to belong to a part is not said of a part. So it stays too
when the server refused the text for a syntax error in a later statement: it then read no statement at all, and logs
the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agentwatch.protocols.base import Outcome
from agentwatch.protocols.postgres_split import is_single, split
from agentwatch.protocols.postgres_text import Cut

if TYPE_CHECKING:
    from agentwatch.protocols.base import Instant, Statement
    from agentwatch.protocols.postgres_statements import Failure, Maker, Result
    from agentwatch.protocols.postgres_text import Text

_SYNTAX_ERROR = "42601"


class Query(NamedTuple):
    """A Query message."""

    text: Text
    offset: int
    sent_at: Instant


class Stopped(NamedTuple):
    """The error that ended a Query, when, and what its COPY had moved by then."""

    failure: Failure
    at: Instant
    copy: Result | None


def statements(
    make: Maker, query: Query, results: list[Result], stopped: Stopped | None, rest: Outcome
) -> list[Statement]:
    """Return the statements of a Query; ``rest`` is the outcome of those without an answer, where no error was."""
    text = query.text
    if isinstance(text, Cut):
        return [_whole(make, query, results, stopped, rest)]
    pieces = [(0, len(text))] if is_single(text) else split(text, standard_strings=make.standard_strings)
    if pieces is None:
        return [_whole(make, query, results, stopped, rest)]
    if len(pieces) <= 1:
        return [_whole(make, query, results, stopped, Outcome.OK if results else rest)]
    if stopped is None and rest is Outcome.OK:
        disagree = len(results) != len(pieces)
    else:
        disagree = len(results) + (stopped is not None) > len(pieces)
    if disagree or (stopped and not results and _fails_later(text, pieces[0][1], stopped.failure)):
        return [_whole(make, query, results, stopped, rest)]
    return _parts(make, query, text, pieces, results, stopped, rest)


def _parts(  # noqa: PLR0913, PLR0917 - the Query, its pieces, and the three things that are known of them
    make: Maker,
    query: Query,
    text: bytes,
    pieces: list[tuple[int, int]],
    results: list[Result],
    stopped: Stopped | None,
    rest: Outcome,
) -> list[Statement]:
    made: list[Statement] = []
    for index, (start, end) in enumerate(pieces):
        attributes = _place(text, pieces, index)
        outcome, result, failure, done_at = Outcome.DISCARDED if stopped else rest, None, None, None
        if index < len(results):
            outcome, result, done_at = Outcome.OK, results[index], results[index].at
        elif stopped and index == len(results):
            outcome, result, failure, done_at = Outcome.ERROR, stopped.copy, stopped.failure, stopped.at
        made.append(
            make.statement(
                text[start:end], None, outcome, result, failure, query.sent_at, done_at, query.offset, attributes
            )
        )
    return made


def _whole(make: Maker, query: Query, results: list[Result], stopped: Stopped | None, rest: Outcome) -> Statement:
    text, offset, sent_at = query
    attributes: dict[str, str | int | bool] = {}
    count = len(results) + (stopped is not None)
    if count > 1:
        attributes["postgresql.query_count"] = count
    if stopped is not None:
        failure, at, copy = stopped
        return make.statement(text, None, Outcome.ERROR, copy, failure, sent_at, at, offset, attributes)
    only = results[0] if count == 1 else None
    done_at = results[-1].at if results and rest is Outcome.OK else None
    return make.statement(text, None, rest, only, None, sent_at, done_at, offset, attributes)


def _fails_later(text: bytes, first_end: int, failure: Failure) -> bool:
    """Tell whether a syntax error lies behind the first statement; its position counts characters from 1."""
    if failure.code != _SYNTAX_ERROR:
        return False
    return len(text.decode("utf-8", "replace")[: max(0, failure.position - 1)].encode()) > first_end


def _place(text: bytes, pieces: list[tuple[int, int]], index: int) -> dict[str, str | int | bool]:
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
