"""What ``sessions``, ``statements`` and ``commands`` share: their filters, their exit status, their diagnostics."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from agentwatch.cli import reads
from agentwatch.cli.common import moment
from agentwatch.cli.output import Column, Progress, note, print_rows
from agentwatch.query import answers
from agentwatch.query.filters import ACCESSES, Filter, Table
from agentwatch.query.source import open_source
from agentwatch.sql.names import normalise_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agentwatch.config import Config
    from agentwatch.query.source import Source

F = TypeVar("F", bound="Callable[..., Any]")

YES = 0
NO = 1
CANNOT_SAY = 3

EXIT_STATUS = """\
Exit status: 0 yes, there are rows. 1 no. 3 cannot say: there are no rows, but the window holds gaps, opaque flows,
statements that could not be read or requests to daemons, or the index is behind the log; stderr has the reasons. With
rows the status is 0 and stderr still says why there may be more. 2 usage; errors as in `agentwatch --help`.

Times: a duration before now (30s, 10m, 1h, 2d, 1w, 1h30m), now, today, yesterday, or ISO 8601, in local time where no
zone is given. --since is in the window, --until is not. In JSON, times are RFC 3339 in UTC with nine decimals: they
sort as text.

--table takes a name as SQL does: case-folded unless quoted, with or without a schema. Without one it matches the name
in every schema; with one, where the statement writes that schema, and for public also where it writes none.
Statements without a schema are counted on stderr when another one is asked for.
"""


def _table(_ctx: click.Context, _param: click.Parameter, typed: str | None) -> Table | None:
    try:
        return None if typed is None else Table(*normalise_name(typed))
    except ValueError as e:
        raise click.BadParameter(f"{typed!r} is not the name of a table: {e}") from e


_OPTIONS = (
    click.option("--table", metavar="T", callback=_table, help="Statements that touch this table."),
    click.option("--access", type=click.Choice(ACCESSES), help="How the table (or any table) is touched."),
    click.option("--agent", metavar="A", help="One agent, by its name."),
    click.option("--since", metavar="TIME", callback=moment, help="The beginning of the window."),
    click.option("--until", metavar="TIME", callback=moment, help="The end of the window."),
    click.option("--database", metavar="D", help="Statements sent to this database."),
    click.option("--session", metavar="S", help="One session: its id, or a beginning that only it has."),
    click.option("--limit", metavar="N", type=click.IntRange(min=1), help="The newest N only."),
    click.option("--json", "as_json", is_flag=True, help="One JSON object a line."),
)


def filter_options(function: F) -> F:
    """Add the filters and ``--json``. ``--text`` is each command's own: it means something else for each."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def ask(
    config: Config,
    question: Callable[[Source, Filter], answers.Answer],
    columns: Sequence[Column],
    wanted: Filter,
    *,
    as_json: bool,
) -> NoReturn:
    """Print the answer and its reasons, and end with its exit status."""
    with opened(config) as source:
        if wanted.session is not None:
            wanted = replace(wanted, session=answers.resolve_session(source, wanted.session))
        answer = question(source, wanted)
        number = print_rows(answer.rows, columns, as_json=as_json)
        if answer.note:
            note(answer.note)
        word = "there may be more" if number else "cannot say"
        for reason in answer.reasons:
            note(f"{word}: {reason}")
    click.get_current_context().exit(YES if number else CANNOT_SAY if answer.reasons else NO)


@contextmanager
def opened(config: Config) -> Iterator[Source]:
    """Open index and log, with a progress bar while the index catches up, and have the read recorded."""
    progress = Progress("indexing")
    try:
        with open_source(config, progress) as source:
            progress.finish()
            reads.report(config)
            yield source
    finally:
        progress.finish()
