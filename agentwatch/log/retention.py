"""Pruning: which segments may be removed, what must be so before, and removing them. docs/log-format.md, "Pruning".

In: the log's folder, how long or how much to keep, and a predicate for legal holds. Out: candidates, oldest first. The
order for the caller is: ``candidates``, for each ``check_tiles``, then a ``prune`` record with ``coalesce`` of all that
was pruned so far, made durable, then ``remove``. Killed in between, a record names what is still there; that is read as
before, and is a candidate again. What always holds:

* the newest segment stays, and every segment over which the tree is not complete in full tiles, or not signed;
* a segment stays as long as one of its records is held, or cannot be read and so could be;
* a clock that jumps makes segments stay longer, never shorter than by a day for each segment.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.errors import LogError
from agentwatch.log import folder, merkle, scan, segment
from agentwatch.log.sealing import set_append_only
from agentwatch.log.tiles import WIDTH, TileReader, make_durable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

DAY_NS = 24 * 3600 * 10**9
"""The longest that counts between two segments: a host that writes has one each hour."""

IsHeld = Callable[[bytes], bool]
"""Tells whether the record with this payload must be kept."""


class Keep(NamedTuple):
    """How much is kept: records younger than ``age_ns``, and ``size`` bytes of segments. 0: all."""

    age_ns: int = 0
    size: int = 0


class Candidate(NamedTuple):
    """A segment that may go: records ``first_seq`` to ``next_seq - 1``, ``size`` bytes on disk.

    ``age_ns`` is how old the youngest of its records is at least.
    """

    first_seq: int
    next_seq: int
    path: Path
    size: int
    age_ns: int


def candidates(log_dir: Path, keep: Keep, *, now_ns: int, tree_size: int, is_held: IsHeld) -> Iterator[Candidate]:
    """Yield the segments that are more than is to be kept, by age or by size, oldest first.

    ``now_ns`` is CLOCK_REALTIME, ``tree_size`` that of the newest checkpoint. ``is_held`` is asked for the payload of
    every record, until it says so. Held segments count towards the size. Raises as folder.list_segments does.
    """
    segments = folder.list_segments(log_dir)
    log_id = folder.find_log_id(segments)
    sizes = [_stored_bytes(item.path) for item in segments]
    too_much = sum(sizes) - keep.size if keep.size else 0
    ages = ages_ns([folder.created_ns(item) for item in segments], now_ns)
    for (item, following), stored, age_ns in zip(pairwise(segments), sizes, ages, strict=False):
        one = Candidate(item.first_seq, following.first_seq, item.path, stored, age_ns)
        expired = 0 < keep.age_ns < age_ns
        signed = -(-one.next_seq // WIDTH) * WIDTH <= tree_size
        if (expired or too_much > 0) and signed and not _is_held(one, log_id, is_held):
            too_much -= stored
            yield one


def ages_ns(created_ns: Sequence[int | None], now_ns: int) -> list[int]:
    """Return how old the youngest record of each segment is at least, from when the segments were created, in order.

    The time from one creation to the next counts, a day at most and nothing if it is negative. None is a header that
    cannot be read: the time around it is not known and does not count.
    """
    ages = [0] * len(created_ns)
    age = 0
    later: int | None = now_ns
    for at in range(len(created_ns) - 1, -1, -1):
        # What is younger than the next segment's beginning is not in this one.
        ages[at] = age
        created = created_ns[at]
        if created is not None and later is not None:
            age += min(max(later - created, 0), DAY_NS)
        later = created
    return ages


def check_tiles(log_dir: Path, one: Candidate, *, tree_size: int) -> None:
    """Compare the records with their leaves in the tree, and make these durable: they are all that stays.

    Raises LogError where a leaf is not that of the record, or a record that the tree has cannot be read; StoreError.
    After any error the segment must not be removed.
    """
    tiles = TileReader(log_dir, tree_size)
    at = one.first_seq
    for seq, payloads in _walk(one, folder.find_log_id(folder.list_segments(log_dir))):
        _check_void(tiles, one, at, seq)
        for at, payload in enumerate(payloads, seq):
            if _leaf(tiles, at) != merkle.leaf_hash(payload):
                raise LogError(
                    f"record {at} in {one.path} is not the one in the tree: not pruned; see agentwatch verify"
                )
        at = seq + len(payloads)
    _check_void(tiles, one, at, one.next_seq)
    try:
        make_durable(log_dir, one.first_seq, -(-one.next_seq // WIDTH) * WIDTH)
    except OSError as e:
        raise folder.failure(e, f"cannot make the tiles over {one.path} durable, which is not pruned") from e


def remove(one: Candidate) -> int:
    """Remove a segment for good; return how many bytes that freed. Raises PrivilegeError, StoreError."""
    plain = one.path.with_name(segment.segment_name(one.first_seq))
    freed = 0
    try:
        # The plain file first: a compression under way looks for it (sealing.py).
        for path in (plain, plain.with_name(plain.name + segment.COMPRESSED)):
            if path.exists():
                set_append_only(path, on=False)
                freed += path.stat().st_size
            path.unlink(missing_ok=True)
        folder.fsync_folder(plain.parent)
    except OSError as e:
        raise folder.failure(e, f"cannot prune the segment {one.path}") from e
    return freed


def coalesce(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the fewest ranges [first, next) that cover the same numbers, in order."""
    result: list[tuple[int, int]] = []
    for first, following in sorted(ranges):
        if result and first <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], following))
        elif first < following:
            result.append((first, following))
    return result


def _is_held(one: Candidate, log_id: bytes | None, is_held: IsHeld) -> bool:
    return any(any(map(is_held, payloads)) for _, payloads in _walk(one, log_id))


def _walk(one: Candidate, log_id: bytes | None) -> Iterator[tuple[int, list[bytes]]]:
    # What can be read of the segment.
    with folder.reading(one.path) as source:
        for event in scan.walk(source, log_id, one.first_seq, stop=one.next_seq):
            if isinstance(event, scan.Records):
                yield event.seq, event.payloads


def _leaf(tiles: TileReader, seq: int) -> bytes:
    # Without the climb through the tree that ``tiles.leaf`` is: this is done for every record of a segment.
    at = seq % WIDTH * merkle.HASH_BYTES
    return tiles.tile(0, seq // WIDTH)[at : at + merkle.HASH_BYTES]


def _check_void(tiles: TileReader, one: Candidate, begin: int, end: int) -> None:
    # Numbers that no record ever had are nothing to keep a segment for; lost records are.
    for seq in range(begin, end):
        if _leaf(tiles, seq) != merkle.VOID_LEAF:
            raise LogError(f"record {seq} in {one.path} cannot be read: not pruned; see agentwatch verify")


def _stored_bytes(path: Path) -> int:
    # It may have been compressed since it was listed.
    for name in (path.name, path.name + segment.COMPRESSED):
        try:
            return path.with_name(name).stat().st_size
        except FileNotFoundError:
            continue
        except OSError as e:
            raise folder.failure(e, f"cannot read the segment {path}") from e
    return 0
