"""What a crash or a bad disk can leave, made by hand byte by byte, and what a new writer makes of it."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwatch.errors import LogError, SegmentDamaged
from agentwatch.log import folder, segment
from agentwatch.log.framing import check as verify
from agentwatch.log.reader import LogReader
from agentwatch.log.writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAYLOADS = [b"record %d" % n * (1 + n % 3) for n in range(12)]


def copy_with(log_dir: Path, target: Path, last: bytes) -> Path:
    """Copy the log with other bytes in its last segment."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(log_dir, target)
    folder.list_segments(target)[-1].path.write_bytes(last)
    return target


def whole_records(first_seq: int, data: bytes, size: int) -> int:
    """Count from the lengths alone how many records lie in the first ``size`` bytes."""
    at, seq = segment.HEADER_BYTES, first_seq
    while at + 8 <= size and at + 8 + int.from_bytes(data[at : at + 4]) <= size:
        at += 8 + int.from_bytes(data[at : at + 4])
        seq += 1
    return seq


def recover_and_check(log_dir: Path, expected: int, torn: int, before: bytes) -> None:
    with LogWriter(log_dir) as log:
        assert (log.next_seq, log.torn_bytes, log.damage) == (expected, torn, [])
        assert sum(len(path.read_bytes()) for path in log.aside) == torn
        assert b"".join(path.read_bytes() for path in log.aside) == before[len(before) - torn :]
        log.append(b"after the crash")
    assert list(LogReader(log_dir).records()) == [*enumerate(PAYLOADS[:expected]), (expected, b"after the crash")]
    report = verify(log_dir)
    assert (report.ok, report.torn, report.records) == (True, None, expected + 1)


@pytest.fixture
def log_dir(build_log: Callable[..., Path]) -> Path:
    return build_log(PAYLOADS, segment_bytes=213)


def test_log_cut_at_every_byte_is_recovered_to_the_last_whole_record(log_dir: Path, tmp_path: Path) -> None:
    last = folder.list_segments(log_dir)[-1]
    assert 0 < last.first_seq < len(PAYLOADS) - 2
    data = last.path.read_bytes()
    for size in range(len(data)):
        cut = copy_with(log_dir, tmp_path / "cut", data[:size])
        expected = whole_records(last.first_seq, data, size)
        records = list(LogReader(cut).records())
        assert records == list(enumerate(PAYLOADS[:expected]))
        report = verify(cut)
        whole = segment.HEADER_BYTES + sum(8 + len(p) for p in PAYLOADS[last.first_seq : expected])
        torn = size if size < whole else size - whole
        assert (report.ok, report.torn_bytes, report.next_seq) == (True, torn, expected)
        # A header without a record is set aside with its file.
        recover_and_check(cut, expected, size if expected == last.first_seq else torn, data[:size])


def test_zero_filled_end_is_recovered_to_the_last_whole_record(log_dir: Path, tmp_path: Path) -> None:
    last = folder.list_segments(log_dir)[-1]
    data = last.path.read_bytes()
    for size in range(len(data)):
        for zeros in (len(data) - size, 4096):
            cut = copy_with(log_dir, tmp_path / "cut", data[:size] + bytes(zeros))
            expected = whole_records(last.first_seq, data, size)
            if not 0 < size < segment.HEADER_BYTES or len(data[:size].rstrip(b"\0")) == segment.HEADER_BYTES:
                assert list(LogReader(cut).records()) == list(enumerate(PAYLOADS[:expected]))
                with LogWriter(cut) as log:
                    assert (log.next_seq, log.damage) == (expected, [])
                    assert log.torn_bytes >= zeros
            else:
                # Half a header before zeros is not what a crash of ours leaves: nothing is cut, no number used again.
                with LogWriter(cut) as log:
                    assert (log.next_seq > expected, log.torn_bytes, len(log.damage)) == (True, 0, 1)


def test_every_flipped_bit_is_noticed_and_nothing_else_is_lost(log_dir: Path, tmp_path: Path) -> None:
    segments = folder.list_segments(log_dir)
    copy = tmp_path / "flipped"
    shutil.copytree(log_dir, copy)
    for item in (segments[0], segments[-1]):
        data = item.path.read_bytes()
        for bit in range(len(data) * 8):
            broken = bytearray(data)
            broken[bit // 8] ^= 1 << bit % 8
            (copy / item.path.name).write_bytes(broken)
            report = verify(copy)
            assert not report.ok or report.torn
            damage: list[SegmentDamaged] = []
            got = dict(LogReader(copy).records(on_damage=damage.append))
            missing = set(range(len(PAYLOADS))) - set(got)
            assert all(got[seq] == PAYLOADS[seq] for seq in got)
            assert len(missing) <= 1
            assert damage or (report.torn and missing == {len(PAYLOADS) - 1})
        (copy / item.path.name).write_bytes(data)


def test_damage_in_the_middle_is_kept_and_writing_goes_on_in_a_new_segment(log_dir: Path) -> None:
    last = folder.list_segments(log_dir)[-1]
    broken = bytearray(last.path.read_bytes())
    broken[segment.HEADER_BYTES + segment.FRAME_BYTES] ^= 1
    last.path.write_bytes(broken)
    with LogWriter(log_dir) as log:
        assert (log.next_seq, log.torn_bytes) == (len(PAYLOADS), 0)
        assert [(d.path, d.seq) for d in log.damage] == [(str(last.path), last.first_seq)]
        log.append(b"new")
    assert last.path.read_bytes() == broken
    report = verify(log_dir)
    assert report.problem is not None
    assert (report.problem.path, report.problem.seq, report.problem.lost) == (last.path, last.first_seq, 1)
    got = dict(LogReader(log_dir).records(on_damage=lambda _: None))
    assert got.keys() == set(range(len(PAYLOADS) + 1)) - {last.first_seq}


def test_segment_of_which_nothing_is_provable_keeps_its_numbers(log_dir: Path) -> None:
    last = folder.list_segments(log_dir)[-1]
    rubbish = hashlib.shake_128(b"7").digest(last.path.stat().st_size)
    last.path.write_bytes(rubbish)
    assert not verify(log_dir).ok
    with pytest.raises(SegmentDamaged):
        list(LogReader(log_dir).records())
    with LogWriter(log_dir) as log:
        assert log.next_seq >= len(PAYLOADS)
        assert len(log.damage) == 1
        log.append(b"new")
        seq = log.next_seq - 1
    assert last.path.read_bytes() == rubbish
    damage: list[SegmentDamaged] = []
    got = dict(LogReader(log_dir).records(on_damage=damage.append))
    assert got == {**dict(enumerate(PAYLOADS[: last.first_seq])), seq: b"new"}
    assert [d.seq for d in damage] == [last.first_seq]


def test_segments_that_change_places_are_noticed(log_dir: Path) -> None:
    one, two = (item.path for item in folder.list_segments(log_dir)[:2])
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    assert not verify(log_dir).ok
    with pytest.raises(SegmentDamaged):
        list(LogReader(log_dir).records())
    got = list(LogReader(log_dir).records(on_damage=lambda _: None))
    assert all(payload == PAYLOADS[seq] for seq, payload in got)


def test_segment_copied_to_another_name_is_noticed(log_dir: Path) -> None:
    segments = folder.list_segments(log_dir)
    shutil.copy(segments[0].path, log_dir / segment.segment_name(len(PAYLOADS)))
    assert not verify(log_dir).ok
    got = list(LogReader(log_dir).records(on_damage=lambda _: None))
    assert got == list(enumerate(PAYLOADS))


def test_segment_of_another_log_is_noticed_and_gives_no_records(build_log: Callable[..., Path], log_dir: Path) -> None:
    other = build_log([b"F" * len(p) for p in PAYLOADS], segment_bytes=213, name="other")
    mine, theirs = folder.list_segments(log_dir), folder.list_segments(other)
    same = next(item for item in theirs if item.first_seq == mine[1].first_seq)
    shutil.copy(same.path, mine[1].path)
    report = verify(log_dir)
    assert report.problem is not None
    assert "another log" in report.problem.how
    got = dict(LogReader(log_dir).records(on_damage=lambda _: None))
    assert all(PAYLOADS[seq] == payload for seq, payload in got.items())


def test_files_that_are_no_part_of_a_log_are_named(log_dir: Path) -> None:
    (log_dir / "note.txt").touch()
    (log_dir / (segment.segment_name(3) + ".torn.2")).touch()
    report = verify(log_dir)
    assert report.ok
    assert [path.name for path in report.foreign] == ["note.txt"]
    assert [path.name for path in report.aside] == [segment.segment_name(3) + ".torn.2"]


def test_progress_comes_to_the_whole(log_dir: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify(log_dir, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    total = sum(item.path.stat().st_size for item in folder.list_segments(log_dir))
    assert seen[-1] == (total, total)


def test_verified_log_of_nothing_is_in_order(tmp_path: Path) -> None:
    report = verify(tmp_path)
    assert (report.ok, report.records, report.segments) == (True, 0, 0)


Edit = tuple[int, int, bytes]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 60), st.binary(max_size=60)), min_size=1, max_size=3),
    st.sampled_from([b"new", None]),
)
def test_no_edit_makes_a_record_of_what_was_never_written(
    tmp_path_factory: pytest.TempPathFactory, edits: list[Edit], written_after: bytes | None
) -> None:
    # Not by a writer: its log id would be another each time, and a failure could not be repeated.
    log_id = bytes(range(16))
    data = segment.Header(0, 1, bytes(16), log_id).pack()
    data += b"".join(segment.frame(payload, seq, segment.seed(log_id)) for seq, payload in enumerate(PAYLOADS))
    for at, length, other in edits:
        data = data[:at] + other + data[at + length :]
    log_dir = tmp_path_factory.mktemp("edited")
    (log_dir / segment.segment_name(0)).write_bytes(data)
    expected = dict(enumerate(PAYLOADS))
    if written_after:
        try:
            with LogWriter(log_dir) as log:
                expected[log.append(written_after)] = written_after
        except LogError:
            return
    damage: list[SegmentDamaged] = []
    try:
        got = list(LogReader(log_dir).records(on_damage=damage.append))
    except LogError:
        # A header that is whole and tells of a later format.
        return
    assert [seq for seq, _ in got] == sorted({seq for seq, _ in got})
    assert all(expected.get(seq) == payload for seq, payload in got)


def test_damaged_header_never_hands_over_records_that_the_next_segment_has(log_dir: Path) -> None:
    # A whole segment of later records under the name of an earlier one.
    segments = folder.list_segments(log_dir)
    data = bytearray(segments[1].path.read_bytes())
    data[0] ^= 1
    segments[0].path.write_bytes(data)
    report = verify(log_dir)
    assert report.problem is not None
    assert (report.problem.path, report.problem.lost) == (segments[0].path, segments[1].first_seq)
    damage: list[SegmentDamaged] = []
    got = list(LogReader(log_dir).records(on_damage=damage.append))
    assert got == list(enumerate(PAYLOADS))[segments[1].first_seq :]
    assert [d.seq for d in damage] == [0]
