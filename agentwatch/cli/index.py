"""``agentwatch index``: the index follows the log."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import click

from agentwatch.cli import reads
from agentwatch.cli.common import pass_config
from agentwatch.cli.output import Progress, note
from agentwatch.index.indexer import Indexer
from agentwatch.log.reader import LogReader

if TYPE_CHECKING:
    from agentwatch.config import Config

_EPILOG = """\
Exit status: 0 done; 75 another process is indexing; 77 not permitted; errors as in `agentwatch --help`.
"""


@click.command(epilog=_EPILOG)
@click.argument("action", required=False, type=click.Choice(["rebuild"]))
@click.option("--follow", is_flag=True, help="Stay, and index what is recorded from now on, until SIGINT or SIGTERM.")
@pass_config
def command(config: Config, /, *, action: str | None, follow: bool) -> None:
    """Bring the index up to the end of the log, and print how far it is.

    `agentwatch index rebuild` makes it anew: the log holds what was observed, the index only what was derived from it.
    """
    end = LogReader(config.log_dir).end()
    if action == "rebuild":
        reads.report(config)
    progress = Progress("indexing")
    with Indexer(config) as indexer:

        def show(position: int) -> None:
            progress(position, max(end, position))

        try:
            done = indexer.rebuild(show) if action == "rebuild" else indexer.catch_up(progress=show)
        finally:
            progress.finish()
        click.echo(f"indexed {done} records; index: {indexer.next_seq} of {max(end, indexer.next_seq)} records")
        if follow:
            _follow(indexer)


def _follow(indexer: Indexer) -> None:
    stopping = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    note("following the log")
    indexer.follow(lambda: stopping)
