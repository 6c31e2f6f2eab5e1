"""``agentwatch statements``: what was sent to databases, verbatim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentwatch.cli.cells import count, duration, moment, outcome, program, session, tables, text
from agentwatch.cli.common import pass_config
from agentwatch.cli.output import Column
from agentwatch.cli.questions import EXIT_STATUS, ask, filter_options
from agentwatch.query import answers
from agentwatch.query.filters import Filter

if TYPE_CHECKING:
    from agentwatch.config import Config

COLUMNS = (
    Column("seq", count("seq"), "dim"),
    Column("time", moment("time")),
    Column("session", session, "cyan"),
    Column("agent", text("agent"), "bold"),
    Column("process", program),
    Column("database", text("db.namespace")),
    Column("outcome", outcome),
    Column("rows", count("rows")),
    Column("duration", duration),
    Column("tables", tables, "green"),
    Column("statement", text("db.query.text")),
)


@click.command(epilog=EXIT_STATUS)
@filter_options
@click.option("--text", metavar="SUBSTRING", help="Statements whose text holds this, as it stands (case counts).")
@pass_config
def command(config: Config, /, *, as_json: bool, **conditions: Any) -> None:
    """List statements in the order of the log, which is their order on each connection.

    The text column is shortened to a line; --json has every statement verbatim, with its parameters in `params`. There
    `tables` is null where they could not be told, bytes that are not text are {"base64": ...}, and a statement that is
    not UTF-8 has its exact bytes in `db.query.text_base64`.
    """
    ask(config, answers.statements, COLUMNS, Filter(**conditions), as_json=as_json)
