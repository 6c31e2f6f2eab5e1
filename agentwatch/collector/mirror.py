"""The records of a host's log, kept at the collector as a log of the same format and with the same log id.

In: batches of records with a proof that they belong to an accepted tree. Out: a folder that ``verify`` takes. What
always holds:

* no record is written before it was proved to be in a tree that the host signed;
* ``checkpoint`` is one that the folder has all records for (newer accepted ones wait in the host's folder, see
  store.py);
* a record that the host does not have (``Leaf``) is missing here too, and its leaf is in the tiles, on disk before
  anything behind it is.

Tiles are otherwise not made durable: they can be computed from the segments. After any error that is not a Refusal
the mirror is to be closed and opened again: opening finds what really is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentwatch.collector import files
from agentwatch.collector.frames import Leaf
from agentwatch.collector.trust import FORGED, Refusal, Tree
from agentwatch.errors import LogError, SegmentDamaged
from agentwatch.log import checkpoint, epochs, merkle, note, tiles
from agentwatch.log.checkpoint import Checkpoint
from agentwatch.log.reader import LogReader
from agentwatch.log.tiles import TileReader, TileWriter
from agentwatch.log.writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agentwatch.collector.frames import Records
    from agentwatch.log.access import Access
    from agentwatch.log.epochs import Epoch

FLUSH_LEAVES = 1 << 16
"""While a tree is made again, its tiles wait in memory for so long: 2 MiB."""


class Mirror:
    """The copy in ``log_dir`` of the log with this origin. Not for use by several threads at once."""

    def __init__(self, log_dir: Path, origin: str, access: Access) -> None:
        """Open or begin. Raises BusyError, LogError (what is there is not this log), StoreError, OSError."""
        self._log_dir = log_dir
        self._access = access
        self._log_id = checkpoint.log_id_of(origin)
        self._stale: set[str] = set()
        self._signed = self._read_checkpoint()
        self._writer = self._open_writer(self._signed.size)
        try:
            self._refuse_another(origin)
            self._tiles = self._signed_tree()
            self._grow(self._tiles, self._writer.next_seq)
            self._frontier = self._edge()
        except BaseException:
            self._writer.close()
            raise

    @property
    def next_seq(self) -> int:
        """The first record that is not here."""
        return self._frontier.size

    def add(self, batch: Records, head: Tree) -> None:
        """Take a batch that begins with ``next_seq``. Raises Refusal unless it is proved to be in the tree ``head``."""
        end = batch.first + len(batch.items)
        if batch.first != self.next_seq or end > head.size:
            raise Refusal(
                FORGED, f"records {batch.first} to {end - 1}: asked for were {self.next_seq} to {head.size - 1}"
            )
        leaves = [item.digest if isinstance(item, Leaf) else merkle.leaf_hash(item) for item in batch.items]
        grown = merkle.Frontier(self._frontier.size, self._frontier.hashes)
        for leaf in leaves:
            grown.append(leaf)
        try:
            merkle.verify_consistency(end, grown.root(), *head, batch.consistency)
        except merkle.ProofError as e:
            message = (
                f"records {batch.first} to {end - 1} are not those in the tree of {head.size} that was signed: {e}"
            )
            raise Refusal(FORGED, message) from e
        self._tiles.extend(leaves)
        if any(isinstance(item, Leaf) for item in batch.items):
            self._stale |= self._tiles.flush()
            tiles.make_durable(self._log_dir, batch.first, end)
        self._write(batch)
        self._frontier = grown

    def settle(self, signed: str, tree: Tree) -> None:
        """Make a checkpoint the mirror's own if all its records are here. Raises LogError, OSError."""
        if not self._signed.size < tree.size <= self.next_seq:
            return
        self._stale |= self._tiles.flush()
        # A look at the tiles themselves: a mirror that was put back from pieces of different age is found here.
        if merkle.root(tree.size, TileReader(self._log_dir, tree.size)) != tree.root:
            raise LogError(
                f"{self._log_dir} does not hold the records of the checkpoint of {tree.size}; move it away, and the "
                "host sends them again"
            )
        self._access.write(self._log_dir / checkpoint.FILE, signed.encode())
        self._signed = Checkpoint.parse(note.parse(signed).text)
        self._tiles.discard(self._stale)
        self._stale.clear()

    def keep_epochs(self, identity: note.Key, known: list[Epoch], stored: Path) -> None:
        """Copy identity and epochs from the host's own folder, as far as they are not here. Raises OSError."""
        name = self._log_dir / epochs.IDENTITY_FILE
        if not name.exists():
            self._access.write(name, f"{identity}\n".encode())
        own = self._log_dir / epochs.FOLDER
        self._access.make_folder(own)
        here = {seq for seq, _ in files.epochs_in(own)}
        for epoch in known:
            if epoch.seq not in here:
                self._access.write(
                    own / epochs.file_name(epoch.seq), (stored / epochs.file_name(epoch.seq)).read_bytes()
                )

    def close(self) -> None:
        """Let go of the folder."""
        self._writer.close()

    def _refuse_another(self, origin: str) -> None:
        if self._writer.log_id != self._log_id:
            raise LogError(f"{self._log_dir} is not a mirror of {origin}; move it away, and it is made again")

    def _open_writer(self, least_seq: int) -> LogWriter:
        gid = self._access.reader_gid
        return LogWriter(self._log_dir, reader_gid=gid, log_id=self._log_id, least_seq=least_seq)

    def _write(self, batch: Records) -> None:
        for seq, item in enumerate(batch.items, batch.first):
            if isinstance(item, Leaf):
                continue
            if seq != self._writer.next_seq:
                # Numbers are skipped only between segments.
                self._writer.close()
                self._writer = self._open_writer(seq)
            self._writer.append(item)
        self._writer.commit()

    def _read_checkpoint(self) -> Checkpoint:
        content = files.read(self._log_dir / checkpoint.FILE)
        if content is None:
            return Checkpoint("", 0, merkle.EMPTY_ROOT)
        try:
            return Checkpoint.parse(note.parse(content).text)
        except note.NoteError as e:
            raise LogError(f"{self._log_dir / checkpoint.FILE} is damaged ({e}); move the mirror away") from e

    def _signed_tree(self) -> TileWriter:
        _, size, root = self._signed
        read = TileReader(self._log_dir, size)
        mode, gid = self._access.mode, self._access.gid
        try:
            if merkle.root(size, read) == root:
                return TileWriter(self._log_dir, size, read, mode=mode, gid=gid)
        except LogError:
            pass  # a crash took tiles with it: they are computed again
        tree = TileWriter(self._log_dir, 0, read, mode=mode, gid=gid)
        self._grow(tree, size)
        self._stale |= tree.flush()
        if merkle.root(size, TileReader(self._log_dir, size)) != root:
            raise LogError(f"{self._log_dir} does not lead to its own checkpoint; move it away, and it is made again")
        return tree

    def _edge(self) -> merkle.Frontier:
        # Through the disk, once at opening: tiles are what gives hashes of any level.
        self._stale |= self._tiles.flush()
        return merkle.frontier(self._tiles.size, TileReader(self._log_dir, self._tiles.size))

    def _grow(self, tree: TileWriter, size: int) -> None:
        for leaf in self._leaves(tree.size, size):
            tree.extend((leaf,))
            if tree.size % FLUSH_LEAVES == 0:
                self._stale |= tree.flush()

    def _leaves(self, begin: int, end: int) -> Iterator[bytes]:
        seq = begin
        if begin == end:
            return
        for found, payload in LogReader(self._log_dir).records(begin, end, on_damage=_pass_over):
            yield from self._kept_leaves(seq, found)
            yield merkle.leaf_hash(payload)
            seq = found + 1
        yield from self._kept_leaves(seq, end)

    def _kept_leaves(self, begin: int, end: int) -> Iterator[bytes]:
        # Of records that are not here. Tile by tile, and no more of it than must be there.
        while begin < end:
            stop = min(end, (begin // tiles.WIDTH + 1) * tiles.WIDTH)
            read = TileReader(self._log_dir, stop)
            yield from (read.leaf(seq) for seq in range(begin, stop))
            begin = stop


def _pass_over(_: SegmentDamaged) -> None:
    """Go on: what is missing here has its leaf in the tiles."""
