"""Signed logs of hosts, to be pushed, copied, rolled back and forged."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from agentwatch.log import checkpoint, epochs, note
from agentwatch.log.checkpoint import Checkpoint
from agentwatch.log.keys import KeyFolder
from agentwatch.log.signed import Options, SignedLog
from agentwatch.records import encoding

if TYPE_CHECKING:
    from pathlib import Path


class HostLog:
    """A host's log and its keys, in a folder of their own."""

    def __init__(self, root: Path, host: str = "host-a", *, post_quantum: bool = False) -> None:
        self.root = root
        self.log_dir = root / "log"
        self._options = Options(host, post_quantum=post_quantum, epoch_ns=0, segment_bytes=64 * 1024)
        self._written = 0

    def write(self, count: int = 1, *, size: int = 100, word: str = "x") -> Checkpoint:
        """Begin an epoch, append records, sign."""
        with SignedLog(self.log_dir, self.root / "keys", self._options) as log:
            for _ in range(count):
                record = {"kind": "exec", "number": self._written, "argv": [word * size]}
                log.writer.append(encoding.encode(record))
                self._written += 1
        return self.signed()

    def write_payloads(self, *payloads: bytes) -> Checkpoint:
        with SignedLog(self.log_dir, self.root / "keys", self._options) as log:
            for payload in payloads:
                log.writer.append(payload)
        return self.signed()

    def signed(self) -> Checkpoint:
        return Checkpoint.parse(note.parse(self.stored()).text)

    def stored(self) -> str:
        return (self.log_dir / checkpoint.FILE).read_text()

    def identity(self) -> str:
        return (self.log_dir / epochs.IDENTITY_FILE).read_text()

    def copy(self, root: Path) -> HostLog:
        """Return a second log that is as this one is now, keys included: a snapshot that was put back."""
        shutil.copytree(self.root, root)
        twin = HostLog(root, self._options.host, post_quantum=self._options.post_quantum)
        twin._written = self._written
        return twin

    def epoch_key(self) -> bytes:
        """Return the private key that signs now."""
        keys = KeyFolder(self.root / "keys").load()
        assert keys is not None
        return keys.ed25519
