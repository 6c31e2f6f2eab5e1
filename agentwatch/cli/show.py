"""``agentwatch show``: one session on a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentwatch.cli import cells, narrate
from agentwatch.cli.common import pass_config
from agentwatch.cli.output import cut, note, print_json, styled
from agentwatch.cli.questions import opened
from agentwatch.cli.safe import printable
from agentwatch.query import answers, doubts, story, times

if TYPE_CHECKING:
    from agentwatch.config import Config
    from agentwatch.query.source import Source

MAX_INPUT = 40
"""Lines of input that are printed; there may be a whole data set in it."""
MAX_INDENTED = 24
"""Levels of the tree that are indented; deeper ones stay at that margin."""

_EPILOG = """\
Exit status: 0 done; 66 no such session; errors as in `agentwatch --help`.
"""


@click.command(epilog=_EPILOG)
@click.argument("session")
@click.option("--statements", "with_statements", is_flag=True, help="Also every statement, verbatim.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_config
def command(config: Config, /, *, session: str, with_statements: bool, as_json: bool) -> None:
    """Show SESSION (its id, or a beginning that only it has).

    Who, when, its processes as a tree, what its shells were told, its connections, the tables it touched, what it
    had daemons do, and what is missing.
    """
    with opened(config) as source:
        uuid = answers.resolve_session(source, session)
        number = story.number_of(source, uuid)
        row = {**answers.session_row(source, number), **story.session_details(source, number)}
        if as_json:
            if with_statements:
                row["statement_rows"] = [found for found, _ in answers.statement_rows(source, uuid)]
            print_json(row)
        else:
            _print(row)
            if with_statements:
                _print_statements(source, uuid)
        for reason in doubts.coverage(source.coverage):
            note(f"there may be more: {reason}")


def _print(row: dict[str, Any]) -> None:
    for name, value in _header(row):
        click.echo(f"{styled(f'{name:<11}', 'bright_black')} {printable(value)}")
    _section("Processes", [_process(program) for program in row["processes"]])
    _section("Connections", [_connection(connection) for connection in row["connected"]])
    _section("Tables", cells.table_names(row))
    _section("Input", _input(row))
    _section("Moved and passed on", [narrate.headline(event) for event in row["moved"]])
    _section("Delegated", [narrate.headline(event) for event in row["delegated"]])
    opaque = [c for c in row["connected"] if c["opaque"]]
    _section(
        "Missing",
        [narrate.headline(gap) for gap in row["missing"]]
        + [f"opaque {c['opaque']} {c['peer']}: {c['opaque_bytes_out']} out, {c['opaque_bytes_in']} in" for c in opaque],
        empty="nothing, as far as the log tells",
    )
    click.echo(f"\n{row['statements']} statements; `agentwatch replay {row['session']} --no-wait` prints them verbatim")


def _header(row: dict[str, Any]) -> list[tuple[str, str]]:
    ids = ", ".join(
        f"{word} {row[key]}" for key, word in (("uid", "uid"), ("login_uid", "login uid")) if row[key] is not None
    )
    ended = f"{cells.moment('ended')(row)}" if row["ended"] else "running"
    status = f" with status {row['status']}" if row["status"] is not None else ""
    before = " (processes were there before the watch)" if row["preexisting"] else ""
    return [
        ("session", row["session"]),
        ("agent", row["agent"] or "?"),
        ("user", f"{row['user'] or '?'} ({ids})" if ids else row["user"] or "?"),
        ("host", f"{row['host'] or '?'} (boot {row['boot_id'] or '?'})"),
        ("started", f"{cells.moment('started')(row)}{before}"),
        ("ended", f"{ended}{status}"),
        ("origin", f"{row['origin'] or '?'}, cgroup {row['cgroup'] or '?'}"),
        ("command", narrate.command_line(row["argv"]) or "not known"),
    ]


def _section(title: str, lines: list[str], empty: str | None = None) -> None:
    if lines or empty:
        click.echo(f"\n{styled(title, 'bright_white')}")
    for line in lines or ([empty] if empty else []):
        click.echo(f"  {printable(line)}")


def _process(program: dict[str, Any]) -> str:
    ended = cells.status(program) or "-"
    took = f" {times.span(program['duration_ns'])}" if program["duration_ns"] is not None else ""
    return f"{'  ' * min(program['depth'], MAX_INDENTED)}[{program['pid']}] {cut(cells.argv(program))} -> {ended}{took}"


def _input(row: dict[str, Any]) -> list[str]:
    lines = [
        f"[{line.get('pid')}] {cut(narrate.headline(line).removeprefix('command_input '))}" for line in row["input"]
    ]
    more = row["input_lines"] - min(len(lines), MAX_INPUT)
    return lines[:MAX_INPUT] + ([f"and {more} lines more"] if more else [])


def _connection(row: dict[str, Any]) -> str:
    failed = f" failed (errno {row['errno']})" if row["errno"] else ""
    read = f" {row['protocol']}, {row['statements']} statements" if row["protocol"] else ""
    opaque = f" opaque ({row['opaque']})" if row["opaque"] else ""
    return f"{cells.moment('opened')(row)} {row['transport'] or '?'} {row['peer'] or '?'}{failed}{read}{opaque}"


def _print_statements(source: Source, uuid: str) -> None:
    click.echo(f"\n{styled('Statements', 'bright_white')}")
    for row, record in answers.statement_rows(source, uuid):
        click.echo(f"  {cells.moment('time')(row)} {narrate.headline(record, cells.tables(row))}")
        for line in narrate.body(record):
            click.echo(f"      {line}")
