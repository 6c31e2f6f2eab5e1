"""What the server logged against what agentwatch recorded, connection by connection.

In: the server's statements by its session id, agentwatch's rows (``statements --json``). Out: a list of differences
in words, empty when every statement is there once, verbatim, in order, with its parameters and its SQLSTATE.

The two sides name connections differently, so they are paired by what ran on them: a pair must agree in full. Two
differences in form are not differences in substance: the server logs the whole text of a simple query that holds
several statements, agentwatch each statement of it; and the server does not log what it skipped until Sync, which
agentwatch records as ``discarded``.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from tests.kernel.server_log import UNLOGGED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.kernel.server_log import Logged, Parameters

Row = dict[str, Any]

_SHOWN = 200
_BETWEEN_STATEMENTS = " \t\r\n;"


def differences(server: Mapping[str, Sequence[Logged]], recorded: Sequence[Row]) -> list[str]:
    """Return what differs, in words."""
    connections: dict[str, list[Row]] = {}
    for row in recorded:
        if row["outcome"] != "discarded":
            connections.setdefault(row["connection"], []).append(row)
    found = []
    for session, logged in server.items():
        compared = {connection: _first_difference(logged, rows) for connection, rows in connections.items()}
        same = next((connection for connection, difference in compared.items() if difference is None), None)
        if same is not None:
            del connections[same]
            continue
        nearest = max((d for d in compared.values() if d is not None), default=(0, "no connection is left"))
        found.append(f"server session {session} ({len(logged)} statements): number {nearest[0]}: {nearest[1]}")
    found += [
        f"connection {connection} is not the server's: {len(rows)} statements, the first {_short(_text(rows[0]))}"
        for connection, rows in connections.items()
    ]
    return found


def _first_difference(logged: Sequence[Logged], rows: Sequence[Row]) -> tuple[int, str] | None:
    rest = list(reversed(rows))
    for number, entry in enumerate(logged):
        pieces = _take(entry.text, rest)
        if not pieces:
            has = _short(_text(rest[-1])) if rest else "nothing"
            return number, f"the server has {_short(entry.text)}, the record has {has}"
        if difference := _outcome_difference(entry, pieces):
            return number, f"{_short(entry.text)}: {difference}"
    if rest:
        return len(logged), f"only in the record: {_short(_text(rest[-1]))}"
    return None


def _take(text: str, rest: list[Row]) -> list[Row]:
    """Take from the end of ``rest`` the statements that make up ``text``; nothing if they do not."""
    if rest and _text(rest[-1]) == text:
        return [rest.pop()]
    pieces: list[Row] = []
    position = 0
    while remaining := text[position:].strip(_BETWEEN_STATEMENTS):
        piece = _text(rest[-1 - len(pieces)]).strip(_BETWEEN_STATEMENTS) if len(pieces) < len(rest) else ""
        if not piece or not remaining.startswith(piece):
            # The server stops at the first error: what follows in the text was never run.
            if pieces and pieces[-1]["outcome"] == "error":
                break
            return []
        position = text.index(piece, position) + len(piece)
        pieces.append(rest[-1 - len(pieces)])
    if pieces:
        del rest[-len(pieces) :]
    return pieces


def _outcome_difference(entry: Logged, pieces: Sequence[Row]) -> str | None:
    sqlstate = next((row["db.response.status_code"] for row in pieces if row["db.response.status_code"]), None)
    if sqlstate != entry.sqlstate:
        return f"SQLSTATE {entry.sqlstate} at the server, {sqlstate} in the record"
    expected = "ok" if entry.sqlstate is None else "error"
    if pieces[-1]["outcome"] != expected:
        return f"outcome {pieces[-1]['outcome']!r} in the record, should be {expected!r}"
    if entry.params is UNLOGGED or len(pieces) > 1:
        return None
    return _params_difference(entry.params, pieces[0]["params"])


def _params_difference(logged: Parameters | None, recorded: Sequence[Any] | None) -> str | None:
    if len(logged or ()) != len(recorded or ()):
        return f"{len(logged or ())} parameters at the server, {len(recorded or ())} in the record"
    for number, (theirs, ours) in enumerate(zip(logged or (), recorded or (), strict=True), 1):
        if not _same_value(theirs, ours):
            return f"${number} is {_short(str(theirs))} at the server, {_short(repr(ours))} in the record"
    return None


def _same_value(theirs: str | None, ours: object) -> bool:
    if theirs is None or ours is None:
        return theirs is ours
    if isinstance(ours, int | float) and not isinstance(ours, bool):
        try:
            return Decimal(theirs) == Decimal(str(ours))
        except InvalidOperation:
            return False
    return theirs == ours


def _text(row: Row) -> str:
    return str(row["db.query.text"])


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)")
