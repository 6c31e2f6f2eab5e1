"""Somebody with root's powers over a log: reads it, and writes it anew with every checksum, tile and copy right.

What he cannot have is a key that does not exist any more. He has what the key folder holds now, and what he took
out of it earlier.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgpack

from agentwatch.log import checkpoint, epochs, folder, merkle, note, segment, tiles
from agentwatch.log.checkpoint import Checkpoint
from agentwatch.log.epochs import Certificate
from agentwatch.log.keys import EpochKeys, KeyFolder, new_seed
from agentwatch.log.reader import LogReader
from agentwatch.log.signed import Options, SignedLog
from agentwatch.log.tiles import TileWriter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OPTIONS = Options("host", epoch_ns=0, segment_bytes=4000)
"""Every opening begins an epoch; some segments in each."""


@dataclass(frozen=True)
class Host:
    """A host that records: its log, its keys, and what somebody may have kept of both."""

    root: Path

    @property
    def log_dir(self) -> Path:
        return self.root / "log"

    @property
    def key_dir(self) -> Path:
        return self.root / "keys"

    def record(self, count: int, word: bytes = b"event") -> int:
        """Let a recorder run: an epoch of so many records more; return the number of the ``epoch`` record."""
        with SignedLog(self.log_dir, self.key_dir, OPTIONS) as log:
            begun = log.writer.next_seq - 1
            for _ in range(count):
                log.writer.append(b"%s %d" % (word, log.writer.next_seq))
        return begun

    def identity(self) -> note.Key:
        return note.Key.parse((self.log_dir / epochs.IDENTITY_FILE).read_text())

    def checkpoint(self) -> note.Note:
        return note.parse((self.log_dir / checkpoint.FILE).read_bytes())

    def size(self) -> int:
        return Checkpoint.parse(self.checkpoint().text).size

    def keys(self) -> EpochKeys:
        found = KeyFolder(self.key_dir).load()
        assert found is not None
        return found

    def copy(self, root: Path) -> Host:
        shutil.copytree(self.root, root)
        return Host(root)


class Attacker:
    """Works on the log of one host."""

    def __init__(self, host: Host) -> None:
        self.log_dir = host.log_dir
        self.payloads = [payload for _, payload in LogReader(host.log_dir).records()]
        self.old = list(self.payloads)
        self.segments = folder.list_segments(host.log_dir)
        self.header = segment.Header.parse(self.segments[0].path.read_bytes())
        self.origin = Checkpoint.parse(host.checkpoint().text).origin

    def write_segments(self) -> None:
        """Write the payloads, in segments that begin where they did, with headers and checksums that are right."""
        firsts = [item.first_seq for item in self.segments if item.first_seq < max(1, len(self.payloads))]
        seed = segment.seed(self.header.log_id)
        for item in self.segments:
            item.path.unlink(missing_ok=True)
        for first, end in zip(firsts, [*firsts[1:], len(self.payloads)], strict=True):
            frames = [segment.frame(self.payloads[seq], seq, seed) for seq in range(first, end)]
            path = self.log_dir / segment.segment_name(first)
            path.write_bytes(self.header._replace(first_seq=first).pack() + b"".join(frames))
            path.chmod(0o600)

    def write_tiles(self) -> None:
        """Write the tiles of every level for the payloads, as if they had been so from the beginning."""
        shutil.rmtree(self.log_dir / tiles.FOLDER)
        tree = self._tree()
        tree.flush()

    def write_copies(self) -> None:
        """Let ``epochs/`` have what the payloads have."""
        shutil.rmtree(self.log_dir / epochs.FOLDER)
        (self.log_dir / epochs.FOLDER).mkdir(0o700)
        for seq, payload in enumerate(self.payloads):
            if epochs.looks_like(payload):
                (self.log_dir / epochs.FOLDER / f"{seq:020d}").write_bytes(payload)

    def write_all(self) -> None:
        self.write_segments()
        self.write_tiles()
        self.write_copies()

    def sign(self, keys: EpochKeys) -> None:
        """Put a checkpoint of what the payloads are in the place of the old one."""
        signed = note.Note(Checkpoint(self.origin, len(self.payloads), self.root()).text, ())
        for signer in keys.signers:
            signed = signed.signed_by(signer, 1)
        (self.log_dir / checkpoint.FILE).write_text(str(signed))

    def root(self) -> bytes:
        return self._tree().root()

    def begin_epoch(self, before: Sequence[note.Signer], number: int) -> EpochKeys:
        """Append an ``epoch`` record that the signers certify, with keys of one's own."""
        seq = len(self.payloads)
        keys = EpochKeys(self.origin, number, seq, "boot", 0, new_seed(), None)
        certificate = Certificate(self.origin, number, seq, self.root(), keys.public)
        signed = note.Note(certificate.text, ())
        for signer in before:
            signed = signed.signed_by(signer, 1)
        record = {"kind": epochs.KIND, "time": 1, "number": number, "certificate": str(signed)}
        self.payloads.append(msgpack.packb(record))
        return keys

    def begin_anew(self) -> EpochKeys:
        """Begin a log with an identity of one's own, under the old origin; nothing of the old one is left."""
        self.payloads = []
        identity = note.Ed25519Signer(epochs.identity_name(self.origin), new_seed())
        (self.log_dir / epochs.IDENTITY_FILE).write_text(f"{identity.key}\n")
        return self.begin_epoch([identity], 0)

    def _tree(self) -> TileWriter:
        tree = TileWriter(self.log_dir, 0, _none, mode=0o600, gid=os.getegid())
        tree.extend(map(merkle.leaf_hash, self.payloads))
        return tree


def _none(level: int, index: int) -> bytes:
    raise AssertionError(level, index)
