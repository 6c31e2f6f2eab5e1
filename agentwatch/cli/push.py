"""``agentwatch push``: keep a collector on another host at the log's newest checkpoint, in the foreground."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

import click

from agentwatch.cli.common import pass_config

if TYPE_CHECKING:
    from agentwatch.config import Config

_EPILOG = """\
Exit status: 0 done, or stopped by a signal; with --once also 65 the collector refuses the log (it has been rolled
back, forked, or is another one), 66 there is no signed log, 74 the collector cannot be reached or fails; 78 the
configuration lacks [push] or it cannot be used. Others as in `agentwatch --help`.
"""


@click.command("push", epilog=_EPILOG)
@click.option("--once", is_flag=True, help="Push what there is, and end.")
@pass_config
def command(config: Config, /, *, once: bool) -> None:
    """Push checkpoints, and records if push.records says so, to the collector, until SIGTERM or SIGINT.

    Only reads the log, and keeps the collector's signatures in its folder anchors/. What goes wrong is tried again;
    the collector says what it needs next, so nothing is lost and nothing remembered here.
    """
    from agentwatch.collector.push import Pusher  # noqa: PLC0415 -- --help need not load TLS and keys

    logging.basicConfig(format="agentwatch: %(message)s", level=logging.INFO)
    pusher = Pusher(config)
    if once:
        size = pusher.push_once()
        click.echo(f"the collector has the checkpoint of {size} records")
        return

    def stop(_number: int, _frame: object) -> None:
        pusher.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    pusher.run()
