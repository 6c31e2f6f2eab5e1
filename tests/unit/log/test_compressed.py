from __future__ import annotations

import os
import random
import subprocess
import tempfile
import tracemalloc
from typing import TYPE_CHECKING, NamedTuple

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.errors import LogError, SegmentDamaged
from agentwatch.log import compressed, folder, scan, segment
from agentwatch.log.compressed import Compressed, pack
from agentwatch.log.reader import LogReader
from agentwatch.log.source import Plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PAYLOADS = [b"record %03d " % n * (2 + n % 3) for n in range(60)]
BLOCK_BYTES = 180
MIB = 1024 * 1024


class Part(NamedTuple):
    """A zstd frame of the file, and what is in it."""

    first_seq: int
    begin: int
    end: int
    plain: bytes


def read_as_documented(data: bytes) -> list[Part]:
    """Read the file by docs/log-format.md alone."""
    count = int.from_bytes(data[-9:-5], "little")
    assert data[-5:] == b"\0" + 0x8F92EAB1.to_bytes(4, "little")
    table = data[-(8 + 8 * count + 9) :]
    assert table[:8] == 0x184D2A5E.to_bytes(4, "little") + (8 * count + 9).to_bytes(4, "little")
    hints = data[-len(table) - (8 + 8 * count) : -len(table)]
    assert hints[:8] == 0x184D2A5A.to_bytes(4, "little") + (8 * count).to_bytes(4, "little")
    parts = []
    at = 0
    for n in range(count):
        packed, plain = (int.from_bytes(table[8 + 8 * n + k : 12 + 8 * n + k], "little") for k in (0, 4))
        frame = data[at : at + packed]
        assert zstandard.get_frame_parameters(frame).has_checksum
        content = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
        assert len(content) == plain
        parts.append(Part(int.from_bytes(hints[8 + 8 * n : 16 + 8 * n]), at, at + packed, content))
        at += packed
    assert at + len(hints) + len(table) == len(data)
    return parts


def pack_file(path: Path) -> bytes:
    source = Plain(folder.open_segment(path))
    try:
        return b"".join(pack(source, None, segment.parse_name(path.name) or 0))
    finally:
        source.close()


def put_in_place(path: Path, data: bytes) -> Path:
    target = path.with_name(path.name + segment.COMPRESSED)
    target.write_bytes(data)
    path.unlink(missing_ok=True)
    return target


def records_within(part: Part) -> Iterator[int]:
    at = segment.HEADER_BYTES if part.begin == 0 else 0
    seq = part.first_seq
    while at < len(part.plain):
        at += segment.FRAME_BYTES + int.from_bytes(part.plain[at : at + 4])
        yield seq
        seq += 1


def read_all(log_dir: Path) -> tuple[dict[int, bytes], list[SegmentDamaged]]:
    damage: list[SegmentDamaged] = []
    return dict(LogReader(log_dir).records(on_damage=damage.append)), damage


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "BLOCK_BYTES", BLOCK_BYTES)


@pytest.fixture
def log_dir(build_log: Callable[..., Path]) -> Path:
    return build_log(PAYLOADS, segment_bytes=700)


@pytest.fixture
def packed(log_dir: Path) -> Path:
    """Return a log of compressed segments."""
    for item in folder.list_segments(log_dir):
        put_in_place(item.path, pack_file(item.path))
    return log_dir


def test_any_zstd_gives_back_the_segment(log_dir: Path) -> None:
    for item in folder.list_segments(log_dir):
        plain = item.path.read_bytes()
        packed = put_in_place(item.path, pack_file(item.path))
        assert subprocess.run(["zstd", "-dc", packed], check=True, capture_output=True).stdout == plain
        assert subprocess.run(["zstd", "-tq", packed], check=True, capture_output=True).stderr == b""


def test_blocks_begin_with_the_record_that_the_table_names(log_dir: Path) -> None:
    for item in folder.list_segments(log_dir):
        plain = item.path.read_bytes()
        parts = read_as_documented(pack_file(item.path))
        assert len(parts) > 2
        assert b"".join(part.plain for part in parts) == plain
        assert all(len(part.plain) <= BLOCK_BYTES for part in parts)
        records = [seq for part in parts for seq in records_within(part)]
        assert records == list(range(item.first_seq, item.first_seq + len(records)))
        for part in parts:
            assert next(records_within(part)) == part.first_seq


def test_every_range_of_bytes_is_that_of_the_segment(log_dir: Path) -> None:
    item = folder.list_segments(log_dir)[1]
    plain = item.path.read_bytes()
    source = folder.open_source(put_in_place(item.path, pack_file(item.path)))
    assert (source.size(), source.flaw) == (len(plain), "")
    for begin in range(0, len(plain) + 20, 3):
        for size in (0, 1, 7, BLOCK_BYTES, 10_000):
            assert source.pread(size, begin) == plain[begin : begin + size]
    source.close()


def test_compressed_log_reads_as_the_log(packed: Path) -> None:
    log = LogReader(packed)
    assert log.end() == len(PAYLOADS)
    assert list(log.records()) == list(enumerate(PAYLOADS))
    for start, stop in [(0, 1), (17, 18), (13, 47), (59, 60), (5, 5)]:
        assert list(LogReader(packed).records(start, stop)) == list(enumerate(PAYLOADS))[start:stop]
    for reader in (log, LogReader(packed)):
        for seq in [*range(59, -1, -7), *range(60)]:
            assert reader.read(seq) == PAYLOADS[seq]
    assert list(LogReader(packed).records(60)) == []


def test_where_both_are_there_the_plain_one_counts(log_dir: Path) -> None:
    item = folder.list_segments(log_dir)[1]
    item.path.with_name(item.path.name + segment.COMPRESSED).write_bytes(b"not finished")
    assert item in folder.list_segments(log_dir)
    assert read_all(log_dir) == (dict(enumerate(PAYLOADS)), [])


def test_segment_that_is_compressed_after_it_was_listed_is_read(log_dir: Path) -> None:
    log = LogReader(log_dir)
    assert log.read(0) == PAYLOADS[0]
    for item in folder.list_segments(log_dir):
        put_in_place(item.path, pack_file(item.path))
        assert log.read(item.first_seq + 1) == PAYLOADS[item.first_seq + 1]
        source = folder.open_source(item.path)
        assert source.size() > 0
        source.close()
    assert list(log.records()) == list(enumerate(PAYLOADS))


def is_noticed(path: Path, first_seq: int, damage: list[SegmentDamaged]) -> bool:
    if damage:
        return True
    log_id = folder.find_log_id(folder.list_segments(path.parent))
    assert log_id is not None
    source = Compressed(folder.open_segment(path), first_seq)
    try:
        return bool(source.wrong_hint(log_id))
    finally:
        source.close()


@pytest.mark.parametrize("which", [1, -1], ids=["in the middle", "the newest"])
def test_every_flipped_bit_costs_no_more_than_its_block_and_is_noticed(
    build_log: Callable[..., Path], which: int
) -> None:
    log_dir = build_log(PAYLOADS[:24], segment_bytes=440)
    item = folder.list_segments(log_dir)[which]
    data = pack_file(item.path)
    path = put_in_place(item.path, data)
    parts = read_as_documented(data)
    assert len(parts) > 1
    everything = dict(enumerate(PAYLOADS[:24]))
    unnoticed = 0
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        got, damage = read_all(log_dir)
        assert got.items() <= everything.items()
        lost = everything.keys() - got.keys()
        hit = next((part for part in parts if part.begin <= bit // 8 < part.end), None)
        # The table's own bytes: a wrong length of a block costs that block.
        costs = [set(records_within(part)) for part in (parts if hit is None else [hit])]
        assert any(lost <= cost for cost in costs)
        noticed = is_noticed(path, item.first_seq, damage)
        assert noticed or not lost
        assert noticed or hit is not None
        unnoticed += not noticed
    # zstd has bits that mean nothing; with one of those the segment is still the same.
    assert unnoticed < len(parts) * 8


@pytest.mark.parametrize("which", [1, -1], ids=["in the middle", "the newest"])
def test_every_cut_costs_only_what_was_cut_off_and_is_noticed(log_dir: Path, which: int) -> None:
    item = folder.list_segments(log_dir)[which]
    data = pack_file(item.path)
    path = put_in_place(item.path, data)
    parts = read_as_documented(data)
    everything = dict(enumerate(PAYLOADS))
    for size in range(len(data)):
        path.write_bytes(data[:size])
        got, damage = read_all(log_dir)
        lost = {seq for part in parts if part.end > size for seq in records_within(part)}
        assert got == {seq: payload for seq, payload in everything.items() if seq not in lost}
        assert damage


@pytest.mark.parametrize("bad", [(0,), (0, 1), (1, 2), (1, 3), (0, 1, 2, 3, 4)])
def test_damaged_blocks_cost_their_records_and_no_others(log_dir: Path, bad: tuple[int, ...]) -> None:
    item = folder.list_segments(log_dir)[1]
    data = bytearray(pack_file(item.path))
    parts = read_as_documented(bytes(data))
    for number in bad:
        data[parts[number].begin + 12] ^= 0xFF
    path = put_in_place(item.path, bytes(data))
    got, damage = read_all(log_dir)
    lost = {seq for number in bad if number < len(parts) for seq in records_within(parts[number])}
    assert set(range(60)) - got.keys() == lost
    assert "zstd frame" in str(damage[0])
    assert damage[0].path == str(path)
    log = LogReader(log_dir)
    for seq in got:
        assert log.read(seq) == PAYLOADS[seq]
    for seq in lost:
        with pytest.raises(SegmentDamaged):
            log.read(seq)


def test_single_record_behind_a_damaged_block_is_still_given(
    build_log: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Alone at the end and far behind, it is proved by the place and the number that the table names.
    records = [b"%d" % (n % 10) for n in range(500)]
    log_dir = build_log([bytes(5020)], [*records, os.urandom(50)], segment_bytes=5100)
    item = folder.list_segments(log_dir)[1]
    monkeypatch.setattr(compressed, "BLOCK_BYTES", item.path.stat().st_size - 20)
    data = bytearray(pack_file(item.path))
    parts = read_as_documented(bytes(data))
    assert [part.first_seq for part in parts] == [1, 501]
    data[20] ^= 0xFF
    put_in_place(item.path, bytes(data))
    got, damage = read_all(log_dir)
    assert (set(got), [d.seq for d in damage]) == ({0, 501}, [1])


def test_without_its_table_a_segment_is_read_whole_and_that_is_said(packed: Path) -> None:
    for item in folder.list_segments(packed):
        data = item.path.read_bytes()
        item.path.write_bytes(data[: read_as_documented(data)[-1].end])
        source = folder.open_source(item.path)
        assert "seek table" in source.flaw
        source.close()
    got, damage = read_all(packed)
    assert got == dict(enumerate(PAYLOADS))
    assert {d.seq for d in damage} >= {item.first_seq for item in folder.list_segments(packed)}


def test_frames_that_an_agent_planted_are_not_taken_for_blocks(build_log: Callable[..., Path]) -> None:
    planted = random.Random(1).randbytes(100) + zstandard.compress(b"planted" * 20)  # noqa: S311 -- repeatable
    log_dir = build_log([b"first", planted, b"third", planted * 2, b"fifth"])
    (item,) = folder.list_segments(log_dir)
    data = pack_file(item.path)
    assert data.count(b"\x28\xb5\x2f\xfd") > len(read_as_documented(data))
    put_in_place(item.path, data[:-9])
    assert read_all(log_dir)[0] == dict(enumerate([b"first", planted, b"third", planted * 2, b"fifth"]))


def test_wrong_sequence_number_in_the_table_is_not_believed(log_dir: Path) -> None:
    item = folder.list_segments(log_dir)[1]
    data = bytearray(pack_file(item.path))
    parts = read_as_documented(bytes(data))
    number = len(parts) - 2
    place = parts[-1].end + 8 + 8 * number + 7
    data[place] += 1
    path = put_in_place(item.path, bytes(data))
    for start in range(60):
        assert list(LogReader(log_dir).records(start)) == list(enumerate(PAYLOADS))[start:]
        assert LogReader(log_dir).read(start) == PAYLOADS[start]
    source = Compressed(folder.open_segment(path), item.first_seq)
    wrong = source.wrong_hint(folder.find_log_id(folder.list_segments(log_dir)) or b"")
    assert f"record {parts[number].first_seq + 1}" in wrong
    source.close()


def test_large_and_incompressible_records_have_blocks_of_their_own(build_log: Callable[..., Path]) -> None:
    payloads = [random.Random(n).randbytes(size) for n, size in enumerate([3 * MIB, 1, 700_000, 5, 2 * MIB])]  # noqa: S311 -- repeatable
    log_dir = build_log(payloads, segment_bytes=64 * MIB)
    (item,) = folder.list_segments(log_dir)
    plain = item.path.read_bytes()
    path = put_in_place(item.path, pack_file(item.path))
    assert subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout == plain
    assert len(read_as_documented(path.read_bytes())) == 5
    assert read_all(log_dir) == (dict(enumerate(payloads)), [])


def test_what_a_crash_left_at_the_end_is_kept_as_it_is(log_dir: Path) -> None:
    item = folder.list_segments(log_dir)[0]
    for torn in (b"\0" * 5, b"\0" * 1000, segment.frame(b"x" * 400, 5, 1)[:-9], b"\0\0\0"):
        data = item.path.read_bytes() + torn
        copy = log_dir.parent / item.path.name
        copy.write_bytes(data)
        packed = put_in_place(copy, pack_file(copy))
        assert subprocess.run(["zstd", "-dc", packed], check=True, capture_output=True).stdout == data


def test_damaged_segment_is_not_compressed(log_dir: Path) -> None:
    path = folder.list_segments(log_dir)[1].path
    whole = path.read_bytes()
    for place in (5, 100):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(LogError, match="damaged at byte"):
            pack_file(path)
    for size in (0, 10, 63):
        path.write_bytes(whole[:size])
        with pytest.raises(LogError, match="no record"):
            pack_file(path)


def file_of(frames: list[bytes], sizes: list[int]) -> bytes:
    table = b"".join(len(f).to_bytes(4, "little") + n.to_bytes(4, "little") for f, n in zip(frames, sizes, strict=True))
    hints = b"".join(seq.to_bytes(8) for seq in range(len(frames)))
    footer = len(frames).to_bytes(4, "little") + b"\0" + 0x8F92EAB1.to_bytes(4, "little")
    parts = [(0x184D2A5A, hints), (0x184D2A5E, table + footer)]
    tables = (magic.to_bytes(4, "little") + len(body).to_bytes(4, "little") + body for magic, body in parts)
    return b"".join([*frames, *tables])


def frame_of(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def open_bytes(data: bytes, first_seq: int = 0) -> Compressed:
    with tempfile.TemporaryFile() as f:
        f.write(data)
        f.flush()
        return Compressed(os.dup(f.fileno()), first_seq)


def test_more_than_any_segment_holds_is_not_decompressed() -> None:
    bomb = frame_of(bytes(60 * MIB))
    source = open_bytes(file_of([bomb] * 100, [60 * MIB] * 100))
    assert source.flaw
    assert source.size() <= compressed.MAX_SEGMENT_BYTES
    source.close()


def test_frame_that_claims_more_than_the_table_is_not_decompressed() -> None:
    bomb = frame_of(bytes(60 * MIB))
    claims = [100, 1, compressed.MAX_BLOCK_BYTES]
    endless = b"\x28\xb5\x2f\xfd\xc4\x00" + b"\xff" * 8 + b"\0" * 20
    tracemalloc.start()
    try:
        for frame in (bomb, endless):
            for claim in claims:
                source = open_bytes(file_of([frame], [claim]))
                assert source.size() == claim
                assert source.pread(100, 0) == bytes(min(100, claim))
                assert source.flaw_at(0)
                source.close()
        # The bytes that it reads as, once, and nothing like what is in the frame.
        assert tracemalloc.get_traced_memory()[1] < compressed.MAX_BLOCK_BYTES + 20 * MIB
    finally:
        tracemalloc.stop()


def test_tables_that_contradict_their_file_are_not_believed() -> None:
    frames = [frame_of(b"a" * 50), frame_of(b"b" * 50)]
    right = file_of(frames, [50, 50])
    source = open_bytes(right)
    assert (source.flaw, source.pread(100, 0)) == ("", b"a" * 50 + b"b" * 50)
    source.close()
    huge = (2**32 - 1).to_bytes(4, "little")
    for wrong in (
        file_of([], []),
        file_of(frames, [50, 0]),
        file_of(frames, [50, 2**32 - 1]),
        right[:-9] + huge + right[-5:],
        right[:-5] + b"\x80" + right[-4:],
        right + b"\0",
        b"x" + right,
    ):
        source = open_bytes(wrong)
        assert source.flaw
        assert source.pread(1000, 0) in (b"a" * 50 + b"b" * 50, b"")
        source.close()
    source = open_bytes(right, first_seq=7)
    assert "sequence numbers" in source.flaw
    source.close()


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 40))
def test_any_bytes_are_read_without_an_error(noise: bytes, place: int, cut: int) -> None:
    whole = file_of([frame_of(b"a" * 50), frame_of(b"b" * 70)], [50, 70])
    for data in (noise, whole[:place] + noise + whole[place + cut :], noise + whole[-17 - cut :]):
        source = open_bytes(data)
        size = source.size()
        assert size <= compressed.MAX_SEGMENT_BYTES
        assert len(source.pread(size + 1, 0)) == size
        for event in scan.walk(source, bytes(16), 0):
            assert not isinstance(event, scan.Records)
        source.close()


def test_decompressed_blocks_are_remembered_within_a_limit(log_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "CACHED_BYTES", 2 * BLOCK_BYTES)
    item = folder.list_segments(log_dir)[0]
    plain = item.path.read_bytes()
    source = Compressed(folder.open_segment(put_in_place(item.path, pack_file(item.path))), 0)
    for _ in range(2):
        assert source.pread(len(plain), 0) == plain
        assert sum(map(len, source._cache.values())) == source._cached_bytes <= 2 * BLOCK_BYTES
    source.close()
