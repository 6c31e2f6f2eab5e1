"""Check a log against its signatures, from the identity of the host to the newest checkpoint, and one kept elsewhere.

In: the log's folder, and what the auditor has from elsewhere: an identity, checkpoints. Out: a Report with every
problem, by record. The order is that of docs/log-format.md, "Verifying". What always holds:

* nothing is written, and nothing in the folder is believed because it is there;
* all bytes of all segments are read (with ``since_ns``: of those from then on), on all cores;
* what could not be checked is said: ``unsigned`` records behind the checkpoint, an identity that nobody gave.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile, zip_longest
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.errors import LogError, NotFoundError
from agentwatch.log import checkpoint, epochs, folder, framing, note, treecheck
from agentwatch.log.epochs import BrokenChainError, Chain, Epoch
from agentwatch.log.framing import Problem
from agentwatch.log.leafcheck import Examiner, Found, Job, Nothing, check_segment
from agentwatch.log.merkle import VOID_LEAF
from agentwatch.log.parallel import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from agentwatch.log.checkpoint import Checkpoint

SMALL_BYTES = 16 * 1024 * 1024
"""A log that is smaller is checked here: other processes would not have begun yet."""
ATTEMPTS = 5
"""Looks at a log from which segments are pruned or set aside meanwhile; that is once an hour, not once a second."""


@dataclass(slots=True)
class Report:
    """What ``verify`` found; ``problems`` in the order of the records that they concern.

    ``signed`` is the newest checkpoint if its signatures are right, ``epochs`` how many keys lead to it from the
    identity; ``unsigned`` records lie behind it. ``pruned`` and ``skipped`` count numbers without a record that the log
    accounts for. ``against`` are the checkpoints from elsewhere that the log goes with. ``unread`` segments were not
    read.
    """

    framing: framing.Report
    identity: note.Key | None = None
    identity_given: bool = False
    signed: Checkpoint | None = None
    epochs: int = 0
    unsigned: int = 0
    pruned: int = 0
    skipped: int = 0
    unread: int = 0
    against: list[Checkpoint] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    examined: Examiner = field(default_factory=Nothing)

    @property
    def ok(self) -> bool:
        """True if nothing was altered, removed, inserted, reordered or cut off, as far as there are signatures."""
        return not self.problems

    @property
    def broken_at(self) -> int | None:
        """The first record of which that cannot be said; None if there is none."""
        return self.problems[0].seq if self.problems else None


def verify(  # noqa: PLR0913 -- what an auditor may have, each by its name
    log_dir: Path,
    *,
    identity: note.Key | None = None,
    against: Sequence[note.Note] = (),
    since_ns: int | None = None,
    make_examiner: Callable[[], Examiner] = Nothing,
    progress: framing.Progress | None = None,
) -> Report:
    """Check the log. Raises NotFoundError, PrivilegeError, StoreError where it cannot be read at all.

    ``against``: checkpoints that were kept elsewhere. ``since_ns`` (CLOCK_REALTIME): segments that ended before are not
    read, their records are taken as the tree has them. ``make_examiner`` has to pickle.
    """
    for _ in range(ATTEMPTS):
        try:
            return _verify(log_dir, _Kept(identity, against), since_ns, make_examiner, progress)
        except FileNotFoundError:
            continue
    raise NotFoundError(f"segments of {log_dir} vanish while they are checked; is the log being moved?")


class _Kept(NamedTuple):
    """What the auditor has from elsewhere."""

    identity: note.Key | None
    against: Sequence[note.Note]


def _verify(
    log_dir: Path,
    kept: _Kept,
    since_ns: int | None,
    make_examiner: Callable[[], Examiner],
    progress: framing.Progress | None,
) -> Report:
    report = Report(framing.Report(log_dir))
    # Before the segments are listed: then all that it speaks of is in them, whatever a recorder does meanwhile.
    note_, signed = _read_checkpoint(report, log_dir)
    segments = folder.list_segments(log_dir)
    framing.other_files(report.framing)
    size = signed.size if signed is not None else 0
    log_id = folder.find_log_id(segments)
    jobs = [
        Job(log_dir, item, following, log_id, size, make_examiner)
        for item, following in zip_longest(segments, segments[1:])
    ]
    total = sum(framing.size_of(item.path) for item in segments)
    with Runner(1 if total < SMALL_BYTES else None) as runner:
        report.unread = _read_from(segments, since_ns)
        found = _read_segments(report, jobs[report.unread :], runner, progress)
        _miss_the_end(report, size)
        report.problems += report.framing.problems
        if signed is None or note_ is None:
            return _finish(report)
        tree = treecheck.read_tree(log_dir, treecheck.possible_size(log_dir, size, report.framing.records), runner)
    differing = [problem for one in found for problem in one.differing]
    problems, proved = treecheck.judge(log_dir, tree, signed.root, differing)
    report.problems += problems
    _excuse(report, tree, [(seq, payload) for one in found for seq, payload in one.prunes if tree.has(seq, payload)])
    report.identity_given = kept.identity is not None
    report.identity = _read_identity(report, log_dir, kept.identity)
    if report.identity is not None:
        chain = Chain(report.identity)
        whole = _follow(report, chain, tree, {seq: payload for one in found for seq, payload in one.epochs})
        whole &= _check_signatures(report, chain, note_, signed, proved=proved)
        for one_kept in kept.against:
            _check_against(report, chain, tree, one_kept, whole=whole)
    return _finish(report)


# -- segments


def _read_from(segments: list[folder.SegmentFile], since_ns: int | None) -> int:
    # The number of segments that ended before, from the first on: behind one that did not, the clock was set back.
    if since_ns is None:
        return 0
    # One whose header is damaged is to be read.
    created = (folder.created_ns(following) for following in segments[1:])
    return sum(1 for _ in takewhile(lambda moment: moment is not None and moment <= since_ns, created))


def _read_segments(report: Report, jobs: list[Job], runner: Runner, progress: framing.Progress | None) -> list[Found]:
    total = sum(framing.size_of(job.item.path) for job in jobs)
    whole = report.framing
    whole.next_seq = jobs[0].item.first_seq if report.unread and jobs else 0
    found = []
    for job, one in zip(jobs, runner.map(check_segment, jobs), strict=True):
        if job.item.first_seq > whole.next_seq:
            framing.missing_before(whole, job.item)
        _add(whole, one.report)
        found.append(one)
        if progress is not None:
            progress(whole.bytes, total)
    report.examined = found[0].examiner if found else Nothing()
    for one in found[1:]:
        report.examined.merge(one.examiner)
    return found


def _miss_the_end(report: Report, size: int) -> None:
    whole = report.framing
    if whole.next_seq < size:
        how = f"the log was cut: its checkpoint has {size} records, and the last that is left is before this one"
        whole.add(Problem(whole.log_dir, 0, whole.next_seq, size, how))


def _add(whole: framing.Report, one: framing.Report) -> None:
    whole.segments += one.segments
    whole.records += one.records
    whole.bytes += one.bytes
    whole.next_seq = one.next_seq
    for problem in one.problems:
        whole.add(problem)
    whole.problem_count += one.problem_count - len(one.problems)
    whole.superseded_bytes += one.superseded_bytes
    if one.torn is not None:
        whole.torn, whole.torn_bytes = one.torn, one.torn_bytes


# -- the tree


def _read_checkpoint(report: Report, log_dir: Path) -> tuple[note.Note | None, Checkpoint | None]:
    path = log_dir / checkpoint.FILE
    try:
        content = path.read_bytes()
        parsed = note.parse(content)
        return parsed, checkpoint.Checkpoint.parse(parsed.text)
    except FileNotFoundError:
        how = "there is no checkpoint: nothing in this log is signed"
    except note.NoteError as e:
        how = f"the checkpoint is damaged: {e}"
    except OSError as e:
        raise folder.failure(e, f"cannot read {path}") from e
    report.problems.append(Problem(path, 0, 0, 0, how))
    return None, None


def _excuse(report: Report, tree: treecheck.Tree, prunes: list[tuple[int, bytes]]) -> None:
    """Take numbers without a record out of the problems that the log accounts for: pruned ones, and void ones.

    ``prunes`` are those that the tree has: anybody with root can write one behind the checkpoint.
    """
    pruned = _pruned_ranges(*prunes[-1]) if prunes else []
    kept = []
    for problem in report.problems:
        left = list(_without(problem, pruned)) if problem.lost else [problem]
        report.pruned += problem.lost - sum(part.lost for part in left)
        for part in left:
            if part.lost and _is_void(tree, part):
                report.skipped += part.lost
            else:
                kept.append(part)
    report.problems = kept


def _without(problem: Problem, ranges: list[tuple[int, int]]) -> Iterator[Problem]:
    # What is left of the numbers of a problem when those of the ranges, which ascend, are taken out.
    at = problem.seq
    for first, end in ranges:
        if end <= at or first >= problem.next_seq:
            continue
        if first > at:
            yield problem._replace(seq=at, next_seq=first)
        at = end
    if at < problem.next_seq:
        yield problem._replace(seq=at)


def _pruned_ranges(seq: int, payload: bytes) -> list[tuple[int, int]]:
    # Of the record ``seq``. One that is not as docs/log-format.md has it names nothing.
    try:
        ranges = folder.pruned_ranges(payload)
    except ValueError:
        return []
    numbers = [number for pair in ranges for number in pair]
    ascending = all(first < end for first, end in ranges) and numbers == sorted(numbers)
    return ranges if ascending and all(0 <= number <= seq for number in numbers) else []


def _is_void(tree: treecheck.Tree, problem: Problem) -> bool:
    try:
        return problem.next_seq <= tree.size and all(
            tree(0, seq) == VOID_LEAF for seq in range(problem.seq, problem.next_seq)
        )
    except LogError:
        return False


# -- signatures


def _follow(report: Report, chain: Chain, tree: treecheck.Tree, read: dict[int, bytes]) -> bool:
    """Follow the epochs as far as they lead; True if that is all of them."""
    log_dir = report.framing.log_dir
    copies = _copies(report, log_dir, tree, read)
    try:
        for seq in sorted(copies):
            if seq < tree.size:
                chain.add(_epoch(log_dir, seq, copies[seq]), lambda size: tree.root(size) or b"")
    except BrokenChainError as e:
        report.problems.append(Problem(log_dir / epochs.FOLDER, 0, e.seq, max(seq, e.seq), str(e)))
        return False
    finally:
        report.epochs = len(chain.epochs)
    return True


def _read_identity(report: Report, log_dir: Path, given: note.Key | None) -> note.Key | None:
    # The one that was given counts; the file has to say the same, and nothing else.
    path = log_dir / epochs.IDENTITY_FILE
    try:
        content = path.read_bytes().decode()
        found = note.Key.parse(content)
    except (OSError, UnicodeDecodeError, note.NoteError) as e:
        report.problems.append(Problem(path, 0, 0, 0, f"there is no identity in the log: {e}"))
        return given
    if content != f"{found}\n":
        report.problems.append(Problem(path, 0, 0, 0, "there is more than a vkey in it"))
    if given is not None and found != given:
        report.problems.append(Problem(path, 0, 0, 0, "it is another identity than the one that was kept elsewhere"))
    return given or found


def _epoch(log_dir: Path, seq: int, payload: bytes) -> Epoch:
    try:
        return epochs.parse(seq, payload)
    except note.NoteError as e:
        raise BrokenChainError(seq, f"{log_dir / epochs.FOLDER}: record {seq}: {e}") from e


def _copies(report: Report, log_dir: Path, tree: treecheck.Tree, read: dict[int, bytes]) -> dict[int, bytes]:
    # From segments, and from the copies of what was pruned, damaged, altered or not read. A copy has to have the
    # tree's leaf; a record that has not is named elsewhere, and its copy counts.
    result = {seq: payload for seq, payload in read.items() if tree.has(seq, payload)}
    try:
        paths = sorted((log_dir / epochs.FOLDER).iterdir())
    except OSError:
        paths = []
    for path in paths:
        if folder.is_temporary(path.name):
            continue
        seq = epochs.parse_file_name(path.name)
        if seq is None:
            report.framing.foreign.append(path)
            continue
        if seq >= tree.size:
            continue
        payload = _read_copy(path)
        if not tree.has(seq, payload):
            report.problems.append(Problem(path, 0, seq, seq, "it is not a copy of the record that was signed for"))
        else:
            result.setdefault(seq, payload)
    return result


def _read_copy(path: Path) -> bytes:
    # Empty, as no record is, if it is no file at all.
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return b""
    except OSError as e:
        raise folder.failure(e, f"cannot read {path}") from e


def _check_signatures(
    report: Report, chain: Chain, signed_note: note.Note, signed: Checkpoint, *, proved: bool
) -> bool:
    """Check the log's own checkpoint; True if the keys of its epoch signed it."""
    path = report.framing.log_dir / checkpoint.FILE
    since = chain.epochs[-1].seq if chain.epochs else 0
    try:
        chain.verify(signed_note)
    except note.NoteError as e:
        report.problems.append(Problem(path, 0, since, signed.size, f"the checkpoint of {signed.size} records: {e}"))
        return False
    if not proved:
        how = f"the {signed.size} records do not lead to the checkpoint's root"
        report.problems.append(Problem(path, 0, since, signed.size, how))
    if proved:
        report.signed = signed
    return True


def _check_against(report: Report, chain: Chain, tree: treecheck.Tree, kept: note.Note, *, whole: bool) -> None:
    path = report.framing.log_dir
    try:
        wanted = checkpoint.Checkpoint.parse(kept.text)
    except note.NoteError as e:
        report.problems.append(Problem(path, 0, 0, 0, f"what was kept elsewhere is no checkpoint: {e}"))
        return
    since, how = _contradiction(chain, tree, wanted, kept, whole=whole)
    if how:
        report.problems.append(Problem(path, 0, since, max(since, wanted.size), how))
    else:
        report.against.append(wanted)


def _contradiction(
    chain: Chain, tree: treecheck.Tree, wanted: Checkpoint, kept: note.Note, *, whole: bool
) -> tuple[int, str]:
    # From which record on this may not be the log that the checkpoint is of, and why; no reason if it is.
    if wanted.origin != chain.origin:
        return 0, f"the checkpoint kept elsewhere is of another log, {wanted.origin}: this one took its place"
    if wanted.size > tree.size:
        how = f"the log was cut: the checkpoint kept elsewhere has {wanted.size} records, this log {tree.size}"
        return tree.size, how
    since = max((epoch.seq for epoch in chain.epochs if epoch.seq < wanted.size), default=0)
    try:
        chain.verify(kept)
    except note.NoteError as e:
        # Where the chain is whole it is another one, and nothing tells where it left the one that signed this.
        return 0 if whole else since, f"the checkpoint kept elsewhere: {e}"
    if tree.root(wanted.size) != wanted.root:
        return since, f"the first {wanted.size} records are not those of the checkpoint kept elsewhere"
    return 0, ""


def _finish(report: Report) -> Report:
    report.problems.sort(key=lambda problem: problem.seq)
    if report.signed is not None:
        report.unsigned = max(0, report.framing.next_seq - report.signed.size)
    else:
        report.unsigned = report.framing.records
    return report


def read_note(path: Path) -> note.Note:
    """Read a checkpoint that was kept elsewhere. Raises NotFoundError, LogError."""
    try:
        return note.parse(path.read_bytes())
    except FileNotFoundError as e:
        raise NotFoundError(f"there is no checkpoint {path}") from e
    except note.NoteError as e:
        raise LogError(f"{path} is not a checkpoint: {e}") from e
    except OSError as e:
        raise folder.failure(e, f"cannot read the checkpoint {path}") from e
