"""``agentwatch collector``: keep other hosts' checkpoints and records, in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agentwatch.cli.common import pass_config
from agentwatch.cli.service import in_foreground

if TYPE_CHECKING:
    from agentwatch.config import Config

_EPILOG = """\
Exit status: 0 stopped by a signal, 65 what is kept is damaged, 75 another process writes to log_dir or hosts_dir, 78
the configuration lacks [collector] or it cannot be used. Others as in `agentwatch --help`.
"""


@click.command("collector", epilog=_EPILOG)
@click.option("--key", "print_key", is_flag=True, help="Print the key that checkpoints are cosigned with, and end.")
@pass_config
def command(config: Config, /, *, print_key: bool) -> None:
    """Keep the logs of other hosts, until SIGTERM or SIGINT.

    Hosts push to it with `agentwatch push`, over TLS, both sides with certificates. It accepts only what continues
    what it has: who rolls a log back, forks or forges it is refused. That, and hosts that fall silent, are records in
    its own log, in log_dir: it needs one of its own, not that of a recorder. Prints "ready" on standard output once
    hosts can connect.
    """
    from agentwatch.collector import service  # noqa: PLC0415 -- --help need not load TLS and keys

    if print_key:
        click.echo(str(service.cosigner(config).key))
        return
    service.run(config, in_foreground(), lambda: click.echo("ready"))
