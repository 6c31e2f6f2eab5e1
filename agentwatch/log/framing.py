"""Check a whole log: framing, checksums, and that the records are there from the first to the last.

In: the log's folder. Out: a Report. Every byte of every segment is read. What a Report cannot say until there are
signed checkpoints: that the log was not cut at its end between two records, or replaced as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.log import folder, scan, segment

if TYPE_CHECKING:
    from pathlib import Path

MAX_PROBLEMS = 1000
"""Problems listed; more are only counted."""

Progress = Callable[[int, int], None]
"""Called with the bytes checked and the bytes there are."""


class Problem(NamedTuple):
    """Something that is not as it was written: where (``offset`` in bytes), from which record on, and how."""

    path: Path
    offset: int
    seq: int
    next_seq: int
    how: str

    @property
    def lost(self) -> int:
        """How many records cannot be read because of it."""
        return self.next_seq - self.seq


@dataclass(slots=True)
class Report:
    """What ``verify`` found.

    ``torn`` is an end that is not whole, as a crash leaves it, or as a writer that is in the middle of a write does:
    not damage. ``superseded_bytes`` lie behind the point where a later segment took over after a fault of the disk.
    ``aside`` are files that recovery made, ``foreign`` those that are no part of a log.
    """

    log_dir: Path
    segments: int = 0
    records: int = 0
    bytes: int = 0
    next_seq: int = 0
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    torn: Problem | None = None
    torn_bytes: int = 0
    superseded_bytes: int = 0
    aside: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if nothing is damaged and nothing is missing between the first record and the last."""
        return self.problem_count == 0

    @property
    def problem(self) -> Problem | None:
        """The first problem."""
        return self.problems[0] if self.problems else None

    def add(self, problem: Problem) -> None:
        """Count a problem, and keep it while there is room."""
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


def verify(log_dir: Path, progress: Progress | None = None) -> Report:
    """Check the log. Raises NotFoundError, PrivilegeError, StoreError where it cannot be read at all.

    A log that is being written to is checked to where it ends when the check comes there.
    """
    report = Report(log_dir)
    segments = folder.list_segments(log_dir)
    _other_files(report)
    log_id = folder.find_log_id(segments)
    total = sum(_size(item.path) for item in segments)
    for number, item in enumerate(segments):
        following = segments[number + 1] if number + 1 < len(segments) else None
        if item.first_seq > report.next_seq:
            how = "the segments before it are missing" if number == 0 else "a segment is missing before it"
            report.add(Problem(item.path, 0, report.next_seq, item.first_seq, how))
        _check_segment(report, item, following, log_id, lambda done: progress and progress(done, total))
    return report


def _check_segment(
    report: Report,
    item: folder.SegmentFile,
    following: folder.SegmentFile | None,
    log_id: bytes | None,
    progress: Callable[[int], object],
) -> None:
    before = report.bytes
    report.segments += 1
    report.next_seq = item.first_seq
    fd = folder.open_segment(item.path)
    try:
        for event in scan.walk(fd, log_id, item.first_seq, stop=following.first_seq if following else None):
            if isinstance(event, scan.Records):
                report.records += len(event.payloads)
                report.next_seq = event.seq + len(event.payloads)
            elif isinstance(event, scan.Damage):
                report.add(Problem(item.path, event.offset, event.seq, event.next_seq, event.how))
                report.next_seq = event.next_seq
            else:
                _judge_tail(report, item, following, event)
                report.bytes = before + event.offset + event.length
            progress(max(report.bytes, before + event.offset))
    except segment.UnsupportedVersionError as e:
        raise folder.unsupported(item.path, e) from e
    except OSError as e:
        raise folder.failure(e, f"cannot read the segment {item.path}") from e
    finally:
        os.close(fd)


def _judge_tail(
    report: Report, item: folder.SegmentFile, following: folder.SegmentFile | None, tail: scan.Tail
) -> None:
    if following is not None and tail.seq < following.first_seq:
        how = tail.how or "the segment ends early"
        report.add(Problem(item.path, tail.offset, tail.seq, following.first_seq, how))
        report.next_seq = following.first_seq
    elif following is not None:
        report.superseded_bytes += tail.length
    elif not tail.plain:
        report.add(Problem(item.path, tail.offset, tail.seq, tail.seq, tail.how))
    elif tail.length:
        report.torn = Problem(item.path, tail.offset, tail.seq, tail.seq, tail.how)
        report.torn_bytes = tail.length


def _other_files(report: Report) -> None:
    for path in sorted(report.log_dir.iterdir()):
        if segment.parse_name(path.name) is not None or path.name == folder.LOCK_NAME:
            continue
        if folder.is_aside(path.name):
            report.aside.append(path)
        else:
            report.foreign.append(path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as e:
        raise folder.failure(e, f"cannot read the segment {path}") from e
