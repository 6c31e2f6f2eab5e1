"""How complete the observation was, from the records alone: what is missing, and whether somebody was there to see it.

In: stored records, in order; parts of a log can be looked at apart and put together (``merge``). Out: counts. A log
that is whole can still say that much was not seen; this is that other verdict.

Silence is judged by CLOCK_MONOTONIC, which ``heartbeat`` records carry: it stands still while a host sleeps, and nobody
sets it. So neither a suspended host nor a wall clock that was moved looks like an hour that somebody removed.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from agentwatch.errors import LogError
from agentwatch.records.encoding import decode

if TYPE_CHECKING:
    from agentwatch.records.encoding import Record

HEARTBEAT_NS = 60_000_000_000
"""How often the recorder writes a ``heartbeat``."""
SILENCE_NS = 3 * HEARTBEAT_NS
"""Two heartbeats of one run that are further apart: the recorder was stopped or starved in between."""
MAX_SILENCES = 1000
"""Silences that are listed; more are counted."""

_KIND = re.compile(rb"(?:[\x80-\x8f]|\xde..)\xa4kind([\xa0-\xbf])", re.DOTALL)
"""The key ``kind`` is the first in every record that agentwatch writes, so most records need not be decoded."""
_HEAD_BYTES = 9
"""What ``_KIND`` matches, at the longest: where the kind is in a record follows from these."""
MAX_REMEMBERED = 1024
"""Beginnings and kinds of records that are remembered; more are looked at each time. There are a few of each."""


class Beat(NamedTuple):
    """A sign of life: ``boot_id``, CLOCK_MONOTONIC in nanoseconds (None for a start or a stop), time, kind.

    ``resumed``: a start that goes on where the recorder before it ended.
    """

    boot_id: str
    monotonic_ns: int | None
    time_ns: int
    kind: str
    seq: int
    resumed: bool


class Silence(NamedTuple):
    """No sign of life of a recorder that was running between the records ``since_seq`` and ``until_seq``."""

    since_seq: int
    until_seq: int
    length_ns: int


@dataclass(slots=True)
class Completeness:
    """What is missing: counts of records, and for gaps and opaque flows of bytes by cause or reason.

    ``gaps`` has, beside the records of that kind, ``no-recorder`` for each recorder that could not take up what the one
    before it left: it saw nothing of the time between them. ``undecodable`` records are none.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    gaps: Counter[str] = field(default_factory=Counter)
    gap_bytes: Counter[str] = field(default_factory=Counter)
    opaque: Counter[str] = field(default_factory=Counter)
    opaque_bytes: Counter[str] = field(default_factory=Counter)
    divergences: Counter[str] = field(default_factory=Counter)
    undecodable: int = 0
    first_time_ns: int | None = None
    first_beat: Beat | None = None
    last_beat: Beat | None = None
    silences: list[Silence] = field(default_factory=list)
    silence_count: int = 0
    last_record: bytes = b""
    flows: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    """Opaque flows that may be told of again: by boot and connection the reason and the bytes so far."""
    closed: set[tuple[str, str]] = field(default_factory=set)
    """Opaque flows whose last word is in this part of the log."""
    _places: dict[bytes, slice] = field(default_factory=dict, repr=False, compare=False)
    """Where the kind is, by how the record begins."""
    _names: dict[bytes, str] = field(default_factory=dict, repr=False, compare=False)
    """Kinds of which no more than their number is told."""

    @property
    def complete(self) -> bool:
        """True if nothing is missing."""
        doubts = (self.gaps, self.opaque_bytes.total(), self.divergences, self.silence_count, self.undecodable)
        return not any(doubts)

    @property
    def ended(self) -> bool:
        """True if the last recorder said goodbye, False if the log just ends, as while one runs."""
        return self.last_beat is not None and self.last_beat.kind == "observer_stop"

    def add(self, seq: int, payload: bytes) -> None:
        """Look at a record."""
        self.last_record = payload
        place = self._places.get(payload[:_HEAD_BYTES])
        if place is not None:
            name = self._names.get(payload[place])
            if name is not None:
                self.kinds[name] += 1
                return
        self._look(seq, payload)

    def _look(self, seq: int, payload: bytes) -> None:
        try:
            record = decode(payload)
        except LogError:
            self.undecodable += 1
            return
        kind = record["kind"]
        self.kinds[kind] += 1
        if self.first_time_ns is None:
            self.first_time_ns = _time(record)
        look = _LOOKS.get(kind)
        if look is not None:
            look(self, seq, record)
        elif self.first_time_ns is not None:
            self._remember(payload, kind)

    def _remember(self, payload: bytes, kind: str) -> None:
        match = _KIND.match(payload)
        if match is None or len(self._places) >= MAX_REMEMBERED or len(self._names) >= MAX_REMEMBERED:
            return
        place = slice(match.end(), match.end() + match[1][0] - 0xA0)
        if payload[place] == kind.encode():
            self._places[payload[:_HEAD_BYTES]] = place
            self._names[payload[place]] = kind

    def merge(self, later: Self) -> None:
        """Take what was seen in the records after mine."""
        for name in ("kinds", "gaps", "gap_bytes", "opaque", "opaque_bytes", "divergences"):
            getattr(self, name).update(getattr(later, name))
        self.undecodable += later.undecodable
        if self.first_time_ns is None:
            self.first_time_ns = later.first_time_ns
        self.last_record = later.last_record or self.last_record
        for flow in later.closed | later.flows.keys():
            self._forget(flow)
        self.flows.update(later.flows)
        self.closed |= later.closed
        if later.first_beat is not None:
            self._beat(later.first_beat)
            self.last_beat = later.last_beat
        self.silence_count += later.silence_count
        self.silences += later.silences[: MAX_SILENCES - len(self.silences)]

    def end(self) -> int | None:
        """Return the time of the last record, CLOCK_REALTIME in nanoseconds; None if it has none."""
        try:
            return _time(decode(self.last_record))
        except LogError:
            return None

    def flow(self, flow: tuple[str, str], reason: str, size: int, *, final: bool) -> None:
        """Take what a record says of an opaque flow; it replaces what an earlier one said."""
        self._forget(flow)
        self.opaque[reason] += 1
        self.opaque_bytes[reason] += size
        if final:
            self.closed.add(flow)
        else:
            self.flows[flow] = (reason, size)

    def _forget(self, flow: tuple[str, str]) -> None:
        reason, size = self.flows.pop(flow, (None, 0))
        if reason is not None:
            self.opaque[reason] -= 1
            self.opaque_bytes[reason] -= size

    def _beat(self, beat: Beat) -> None:
        before = self.last_beat
        if self.first_beat is None:
            self.first_beat = beat
        self.last_beat = beat
        if before is not None and beat.kind == "observer_start" and not beat.resumed:
            self.gaps["no-recorder"] += 1
        if before is None or before.boot_id != beat.boot_id or beat.kind == "observer_start":
            return
        if before.monotonic_ns is None or beat.monotonic_ns is None:
            return
        length = beat.monotonic_ns - before.monotonic_ns
        if length > SILENCE_NS:
            self.silence_count += 1
            if len(self.silences) < MAX_SILENCES:
                self.silences.append(Silence(before.seq, beat.seq, length))


def _gap(into: Completeness, _seq: int, record: Record) -> None:
    cause = str(record.get("cause"))
    into.gaps[cause] += 1
    into.gap_bytes[cause] += _number(record.get("bytes"))


def _opaque(into: Completeness, _seq: int, record: Record) -> None:
    size = _number(record.get("bytes_out")) + _number(record.get("bytes_in"))
    flow = (str(record.get("boot_id")), str(record.get("connection")))
    into.flow(flow, str(record.get("reason")), size, final=bool(record.get("final")))


def _divergence(into: Completeness, _seq: int, record: Record) -> None:
    into.divergences[str(record.get("technique"))] += 1


def _sign(into: Completeness, seq: int, record: Record) -> None:
    monotonic = record.get("monotonic")
    at = monotonic if type(monotonic) is int else None
    beat = Beat(str(record.get("boot_id")), at, _time(record) or 0, record["kind"], seq, record.get("resumed") is True)
    into._beat(beat)  # noqa: SLF001 -- the other half of this module


_LOOKS = {
    "gap": _gap,
    "opaque": _opaque,
    "divergence": _divergence,
    "heartbeat": _sign,
    "observer_start": _sign,
    "observer_stop": _sign,
}


def _number(value: Any) -> int:
    return value if type(value) is int else 0


def _time(record: Record) -> int | None:
    value = record.get("time")
    return value if type(value) is int else None
