"""One session as a whole: its processes as a tree, its connections, and all of its records in order.

The log's order is that of completion: a statement is recorded when its answer came. A story is told by when things
began (``boottime``), except that nothing on a connection overtakes what was sent before it on that connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from agentwatch.errors import NotFoundError
from agentwatch.query import present
from agentwatch.query.times import iso

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.query.present import Row
    from agentwatch.query.source import Source
    from agentwatch.records.encoding import Record


MAX_INPUT_LINES = 1000
"""Lines of input that are told of a session; ``replay`` has them all."""


def number_of(source: Source, uuid: str) -> int:
    """Return a session's number in the index. Raises NotFoundError."""
    row = source.db.execute("SELECT id FROM session WHERE uuid = ?", (uuid,)).fetchone()
    if row is None:
        raise NotFoundError(f"no session {uuid!r}; list them with `agentwatch sessions`")
    number: int = row[0]
    return number


_SHOWN = "NOT EXISTS (SELECT 1 FROM command WHERE command.seq = event.seq AND superseded = 1)"
"""A program that was sought in several folders of PATH is told once."""


def records_of(source: Source, number: int, *kinds: str) -> Iterator[tuple[int, Record]]:
    """Return the records of some kinds of a session, in the log's order."""
    marks = ", ".join("?" * len(kinds))
    seqs = source.db.execute(
        f"SELECT seq FROM event WHERE session = ? AND kind IN ({marks}) AND {_SHOWN} ORDER BY seq",  # noqa: S608 - only marks
        (number, *kinds),
    )
    return source.records(seq for (seq,) in seqs)


def in_order(source: Source, number: int) -> Iterator[tuple[int, Record]]:
    """Return every record of a session, and the gaps of the whole host while it ran, as they happened."""
    gaps = _host_gaps(source, number)
    own = [
        seq
        for (seq,) in source.db.execute(f"SELECT seq FROM event WHERE session = ? AND {_SHOWN}", (number,))  # noqa: S608 - a literal
    ]
    # Two passes: a session may have more text than there is memory, so only the order is held.
    for _, seq in sorted(_placed(source, sorted({*own, *gaps}), gaps)):
        if seq in gaps:
            yield seq, gaps[seq]
        else:
            yield seq, next(iter(source.records([seq])))[1]


def session_details(source: Source, number: int) -> Row:
    """Return all that ``show`` says of a session, as one JSON object."""
    start = next((record for _, record in records_of(source, number, "session_start")), {})
    end = next((record for _, record in records_of(source, number, "session_end")), {})
    return {
        **{key: present.plain(start.get(key)) for key in ("boot_id", "uid", "login_uid", "argv", "origin", "cgroup")},
        "preexisting": start.get("preexisting"),
        "status": end.get("status"),
        "processes": processes(source, number),
        "connected": connections(source, number),
        "missing": [
            present.event(seq, record)
            for seq, record in (*records_of(source, number, "gap"), *_host_gaps(source, number).items())
        ],
        "delegated": [present.event(seq, record) for seq, record in records_of(source, number, "delegation")],
        "input": [
            present.event(seq, record)
            for seq, record in islice(records_of(source, number, "command_input"), MAX_INPUT_LINES)
        ],
        "input_lines": _count(source, number, "command_input"),
        "moved": [
            present.event(seq, record)
            for seq, record in records_of(source, number, "cgroup_move", "scm_rights", "divergence")
        ],
    }


def _count(source: Source, number: int, kind: str) -> int:
    row = source.db.execute("SELECT count(*) FROM event WHERE session = ? AND kind = ?", (number, kind)).fetchone()
    count: int = row[0]
    return count


def connections(source: Source, number: int) -> list[Row]:
    """Return the connections of a session, in the order in which they were first seen."""
    rows = source.db.execute(
        "SELECT c.name, c.opened, c.transport, c.peer, c.protocol, c.errno,"
        " (SELECT count(*) FROM statement AS s WHERE s.connection = c.id AND s.seq IN"
        "   (SELECT seq FROM event WHERE session = ?1 AND kind = 'statement')),"
        " o.reason, o.bytes_out, o.bytes_in"
        " FROM connection AS c LEFT JOIN opaque AS o ON o.connection = c.id WHERE c.session = ?1 ORDER BY c.id",
        (number,),
    )
    keys = ("connection", "opened", "transport", "peer", "protocol", "errno", "statements")
    opaque_keys = ("opaque", "opaque_bytes_out", "opaque_bytes_in")
    return [dict(zip((*keys, *opaque_keys), (row[0], iso(row[1]), *row[2:]), strict=True)) for row in rows]


def processes(source: Source, number: int) -> list[Row]:
    """Return the programs of a session as command rows with their ``depth`` in the tree, parents before children."""
    forest = _Forest()
    for seq, record in records_of(source, number, "exec", "exec_failed", "exit"):
        if record["kind"] == "exit":
            forest.end(record)
        else:
            forest.begin(seq, record)
    return list(forest.rows())


@dataclass(slots=True)
class _Process:
    """One life of a pid: the programs it executed one after the other, and its children."""

    programs: list[Row] = field(default_factory=list)
    children: list[_Process] = field(default_factory=list)
    alive: bool = True


class _Forest:
    """Processes by parentage. A parent that never executed anything itself is not there; its children are roots."""

    def __init__(self) -> None:
        self._roots: list[_Process] = []
        self._latest: dict[object, _Process] = {}

    def begin(self, seq: int, record: Record) -> None:
        process = self._latest.get(record.get("pid"))
        if process is None or not process.alive:
            process = self._latest[record.get("pid")] = _Process()
            parent = self._latest.get(record.get("ppid"))
            (self._roots if parent is None else parent.children).append(process)
        process.programs.append(present.command(seq, record, None, None))

    def end(self, record: Record) -> None:
        process = self._latest.get(record.get("pid"))
        if process is not None and process.alive:
            process.alive = False
            process.programs[-1].update(status=record.get("status"), duration_ns=record.get("duration_ns"))

    def rows(self) -> Iterator[Row]:
        # Not recursive: a chain of processes may be deeper than Python's stack.
        waiting = [(process, 0) for process in reversed(self._roots)]
        while waiting:
            process, depth = waiting.pop()
            for program in process.programs:
                yield {**program, "depth": depth}
            waiting += [(child, depth + 1) for child in reversed(process.children)]


def _placed(source: Source, seqs: list[int], gaps: dict[int, Record]) -> Iterator[tuple[int, int]]:
    """Return ``(key, seq)`` for each record, the key being when it began."""
    began: dict[object, int] = {}
    key = 0
    records = source.records(seq for seq in seqs if seq not in gaps)
    for seq in seqs:
        if seq not in gaps:
            _, record = next(records)
            key = _integer(record.get("boottime"), key)
            if (connection := record.get("connection")) is not None:
                key = began[connection] = max(key, began.get(connection, 0))
        yield key, seq


def _host_gaps(source: Source, number: int) -> dict[int, Record]:
    # Some of these are no records: what the index inferred from damage, or from a recorder that was not there.
    rows = source.db.execute(
        "SELECT g.seq, g.since, coalesce(g.time, g.since), g.cause, g.count, g.bytes FROM gap AS g, session AS s"
        " WHERE g.session IS NULL AND s.id = ? AND coalesce(g.time, s.started) >= s.started"
        " AND g.since <= coalesce(s.ended, g.since) ORDER BY g.seq",
        (number,),
    )
    return {
        seq: {"kind": "gap", "time": time, "began": iso(since), "cause": cause, "count": count, "bytes": size}
        for seq, since, time, cause, count, size in rows
    }


def _integer(value: Any, default: int) -> int:
    return value if type(value) is int else default
