"""Check the framing of a log: checksums, and that records are there from the first to the last.

In: the log's folder, or one segment of it. Out: a Report. Every byte of a segment is read. Framing finds accidents;
whether the records are those that were signed, the tree tells (verify.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.log import checkpoint, epochs, folder, scan, segment, tiles
from agentwatch.log.compressed import Compressed

if TYPE_CHECKING:
    from pathlib import Path

MAX_PROBLEMS = 1000
"""Problems listed; more are only counted."""

Progress = Callable[[int, int], None]
"""Called with the bytes checked and the bytes there are."""
OnRecords = Callable[[int, list[bytes]], None]
"""Called with the first sequence number and the payloads of consecutive records."""


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
    """What was found.

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


def check(log_dir: Path, progress: Progress | None = None) -> Report:
    """Check the framing of the whole log. Raises NotFoundError, PrivilegeError, StoreError where it cannot be read.

    A log that is being written to is checked to where it ends when the check comes there.
    """
    report = Report(log_dir)
    segments = folder.list_segments(log_dir)
    other_files(report)
    log_id = folder.find_log_id(segments)
    total = sum(size_of(item.path) for item in segments)
    for item, following in zip_longest(segments, segments[1:]):
        if item.first_seq > report.next_seq:
            missing_before(report, item)
        check_segment(report, item, following, log_id)
        if progress is not None:
            progress(report.bytes, total)
    return report


def missing_before(report: Report, item: folder.SegmentFile) -> None:
    """Note that the records between what was checked and this segment are not there."""
    how = "a segment is missing before it" if report.segments else "the segments before it are missing"
    report.add(Problem(item.path, 0, report.next_seq, item.first_seq, how))


def check_segment(
    report: Report,
    item: folder.SegmentFile,
    following: folder.SegmentFile | None,
    log_id: bytes | None,
    on_records: OnRecords | None = None,
) -> None:
    """Check one segment and add what it is like to the report; ``on_records`` is called with all that is in it."""
    report.segments += 1
    report.next_seq = item.first_seq
    with folder.reading(item.path) as source:
        for event in scan.walk(source, log_id, item.first_seq, stop=following.first_seq if following else None):
            if isinstance(event, scan.Records):
                report.records += len(event.payloads)
                report.next_seq = event.seq + len(event.payloads)
                if on_records is not None:
                    on_records(event.seq, event.payloads)
            elif isinstance(event, scan.Damage):
                report.add(Problem(item.path, event.offset, event.seq, event.next_seq, event.how))
                report.next_seq = event.next_seq
            else:
                _judge_tail(report, item, following, event)
        if isinstance(source, Compressed) and log_id is not None and (wrong := source.wrong_hint(log_id)):
            report.add(Problem(item.path, 0, item.first_seq, item.first_seq, wrong))
        report.bytes += size_of(item.path)


def _judge_tail(
    report: Report, item: folder.SegmentFile, following: folder.SegmentFile | None, tail: scan.Tail
) -> None:
    if following is not None and tail.seq < following.first_seq:
        how = tail.how or "the segment ends early"
        report.add(Problem(item.path, tail.offset, tail.seq, following.first_seq, how))
        if not tail.plain:
            # Apart from the numbers, which may be none that was ever given out: these bytes are not what was written.
            report.add(Problem(item.path, tail.offset, tail.seq, tail.seq, tail.how))
        report.next_seq = following.first_seq
    elif following is not None:
        report.superseded_bytes += tail.length
    elif not tail.plain:
        report.add(Problem(item.path, tail.offset, tail.seq, tail.seq, tail.how))
    elif tail.length:
        report.torn = Problem(item.path, tail.offset, tail.seq, tail.seq, tail.how)
        report.torn_bytes = tail.length


PARTS = frozenset(
    {
        folder.LOCK_NAME,
        folder.PRUNED,
        folder.HOLDS,
        folder.ANCHORS,
        tiles.FOLDER,
        epochs.FOLDER,
        epochs.IDENTITY_FILE,
        checkpoint.FILE,
    }
)
"""What else a log consists of (docs/log-format.md)."""


def other_files(report: Report) -> None:
    """Note what is in the folder and no part of the log."""
    for path in sorted(report.log_dir.iterdir()):
        if segment.parse_name(path.name) is not None or path.name in PARTS or folder.is_temporary(path.name):
            continue
        if folder.is_aside(path.name) or path.name.startswith(folder.SET_ASIDE):
            report.aside.append(path)
        else:
            report.foreign.append(path)


def size_of(path: Path) -> int:
    """Return the size of a file. Raises as ``folder.failure`` says; 0 if it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
    except OSError as e:
        raise folder.failure(e, f"cannot read the segment {path}") from e
