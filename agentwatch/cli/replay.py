"""``agentwatch replay``: one session again, in order and at its own pace."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from agentwatch.cli import cells, narrate
from agentwatch.cli.common import pass_config
from agentwatch.cli.output import note, print_json, styled
from agentwatch.cli.questions import opened
from agentwatch.query import answers, doubts, present, story, times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.config import Config
    from agentwatch.index.names import Shape
    from agentwatch.query.source import Source
    from agentwatch.records.encoding import Record

NS = 1_000_000_000

_EPILOG = """\
Exit status: 0 done; 66 no such session; errors as in `agentwatch --help`.
"""


@click.command(epilog=_EPILOG)
@click.argument("session")
@click.option("--speed", metavar="N", type=click.FloatRange(min=0, min_open=True), default=1.0, help="N times as fast.")
@click.option("--no-wait", is_flag=True, help="All at once.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@pass_config
def command(config: Config, /, *, session: str, speed: float, no_wait: bool, as_json: bool) -> None:
    """Replay SESSION (its id, or a beginning that only it has): programs, connections, statements verbatim, gaps.

    Every record of the session comes in the order in which things began, and so does every gap of the host while
    it ran. In JSON each has its `kind`; a statement has the keys that `agentwatch statements` gives.
    """
    with opened(config) as source:
        number = story.number_of(source, answers.resolve_session(source, session))
        pace = None if no_wait else _Pace(speed)
        first: int | None = None
        for seq, record, shape in _events(source, number):
            if pace is not None:
                pace.wait(record.get("boottime"))
            if as_json:
                print_json(_as_row(seq, record, shape))
            else:
                first = record.get("time") if first is None else first
                _print(record, shape, first)
            if pace is not None:
                sys.stdout.flush()
        for reason in doubts.coverage(source.coverage):
            note(f"there may be more: {reason}")


class _Pace:
    """Waits as long as it took then, divided by the speed."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._began: tuple[int, int] | None = None

    def wait(self, boottime: Any) -> None:
        if not isinstance(boottime, int):
            return
        now = time.monotonic_ns()
        if self._began is None:
            self._began = (boottime, now)
        due = self._began[1] + (boottime - self._began[0]) / self._speed
        if due > now:
            time.sleep((due - now) / NS)


def _events(source: Source, number: int) -> Iterator[tuple[int, Record, Shape | None]]:
    for seq, record in story.in_order(source, number):
        yield seq, record, answers.shape_of(source, seq) if record["kind"] == "statement" else None


def _as_row(seq: int, record: Record, shape: Shape | None) -> present.Row:
    if shape is None:
        return present.event(seq, record)
    return {"kind": "statement", **present.statement(seq, record, shape)}


def _print(record: Record, shape: Shape | None, first: int | None) -> None:
    moment = record.get("time")
    after = "" if not isinstance(moment, int) or first is None else f"+{(moment - first) / NS:.3f}s"
    tables = "" if shape is None else cells.tables(_tables(shape))
    when = times.local(moment) if isinstance(moment, int) else "?"
    head = f"{when} {after:>10} {narrate.who(record)} "
    click.echo(
        styled(head, "bright_black") + styled(narrate.headline(record, tables), _COLOURS.get(record["kind"], ""))
    )
    for line in narrate.body(record):
        click.echo(f"    {line}")


def _tables(shape: Shape) -> present.Row:
    return {"tables": None if shape.tables is None else present.tables(shape.tables)}


_COLOURS = {
    "statement": "green",
    "exec": "cyan",
    "exec_failed": "yellow",
    "connect": "blue",
    "gap": "red",
    "opaque": "magenta",
    "delegation": "magenta",
    "cgroup_move": "red",
    "divergence": "red",
}
