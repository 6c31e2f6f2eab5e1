"""``agentwatch commands``: which programs were executed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentwatch.cli.cells import argv, count, duration, moment, session, status, text
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
    Column("pid", count("pid")),
    Column("status", status),
    Column("duration", duration),
    Column("cwd", text("cwd"), "dim"),
    Column("command", argv),
)


@click.command(epilog=EXIT_STATUS)
@filter_options
@click.option("--text", metavar="SUBSTRING", help="Programs whose arguments, joined by spaces, hold this.")
@pass_config
def command(config: Config, /, *, as_json: bool, **conditions: Any) -> None:
    """List the programs that were executed, and those that could not be.

    Conditions about statements (--table --access --database) hold for all programs of a session that has such a
    statement in the window. `status` is null while a program runs, when it executed another one in its place, and
    when it could not be executed; then `errno` and `error` say why and `exe` is the file that was asked for. A program
    that was sought in several folders of PATH is one row; `tail` has every try.
    """
    ask(config, answers.commands, COLUMNS, Filter(**conditions), as_json=as_json)
