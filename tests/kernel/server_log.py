"""PostgreSQL's csvlog as the truth: what each connection ran, in order.

In: the text of a csvlog written with log_statement=all, log_duration=on and log_parameter_max_length=-1.
Out: for each session id the statements in the order in which the server took them, verbatim, with the parameters
as the server prints them and the SQLSTATE of the error that ended them. The columns are those of
"Using CSV-Format Log Output" in PostgreSQL's manual.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from typing import Final, NamedTuple

csv.field_size_limit(sys.maxsize)

_SESSION, _SEVERITY, _SQLSTATE, _MESSAGE, _DETAIL, _QUERY = 5, 11, 12, 13, 14, 19
_EXECUTE = re.compile(r"execute (?:fetch from )?[^\s:]+: ", re.ASCII)
_PARAMETER = re.compile(r"\$\d+ = (?:NULL|'((?:[^']|'')*)')")

Parameters = tuple[str | None, ...]


class Logged(NamedTuple):
    """One statement. ``params`` is UNLOGGED where the server refused it before it ran and so told none."""

    text: str
    params: Parameters | None
    sqlstate: str | None


UNLOGGED: Final = ("parameters are not in the server's log",)


def parameters(detail: str) -> Parameters | None:
    """Return the values of a detail field like ``parameters: $1 = '5', $2 = NULL``; None if it is another one."""
    if not detail.lower().startswith("parameters: "):
        return None
    return tuple(m[1] if m[1] is None else m[1].replace("''", "'") for m in _PARAMETER.finditer(detail))


class _Connection:
    def __init__(self) -> None:
        self.logged: list[Logged] = []
        self._running = False  # the last of self.logged has neither ended nor failed

    def row(self, row: list[str]) -> None:
        message = row[_MESSAGE]
        if row[_SEVERITY] == "ERROR":
            self._failed(row[_QUERY], row[_SQLSTATE])
        elif row[_SEVERITY] != "LOG":
            return
        elif message.startswith("statement: "):
            self._began(message.removeprefix("statement: "), None)
        elif found := _EXECUTE.match(message):
            self._began(message[found.end() :], parameters(row[_DETAIL]))
        elif message.startswith("duration: "):
            self._running = False

    def _began(self, text: str, params: Parameters | None) -> None:
        self.logged.append(Logged(text, params, None))
        self._running = True

    def _failed(self, text: str, sqlstate: str) -> None:
        if self._running or (not text and self.logged):  # no text: at Sync, from a deferred constraint
            self.logged[-1] = self.logged[-1]._replace(sqlstate=sqlstate)
        elif text:
            self.logged.append(Logged(text, UNLOGGED, sqlstate))
        self._running = False


def connections(log: str) -> dict[str, list[Logged]]:
    """Return what each session id ran, sessions that ran nothing left out."""
    found: dict[str, _Connection] = {}
    for row in csv.reader(io.StringIO(log, newline="")):
        if len(row) > _QUERY and row[_SESSION]:
            found.setdefault(row[_SESSION], _Connection()).row(row)
    return {session: c.logged for session, c in found.items() if c.logged}
