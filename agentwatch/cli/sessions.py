"""``agentwatch sessions``: which sessions did it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentwatch.cli.cells import count, moment, tables, text
from agentwatch.cli.common import pass_config
from agentwatch.cli.output import Column
from agentwatch.cli.questions import EXIT_STATUS, ask, filter_options
from agentwatch.query import answers
from agentwatch.query.filters import Filter

if TYPE_CHECKING:
    from agentwatch.config import Config

COLUMNS = (
    Column("session", text("session"), "cyan"),
    Column("agent", text("agent"), "bold"),
    Column("user", text("user")),
    Column("started", moment("started")),
    Column("ended", lambda row: moment("ended")(row) or "running"),
    Column("statements", count("statements")),
    Column("commands", count("commands")),
    Column("gaps", count("gaps")),
    Column("opaque bytes", count("opaque_bytes")),
    Column("tables", tables, "green"),
)


@click.command(epilog=EXIT_STATUS)
@filter_options
@click.option("--text", metavar="SUBSTRING", help="Statements whose text holds this, as it stands (case counts).")
@pass_config
def command(config: Config, /, *, as_json: bool, **conditions: Any) -> None:
    """List sessions: those with a statement in the window that meets all conditions.

    Without a condition about statements (--table --access --database --text): those that ran in the window.
    Statements that failed or were skipped by the server count: they were sent. In JSON, `tables` are all that the
    session touched; `ended` is null while it runs; `gaps` counts its own and those of the whole host while it ran.
    """
    ask(config, answers.sessions, COLUMNS, Filter(**conditions), as_json=as_json)
