"""Have the log's newest checkpoint stamped once an hour, beside the recorder, and keep what comes back.

The log's folder in; into its ``anchors/`` come ``SIZE.checkpoint``, a copy of the checkpoint (``checkpoint`` itself
moves on), and then ``SIZE.tsr``, the authority's answer. What always holds:

* nothing is raised into the recorder and nothing waits for the authority: all is done in a thread of its own;
* a ``SIZE.tsr`` has its ``SIZE.checkpoint`` beside it, both durable, and is never written again: the earlier time
  counts;
* with roots, only an answer that they verify is kept. Without, one that is about the checkpoint and to our question.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.anchors import store, timestamp
from agentwatch.log import folder, note
from agentwatch.log.checkpoint import FILE, Checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from cryptography.x509 import Certificate

log = logging.getLogger(__name__)

PERIOD_S = 3600.0
RETRY_S = 30.0
"""After a failure; twice as long after each further one, to ``PERIOD_S``."""
POLL_S = 0.2
"""How often a checkpoint is looked for when one is due and there is no new one."""
CLOSE_S = 1.0
"""How long ``close`` waits. The thread may hang in the authority or the resolver; what it gets then is not stored."""


class Stamp(NamedTuple):
    """The newest timestamp of this run: of a checkpoint of which size, and when, by the authority's clock."""

    size: int
    moment: datetime
    verified: bool


class Stamper:
    """Stamps the first checkpoint that is newer than this object, and then one an hour.

    Attributes, for the status: ``last`` (a Stamp, or None), ``problem`` (why the last try failed, in words; None if it
    did not). Use ``close`` to end it.
    """

    def __init__(  # noqa: PLR0913 -- the last three are for tests
        self,
        log_dir: Path,
        url: str,
        roots: Sequence[Certificate] | None,
        *,
        mode: int,
        gid: int,
        period_s: float = PERIOD_S,
        retry_s: float = RETRY_S,
        timeout_s: float = timestamp.TIMEOUT_S,
    ) -> None:
        """Begin. ``roots``: None to keep what cannot be checked here; ``mode``, ``gid``: those of the log's files."""
        self.last: Stamp | None = None
        self.problem: str | None = None
        self._log_dir = log_dir
        self._url = url
        self._roots = roots
        self._mode = mode
        self._gid = gid
        self._period_s = period_s
        self._retry_s = retry_s
        self._timeout_s = timeout_s
        self._failures = 0
        self._seen = self._newest()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stamper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; returns soon even if the authority hangs."""
        self._closing.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        delay_s = 0.0
        while not self._closing.wait(delay_s):
            delay_s = self._turn()

    def _turn(self) -> float:
        checkpoint = self._newest()
        if checkpoint is None or checkpoint == self._seen:
            return min(POLL_S, self._period_s)
        try:
            self._stamp(checkpoint)
        except Exception as e:  # noqa: BLE001 -- a timestamp less must never be a reason to record less
            return self._failed(e)
        self._seen = checkpoint
        self._failures = 0
        if self.problem is not None:
            self.problem = None
            log.info("timestamps come from %s again", self._url)
        return self._period_s

    def _failed(self, error: Exception) -> float:
        delay_s: float = min(self._period_s, self._retry_s * 2 ** min(self._failures, 32))
        self._failures += 1
        known = self.problem is not None
        self.problem = f"no timestamp of the log's checkpoint from {self._url}: {error}"
        if not known and not self._closing.is_set():
            log.warning("%s; trying again until one comes", self.problem)
        return delay_s

    def _newest(self) -> bytes | None:
        try:
            with (self._log_dir / FILE).open("rb") as f:
                return f.read(note.MAX_NOTE_BYTES + 1)
        except OSError:
            # Before the first one, or when the disk fails, of which the recorder knows more.
            return None

    def _stamp(self, checkpoint: bytes) -> None:
        size = Checkpoint.parse(note.parse(checkpoint).text).size
        anchors = self._log_dir / store.FOLDER
        path = anchors / f"{size}.{store.TIMESTAMP}"
        if path.exists():
            return  # by an earlier run, or another checkpoint of the same tree
        response = timestamp.request(checkpoint, self._url, self._timeout_s)
        if self._roots is None:
            moment = timestamp.claimed(response, checkpoint)
        else:
            moment = timestamp.verify(response, checkpoint, self._roots)
        if self._closing.is_set():
            return
        self._make_folder(anchors)
        self._store(anchors / f"{size}.{store.STAMPED}", checkpoint)
        self._store(path, response)
        self.last = Stamp(size, moment, self._roots is not None)

    def _make_folder(self, anchors: Path) -> None:
        if anchors.is_dir():
            return
        anchors.mkdir(0o700, exist_ok=True)
        os.chown(anchors, -1, self._gid)
        anchors.chmod(folder.folder_mode(self._mode))
        folder.fsync_folder(self._log_dir)

    def _store(self, path: Path, data: bytes) -> None:
        folder.replace_file(path, data, mode=self._mode, gid=self._gid, durable=True)
        folder.fsync_folder(path.parent)
