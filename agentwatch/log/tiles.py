"""The Merkle tree on disk: hash tiles as https://c2sp.org/tlog-tiles names them, height 8.

``TileReader`` gives the hashes of a tree of a known size; ``TileWriter`` lets one grow. What always holds:

* a full tile is written once, whole, under another name first;
* a tile of level L > 0 holds only roots of full tiles below it;
* nothing here is trusted: tiles mean something when a signed root follows from them.

While the segments are there, tiles can be computed again; so they are not made durable at each step (writer.py).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING

from agentwatch.errors import LogError
from agentwatch.log import folder, merkle
from agentwatch.log.merkle import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

HEIGHT = 8
WIDTH = 1 << HEIGHT
FOLDER = "tile"
CACHED_TILES = 256
"""Tiles a reader remembers, 4 MiB with the hashes inside of them: a proof needs one of each level, neighbours share
them."""
READ_ATTEMPTS = 10
"""Looks for a partial tile that is replaced meanwhile. A writer replaces it twice a second, a look takes far less."""


def tile_path(level: int, index: int, width: int = WIDTH) -> str:
    """Return the name of a tile, relative to the log: ``tile/0/x001/x234/067``, ``tile/0/000.p/7``."""
    parts = [f"{index % 1000:03d}"]
    while index := index // 1000:
        parts.append(f"x{index % 1000:03d}")
    name = f"{FOLDER}/{level}/{'/'.join(reversed(parts))}"
    return name if width == WIDTH else f"{name}.p/{width}"


def partial_tiles(size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (level, index, width) of the partial tiles of a tree of this size."""
    level = 0
    while size:
        if size % WIDTH:
            yield level, size // WIDTH, size % WIDTH
        size //= WIDTH
        level += 1


class TileReader:
    """Read the hashes of the tree of ``size`` leaves from its tiles: a ``merkle.HashReader``.

    Raises LogError where a tile is missing or has not the size it must have, StoreError where it cannot be read.
    """

    def __init__(self, log_dir: Path, size: int) -> None:
        self.size = size
        self._log_dir = log_dir
        self._tiles: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()
        """Of each tile its hashes, and above them, as far as they were asked for, the levels inside of it."""

    def __call__(self, level: int, index: int) -> bytes:
        """Return the root of a complete subtree."""
        # The tile that has the subtree's leaves among its own hashes or just below.
        tile_level, above = divmod(level, HEIGHT)
        tile, at = divmod(index, WIDTH >> above)
        levels = self._levels(tile_level, tile)
        while len(levels) <= above:
            levels.append(merkle.parents(levels[-1]))
        found = levels[above][at * HASH_BYTES : (at + 1) * HASH_BYTES]
        if not found:
            raise LogError(f"the tree of {self.size} records has no such hash: level {level}, number {index}")
        return found

    def leaf(self, index: int) -> bytes:
        """Return a leaf hash."""
        return self(0, index)

    def tile(self, level: int, index: int) -> bytes:
        """Return the hashes of a tile as far as the tree of this size has them."""
        return self._levels(level, index)[0]

    def _levels(self, level: int, index: int) -> list[bytes]:
        key = (level, index)
        if (known := self._tiles.get(key)) is not None:
            self._tiles.move_to_end(key)
            return known
        width = min(WIDTH, (self.size >> HEIGHT * level) - index * WIDTH)
        if index < 0 or width <= 0:
            raise LogError(f"the tree of {self.size} records has no tile {index} of level {level}")
        levels = self._tiles[key] = [self._read(level, index, width)]
        if len(self._tiles) > CACHED_TILES:
            self._tiles.popitem(last=False)
        return levels

    def _read(self, level: int, index: int, width: int) -> bytes:
        # A partial tile may have been replaced by a wider one, or by the full one; and that one too while this looked.
        for _ in range(READ_ATTEMPTS):
            for wider in (width, WIDTH, *self._wider(level, index, width)):
                data = _read_tile(f"{self._log_dir}/{tile_path(level, index, wider)}", wider)
                if data is not None:
                    return data[: width * HASH_BYTES]
        path = self._log_dir / tile_path(level, index, width)
        raise LogError(
            f"{path} is missing or has not {width * HASH_BYTES} bytes; agentwatch verify says what still holds"
        )

    def _wider(self, level: int, index: int, width: int) -> Iterator[int]:
        # Looked up only when it is asked for the first.
        partial = self._log_dir / f"{tile_path(level, index)}.p"
        try:
            widths = [int(path.name) for path in partial.iterdir() if path.name.isascii() and path.name.isdecimal()]
        except OSError:
            return
        yield from (wider for wider in widths if width < wider < WIDTH)


class TileWriter:
    """Let the tree on disk grow from ``size`` leaves on. Raises OSError.

    ``mode`` and ``gid`` are given to files and, with the execute bits that go with reading, to folders.
    """

    def __init__(self, log_dir: Path, size: int, read: merkle.HashReader, *, mode: int, gid: int) -> None:
        """``read`` gives the hashes of the tree as it is; nothing of it is kept."""
        self.size = size
        self._log_dir = log_dir
        self._mode = mode
        self._gid = gid
        self._edge: list[bytearray] = []
        """The hashes of the partial tile of each level."""
        for level, index, width in partial_tiles(size):
            self._level(level)[:] = b"".join(read(HEIGHT * level, index * WIDTH + at) for at in range(width))
        self._partial: set[tuple[int, int, int]] = set(partial_tiles(size))
        self._full: list[tuple[str, bytes]] = []
        """Full tiles that are not written yet: 8 KiB for 256 records."""

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaves, in memory: what the disk refuses must not stop the tree."""
        rest = iter(leaves)
        edge = self._level(0)
        while some := b"".join(islice(rest, WIDTH - len(edge) // HASH_BYTES)):
            edge += some
            self.size += len(some) // HASH_BYTES
            self._pass_on(0)

    def root(self) -> bytes:
        """Return the root of the tree as it is now."""
        result: bytes | None = None
        for edge in self._edge:
            hashes = [bytes(edge[at : at + HASH_BYTES]) for at in range(0, len(edge), HASH_BYTES)]
            while hashes:
                # From the right: as many as the lowest bit of what is left says are a complete subtree.
                width = len(hashes) & -len(hashes)
                part = merkle.subtree_root(hashes[-width:])
                result = part if result is None else merkle.node_hash(part, result)
                del hashes[-width:]
        return merkle.EMPTY_ROOT if result is None else result

    def flush(self) -> set[str]:
        """Write full tiles, then the partial ones of this size; return the names of those that are out of date by it.

        After an OSError it may be called again: what was not written yet is.
        """
        while self._full:
            self._write(*self._full[0])
            del self._full[0]
        now = set(partial_tiles(self.size))
        for level, index, width in now - self._partial:
            self._write(tile_path(level, index, width), bytes(self._edge[level]))
        old = {tile_path(*tile) for tile in self._partial - now}
        self._partial = now
        return old

    def discard(self, names: Iterable[str]) -> None:
        """Remove partial tiles, once a checkpoint of a later size stands."""
        for name in names:
            path = self._log_dir / name
            path.unlink(missing_ok=True)
            try:
                path.parent.rmdir()
            except OSError:
                continue  # it has another one in it

    def _level(self, level: int) -> bytearray:
        while len(self._edge) <= level:
            self._edge.append(bytearray())
        return self._edge[level]

    def _pass_on(self, level: int) -> None:
        # The root of a tile that has become full goes into the one above.
        edge = self._level(level)
        if len(edge) < WIDTH * HASH_BYTES:
            return
        hashes = bytes(edge)
        edge.clear()
        self._full.append((tile_path(level, (self.size >> HEIGHT * (level + 1)) - 1), hashes))
        for _ in range(HEIGHT):
            hashes = merkle.parents(hashes)
        self._level(level + 1).extend(hashes)
        self._pass_on(level + 1)

    def _write(self, name: str, data: bytes) -> None:
        path = self._log_dir / name
        self._make_folders(path.parent)
        folder.replace_file(path, data, mode=self._mode, gid=self._gid)

    def _make_folders(self, path: Path) -> None:
        if path.is_dir() or path == self._log_dir:
            return
        self._make_folders(path.parent)
        path.mkdir(0o700)
        os.chown(path, -1, self._gid)
        path.chmod(folder.folder_mode(self._mode))


def make_durable(log_dir: Path, begin: int, end: int) -> None:
    """Have the level-0 tiles over these leaves on disk, with their names; the last has as many as ``end`` says.

    Raises OSError.
    """
    folders = set()
    for index in range(begin // WIDTH, -(-end // WIDTH)):
        path = log_dir / tile_path(0, index, min(WIDTH, end - index * WIDTH))
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        folders |= {parent for parent in path.parents if parent.is_relative_to(log_dir)}
    for parent in folders:
        folder.fsync_folder(parent)


def _read_tile(path: str, width: int) -> bytes | None:
    # None if there is none, or if it is not exactly as long as its name says.
    wanted = width * HASH_BYTES
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(fd, wanted + 1)
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise folder.failure(e, f"cannot read the tile {path}") from e
    return data if len(data) == wanted else None
