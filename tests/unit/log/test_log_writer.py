from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING

import pytest
from crc32c import crc32c

from agentwatch.errors import BusyError, LogError, StoreError
from agentwatch.log import folder, segment, writer
from agentwatch.log.framing import check as verify
from agentwatch.log.reader import LogReader
from agentwatch.log.writer import LogWriter

if TYPE_CHECKING:
    from pathlib import Path

MS = 10**6


def modes(log_dir: Path) -> dict[str, str]:
    return {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in [log_dir, *log_dir.iterdir()]}


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_numbers_count_from_zero_and_go_on_after_reopening(log_dir: Path) -> None:
    with LogWriter(log_dir) as log:
        assert [log.append(b"a"), log.append(b"b")] == [0, 1]
    with LogWriter(log_dir) as log:
        assert (log.next_seq, log.durable_seq, log.torn_bytes) == (2, 2, 0)
        assert log.append(b"c") == 2
    assert list(LogReader(log_dir).records()) == [(0, b"a"), (1, b"b"), (2, b"c")]


def test_opening_and_closing_without_records_makes_no_segment(log_dir: Path) -> None:
    for _ in range(3):
        LogWriter(log_dir).close()
    assert folder.list_segments(log_dir) == []


def test_record_is_durable_only_after_a_commit(log_dir: Path) -> None:
    with LogWriter(log_dir) as log:
        log.append(b"a")
        assert (log.durable_seq, LogReader(log_dir).end()) == (0, 0)
        log.commit()
        assert (log.durable_seq, LogReader(log_dir).end()) == (1, 1)


def test_commit_is_due_when_the_oldest_record_waited_50_ms(log_dir: Path) -> None:
    with LogWriter(log_dir) as log:
        assert not log.commit_if_due(time.monotonic_ns() + 3600 * 1000 * MS)
        before = time.monotonic_ns()
        log.append(b"a")
        after = time.monotonic_ns()
        log.append(b"b")
        assert not log.commit_if_due(before + 49 * MS)
        assert log.commit_if_due(after + 50 * MS)
        assert log.durable_seq == 2


def test_commit_is_due_when_64_kib_wait(log_dir: Path) -> None:
    with LogWriter(log_dir) as log:
        log.append(bytes(65535))
        assert not log.commit_if_due(time.monotonic_ns())
        log.append(b"a")
        assert log.commit_if_due(time.monotonic_ns())


def test_commit_is_due_at_once_for_a_critical_record_and_only_for_that(log_dir: Path) -> None:
    with LogWriter(log_dir) as log:
        log.append(b"a", critical=True)
        assert log.commit_if_due(time.monotonic_ns())
        log.append(b"b")
        assert not log.commit_if_due(time.monotonic_ns())


def test_segments_are_rotated_by_size(log_dir: Path) -> None:
    with LogWriter(log_dir, segment_bytes=1000) as log:
        for n in range(100):
            log.append(b"%03d" % n * 20)
        log.commit()
    sizes = [item.path.stat().st_size for item in folder.list_segments(log_dir)]
    assert len(sizes) > 5
    assert max(sizes) <= 1000
    assert min(sizes[:-1]) > 1000 - 68
    assert [payload for _, payload in LogReader(log_dir).records()] == [b"%03d" % n * 20 for n in range(100)]


def test_segments_are_rotated_by_age(log_dir: Path) -> None:
    with LogWriter(log_dir, segment_ns=20 * MS) as log:
        log.append(b"a")
        log.commit()
        time.sleep(0.03)
        log.append(b"b")
        log.commit()
    assert [item.first_seq for item in folder.list_segments(log_dir)] == [0, 1]


def test_record_larger_than_a_segment_gets_one_of_its_own(log_dir: Path) -> None:
    payloads = [b"a", b"b" * 5000, b"c"]
    with LogWriter(log_dir, segment_bytes=1000) as log:
        for payload in payloads:
            log.append(payload)
    assert [payload for _, payload in LogReader(log_dir).records()] == payloads
    assert [item.first_seq for item in folder.list_segments(log_dir)] == [0, 1, 2]


def test_largest_record_is_stored_and_a_larger_one_refused(log_dir: Path) -> None:
    payload = os.urandom(1024) * (segment.MAX_PAYLOAD_BYTES // 1024)
    with LogWriter(log_dir) as log:
        with pytest.raises(LogError, match="cannot be stored"):
            log.append(payload + b"x")
        assert log.append(payload) == 0
    assert LogReader(log_dir).read(0) == payload


def test_empty_record_is_refused(log_dir: Path) -> None:
    with LogWriter(log_dir) as log, pytest.raises(LogError, match="0 bytes"):
        log.append(b"")


def test_what_waits_in_memory_is_bounded(log_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_WAITING_BYTES", 100)
    with LogWriter(log_dir) as log:
        log.append(bytes(90))
        with pytest.raises(StoreError):
            log.append(bytes(11))
        assert log.append(bytes(10)) == 1
        log.commit()
        assert log.append(bytes(100)) == 2


def test_second_writer_is_refused_until_the_first_closes(log_dir: Path) -> None:
    with LogWriter(log_dir), pytest.raises(BusyError, match="another process"):
        LogWriter(log_dir)
    LogWriter(log_dir).close()


def test_refused_writer_touches_nothing(log_dir: Path) -> None:
    with LogWriter(log_dir) as log:
        log.append(b"a")
        log.commit()
        (item,) = folder.list_segments(log_dir)
        with item.path.open("ab") as f:
            f.write(b"half a rec")
        with pytest.raises(BusyError):
            LogWriter(log_dir)
        assert item.path.read_bytes().endswith(b"half a rec")


def test_log_is_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0, 0o777):
        log_dir = tmp_path / f"log{umask}"
        before = os.umask(umask)
        try:
            if umask:
                log_dir.mkdir()
                log_dir.chmod(0o700)
            with LogWriter(log_dir) as log:
                log.append(b"a")
        finally:
            os.umask(before)
        names = {log_dir.name: "0o700", segment.segment_name(0): "0o600", "writer.lock": "0o600"}
        assert modes(log_dir) == names


def test_reader_group_may_read_and_not_write_also_what_was_written_before(log_dir: Path) -> None:
    with LogWriter(log_dir) as log:
        log.append(b"a")
    gid = next((g for g in os.getgroups() if g != os.getegid()), 65534 if os.geteuid() == 0 else os.getegid())
    with LogWriter(log_dir, reader_gid=gid) as log:
        log.append(b"b")
    assert modes(log_dir) == {
        "log": "0o750",
        segment.segment_name(0): "0o640",
        segment.segment_name(1): "0o640",
        "writer.lock": "0o600",
    }
    assert {item.path.stat().st_gid for item in folder.list_segments(log_dir)} == {gid}
    assert log_dir.stat().st_gid == gid
    with LogWriter(log_dir):
        pass
    assert set(modes(log_dir).values()) == {"0o700", "0o600"}


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "syslog").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(LogError, match="folder of its own"):
        LogWriter(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["syslog"]


def test_segment_that_is_a_symbolic_link_is_refused(log_dir: Path, tmp_path: Path) -> None:
    LogWriter(log_dir).close()
    (tmp_path / "target").touch()
    (log_dir / segment.segment_name(0)).symlink_to(tmp_path / "target")
    with pytest.raises(LogError, match="plain file"):
        LogWriter(log_dir)


def test_segment_of_a_later_format_is_refused_by_name(log_dir: Path) -> None:
    with LogWriter(log_dir) as log:
        log.append(b"a")
    (item,) = folder.list_segments(log_dir)
    data = bytearray(item.path.read_bytes())
    data[11] = 2
    data[60:64] = crc32c(bytes(data[:60])).to_bytes(4)
    item.path.write_bytes(data)
    for use in (LogWriter, verify, lambda path: list(LogReader(path).records())):
        with pytest.raises(LogError, match="version 2"):
            use(log_dir)


def test_second_name_of_set_aside_files_overwrites_nothing(log_dir: Path) -> None:
    for tail in (b"one", b"two", b"three"):
        with LogWriter(log_dir) as log:
            if log.next_seq == 0:
                log.append(b"a")
        (item,) = folder.list_segments(log_dir)
        with item.path.open("ab") as f:
            f.write(tail)
    with LogWriter(log_dir) as log:
        assert log.torn_bytes == 5
    kept = sorted(path.read_bytes() for path in log_dir.glob("*.torn*"))
    assert kept == sorted([b"one", b"two", b"three"])
