"""Whether records, tiles and a signed root go together; where they do not, which of them was altered.

In: a log's folder, the size and root of a checkpoint, and which records have not the leaf that the tiles say. Out: the
tree as far as it is proved, and problems. Tiles are only copies of what records say, so the signed root decides:

* it follows from the records: they are what was signed, and a tile that differs was altered;
* it follows from the tiles: they are what was signed, and a record that differs was altered;
* from neither: both were altered. Then the roots in the certificates of the epochs tell between which of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agentwatch.errors import LogError
from agentwatch.log import merkle
from agentwatch.log.framing import Problem
from agentwatch.log.merkle import HASH_BYTES
from agentwatch.log.reader import LogReader
from agentwatch.log.tiles import FOLDER, HEIGHT, WIDTH, TileReader, partial_tiles, tile_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from agentwatch.log.parallel import Runner

TILES_PER_JOB = 512
"""Full tiles that one process hashes at a time: a tenth of a second."""
ALTERED_TILE = "the tile was altered; the records under it are as they were signed"


class TileJob(NamedTuple):
    """Which full level-0 tiles to hash."""

    log_dir: Path
    size: int
    first: int
    last: int


def hash_tiles(job: TileJob) -> list[bytes | None]:
    """Return the roots of some full tiles; None for one that is missing or too short."""
    tiles = TileReader(job.log_dir, job.size)
    roots: list[bytes | None] = []
    for index in range(job.first, job.last):
        try:
            roots.append(merkle.subtree_root(split(tiles.tile(0, index))))
        except LogError:
            roots.append(None)
    return roots


def split(hashes: bytes) -> list[bytes]:
    """Return the hashes that a tile consists of."""
    return [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]


class Tree:
    """The tree over level-0 tiles, some of them replaced by what records say: a ``merkle.HashReader``."""

    def __init__(self, log_dir: Path, size: int, roots: Sequence[bytes | None]) -> None:
        """``roots`` are those of the full tiles as they are on disk."""
        self.size = size
        self._tiles = TileReader(log_dir, size)
        self._roots = list(roots)
        self._above: dict[tuple[int, int], bytes] = {}
        """Roots of full tiles of higher levels as they follow from ``_roots``: each epoch asks for a root of the whole
        tree. One for 256 of those, so there is no limit."""
        self._replaced: dict[int, list[bytes]] = {}

    def replace(self, index: int, leaves: list[bytes]) -> None:
        """Take these leaves for a tile's."""
        self._replaced[index] = leaves
        if len(leaves) == WIDTH:
            self._roots[index] = merkle.subtree_root(leaves)
            self._above.clear()

    def full_root(self, index: int) -> bytes | None:
        """Return the root of a full tile, as far as it is known."""
        return self._roots[index]

    def leaves(self, index: int) -> list[bytes]:
        """Return a tile's leaves. Raises LogError."""
        return self._replaced.get(index) or split(self._tiles.tile(0, index))

    def __call__(self, level: int, index: int) -> bytes:
        """Return the root of a complete subtree. Raises LogError where a tile is missing."""
        tile_level, above = divmod(level, HEIGHT)
        if tile_level:
            parts = range(index << above, (index + 1) << above)
            return merkle.subtree_root([self._root_above(tile_level, part) for part in parts])
        first = index << level
        leaves = self.leaves(first // WIDTH)[first % WIDTH :][: 1 << level]
        if len(leaves) < 1 << level:
            raise LogError(f"the leaves under level {level}, number {index} are missing")
        return merkle.subtree_root(leaves)

    def _root_above(self, level: int, index: int) -> bytes:
        # Of the full tiles under one hash of a tile of this level.
        if level == 1:
            root = self._roots[index] if index < len(self._roots) else None
            if root is None:
                raise LogError(f"tile {index} is missing")
            return root
        known = self._above.get((level, index))
        if known is None:
            below = range(index << HEIGHT, (index + 1) << HEIGHT)
            known = merkle.subtree_root([self._root_above(level - 1, part) for part in below])
            self._above[level, index] = known
        return known

    def has(self, seq: int, payload: bytes) -> bool:
        """Tell whether this is the record that the tree has at this number."""
        try:
            return seq < self.size and self(0, seq) == merkle.leaf_hash(payload)
        except LogError:
            return False

    def root(self, size: int) -> bytes | None:
        """Return the root of the first ``size`` records; None where a tile that it needs is missing."""
        try:
            return merkle.root(size, self)
        except LogError:
            return None


def possible_size(log_dir: Path, size: int, records: int) -> int:
    """Return a tree's size, or as much of it as records and tiles can make.

    Whoever wrote the checkpoint must not make an auditor count to any number.
    """
    tiles = sum(1 for _ in (log_dir / FOLDER / "0").rglob("*"))
    return min(size, records + WIDTH * tiles)


def read_tree(log_dir: Path, size: int, runner: Runner) -> Tree:
    """Hash the tiles of the tree of this size, in parallel."""
    full = size // WIDTH
    jobs = [TileJob(log_dir, size, at, min(at + TILES_PER_JOB, full)) for at in range(0, full, TILES_PER_JOB)]
    return Tree(log_dir, size, [root for found in runner.map(hash_tiles, jobs) for root in found])


def judge(log_dir: Path, tree: Tree, signed: bytes, differing: Sequence[Problem]) -> tuple[list[Problem], bool]:
    """Return the problems, and whether the signed root follows; the tree is then the one from which it does.

    ``differing`` are records whose leaf is not the one in the tile, and tiles that cannot be read.
    """
    suspects = sorted(
        {seq // WIDTH for problem in differing for seq in (problem.seq, max(problem.seq, problem.next_seq - 1))}
    )
    of_records = {index: _leaves_of(log_dir, tree, index) for index in suspects}
    if tree.root(tree.size) == signed:
        return [*differing, *_upper(log_dir, tree)], True
    for index, leaves in of_records.items():
        tree.replace(index, leaves)
    if tree.root(tree.size) == signed:
        altered = [tile for index in of_records if (tile := _altered(log_dir, tree, 0, index)).path.exists()]
        kept = [problem for problem in differing if problem.seq // WIDTH not in of_records]
        return [*altered, *kept, *_upper(log_dir, tree)], True
    # Which of the tiles were altered nobody can say then. Where it begins, the chain of epochs tells the caller.
    return [problem for problem in differing if problem.lost], False


def _leaves_of(log_dir: Path, tree: Tree, index: int) -> list[bytes]:
    # What the records under a tile say; of one that cannot be read what the tile says; up to where neither does.
    begin, end = index * WIDTH, min((index + 1) * WIDTH, tree.size)
    found = dict(LogReader(log_dir).records(begin, end, on_damage=lambda _: None))
    leaves = []
    for seq in range(begin, end):
        try:
            leaves.append(merkle.leaf_hash(found[seq]) if seq in found else tree(0, seq))
        except LogError:
            break
    return leaves


def _upper(log_dir: Path, tree: Tree) -> Iterable[Problem]:
    # Tiles above level 0 against what they are made of.
    tiles = TileReader(log_dir, tree.size)
    level = 1
    while count := tree.size >> HEIGHT * level:
        for index in range((count + WIDTH - 1) // WIDTH):
            width = min(WIDTH, count - index * WIDTH)
            try:
                wanted = [tree(HEIGHT * level, index * WIDTH + at) for at in range(width)]
            except LogError:
                continue  # a problem of level 0, and told there
            try:
                right = tiles.tile(level, index) == b"".join(wanted)
            except LogError:
                right = False
            altered = _altered(log_dir, tree, level, index)
            if not right and altered.path.exists():  # one that is not there can be computed
                yield altered
        level += 1


def _altered(log_dir: Path, tree: Tree, level: int, index: int) -> Problem:
    width = next((w for at, number, w in partial_tiles(tree.size) if (at, number) == (level, index)), WIDTH)
    first = index << HEIGHT * (level + 1)
    return Problem(log_dir / tile_path(level, index, width), 0, first, first, ALTERED_TILE)
