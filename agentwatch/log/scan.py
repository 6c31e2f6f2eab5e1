"""Walk one segment file from front to back: whole records, damage, and what is left at the end.

In: a segment's bytes, the log's id, the first sequence number. Out: a stream of ``Records``, ``Damage`` and, last,
one ``Tail``. Reader, verifier and the writer's recovery all see a segment through this walk alone, so they cannot
disagree about what is in it. What always holds:

* a record comes out only if its check holds under the sequence number it comes out with;
* damage is passed only to a *provable* record: one that stands where the damaged frame said that it ends and whose
  check names the next sequence number; or one whose check names a later number and which is followed by the two
  records after it, or by fewer and the exact end of the file.
  The check begins with the log's id, which only readers of the log can know, so bytes that an agent
  planted inside a payload do not pass for a record;
* bytes at the end in which nothing is provable are a Tail, and what it means is for the caller to say;
* what a compressed segment says about where its records are is a hint: it is tried, and the check decides.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.log import segment
from agentwatch.log.source import Plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.log.source import Source

BLOCK_BYTES = 1024 * 1024
"""Bytes read at a time: large enough that system calls do not count, small enough for the cache."""
SEARCH_BUDGET_BYTES = 512 * 1024 * 1024
"""Bytes checksummed in one search for the next record. An agent could fill a statement with bytes that all look
like lengths; at this limit (a second or so) the search gives up and the rest of the segment counts as damaged."""
CANDIDATE_COST_BYTES = 256
"""What one candidate costs apart from its bytes."""
PROOF_RECORDS = 3
"""So many consecutive records prove each other. One alone would be right by chance too often: the search looks at up
to millions of places, and where the log's id itself is damaged every frame is whole but tells a wrong number."""
MAX_RECORDS_LOST = 1 << 24
"""A record found behind damage may be this much later: a segment holds no more of the smallest records."""
MAX_RECORDS_LOST_BEFORE_END = 64
"""The same for a record with fewer than ``PROOF_RECORDS`` to prove it, because the file ends behind them."""

_LIKE_A_LENGTH = re.compile(rb"(?!\0{4})[\x00-\x04]", re.DOTALL)
_U32 = 0xFFFFFFFF


class Records(NamedTuple):
    """Consecutive records; the first is ``seq`` and its frame begins at ``offset``."""

    seq: int
    offset: int
    payloads: list[bytes]


class Damage(NamedTuple):
    """The bytes from ``offset`` to ``next_offset`` stand where records ``seq`` to ``next_seq - 1`` were."""

    seq: int
    offset: int
    next_seq: int
    next_offset: int
    how: str


class Tail(NamedTuple):
    """The walk's end: ``length`` bytes from ``offset`` on hold no provable record; ``seq`` would be next.

    ``plain`` is False where that is not what a crash in the middle of a write leaves behind.
    """

    seq: int
    offset: int
    length: int
    plain: bool
    how: str


Event = Records | Damage | Tail


class Found(NamedTuple):
    """A provable record behind damage."""

    offset: int
    seq: int


class GaveUp(NamedTuple):
    """The search reached its limit at ``offset``."""

    offset: int


def walk(
    source: Source | int,
    log_id: bytes | None,
    first_seq: int,
    *,
    start: tuple[int, int] | None = None,
    stop: int | None = None,
) -> Iterator[Event]:
    """Yield what is in the segment, from its header or from ``start`` = (seq, offset) of a record known before.

    ``source`` may be the file descriptor of a plain segment. ``log_id`` may be None where no segment tells it: then the
    segment's own header does. ``stop`` is the first sequence number of the next segment: what follows here is
    superseded by that one and comes out as the Tail. Raises OSError, and segment.UnsupportedVersionError.
    """
    if isinstance(source, int):
        source = Plain(source)
    if log_id is None:
        log_id = _own_log_id(source)
    seed = segment.seed(log_id)
    if start is None:
        if source.flaw:
            yield Damage(first_seq, 0, first_seq, 0, source.flaw)
        opening = _opening(source, log_id, first_seq, seed, stop)
        if opening is not None:
            yield opening
        if isinstance(opening, Tail):
            return
        seq, offset = (first_seq, segment.HEADER_BYTES) if opening is None else (opening.next_seq, opening.next_offset)
    else:
        seq, offset = start
    yield from _frames(source, seed, seq, offset, stop)


def _frames(source: Source, seed: int, seq: int, offset: int, stop: int | None) -> Iterator[Event]:
    wanted = BLOCK_BYTES
    while stop is None or seq < stop:
        block = source.pread(wanted, offset)
        taken = segment.take_frames(block, seq, seed, BLOCK_BYTES if stop is None else stop - seq)
        if taken.payloads:
            yield Records(seq, offset, taken.payloads)
            seq += len(taken.payloads)
            offset += taken.used
            wanted = BLOCK_BYTES
        elif not taken.bad and len(block) == wanted < taken.wanted:
            wanted = taken.wanted
        elif not block:
            missing = source.flaw_at(offset)
            yield Tail(seq, offset, 0, plain=not missing, how=missing)
            return
        else:
            passed = _pass_damage(source, seed, seq, offset, stop)
            if passed is not None:
                yield passed
            if isinstance(passed, Tail):
                return
            if isinstance(passed, Damage):
                seq, offset = passed.next_seq, passed.next_offset
    length = max(0, source.size() - offset)
    yield Tail(seq, offset, length, plain=True, how="superseded by the next segment" if length else "")


def _pass_damage(source: Source, seed: int, seq: int, offset: int, stop: int | None) -> Damage | Tail | None:
    # None: the frame is whole by now, a writer was in the middle of it.
    flaw = source.flaw_at(offset)
    hinted = _try_hints(source, seed, seq, offset) if flaw else None
    if hinted is not None and (stop is None or hinted.seq < stop):
        return Damage(seq, offset, hinted.seq, hinted.offset, flaw)
    rest = _read_all(source, offset)
    again = segment.take_frames(rest, seq, seed, 1)
    if again.payloads:
        return None
    how = flaw or ("a record does not match its checksum" if again.bad else "a record is cut short")
    if again.bad and not again.wanted and not flaw:
        how = "there is no record where one should be"
    found = find_record(rest, 0, seq, seed)
    if isinstance(found, Found) and (stop is None or found.seq < stop):
        return Damage(seq, offset, found.seq, offset + found.offset, how)
    if not any(rest) and not flaw:
        how = "zeros, as a power loss leaves them"
    # A search that gave up proves nothing, unless the frame runs past the end, as a broken-off write does.
    plain = not flaw and not (isinstance(found, GaveUp) and again.bad)
    return Tail(seq, offset, len(rest), plain=plain, how=how)


def _try_hints(source: Source, seed: int, seq: int, offset: int) -> Found | None:
    # Up to here all is zeros. One record is proof enough where its place and its number were known before.
    for hinted, at in source.hints(offset):
        if seq < hinted <= seq + MAX_RECORDS_LOST and is_record(source, seed, hinted, at):
            return Found(at, hinted)
    return None


def is_record(source: Source, seed: int, seq: int, offset: int) -> bool:
    """Tell whether this record begins there, by its check."""
    head = source.pread(segment.FRAME_BYTES, offset)
    length = segment.frame_length(head, 0)
    if length is None:
        return False
    frame = source.pread(segment.FRAME_BYTES + length, offset)
    return bool(segment.take_frames(frame, seq, seed, 1).payloads)


def _opening(source: Source, log_id: bytes, first_seq: int, seed: int, stop: int | None) -> Damage | Tail | None:
    # What is wrong with the header; None if nothing is.
    try:
        header = segment.Header.parse(source.pread(segment.HEADER_BYTES, 0))
    except segment.UnsupportedVersionError:
        raise
    except ValueError as e:
        how = str(e)
    else:
        if header.log_id != log_id:
            # Not searched: none of its records may pass for one of ours.
            return Tail(first_seq, 0, source.size(), plain=False, how="it belongs to another log")
        if header.first_seq == first_seq:
            return None
        how = f"its header says that it begins with record {header.first_seq}"
    return _pass_header(source, first_seq, seed, stop, how)


def _pass_header(source: Source, first_seq: int, seed: int, stop: int | None, how: str) -> Damage | Tail:
    flaw = source.flaw_at(0)
    hinted = _try_hints(source, seed, first_seq, 0) if flaw else None
    if hinted is not None and (stop is None or hinted.seq < stop):
        return Damage(first_seq, 0, hinted.seq, hinted.offset, flaw)
    how = flaw or how
    data = _read_all(source, 0)
    begin = segment.HEADER_BYTES
    if len(data) < begin + segment.MIN_FRAME_BYTES:
        return Tail(first_seq, 0, len(data), plain=not flaw, how=how)
    if segment.take_frames(data[begin:], first_seq, seed, 1).payloads:
        return Damage(first_seq, 0, first_seq, begin, how)
    found = find_record(data, begin, first_seq, seed)
    if isinstance(found, Found) and (stop is None or found.seq < stop):
        return Damage(first_seq, 0, found.seq, found.offset, how)
    return Tail(first_seq, 0, len(data), plain=not (any(data[:begin]) or found or flaw), how=how)


def _own_log_id(source: Source) -> bytes:
    # Without any id nothing can be proved, whatever stands in for it.
    return segment.claimed_log_id(source.pread(segment.HEADER_BYTES, 0)) or bytes(segment.LOG_ID_BYTES)


def find_record(data: bytes, begin: int, seq: int, seed: int) -> Found | GaveUp | None:
    """Search ``data`` for the next provable record behind the frame at ``begin``, which should have been ``seq``.

    None: there is none.
    """
    direct = _frame_end(data, begin)
    if direct is not None and _claims(data, direct, seed) == (seq + 1) & _U32:
        return Found(direct, seq + 1)
    budget = SEARCH_BUDGET_BYTES
    here = _claims(data, begin, seed)
    if here is not None and direct is not None and direct < len(data):
        # Whole frames were taken out in front of it. The end of the file does not prove that: with a damaged check the
        # last record would be a later one, too.
        ahead = (here - seq) & _U32
        if 0 < ahead <= MAX_RECORDS_LOST and _is_proved(data, direct, seq + ahead, seed, MAX_RECORDS_LOST):
            return Found(begin, seq + ahead)
    for match in _LIKE_A_LENGTH.finditer(data, begin + 1):
        offset = match.start()
        end = _frame_end(data, offset)
        budget -= CANDIDATE_COST_BYTES
        if end is None or (end < len(data) and _frame_end(data, end) is None):
            continue
        budget -= end - offset
        if budget < 0:
            return GaveUp(offset)
        claimed = segment.claimed_seq(data, offset, end - offset - segment.FRAME_BYTES, seed)
        ahead = (claimed - seq) & _U32
        if ahead <= MAX_RECORDS_LOST and _is_proved(data, end, seq + ahead, seed, ahead):
            return Found(offset, seq + ahead)
    return None


def _is_proved(data: bytes, end: int, seq: int, seed: int, ahead: int) -> bool:
    # By the records that follow the one that ends here.
    for number in range(1, PROOF_RECORDS):
        if end == len(data):
            return ahead <= MAX_RECORDS_LOST_BEFORE_END
        if _claims(data, end, seed) != (seq + number) & _U32:
            return False
        end = _frame_end(data, end) or end
    return True


def _frame_end(data: bytes, offset: int) -> int | None:
    length = segment.frame_length(data, offset)
    if length is None:
        return None
    end = offset + segment.FRAME_BYTES + length
    return end if end <= len(data) else None


def _claims(data: bytes, offset: int, seed: int) -> int | None:
    end = _frame_end(data, offset)
    if end is None:
        return None
    return segment.claimed_seq(data, offset, end - offset - segment.FRAME_BYTES, seed)


def _read_all(source: Source, offset: int) -> bytes:
    # A segment is bounded by its size limit and one record; and it is read whole only where it is damaged.
    return source.pread(max(0, source.size() - offset), offset)
