"""``agentwatch tail``: the end of the log, straight from the log."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from agentwatch.cli import narrate, reads
from agentwatch.cli.common import pass_config
from agentwatch.cli.output import cut, print_json, styled
from agentwatch.cli.safe import printable
from agentwatch.log.reader import LogReader
from agentwatch.query import present, times
from agentwatch.records.encoding import decode

if TYPE_CHECKING:
    from agentwatch.config import Config
    from agentwatch.records.encoding import Record

DEFAULT_RECORDS = 20
POLL_S = 0.2
"""How often the log is looked at; the recorder writes at most every 50 ms."""

_EPILOG = """\
Exit status: 0 done; 65 the log is damaged there; errors as in `agentwatch --help`.
"""


@click.command(epilog=_EPILOG)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is recorded from now on, until interrupted.")
@click.option(
    "-n",
    "--number",
    metavar="N",
    type=click.IntRange(min=0),
    default=DEFAULT_RECORDS,
    show_default=True,
    help="Records.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line: seq, kind, time and the record's own keys."
)
@pass_config
def command(config: Config, /, *, follow: bool, number: int, as_json: bool) -> None:
    """Print the last records of the log, of all sessions, and follow it."""
    reader = LogReader(config.log_dir)
    end = reader.end()
    upcoming = max(0, end - number)
    reads.report(config)
    while True:
        for seq, payload in reader.records(upcoming, None if follow else end):
            _print(seq, decode(payload), as_json=as_json)
            upcoming = seq + 1
        sys.stdout.flush()
        if not follow:
            return
        time.sleep(POLL_S)


def _print(seq: int, record: Record, *, as_json: bool) -> None:
    if as_json:
        print_json(present.event(seq, record))
        return
    moment = record.get("time")
    when = times.local(moment) if isinstance(moment, int) else "?"
    agent = printable(str(record.get("agent") or "-"))
    told = f"{cut(narrate.headline(record))} {cut(' '.join(narrate.body(record)))}".rstrip()
    click.echo(f"{seq} {when} {styled(agent, 'cyan')} {narrate.who(record)} {told}")
