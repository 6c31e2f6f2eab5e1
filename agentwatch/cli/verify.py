"""``agentwatch verify``: whether the log is what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agentwatch.cli.common import pass_config
from agentwatch.cli.output import Progress, print_json
from agentwatch.cli.safe import printable
from agentwatch.log.verify import Problem, Report, verify

if TYPE_CHECKING:
    from agentwatch.config import Config

INTACT = 0
DAMAGED = 1
MAX_PRINTED = 20
"""Problems printed for people; --json has all that the check kept."""

_EPILOG = """\
Exit status: 0 intact, 1 damaged. An end that is not whole is not damage: a crash leaves it, and so does a recorder that
is writing at this moment. Errors as in `agentwatch --help`.
"""


@click.command(epilog=_EPILOG)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_config
def command(config: Config, /, *, as_json: bool) -> None:
    """Check framing, checksums and sequence of the whole log."""
    progress = Progress("checking")
    try:
        report = verify(config.log_dir, progress)
    finally:
        progress.finish()
    if as_json:
        print_json(_as_row(report))
    else:
        _print(report)
    click.get_current_context().exit(INTACT if report.ok else DAMAGED)


def _print(report: Report) -> None:
    click.echo(f"{report.log_dir}: {report.records} records in {report.segments} segments, {report.bytes} bytes")
    for problem in report.problems[:MAX_PRINTED]:
        click.echo(printable(f"damaged: {_describe(problem)}"))
    if report.problem_count > MAX_PRINTED:
        click.echo(f"damaged: {report.problem_count - MAX_PRINTED} more places")
    if report.torn is not None:
        click.echo(f"the last write is not whole ({report.torn_bytes} bytes): not damage; the recorder removes it")
    for path in report.aside:
        click.echo(printable(f"kept aside by recovery: {path}"))
    for path in report.foreign:
        click.echo(printable(f"no part of a log: {path}"))
    click.echo("intact" if report.ok else "DAMAGED")


def _describe(problem: Problem) -> str:
    lost = f"; {problem.lost} records from {problem.seq} on cannot be read" if problem.lost else ""
    return f"{problem.path} at byte {problem.offset}: {problem.how}{lost}"


def _as_row(report: Report) -> dict[str, object]:
    return {
        "intact": report.ok,
        "records": report.records,
        "segments": report.segments,
        "bytes": report.bytes,
        "problem_count": report.problem_count,
        "problems": [{**p._asdict(), "path": str(p.path)} for p in report.problems],
        "torn_bytes": report.torn_bytes,
        "aside": [str(path) for path in report.aside],
        "foreign": [str(path) for path in report.foreign],
    }
