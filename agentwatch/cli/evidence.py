"""``agentwatch evidence``: a session's records, with what proves them, for somebody elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentwatch import evidence
from agentwatch.cli import narrate
from agentwatch.cli.common import pass_config
from agentwatch.cli.output import Progress, note, print_json
from agentwatch.cli.questions import opened
from agentwatch.errors import StoreError
from agentwatch.query import answers, times

if TYPE_CHECKING:
    from agentwatch.config import Config
    from agentwatch.evidence import Found

_EPILOG = """\
The bundle is checked without agentwatch and without this host, by `python3 agentwatch_verify.py FILE`: one file, which
comes with the source. Take that, and the identity of the host, from somewhere else than the host.

Exit status: 0 done, 66 no such session, or nothing of it is signed yet; errors as in `agentwatch --help`.
"""


@click.command(epilog=_EPILOG)
@click.argument("session")
@click.option(
    "-o", "--output", metavar="FILE", required=True, type=click.Path(path_type=Path), help=f"FILE{evidence.SUFFIX}"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object about the bundle.")
@pass_config
def command(config: Config, /, *, session: str, output: Path, as_json: bool) -> None:
    """Write the evidence of SESSION (its id, or a beginning that only it has) into a new file.

    The records exactly as they were stored, an inclusion proof for each, the checkpoint, the keys that lead to it, what
    other hosts said of it, and an account for people.
    """
    with opened(config) as source:
        uuid = answers.resolve_session(source, session)
    progress = Progress("searching")
    try:
        made = evidence.make(config.log_dir, uuid, output, _account, progress)
    except OSError as e:
        raise StoreError(f"cannot write {output}: {e.strerror or e}") from e
    finally:
        progress.finish()
    row: dict[str, Any] = {"session": uuid, "file": str(output), "bytes": output.stat().st_size, **made._asdict()}
    if as_json:
        print_json(row)
    else:
        click.echo(
            f"{output}: {made.records} records of {uuid}, under a checkpoint of {made.size}, {row['bytes']} bytes"
        )
    if made.behind:
        note(f"{made.behind} records of the session are not signed yet and not in it; try again in a second")


def _account(found: Found) -> str:
    lines = [f"Session {found.session}: what was recorded, in the order of the log.", ""]
    for seq, record in found.decoded():
        moment = record.get("time")
        when = times.local(moment) if isinstance(moment, int) else "?"
        lines.append(f"{seq:>10} {when} {narrate.who(record)} {narrate.headline(record)}")
        lines += [f"{'':>12}{line}" for line in narrate.body(record)]
    if found.damage:
        lines += ["", "The log has damage; records of this session may be missing:"]
        lines += [f"  {damage}" for damage in found.damage]
    return "\n".join(lines) + "\n"
