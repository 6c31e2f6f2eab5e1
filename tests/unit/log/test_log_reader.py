from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from agentwatch.errors import LogError, NotFoundError, PrivilegeError, RecordsPruned, SegmentDamaged
from agentwatch.log import folder, reader, segment
from agentwatch.log.reader import LogReader
from agentwatch.log.writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAYLOADS = [b"record %d " % n * (1 + n % 5) for n in range(300)]


@pytest.fixture
def log_dir(build_log: Callable[..., Path]) -> Path:
    return build_log(PAYLOADS[:100], PAYLOADS[100:], segment_bytes=2000)


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def offset_of(path: Path, payload: bytes) -> int:
    return path.read_bytes().index(payload) - segment.FRAME_BYTES


def test_all_records_come_in_order_with_their_numbers(log_dir: Path) -> None:
    assert list(LogReader(log_dir).records()) == list(enumerate(PAYLOADS))
    assert LogReader(log_dir).end() == 300


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (17, 18), (0, 300), (40, 260), (299, 300), (5, 5), (290, 1000)])
def test_range_gives_exactly_the_range(log_dir: Path, start: int, stop: int) -> None:
    log = LogReader(log_dir)
    for _ in range(2):
        assert list(log.records(start, stop)) == list(enumerate(PAYLOADS))[start:stop]


def test_every_record_is_read_by_number_in_any_order(log_dir: Path) -> None:
    log = LogReader(log_dir)
    for seq in [*range(299, -1, -7), *range(300)]:
        assert log.read(seq) == PAYLOADS[seq]


def test_positions_are_remembered_for_a_bounded_number_of_segments(
    log_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_INDEXED_SEGMENTS", 2)
    log = LogReader(log_dir)
    assert list(log.records()) == list(enumerate(PAYLOADS))
    assert len(log._positions) == 2
    assert [log.read(seq) for seq in range(300)] == PAYLOADS


def test_record_beyond_the_end_is_not_found(log_dir: Path) -> None:
    with pytest.raises(NotFoundError, match="ends before record 300"):
        LogReader(log_dir).read(300)


def test_empty_folder_is_an_empty_log(tmp_path: Path) -> None:
    log = LogReader(tmp_path)
    assert (list(log.records()), log.end()) == ([], 0)
    with pytest.raises(NotFoundError):
        log.read(0)


def test_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no log"):
        LogReader(tmp_path / "none")


def test_file_in_place_of_the_folder_is_an_error_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with pytest.raises(LogError, match="folder"):
        LogReader(tmp_path / "log")


def test_caller_without_permission_is_told_what_to_do(log_dir: Path) -> None:
    as_nobody = os.fork() if os.geteuid() == 0 else -1
    if as_nobody == 0:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            try:
                LogReader(log_dir)
            except PrivilegeError as e:
                status = 0 if "reader group" in str(e) else 2
        finally:
            os._exit(status)
    if as_nobody > 0:
        assert os.waitstatus_to_exitcode(os.waitpid(as_nobody, 0)[1]) == 0
        return
    log_dir.chmod(0)
    try:
        with pytest.raises(PrivilegeError, match="reader group"):
            LogReader(log_dir)
    finally:
        log_dir.chmod(0o700)


def test_reader_follows_a_writer_across_segments(tmp_path: Path) -> None:
    seen: list[tuple[int, bytes]] = []
    with LogWriter(tmp_path / "log", segment_bytes=500) as writer:
        log = LogReader(tmp_path / "log")
        for number, payload in enumerate(PAYLOADS):
            writer.append(payload)
            if number % 7 == 0:
                writer.commit()
                seen += log.records(len(seen))
                assert len(seen) == log.end() == number + 1
    assert [*seen, *log.records(len(seen))] == list(enumerate(PAYLOADS))


def test_record_that_is_being_written_is_not_there_yet(build_log: Callable[..., Path], tmp_path: Path) -> None:
    whole = next(build_log(PAYLOADS[:8], name="whole").glob("*.segment"))
    data = whole.read_bytes()
    growing = tmp_path / "growing" / whole.name
    growing.parent.mkdir()
    log = LogReader(growing.parent)
    seen: list[tuple[int, bytes]] = []
    with growing.open("wb", buffering=0) as f:
        for at in range(len(data)):
            f.write(data[at : at + 1])
            seen += log.records(len(seen))
            assert log.end() == len(seen)
    assert seen == list(enumerate(PAYLOADS[:8]))


def test_damaged_record_raises_with_its_place(log_dir: Path) -> None:
    second = folder.list_segments(log_dir)[1]
    seq = second.first_seq + 3
    offset = offset_of(second.path, PAYLOADS[seq])
    flip(second.path, offset + segment.FRAME_BYTES)
    with pytest.raises(SegmentDamaged) as caught:
        list(LogReader(log_dir).records())
    assert (caught.value.path, caught.value.offset, caught.value.seq) == (str(second.path), offset, seq)


def test_records_behind_damage_come_with_their_numbers(log_dir: Path) -> None:
    second = folder.list_segments(log_dir)[1]
    seq = second.first_seq + 3
    flip(second.path, offset_of(second.path, PAYLOADS[seq]) + segment.FRAME_BYTES)
    damage: list[SegmentDamaged] = []
    log = LogReader(log_dir)
    got = list(log.records(on_damage=damage.append))
    assert got == [item for item in enumerate(PAYLOADS) if item[0] != seq]
    assert [d.seq for d in damage] == [seq]
    with pytest.raises(SegmentDamaged):
        log.read(seq)
    assert log.read(seq + 1) == PAYLOADS[seq + 1]


@pytest.mark.parametrize("byte", range(segment.FRAME_BYTES + 4))
def test_damaged_length_or_check_costs_one_record(log_dir: Path, byte: int) -> None:
    last = folder.list_segments(log_dir)[-1]
    seq = last.first_seq + 1
    flip(last.path, offset_of(last.path, PAYLOADS[seq]) + byte, bit=3)
    damage: list[SegmentDamaged] = []
    got = list(LogReader(log_dir).records(on_damage=damage.append))
    assert got == [item for item in enumerate(PAYLOADS) if item[0] != seq]
    assert [d.seq for d in damage] == [seq]


def test_damaged_header_costs_no_record_but_is_reported(log_dir: Path) -> None:
    second = folder.list_segments(log_dir)[1]
    for byte in range(segment.HEADER_BYTES):
        flip(second.path, byte)
        damage: list[SegmentDamaged] = []
        assert list(LogReader(log_dir).records(on_damage=damage.append)) == list(enumerate(PAYLOADS))
        assert [(d.path, d.offset, d.seq) for d in damage] == [(str(second.path), 0, second.first_seq)]
        flip(second.path, byte)


def test_removed_segment_is_damage_and_not_silence(log_dir: Path) -> None:
    segments = folder.list_segments(log_dir)
    for gone, after in [(0, 1), (2, 3)]:
        data = segments[gone].path.read_bytes()
        segments[gone].path.unlink()
        damage: list[SegmentDamaged] = []
        got = [seq for seq, _ in LogReader(log_dir).records(on_damage=damage.append)]
        missing = range(segments[gone].first_seq, segments[after].first_seq)
        assert got == [seq for seq in range(300) if seq not in missing]
        assert [d.seq for d in damage] == [missing[0]]
        segments[gone].path.write_bytes(data)


def test_planted_frames_in_a_payload_are_not_records_after_damage(tmp_path: Path) -> None:
    # An agent knows the format but not the log's id.
    guess = segment.seed(bytes(16))
    planted = b"".join(segment.frame(b"forged %d" % n, n, guess) for n in range(1, 60)) * 20
    payloads = [b"first", b"select '" + planted + b"'", b"third", b"fourth"]
    with LogWriter(tmp_path / "log") as writer:
        for payload in payloads:
            writer.append(payload)
    (item,) = folder.list_segments(tmp_path / "log")
    # The length is damaged, so that the search has to go through the payload.
    flip(item.path, offset_of(item.path, b"select '") + 3, bit=1)
    damage: list[SegmentDamaged] = []
    got = list(LogReader(tmp_path / "log").records(on_damage=damage.append))
    assert got == [(0, b"first"), (2, b"third"), (3, b"fourth")]


def test_where_two_segments_hold_a_record_the_later_segment_is_right(build_log: Callable[..., Path]) -> None:
    # As after a failed fdatasync: records 3 and 4 were written again into a new segment.
    log_dir = build_log([b"0", b"1", b"2", b"3", b"4"])
    first = folder.list_segments(log_dir)[0].path
    header = segment.Header.parse(first.read_bytes())
    seed = segment.seed(header.log_id)
    again = header._replace(first_seq=3).pack() + segment.frame(b"3", 3, seed)
    (log_dir / segment.segment_name(3)).write_bytes(again)
    log = LogReader(log_dir)
    assert list(log.records()) == [(n, b"%d" % n) for n in range(4)]
    assert (log.end(), log.read(3)) == (4, b"3")


def prune(log_dir: Path, *numbers: int) -> list[tuple[int, int]]:
    """Remove segments; return the ranges of records that were in them."""
    segments = folder.list_segments(log_dir)
    for number in numbers:
        segments[number].path.unlink()
    return [(segments[number].first_seq, segments[number + 1].first_seq) for number in numbers]


def test_reading_begins_behind_what_was_pruned_from_the_beginning(log_dir: Path) -> None:
    pruned = prune(log_dir, 0, 1)
    first = pruned[-1][1]
    for start in (0, 3, first - 1, first):
        assert list(LogReader(log_dir, pruned=pruned).records(start)) == list(enumerate(PAYLOADS))[first:]
    assert list(LogReader(log_dir, pruned=pruned).records(0, first)) == []
    with pytest.raises(SegmentDamaged) as caught:
        list(LogReader(log_dir).records())
    assert not isinstance(caught.value, RecordsPruned)


def test_pruned_beginning_is_told_to_who_wants_to_know(log_dir: Path) -> None:
    pruned = prune(log_dir, 0, 1)
    reports: list[SegmentDamaged] = []
    got = list(LogReader(log_dir, pruned=pruned).records(on_damage=reports.append))
    assert got == list(enumerate(PAYLOADS))[pruned[-1][1] :]
    assert all(isinstance(report, RecordsPruned) for report in reports)
    assert [(report.seq, getattr(report, "next_seq", None)) for report in reports] == pruned


def test_records_pruned_in_the_middle_are_neither_silence_nor_damage(log_dir: Path) -> None:
    pruned = prune(log_dir, 2, 4)
    log = LogReader(log_dir, pruned=pruned)
    with pytest.raises(RecordsPruned, match="were pruned") as caught:
        list(log.records())
    assert (caught.value.seq, caught.value.next_seq) == pruned[0]
    reports: list[SegmentDamaged] = []
    got = [seq for seq, _ in log.records(on_damage=reports.append)]
    assert got == [seq for seq in range(300) if not any(first <= seq < end for first, end in pruned)]
    assert [(type(report), report.seq) for report in reports] == [(RecordsPruned, first) for first, _ in pruned]
    for first, end in pruned:
        for seq in (first, end - 1):
            with pytest.raises(RecordsPruned):
                log.read(seq)
        assert log.read(first - 1) == PAYLOADS[first - 1]
        assert log.read(end) == PAYLOADS[end]


def test_only_what_was_pruned_is_called_so(log_dir: Path) -> None:
    (first, middle), (_, end) = prune(log_dir, 2, 3)
    reports: list[SegmentDamaged] = []
    log = LogReader(log_dir)
    cases: list[tuple[list[tuple[int, int]], list[tuple[type, int]]]] = [
        ([(first, middle)], [(RecordsPruned, first), (SegmentDamaged, middle)]),
        ([(middle, end)], [(SegmentDamaged, first), (RecordsPruned, middle)]),
        (
            [(first + 1, middle - 1)],
            [(SegmentDamaged, first), (RecordsPruned, first + 1), (SegmentDamaged, middle - 1)],
        ),
        ([(0, 300)], [(RecordsPruned, first)]),
        ([(middle, 300), (0, middle)], [(RecordsPruned, first), (RecordsPruned, middle)]),
        ([(0, first), (end, 300)], [(SegmentDamaged, first)]),
    ]
    for pruned, expected in cases:
        reports.clear()
        log.pruned = pruned
        got = [seq for seq, _ in log.records(on_damage=reports.append)]
        assert got == [*range(first), *range(end, 300)]
        assert [(type(report), report.seq) for report in reports] == expected


def test_record_that_is_damaged_in_a_segment_is_not_called_pruned(log_dir: Path) -> None:
    second = folder.list_segments(log_dir)[1]
    flip(second.path, offset_of(second.path, PAYLOADS[second.first_seq + 3]) + segment.FRAME_BYTES)
    reports: list[SegmentDamaged] = []
    got = dict(LogReader(log_dir, pruned=[(0, 300)]).records(on_damage=reports.append))
    assert got.keys() == set(range(300)) - {second.first_seq + 3}
    assert [type(report) for report in reports] == [SegmentDamaged]


def test_segment_that_a_listing_missed_is_looked_for_again(log_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As when one is renamed while the folder is listed: neither name is seen.
    segments = folder.list_segments(log_dir)
    for missed in (0, 3):
        answers = [segments, [item for n, item in enumerate(segments) if n != missed]]
        monkeypatch.setattr(folder, "list_segments", lambda _, a=answers: a.pop() if len(a) > 1 else a[0])
        answers.append(segments)
        assert list(LogReader(log_dir).records()) == list(enumerate(PAYLOADS))
        assert len(answers) == 1
