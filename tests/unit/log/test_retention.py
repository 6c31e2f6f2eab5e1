from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.errors import LogError, RecordsPruned
from agentwatch.log import folder, merkle, segment
from agentwatch.log.reader import LogReader
from agentwatch.log.retention import DAY_NS, Candidate, Keep, ages_ns, candidates, check_tiles, coalesce, remove
from agentwatch.log.sealing import compress, set_append_only
from agentwatch.log.tiles import TileWriter, tile_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PAYLOADS = [b"record %04d " % n for n in range(1500)]
TREE_SIZE = 1536
"""Some more records than there are here, so that full tiles cover all of these."""
HOUR_NS = DAY_NS // 24
T0 = 1_700_000_000 * 10**9


def nothing_is_held(_: bytes) -> bool:
    return False


def leaves_of(payloads: list[bytes]) -> list[bytes]:
    return [merkle.leaf_hash(payload) for payload in payloads] + [bytes(32)] * (TREE_SIZE - len(payloads))


def grow_tree(log_dir: Path, leaves: list[bytes]) -> int:
    def nothing(level: int, index: int) -> bytes:
        raise AssertionError(level, index)

    tree = TileWriter(log_dir, 0, nothing, mode=0o600, gid=os.getegid())
    tree.extend(leaves)
    tree.flush()
    return tree.size


def set_created(log_dir: Path, *created_ns: int) -> None:
    """Give the segments other times of creation."""
    for item, created in zip(folder.list_segments(log_dir), created_ns, strict=True):
        data = item.path.read_bytes()
        header = segment.Header.parse(data)
        item.path.write_bytes(header._replace(created_ns=created).pack() + data[segment.HEADER_BYTES :])


@pytest.fixture
def log_dir(build_log: Callable[..., Path]) -> Iterator[Path]:
    """Return a log of five segments and its tree."""
    made = build_log(PAYLOADS, segment_bytes=7000)
    assert len(folder.list_segments(made)) == 5
    grow_tree(made, leaves_of(PAYLOADS))
    yield made
    for path in made.glob("*.zst"):
        set_append_only(path, on=False)


def find(log_dir: Path, keep: Keep, *, now_ns: int = T0, tree_size: int = TREE_SIZE) -> list[Candidate]:
    return list(candidates(log_dir, keep, now_ns=now_ns, tree_size=tree_size, is_held=nothing_is_held))


def test_age_is_the_time_between_segments_a_day_at_most() -> None:
    hours = [0, 1, 2, 3, 4]
    assert ages_ns([T0 + n * HOUR_NS for n in hours], T0 + 5 * HOUR_NS) == [n * HOUR_NS for n in (4, 3, 2, 1, 0)]
    # The clock jumps ahead by years and comes back: a day, then nothing.
    far = T0 + 5000 * DAY_NS
    assert ages_ns([T0, far, T0 + HOUR_NS, T0 + 2 * HOUR_NS], T0 + 3 * HOUR_NS) == [
        2 * HOUR_NS,
        2 * HOUR_NS,
        HOUR_NS,
        0,
    ]
    assert ages_ns([T0, T0 + HOUR_NS, far], far + HOUR_NS) == [DAY_NS + HOUR_NS, HOUR_NS, 0]
    assert ages_ns([T0, T0 + HOUR_NS], far) == [DAY_NS, 0]
    assert ages_ns([far, T0], T0 - DAY_NS) == [0, 0]
    assert ages_ns([T0, None, T0 + 2 * HOUR_NS, T0 + 3 * HOUR_NS], T0 + 4 * HOUR_NS) == [
        2 * HOUR_NS,
        2 * HOUR_NS,
        HOUR_NS,
        0,
    ]
    assert ages_ns([], T0) == []


@given(st.lists(st.one_of(st.none(), st.integers(0, 2**63))), st.integers(0, 2**63))
def test_ages_never_grow_towards_the_end_nor_faster_than_a_day_each(created: list[int | None], now: int) -> None:
    ages = ages_ns(created, now)
    assert ages[-1:] in ([], [0])
    for older, younger in pairwise(ages):
        assert 0 <= older - younger <= DAY_NS


def test_what_is_older_is_a_candidate_by_its_youngest_record(log_dir: Path) -> None:
    set_created(log_dir, *(T0 + n * HOUR_NS for n in range(5)))
    firsts = [item.first_seq for item in folder.list_segments(log_dir)]
    now = T0 + 5 * HOUR_NS
    for hours, count in [(0, 0), (1, 3), (2, 2), (3, 1), (4, 0)]:
        found = find(log_dir, Keep(age_ns=hours * HOUR_NS), now_ns=now)
        assert [one.first_seq for one in found] == firsts[:count]
    one, two = find(log_dir, Keep(age_ns=2 * HOUR_NS), now_ns=now)
    assert (one.next_seq, two.next_seq) == (firsts[1], firsts[2])
    assert (one.age_ns, two.age_ns) == (4 * HOUR_NS, 3 * HOUR_NS)


def test_what_is_too_much_is_a_candidate_and_the_newest_never_is(log_dir: Path) -> None:
    segments = folder.list_segments(log_dir)
    sizes = [item.path.stat().st_size for item in segments]
    for size, count in [
        (0, 0),
        (sum(sizes), 0),
        (sum(sizes) - 1, 1),
        (sum(sizes[1:]), 1),
        (sum(sizes[2:]) - 1, 3),
        (1, 4),
    ]:
        found = find(log_dir, Keep(size=size))
        assert [one.path for one in found] == [item.path for item in segments[:count]]
        assert [one.size for one in found] == sizes[:count]


def test_compressed_segments_count_with_what_they_take(log_dir: Path) -> None:
    segments = folder.list_segments(log_dir)
    for item in segments[:-1]:
        compress(item.path)
    sizes = [item.path.stat().st_size for item in folder.list_segments(log_dir)]
    assert [one.first_seq for one in find(log_dir, Keep(size=sum(sizes[2:])))] == [
        item.first_seq for item in segments[:2]
    ]


def test_segment_with_a_held_record_stays_and_others_go_in_its_place(log_dir: Path) -> None:
    segments = folder.list_segments(log_dir)
    asked: list[bytes] = []

    def is_held(payload: bytes) -> bool:
        asked.append(payload)
        return payload == PAYLOADS[segments[2].first_seq - 1]

    keep = Keep(size=sum(item.path.stat().st_size for item in segments[2:]))
    found = list(candidates(log_dir, keep, now_ns=T0, tree_size=TREE_SIZE, is_held=is_held))
    assert [one.first_seq for one in found] == [0, segments[2].first_seq]
    assert asked == PAYLOADS[: segments[3].first_seq]


def test_segment_that_is_not_under_full_signed_tiles_stays(log_dir: Path) -> None:
    ends = [item.first_seq for item in folder.list_segments(log_dir)][1:]
    for tree_size in (0, 1, 256, 511, 512, 1023, 1024, 1535, 1536):
        found = find(log_dir, Keep(size=1), tree_size=tree_size)
        assert [one.next_seq for one in found] == [end for end in ends if -(-end // 256) * 256 <= tree_size]


def test_segment_whose_leaves_are_in_the_tree_may_go(log_dir: Path) -> None:
    for path in [item.path for item in folder.list_segments(log_dir)[:2]]:
        compress(path)
    found = find(log_dir, Keep(size=1))
    assert len(found) == 4
    for one in found:
        check_tiles(log_dir, one, tree_size=TREE_SIZE)


@pytest.mark.parametrize("seq", [0, 100, 311, 312, 400, 623])
def test_segment_whose_leaves_are_others_is_not_pruned(log_dir: Path, seq: int) -> None:
    found = find(log_dir, Keep(size=1))
    tile = log_dir / tile_path(0, seq // 256)
    data = bytearray(tile.read_bytes())
    data[seq % 256 * 32 + 7] ^= 4
    tile.write_bytes(data)
    for one in found:
        if one.first_seq <= seq < one.next_seq:
            with pytest.raises(LogError, match=f"record {seq} .* not pruned"):
                check_tiles(log_dir, one, tree_size=TREE_SIZE)
        else:
            check_tiles(log_dir, one, tree_size=TREE_SIZE)


def test_segment_without_its_tiles_is_not_pruned(log_dir: Path) -> None:
    one = find(log_dir, Keep(size=1))[0]
    tile = log_dir / tile_path(0, 1)
    tile.unlink()
    with pytest.raises(LogError, match="missing"):
        check_tiles(log_dir, one, tree_size=TREE_SIZE)
    assert one.path.exists()


def test_segment_with_a_lost_record_is_not_pruned(log_dir: Path) -> None:
    one = find(log_dir, Keep(size=1))[1]
    whole = one.path.read_bytes()
    for data in (whole[:200] + b"\xff" + whole[201:], whole[:-1], whole[: segment.HEADER_BYTES], b""):
        one.path.write_bytes(data)
        with pytest.raises(LogError, match="not pruned"):
            check_tiles(log_dir, one, tree_size=TREE_SIZE)


def test_numbers_that_no_record_had_do_not_keep_a_segment(build_log: Callable[..., Path]) -> None:
    log_dir = build_log(PAYLOADS, segment_bytes=20_000)
    one, two = folder.list_segments(log_dir)[:2]
    header = segment.Header.parse(one.path.read_bytes())
    seed = segment.seed(header.log_id)
    # The first segment ends ten numbers before the second begins.
    short = two.first_seq - 10
    one.path.write_bytes(header.pack() + b"".join(segment.frame(PAYLOADS[n], n, seed) for n in range(short)))
    leaves = leaves_of(PAYLOADS)
    leaves[short : two.first_seq] = [merkle.VOID_LEAF] * 10
    tree_size = grow_tree(log_dir, leaves)
    first = find(log_dir, Keep(size=1))[0]
    assert first.next_seq == two.first_seq
    check_tiles(log_dir, first, tree_size=tree_size)


def test_pruned_segment_is_gone_for_good_marked_or_not(log_dir: Path) -> None:
    compress(folder.list_segments(log_dir)[0].path)
    plain = folder.list_segments(log_dir)[1].path
    content = plain.read_bytes()
    compress(plain)
    plain.write_bytes(content)
    before = sum(path.stat().st_size for path in log_dir.glob("*.segment*"))
    found = find(log_dir, Keep(size=1))[:3]
    freed = sum(remove(one) for one in found)
    assert folder.list_segments(log_dir)[0].first_seq == found[-1].next_seq
    assert before - freed == sum(path.stat().st_size for path in log_dir.glob("*.segment*"))
    pruned = coalesce((one.first_seq, one.next_seq) for one in found)
    assert pruned == [(0, found[-1].next_seq)]
    assert list(LogReader(log_dir, pruned=pruned).records()) == list(enumerate(PAYLOADS))[found[-1].next_seq :]
    with pytest.raises(RecordsPruned):
        LogReader(log_dir, pruned=pruned).read(5)
    assert remove(found[0]) == 0


def test_segment_that_was_compressed_since_it_was_found_is_pruned(log_dir: Path) -> None:
    one = find(log_dir, Keep(size=1))[0]
    compress(one.path)
    check_tiles(log_dir, one, tree_size=TREE_SIZE)
    assert remove(one) > 0
    assert not list(log_dir.glob(f"{one.path.name}*"))


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60))))
def test_coalesced_ranges_cover_the_same_numbers_and_do_not_touch(ranges: list[tuple[int, int]]) -> None:
    result = coalesce(ranges)
    assert {n for first, end in result for n in range(first, end)} == {
        n for first, end in ranges for n in range(first, end)
    }
    for (_, end), (first, _) in pairwise(result):
        assert end < first
    assert all(first < end for first, end in result)
    assert coalesce(result) == result
