"""Rows on stdout: one JSON object a line, or a table for people. Diagnostics go to stderr.

A terminal gets colour and aligned columns; a pipe gets tab-separated columns under a header line. Everything that came
from a watched process passes through ``safe``.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import click
import orjson

from agentwatch.cli.safe import json_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

MAX_CELL = 200
"""Characters of a cell in a table; a whole text is in ``show``, ``replay`` and ``--json``."""
MAX_TABLE_ROWS = 1000
"""Rows that are held to align their columns; a longer list is aligned block by block."""
PROGRESS_AFTER_S = 1.0


class Column(NamedTuple):
    """One column: its title, how a row's cell is made, and its colour on a terminal."""

    title: str
    cell: Callable[[Mapping[str, object]], str]
    style: str = ""


def print_json(row: object) -> None:
    """Print one JSON object on a line of its own."""
    sys.stdout.write(f"{json_line(orjson.dumps(row))}\n")


def print_rows(rows: Iterable[Mapping[str, object]], columns: Sequence[Column], *, as_json: bool) -> int:
    """Print all rows and return how many there were."""
    if as_json:
        return sum(1 for _ in map(print_json, rows))
    cells = ([_cell(column, row) for column in columns] for row in rows)
    return _print_table(cells, columns) if sys.stdout.isatty() else _print_tabbed(cells, columns)


def note(message: str) -> None:
    """Print a diagnostic on stderr."""
    sys.stdout.flush()
    click.echo(f"agentwatch: {printable(message)}", err=True)


def styled(text: str, style: str) -> str:
    """Return text in a colour on a terminal, else as it is."""
    return click.style(text, fg=style) if style and sys.stdout.isatty() else text


def cut(text: str, limit: int = MAX_CELL) -> str:
    """Return one safe line of a text, shortened with an ellipsis."""
    line = printable(" ".join(text[: limit * 2].split()))
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


class Progress:
    """A bar on stderr for what takes longer than a second, on a terminal only."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._began = time.monotonic()
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is."""
        if not sys.stderr.isatty() or time.monotonic() - self._began < PROGRESS_AFTER_S:
            return
        share = done / total if total else 1.0
        filled = "█" * int(30 * share)
        click.echo(f"\r{self._label} [{filled:<30}] {done}/{total} ", nl=False, err=True)
        self._shown = True

    def finish(self) -> None:
        """Remove the bar."""
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._shown = False


def _cell(column: Column, row: Mapping[str, object]) -> str:
    return cut(column.cell(row))


def _print_tabbed(cells: Iterator[list[str]], columns: Sequence[Column]) -> int:
    number = 0
    for row in cells:
        if not number:
            sys.stdout.write("\t".join(column.title for column in columns) + "\n")
        sys.stdout.write("\t".join(row) + "\n")
        number += 1
    return number


def _print_table(cells: Iterator[list[str]], columns: Sequence[Column]) -> int:
    from rich.console import Console  # noqa: PLC0415 - a tenth of a second that pipes need not wait for
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    console = Console(highlight=False, markup=False, emoji=False)
    number = 0
    while block := [row for _, row in zip(range(MAX_TABLE_ROWS), cells, strict=False)]:
        table = Table(box=None, show_header=number == 0, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column.title, style=column.style, overflow="fold")
        for row in block:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        number += len(block)
    return number
