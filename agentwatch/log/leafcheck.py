"""Check one segment of a log against the leaves that the tree has for its records, in whatever process.

In: a Job, which pickles. Out: Found: the segment's framing, records that have another leaf than the tiles, the records
that the verifier itself reads (``epoch``, ``prune``), and what an Examiner made of all of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from agentwatch.errors import LogError
from agentwatch.log import epochs, framing, merkle, note
from agentwatch.log.framing import Problem
from agentwatch.log.merkle import HASH_BYTES
from agentwatch.log.tiles import WIDTH, TileReader, tile_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentwatch.log import folder

PRUNE = b"\xa4kind\xa5prune"
"""How the record of what was pruned says what it is."""
_OTHER_KIND = re.compile(rb"(?:[\x80-\x8f]|\xde..)\xa4kind[\xa0-\xbf](?!epoc|prun)", re.DOTALL)
HEAD_BYTES = 13
"""The size of a map of up to 65,535 keys, the key ``kind``, the length of its value and four letters of it."""
MAX_HEADS = 4096
"""Beginnings that are remembered. Each kind makes a few; damage that is none of the disk's could make any number."""
MAX_DIFFERING = 1000
"""Records of one segment that are named; more are told as one problem."""


class Examiner(Protocol):
    """Something that looks at the records as they go by, segment by segment, and is put together again."""

    def add(self, seq: int, payload: bytes) -> None:
        """Look at a record."""

    def merge(self, later: Self) -> None:
        """Take what another one saw in the segment after mine."""


class Nothing:
    """Looks at nothing."""

    def add(self, seq: int, payload: bytes) -> None:
        """Do nothing."""

    def merge(self, later: Self) -> None:
        """Do nothing."""


class Job(NamedTuple):
    """One segment to check against the tiles of the tree of ``size`` records."""

    log_dir: Path
    item: folder.SegmentFile
    following: folder.SegmentFile | None
    log_id: bytes | None
    size: int
    make_examiner: Callable[[], Examiner]


class Found(NamedTuple):
    """What one segment gave."""

    report: framing.Report
    differing: list[Problem]
    epochs: list[tuple[int, bytes]]
    prunes: list[tuple[int, bytes]]
    examiner: Examiner


def check_segment(job: Job) -> Found:
    """Check one segment, in whatever process."""
    leaves = _LeafCheck(job)
    report = framing.Report(job.log_dir)
    framing.check_segment(report, job.item, job.following, job.log_id, leaves.see)
    return Found(report, leaves.differing(), leaves.epochs, leaves.prunes, leaves.examiner)


class _LeafCheck:
    """Holds the leaf of each record against the tile's."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._tiles = TileReader(job.log_dir, job.size)
        self._differing: list[int] = []
        self._bad_tiles: dict[int, str] = {}
        self._others: set[bytes] = set()
        """How records begin that are of some other kind than the two that are looked for, by the map's first key. A
        second ``kind`` would make it no record."""
        self.epochs: list[tuple[int, bytes]] = []
        self.prunes: list[tuple[int, bytes]] = []
        self.examiner = job.make_examiner()

    def see(self, seq: int, payloads: list[bytes]) -> None:
        add = self.examiner.add
        for number, payload in enumerate(payloads, seq):
            add(number, payload)
            if payload[:HEAD_BYTES] not in self._others:
                self._look(number, payload)
        # A segment may begin behind the checkpoint.
        end = min(seq + len(payloads), self._job.size)
        for first in range(seq - seq % WIDTH, end, WIDTH) if seq < end else ():
            self._compare(max(seq, first), payloads[max(seq, first) - seq : min(first + WIDTH, end) - seq])

    def _look(self, seq: int, payload: bytes) -> None:
        if payload[:16].find(PRUNE) >= 0:
            self.prunes.append((seq, payload))
        elif len(payload) < note.MAX_NOTE_BYTES and epochs.looks_like(payload):
            self.epochs.append((seq, payload))
        elif _OTHER_KIND.match(payload) and len(self._others) < MAX_HEADS:
            self._others.add(payload[:HEAD_BYTES])

    def _compare(self, seq: int, payloads: list[bytes]) -> None:
        # Records of one tile.
        leaves = b"".join(merkle.leaf_hashes(payloads))
        index, at = divmod(seq, WIDTH)
        try:
            wanted = self._tiles.tile(0, index)[at * HASH_BYTES :][: len(leaves)]
        except LogError as e:
            self._bad_tiles.setdefault(index, str(e))
            return
        if leaves != wanted:
            self._differing += [
                seq + i
                for i in range(len(payloads))
                if leaves[i * HASH_BYTES : (i + 1) * HASH_BYTES] != wanted[i * HASH_BYTES : (i + 1) * HASH_BYTES]
            ]

    def differing(self) -> list[Problem]:
        path = self._job.item.path
        named = [
            Problem(path, 0, seq, seq + 1, "it is not the record that was signed for")
            for seq in self._differing[:MAX_DIFFERING]
        ]
        if len(self._differing) > MAX_DIFFERING:
            first, last = self._differing[MAX_DIFFERING], self._differing[-1]
            named.append(Problem(path, 0, first, last + 1, "among them are records that were not signed for"))
        for index, how in self._bad_tiles.items():
            named.append(Problem(self._job.log_dir / tile_path(0, index), 0, index * WIDTH, index * WIDTH, how))
        return named
