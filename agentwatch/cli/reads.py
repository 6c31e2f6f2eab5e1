"""Who reads the log is in the log: each command that does calls ``report`` before it prints what it found."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from agentwatch.cli.output import note
from agentwatch.requests.client import report_read

if TYPE_CHECKING:
    from agentwatch.config import Config


def report(config: Config) -> None:
    """Have the recorder write down what the running command asks; where that fails, say so on stderr and go on.

    To be called once log and index are open: so what the answer covers does not include the record of its own question,
    which an index that somebody else writes could not have yet.
    """
    reason = report_read(config, click.get_current_context().info_name or "?", sys.argv[1:])
    if reason is not None:
        note(f"this read is not recorded: {reason}")
