"""Read a log by sequence number, also while a writer appends to it.

In: the log's folder, and what was pruned of it. Out: ``(seq, payload)`` in order without omission: a record that cannot
be given is an error or a call of ``on_damage``, never silence, but for what was pruned from the log's beginning. What
always holds:

* a record comes out only if its check holds under its sequence number (scan.py);
* where two segments hold the same sequence number, the later segment is right: the writer wrote again there what a
  failed disk had not acknowledged;
* what is not whole at the end of the last segment is not there yet; the next call looks again.

Files are read, not mapped: a mapping of a file that recovery cuts would end the process with SIGBUS.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.errors import LogError, NotFoundError, RecordsPruned, SegmentDamaged
from agentwatch.log import compressed, folder, scan, segment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agentwatch.log.source import Source

ANCHOR_RECORDS = 16
"""One known position for so many records: ``read`` passes over fewer than this."""
MAX_INDEXED_SEGMENTS = 64
"""Segments whose positions are remembered (each 16 bytes per 16 records, some 200 kB for usual records);
the one used longest ago is forgotten."""
READ_BYTES = 16 * 1024
"""What ``read`` fetches at first: 16 usual records and their frames."""
OnDamage = Callable[[SegmentDamaged], None]


class _Pruned(NamedTuple):
    """In place of a Damage: these records were removed on purpose."""

    seq: int
    next_seq: int


class _Positions:
    """Where some records of one segment begin, in order; every one was proved by a walk."""

    def __init__(self) -> None:
        self._seqs = array("Q")
        self._offsets = array("Q")

    def add(self, records: scan.Records) -> None:
        seq, offset, payloads = records
        last = self._seqs[-1] if self._seqs else -1
        for at in range(0, len(payloads), ANCHOR_RECORDS):
            if seq + at > last:
                self._seqs.append(seq + at)
                self._offsets.append(offset)
            group = payloads[at : at + ANCHOR_RECORDS]
            offset += sum(map(len, group)) + segment.FRAME_BYTES * len(group)

    def before(self, seq: int) -> tuple[int, int] | None:
        at = bisect_right(self._seqs, seq) - 1
        return (self._seqs[at], self._offsets[at]) if at >= 0 else None


class _End(NamedTuple):
    """How the last walk to the end of the log ended; while the file has this size there is nothing new."""

    path: Path
    size: int
    tail: scan.Tail


class LogReader:
    """Read the log in ``log_dir``. Not for use by several threads at once.

    Attribute: ``pruned``, ranges (first, next) of records that were removed on purpose, as the newest ``prune`` record
    has them. A record that is there although it is in such a range is given.
    """

    def __init__(self, log_dir: Path, *, pruned: Sequence[tuple[int, int]] | None = None) -> None:
        """Raise NotFoundError if there is no such folder, PrivilegeError if the caller may not read it.

        ``pruned``: instead of what the log's own file says.
        """
        self._pruned_given = pruned is not None
        self.pruned = pruned if pruned is not None else _read_pruned(log_dir)
        self._log_dir = log_dir
        self._log_id: bytes | None = None
        self._positions: OrderedDict[Path, _Positions] = OrderedDict()
        self._end: _End | None = None
        self._segments = folder.list_segments(log_dir)

    def records(
        self, start: int = 0, stop: int | None = None, *, on_damage: OnDamage | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Yield ``(seq, payload)`` from ``start`` to before ``stop``, or to the present end; call again to follow.

        Where records are missing or damaged, SegmentDamaged is raised; with ``on_damage`` that is called with it
        instead, and reading goes on with the next provable record. It may be called again for the same place when
        reading begins there again. Records that were pruned are reported in the same way as RecordsPruned; where they
        are the log's first and there is no ``on_damage``, reading begins behind them.
        """
        seq = start
        self._refresh()
        while stop is None or seq < stop:
            here, following = self._around(seq)
            for event in self._events(here, following, seq):
                if isinstance(event, scan.Records):
                    for payload in _between(event, seq, stop):
                        yield seq, payload
                        seq += 1
                    if seq == stop:
                        return
                elif isinstance(event, _Pruned):
                    if on_damage is not None or here is not None:
                        _report(self._was_pruned(event), on_damage)
                    seq = event.next_seq
                elif event.next_seq > seq or (event.seq == event.next_seq == seq):
                    _report(self._damaged(here or following, event), on_damage)
                    seq = max(seq, event.next_seq)
            if following is None and not self._refresh():
                return

    def read(self, seq: int) -> bytes:
        """Return one record's payload. Raises NotFoundError if the log does not reach so far, SegmentDamaged."""
        payload = self._read_known(seq)
        if payload is not None:
            return payload
        damage: list[SegmentDamaged] = []
        for _, payload in self.records(seq, seq + 1, on_damage=damage.append):
            return payload
        if damage:
            raise damage[0]
        raise NotFoundError(f"there is no record {seq} in {self._log_dir}; the log ends before record {self.end()}")

    def end(self) -> int:
        """Return the sequence number after the last whole record (0 for an empty log)."""
        while True:
            self._refresh()
            if not self._segments:
                return 0
            try:
                return self._walk_to_end(self._segments[-1])
            except FileNotFoundError:
                # Recovery renamed it since it was listed.
                continue

    def _walk_to_end(self, last: folder.SegmentFile) -> int:
        seq = last.first_seq
        for event in self._walk(last, None, segment.MAX_SEQ):
            seq = event.seq
        return seq

    def _refresh(self) -> bool:
        # List the folder again; True if the segments are others than before.
        segments = folder.list_segments(self._log_dir)
        changed = segments != self._segments
        self._segments = segments
        if changed and not self._pruned_given:
            # After the folder was listed: what is missing there was named before it was removed.
            self.pruned = _read_pruned(self._log_dir)
        return changed

    def _around(self, seq: int) -> tuple[folder.SegmentFile | None, folder.SegmentFile | None]:
        # The segment that must hold seq, and the one after it.
        at = bisect_right(self._segments, seq, key=lambda s: s.first_seq)
        here = self._segments[at - 1] if at else None
        return here, self._segments[at] if at < len(self._segments) else None

    def _events(
        self, here: folder.SegmentFile | None, following: folder.SegmentFile | None, seq: int
    ) -> Iterator[scan.Records | scan.Damage | _Pruned]:
        # A walk whose Tail, where there should be records, has become damage, or what was pruned.
        if here is None:
            if following is not None:
                yield from self._missing(scan.Damage(0, 0, following.first_seq, 0, "the log begins later"), seq)
            return
        try:
            for event in self._walk(here, following, seq):
                if not isinstance(event, scan.Tail):
                    yield event
                elif following is not None and event.seq < following.first_seq:
                    how = event.how or "the segment ends early"
                    end = event.offset + event.length
                    yield from self._missing(scan.Damage(event.seq, event.offset, following.first_seq, end, how), seq)
                elif following is None and not event.plain:
                    # No writer leaves this behind: it will not become a record by waiting.
                    yield scan.Damage(event.seq, event.offset, event.seq, event.offset + event.length, event.how)
        except FileNotFoundError:
            # Recovery renamed it since it was listed, or it was pruned: have the folder listed again.
            self._segments = []

    def _missing(self, damage: scan.Damage, seq: int) -> Iterator[scan.Damage | _Pruned]:
        # What of these records, from seq on, was pruned and what was not. Only if the folder says so twice: a listing
        # during which a segment was compressed may have neither of its two files.
        if self._refresh():
            return
        at = max(damage.seq, seq)
        for pruned in sorted(self.pruned):
            first, following = max(pruned[0], at), min(pruned[1], damage.next_seq)
            if first >= following:
                continue
            if first > at:
                yield damage._replace(next_seq=first)
            yield _Pruned(first, following)
            at = following
            damage = damage._replace(seq=at)
        if at < damage.next_seq:
            yield damage

    def _walk(self, here: folder.SegmentFile, following: folder.SegmentFile | None, seq: int) -> Iterator[scan.Event]:
        with folder.reading(here.path) as source:
            start = self._start(here, source, seq)
            size = source.size()
            end = self._end
            if end is not None and end.path == here.path and end.tail.seq <= seq and end.tail.offset:
                if following is None and end.size == size:
                    yield end.tail
                    return
                start = (end.tail.seq, end.tail.offset)
            stop = following.first_seq if following else None
            for event in scan.walk(source, self._id(), here.first_seq, start=start, stop=stop):
                if isinstance(event, scan.Records):
                    self._positions_of(here.path).add(event)
                elif isinstance(event, scan.Tail) and following is None:
                    self._end = _End(here.path, event.offset + event.length, event)
                yield event

    def _start(self, here: folder.SegmentFile, source: Source, seq: int) -> tuple[int, int] | None:
        # A record at or before seq from which a walk may begin: known from an earlier walk, or hinted at and right.
        known = self._positions_of(here.path).before(seq)
        hint = source.hint(seq)
        log_id = self._id()
        if hint is None or log_id is None or (known is not None and known >= hint):
            return known
        return hint if scan.is_record(source, segment.seed(log_id), *hint) else known

    def _read_known(self, seq: int) -> bytes | None:
        # The quick way: a position is known or hinted at, and the record lies near it.
        here, following = self._around(seq)
        if here is None or self._log_id is None or (following and seq >= following.first_seq):
            return None
        try:
            source = folder.open_source(here.path)
        except FileNotFoundError:
            # Recovery renamed it, or it was pruned; the long way lists the folder again.
            return None
        try:
            start = self._start(here, source, seq)
            if start is None or (seq - start[0] >= ANCHOR_RECORDS and start != source.hint(seq)):
                return None
            block = source.pread(READ_BYTES if seq - start[0] < ANCHOR_RECORDS else compressed.BLOCK_BYTES, start[1])
        except OSError as e:
            raise folder.failure(e, f"cannot read the segment {here.path}") from e
        finally:
            source.close()
        wanted = seq - start[0] + 1
        payloads = segment.take_frames(block, start[0], segment.seed(self._log_id), wanted).payloads
        return payloads[-1] if len(payloads) == wanted else None

    def _positions_of(self, path: Path) -> _Positions:
        positions = self._positions.get(path)
        if positions is None:
            positions = self._positions[path] = _Positions()
            if len(self._positions) > MAX_INDEXED_SEGMENTS:
                self._positions.popitem(last=False)
        else:
            self._positions.move_to_end(path)
        return positions

    def _id(self) -> bytes | None:
        if self._log_id is None:
            self._log_id = folder.find_log_id(self._segments)
        return self._log_id

    def _was_pruned(self, pruned: _Pruned) -> RecordsPruned:
        seq, next_seq = pruned
        message = f"records {seq} to {next_seq - 1} of {self._log_dir} were pruned: they were removed on purpose"
        return RecordsPruned(message, path=str(self._log_dir), seq=seq, next_seq=next_seq)

    def _damaged(self, where: folder.SegmentFile | None, damage: scan.Damage) -> SegmentDamaged:
        return damaged(where.path if where else self._log_dir, damage)


def damaged(path: Path, damage: scan.Damage) -> SegmentDamaged:
    """Return the error for damage in the segment at ``path``."""
    lost = damage.next_seq - damage.seq
    if lost:
        what = f"record {damage.seq}" if lost == 1 else f"records {damage.seq} to {damage.next_seq - 1}"
        what += " cannot be read"
    else:
        what = f"nothing there is a record, and no record before {damage.seq} is missing"
    message = f"{path} is damaged at byte {damage.offset} ({damage.how}): {what}; see agentwatch verify"
    return SegmentDamaged(message, path=str(path), offset=damage.offset, seq=damage.seq)


def _between(records: scan.Records, start: int, stop: int | None) -> list[bytes]:
    first = max(0, start - records.seq)
    end = len(records.payloads) if stop is None else max(0, stop - records.seq)
    if first == 0 and end >= len(records.payloads):
        return records.payloads
    return records.payloads[first:end]


def _read_pruned(log_dir: Path) -> Sequence[tuple[int, int]]:
    try:
        return folder.read_pruned(log_dir)
    except LogError:
        # Then what is missing counts as damage, and says so.
        return ()


def _report(error: SegmentDamaged, on_damage: OnDamage | None) -> None:
    if on_damage is None:
        raise error
    on_damage(error)
