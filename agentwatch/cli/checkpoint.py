"""``agentwatch checkpoint``: the newest checkpoint, to be kept somewhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agentwatch.cli.common import pass_config
from agentwatch.errors import NotFoundError
from agentwatch.log import checkpoint, folder, note

if TYPE_CHECKING:
    from agentwatch.config import Config

_EPILOG = """\
Keep it where root of this host cannot reach it: in a ticket, in a mail, on paper. Then `verify --against FILE`
proves that everything up to it is as it was.

Exit status: 0 done, 66 there is none; errors as in `agentwatch --help`.
"""


@click.command(epilog=_EPILOG)
@click.option("--identity", "with_identity", is_flag=True, help="Print the vkey of the host's identity instead.")
@pass_config
def command(config: Config, /, *, with_identity: bool) -> None:
    """Print the newest checkpoint of the log: a signed note that says how many records there are, and what they are."""
    path = config.log_dir / ("identity" if with_identity else checkpoint.FILE)
    try:
        content = path.read_bytes()
    except FileNotFoundError as e:
        raise NotFoundError(f"there is no {path}; the recorder makes it (agentwatch record)") from e
    except OSError as e:
        raise folder.failure(e, f"cannot read {path}") from e
    if not with_identity:
        checkpoint.Checkpoint.parse(note.parse(content).text)
    click.echo(content.decode(), nl=False)
