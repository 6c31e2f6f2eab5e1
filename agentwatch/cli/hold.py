"""``agentwatch hold``: sessions whose records must not be removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agentwatch.cli.common import pass_config
from agentwatch.cli.output import Column, note, print_json, print_rows
from agentwatch.errors import NotFoundError
from agentwatch.query import answers
from agentwatch.query.source import open_source
from agentwatch.requests.client import request_hold
from agentwatch.requests.holds import read_holds
from agentwatch.requests.wire import MAX_REASON

if TYPE_CHECKING:
    from agentwatch.config import Config

COLUMNS = (Column("session", lambda row: str(row["session"]), "cyan"),)

_EPILOG = """\
Exit status: 0 done; 66 no such session; 74 it could not be recorded, and nothing has changed; 77 not root; errors as in
`agentwatch --help`.
"""


def _reason(_ctx: click.Context, _param: click.Parameter, typed: str | None) -> str | None:
    if typed is not None and not 0 < len(typed.strip()) <= MAX_REASON:
        raise click.BadParameter(f"must have 1 to {MAX_REASON} characters")
    return typed


@click.command(epilog=_EPILOG)
@click.argument("session", required=False)
@click.option("--reason", metavar="TEXT", callback=_reason, help="Why; it is recorded.")
@click.option("--release", is_flag=True, help="End the hold.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@pass_config
def command(config: Config, /, *, session: str | None, reason: str | None, release: bool, as_json: bool) -> None:
    """Hold SESSION (its id, or a beginning that only it has): no record of it is removed, however old it gets.

    Without SESSION: list what is held. Holds and their ends are records of the log, written by the recorder, which must
    run: who asked, when and why.
    """
    if session is None:
        if release or reason is not None:
            raise click.UsageError("name the session that is meant")
        print_rows(({"session": held} for held in sorted(read_holds(config.log_dir))), COLUMNS, as_json=as_json)
        return
    if reason is None:
        raise click.UsageError("say why: --reason TEXT; it is recorded")
    uuid = _held(config, session) if release else _known(config, session)
    seq = request_hold(config, uuid, reason, held=not release)
    if as_json:
        print_json({"session": uuid, "held": not release, "seq": seq})
    else:
        note(f"{uuid} is {'released' if release else 'held'}: record {seq}")


def _known(config: Config, typed: str) -> str:
    with open_source(config) as source:  # not reported as a read: what is asked for becomes a record anyway
        return answers.resolve_session(source, typed)


def _held(config: Config, typed: str) -> str:
    """Return the one session under hold that begins so; the index may not know it any more."""
    beginning = typed.strip().lower()
    found = [held for held in read_holds(config.log_dir) if held.startswith(beginning)] if beginning else []
    if len(found) != 1:
        raise NotFoundError(f"{len(found)} sessions under hold begin with {typed!r}; list them with `agentwatch hold`")
    return found[0]
