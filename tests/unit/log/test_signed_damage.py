"""A signed log with bytes missing, or with a bit that is another: found at the right record, the rest readable."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from agentwatch.log import checkpoint, epochs, folder, segment, tiles
from agentwatch.log.reader import LogReader
from agentwatch.log.signed import Options, SignedLog
from agentwatch.log.verify import verify
from tests.unit.extent import FULL, sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.log import note

pytestmark = pytest.mark.timeout(1800)

MEMORY = Path("/dev/shm")  # noqa: S108 -- a folder of its own is made in it
CUTS = 10_000 if FULL else 300
FLIPS = 2500
"""Of the bits of a log, when not all of them are tried."""
SEED = 20240229


class Log(NamedTuple):
    """A log in memory, as it should be, and what is known of it."""

    log_dir: Path
    files: dict[Path, bytes]
    segments: list[folder.SegmentFile]
    records: list[tuple[int, bytes]]
    identity: note.Key

    def layout(self, item: folder.SegmentFile) -> list[tuple[int, int, int]]:
        """Return (record, begin, end) in bytes of every frame of a segment."""
        following = [other.first_seq for other in self.segments if other.first_seq > item.first_seq]
        at = segment.HEADER_BYTES
        found = []
        for seq, payload in self.records[item.first_seq : min([len(self.records), *following])]:
            end = at + segment.FRAME_BYTES + len(payload)
            found.append((seq, at, end))
            at = end
        return found


def make(log_dir: Path, key_dir: Path, counts: list[int], segment_bytes: int) -> Log:
    for count in counts:
        with SignedLog(log_dir, key_dir, Options("host", epoch_ns=0, segment_bytes=segment_bytes)) as log:
            for _ in range(count):
                log.writer.append(b"event %d" % log.writer.next_seq * (1 + log.writer.next_seq % 5))
    report = verify(log_dir)
    assert report.ok
    assert report.identity is not None
    files = {path: path.read_bytes() for path in sorted(log_dir.rglob("*")) if path.is_file()}
    return Log(log_dir, files, folder.list_segments(log_dir), list(LogReader(log_dir).records()), report.identity)


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="aw-damage-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        yield root
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def small(memory: Path) -> Log:
    return make(memory / "small", memory / "small-keys", [5, 4], 10**6)


@pytest.fixture(scope="module")
def larger(memory: Path) -> Log:
    return make(memory / "larger", memory / "larger-keys", [150, 150], 2500)


def readable(log_dir: Path) -> dict[int, bytes]:
    return dict(LogReader(log_dir).records(on_damage=lambda _: None))


def first_difference(old: bytes, new: bytes) -> int | None:
    if old == new:
        return None
    return next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


def test_cut_at_random_is_found_at_the_right_record_and_the_rest_is_readable(larger: Log) -> None:
    chance = random.Random(SEED)  # noqa: S311 -- not for a secret
    tried = 0
    while tried < CUTS:
        item = chance.choice(larger.segments)
        old = larger.files[item.path]
        begin = chance.randrange(len(old))
        end = len(old) if chance.random() < 0.3 else min(len(old), begin + 1 + chance.randrange(200))
        new = old[:begin] + old[end:]
        at = first_difference(old, new)
        if at is None:
            continue
        tried += 1
        check_cut(larger, item, (begin, end, at), new)


def check_cut(log: Log, item: folder.SegmentFile, cut: tuple[int, int, int], new: bytes) -> None:
    begin, end, at = cut
    item.path.write_bytes(new)
    try:
        report = verify(log.log_dir, identity=log.identity)
        got = readable(log.log_dir)
    finally:
        item.path.write_bytes(log.files[item.path])
    layout = log.layout(item)
    broken_at = next((seq for seq, first, last in layout if first <= at < last), item.first_seq)
    assert report.broken_at == broken_at, (item.path.name, cut, report.problems)
    # Every record that the cut does not touch, unless it now lies in what stands before it, or right where another
    # one should: with such a place no search begins.
    whole = max([segment.HEADER_BYTES, *(last for _, _, last in layout if last <= at)])
    touched = {seq for seq, first, last in layout if last > begin and (first < end or first - (end - begin) <= whole)}
    assert got.items() <= dict(log.records).items()
    assert got.keys() >= {seq for seq, _ in log.records} - touched, (item.path.name, cut)
    assert at < segment.HEADER_BYTES or broken_at not in got


def places(log: Log, path: Path, at: int) -> set[int]:
    """Return at which record a bit of this file may be found to be another one."""
    name = path.relative_to(log.log_dir).parts
    if name[0] == tiles.FOLDER:
        return {int(name[2].removesuffix(".p")) * tiles.WIDTH ** (int(name[1]) + 1)}
    if name[0] == epochs.FOLDER:
        return {int(name[1])}
    if name[0] == epochs.IDENTITY_FILE:
        return {0}
    if name[0] == checkpoint.FILE:
        # It is no checkpoint any more, or one of something else than what the keys of the last epoch signed.
        return {0, max(seq for seq, payload in log.records if epochs.looks_like(payload))}
    item = next(item for item in log.segments if item.path == path)
    return {next((seq for seq, first, last in log.layout(item) if first <= at < last), item.first_seq)}


def check_flip(log: Log, path: Path, at: int, bit: int) -> None:
    old = log.files[path]
    path.write_bytes(old[:at] + bytes([old[at] ^ 1 << bit]) + old[at + 1 :])
    try:
        report = verify(log.log_dir)
        got = readable(log.log_dir)
    finally:
        path.write_bytes(old)
    where = places(log, path, at)
    assert report.broken_at in where, (path, at, bit, report.problems)
    in_a_frame = segment.parse_name(path.name) is not None and at >= segment.HEADER_BYTES
    assert got == {seq: payload for seq, payload in log.records if not in_a_frame or seq not in where}, (path, at, bit)


def test_every_single_bit_of_a_signed_log_counts(small: Log) -> None:
    bits = [(path, at, bit) for path, content in small.files.items() for at in range(len(content)) for bit in range(8)]
    assert {path.relative_to(small.log_dir).parts[0] for path, *_ in bits} == {
        *(item.path.name for item in small.segments),
        *(tiles.FOLDER, checkpoint.FILE, epochs.IDENTITY_FILE, epochs.FOLDER),
    }
    for path, at, bit in sample(bits, FLIPS):
        check_flip(small, path, at, bit)
    assert verify(small.log_dir).ok


def test_every_single_bit_of_tiles_above_others_counts(larger: Log) -> None:
    above = [path for path in larger.files if path.match("tile/1/*/*") or path.match("tile/0/000")]
    assert len(above) == 2
    bits = [(path, at, bit) for path in above for at in range(len(larger.files[path])) for bit in range(8)]
    for path, at, bit in sample(bits, 200) if not FULL else bits[:: len(bits) // 2000]:
        check_flip(larger, path, at, bit)


def test_whole_files_that_are_gone_are_missed(larger: Log) -> None:
    for path, content in larger.files.items():
        if path.name == folder.LOCK_NAME:
            continue
        path.unlink()
        try:
            report = verify(larger.log_dir)
        finally:
            path.write_bytes(content)
        first = segment.parse_name(path.name)
        if first is not None:
            assert report.broken_at == first
        elif path.parent.name == epochs.FOLDER or tiles.FOLDER in path.relative_to(larger.log_dir).parts:
            # The records themselves are there.
            assert report.ok
        else:
            assert report.broken_at in places(larger, path, 0)
