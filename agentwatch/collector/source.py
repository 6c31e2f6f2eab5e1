"""What a host's log has for its collector: signed trees, their proofs, and records. Reads the log, and nothing else.

A log is written to while it is read: where something has just been replaced, LogError or StoreError is raised, and
the next attempt finds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agentwatch.collector import files, frames
from agentwatch.collector.frames import Epochs, Head, Hello, Item, Leaf, Records, Step
from agentwatch.errors import LogError, NotFoundError, SegmentDamaged
from agentwatch.log import checkpoint, epochs, folder, merkle, note
from agentwatch.log.checkpoint import Checkpoint
from agentwatch.log.reader import LogReader
from agentwatch.log.tiles import TileReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agentwatch.collector.frames import Commit, Proof


class Signed(NamedTuple):
    """A checkpoint as it is stored, and what it says."""

    stored: str
    checkpoint: Checkpoint


class Source:
    """The log in ``log_dir``."""

    def __init__(self, log_dir: Path) -> None:
        """Raise NotFoundError where there is no signed log yet."""
        self._log_dir = log_dir
        self._records = LogReader(log_dir)
        self._believed_gap = -1

    def hello(self) -> Hello:
        """Return whose log it is. Raises NotFoundError, LogError."""
        identity = self._read(epochs.IDENTITY_FILE).strip()
        return Hello(frames.VERSION, self.signed().checkpoint.origin, identity)

    def signed(self) -> Signed:
        """Return the newest checkpoint. Raises NotFoundError, LogError."""
        stored = self._read(checkpoint.FILE)
        try:
            return Signed(stored, Checkpoint.parse(note.parse(stored).text))
        except note.NoteError as e:
            raise LogError(f"{self._log_dir / checkpoint.FILE} is damaged: {e}; the recorder writes another") from e

    def trees(self, commit: Commit, signed: Signed) -> Iterator[Epochs | Head]:
        """Yield what leads from the collector's commit point to the checkpoint. Raises LogError."""
        size = signed.checkpoint.size
        read = TileReader(self._log_dir, size)
        every = [(seq, path) for seq, path in self._epochs() if seq < size]
        at, known = commit.size, commit.epochs
        owed = every[known - 1][0] if 0 < known <= len(every) else None
        if known and (owed is None or merkle.leaf_hash(_payload(every[known - 1][1])) != commit.epoch_leaf):
            # This log is not the one that was pushed before. All of its epochs show where it left it.
            known = 0
        steps: list[Step] = []
        waiting_bytes = 0
        for seq, path in every[known:]:
            step = Step(seq, _payload(path), _consistency(at, seq, read), _inclusion(owed, at, seq, read))
            steps.append(step)
            at = owed = seq
            waiting_bytes += len(step.payload) + merkle.HASH_BYTES * (len(step.consistency) + len(step.inclusion))
            if waiting_bytes >= frames.EPOCHS_BYTES:
                yield Epochs(tuple(steps))
                steps, waiting_bytes = [], 0
        if steps:
            yield Epochs(tuple(steps))
        yield Head(signed.stored, _consistency(at, size, read), _inclusion(owed, at, size, read))

    def records(self, first: int, size: int, head: Checkpoint) -> Records:
        """Return a batch of records from ``first`` on, with the proof that leads to the accepted tree of ``size``.

        ``head`` is a checkpoint of at least that size.
        """
        read = TileReader(self._log_dir, head.size)
        items = self._take(first, size, read)
        end = first + len(items)
        return Records(first, _consistency(end, size, read), tuple(items))

    def _take(self, first: int, stop: int, read: TileReader) -> list[Item]:
        items = self._batch(first, stop, read)
        gap = next((first + at for at, item in enumerate(items) if isinstance(item, Leaf)), None)
        if gap is not None and gap != self._believed_gap:
            # A record that is withheld once is withheld for ever: look a second time, from the folder on.
            self._records = LogReader(self._log_dir)
            items = self._batch(first, stop, read)
        self._believed_gap = first + len(items) if items and isinstance(items[-1], Leaf) else -1
        return items

    def _batch(self, first: int, stop: int, read: TileReader) -> list[Item]:
        stop = min(stop, first + frames.BATCH_RECORDS)
        items: list[Item] = []
        size = 0
        for seq, payload in self._records.records(first, stop, on_damage=_pass_over):
            items += [Leaf(read.leaf(missing)) for missing in range(first + len(items), seq)]
            size += len(payload) + 4
            if items and size > frames.BODY_BYTES:
                return items
            items.append(payload)
        return items + [Leaf(read.leaf(missing)) for missing in range(first + len(items), stop)]

    def _epochs(self) -> list[tuple[int, Path]]:
        try:
            return files.epochs_in(self._log_dir / epochs.FOLDER)
        except OSError as e:
            raise folder.failure(e, f"cannot list the epochs of {self._log_dir}") from e

    def _read(self, name: str) -> str:
        content = files.read(self._log_dir / name)
        if content is None:
            raise NotFoundError(f"{self._log_dir} has no {name}; the recorder makes it (agentwatch record)")
        return content.decode("utf-8", "replace")


def _payload(path: Path) -> bytes:
    payload = files.read(path)
    if not payload:
        raise LogError(f"{path} is empty or gone; it is a copy of an epoch's record: restore it from the log")
    return payload


def _consistency(old: int, new: int, read: TileReader) -> Proof:
    # A collector that knows more than this log has is told what there is, and judges.
    return tuple(merkle.consistency_proof(old, new, read)) if old <= new else ()


def _inclusion(owed: int | None, at: int, size: int, read: TileReader) -> Proof:
    # Owed is the proof of an epoch whose own certificate is the newest tree the collector has.
    return tuple(merkle.inclusion_proof(owed, size, read)) if owed == at and owed < size else ()


def _pass_over(_: SegmentDamaged) -> None:
    """Go on: what cannot be read is withheld, with its leaf."""
