"""What is done to a log beside writing it: sealed segments compressed, old ones pruned, checkpoints stamped.

In: the configuration and the journal. Out: smaller segments, ``prune`` records, timestamps in ``anchors/``. Everything
that takes long runs in threads of its own; the recorder's thread only writes the records and removes files. What always
holds: a segment is removed after the record that says so is durable, and never while one of its records belongs to a
session under legal hold.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from agentwatch.errors import AgentwatchError, StoreError
from agentwatch.log import folder, retention
from agentwatch.log.access import Access
from agentwatch.log.appender import RESERVE_BYTES
from agentwatch.log.sealing import Sealer
from agentwatch.log.writer import NO_SPACE
from agentwatch.records.encoding import encode
from agentwatch.requests.holds import read_holds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentwatch.anchors.stamper import Stamper
    from agentwatch.config import Config
    from agentwatch.journal import Journal
    from agentwatch.log.retention import Candidate
    from agentwatch.records.encoding import Record

log = logging.getLogger(__name__)

PRUNE_S = 3600
"""How often it is looked what is too old or too much: a segment lasts an hour at the most."""


class Upkeep:
    """The upkeep of one log, for as long as its recorder runs."""

    def __init__(self, config: Config, journal: Journal, envelope: Callable[[str], Record]) -> None:
        """Start what runs beside the recorder. Raises ConfigError if the roots of the timestamps cannot be read."""
        self._config = config
        self._journal = journal
        self._envelope = envelope
        self._drops_oldest = config.log.disk_full == "drop-oldest"
        self._keep = retention.Keep(config.log.keep_days * retention.DAY_NS, config.log.keep_bytes)
        self._pruned = folder.read_pruned(config.log_dir)
        self._ready: deque[Candidate] = deque()
        self._leaving: tuple[int, bytes, Candidate] | None = None
        """The number and payload of the record that names it, and the segment that goes when that is durable."""
        self._copy: bytes | None = None
        """The newest ``prune`` record, until ``pruned`` is a copy of it."""
        self._sealer = Sealer(config.log_dir)
        self._stamper = _stamper(config)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if self._keep != retention.Keep():
            self._thread = threading.Thread(target=self._look, name="retention", daemon=True)
            self._thread.start()

    @property
    def status(self) -> dict[str, Any]:
        """What there is to say about it, for ``agentwatch status``."""
        stamper = self._stamper
        return {
            "timestamp": None if stamper is None or stamper.last is None else stamper.last.moment.isoformat(),
            "timestamp_problem": None if stamper is None else stamper.problem,
        }

    def tick(self) -> None:
        """Do what is due."""
        self._sealer.tick(self._journal.writer.segment_seq)
        self._sealer.errors.clear()  # it has logged them
        self._finish()
        with contextlib.suppress(OSError):
            self._keep_copy()
        if self._leaving is None and self._ready:
            self._announce(self._ready.popleft(), "age-or-size")
        if self._drops_oldest and self._journal.signed.fault is not None and self._has_no_space():
            # No commit is refused while records fit into what their segment has allocated; a checkpoint is.
            self.make_room()

    def make_room(self) -> bool:
        """Prune the oldest segment that may go, though it is neither too old nor too much; whether one was removed."""
        try:
            if self._leaving is None:
                one = next(self._candidates(retention.Keep(size=1)), None)
                if one is None:
                    return False
                retention.check_tiles(self._config.log_dir, one, tree_size=self._tree_size())
                self._announce(one, "disk-full")
        except AgentwatchError as e:
            log.error("cannot make room in %s: %s", self._config.log_dir, e)  # noqa: TRY400 -- one line
            return False
        try:
            self._journal.writer.commit(reserve=True)
        except StoreError:
            return False  # nothing is removed that no record tells of; the journal says what the disk does
        return self._finish(signed=False)  # a checkpoint may need the very room; it follows in half a second

    def _has_no_space(self) -> bool:
        found = os.statvfs(self._config.log_dir)
        return found.f_bfree * found.f_frsize < RESERVE_BYTES

    def close(self) -> None:
        """Stop what runs beside the recorder."""
        self._closing.set()
        self._sealer.close()
        if self._stamper is not None:
            self._stamper.close()

    def _look(self) -> None:
        # In its own thread: every record of a candidate is read.
        while not self._closing.is_set():
            try:
                for one in self._candidates(self._keep):
                    retention.check_tiles(self._config.log_dir, one, tree_size=self._tree_size())
                    self._ready.append(one)
                    if self._closing.is_set():
                        return
            except AgentwatchError as e:
                log.error("nothing more is pruned from %s now: %s", self._config.log_dir, e)  # noqa: TRY400 -- one line
            self._closing.wait(PRUNE_S)

    def _candidates(self, keep: retention.Keep) -> Iterator[Candidate]:
        held = [session.encode() for session in read_holds(self._config.log_dir)]
        return retention.candidates(
            self._config.log_dir,
            keep,
            now_ns=time.time_ns(),
            tree_size=self._tree_size(),
            # Also a record that only speaks of such a session: too much rather than too little.
            is_held=lambda payload: any(session in payload for session in held),
        )

    def _tree_size(self) -> int:
        signed = self._journal.signed.signed
        return signed.size if signed is not None else 0

    def _announce(self, one: Candidate, reason: str) -> None:
        self._pruned = retention.coalesce([*self._pruned, (one.first_seq, one.next_seq)])
        fields = {"first_seq": one.first_seq, "records": one.next_seq - one.first_seq, "bytes": one.size}
        record = self._envelope("prune") | fields | {"reason": reason, "pruned": [list(pair) for pair in self._pruned]}
        self._leaving = (self._journal.append(record), encode(record), one)

    def _finish(self, *, signed: bool = True) -> bool:
        # Only a record that is signed for proves that the segment was removed on purpose.
        known = self._tree_size() if signed else self._journal.writer.durable_seq
        if self._leaving is None or known <= self._leaving[0]:
            return False
        _, self._copy, one = self._leaving
        self._leaving = None
        try:
            # Before the segment goes: the next recorder goes on from the copy. But a full disk has no block for it.
            with _full_disk_suppressed():
                self._keep_copy()
            freed = retention.remove(one)
            log.info("pruned %s: %d bytes", one.path.name, freed)
            self._keep_copy()
        except (AgentwatchError, OSError) as e:
            log.error("%s", e)  # noqa: TRY400 -- one line; it is a candidate again in an hour
            return False
        return True

    def _keep_copy(self) -> None:
        """Make ``pruned`` a copy of the newest record of what was pruned, unless it is. Raises OSError."""
        if self._copy is not None:
            Access(self._config.reader_gid()).write(self._config.log_dir / folder.PRUNED, self._copy)
            self._copy = None


@contextlib.contextmanager
def _full_disk_suppressed() -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno not in NO_SPACE:
            raise


def _stamper(config: Config) -> Stamper | None:
    if config.log.timestamp_url is None:
        return None
    from agentwatch.anchors import timestamp  # noqa: PLC0415 -- needed by few
    from agentwatch.anchors.stamper import Stamper  # noqa: PLC0415 -- as above

    roots = timestamp.load_roots(config.log.timestamp_roots) if config.log.timestamp_roots is not None else None
    access = Access(config.reader_gid())
    return Stamper(config.log_dir, config.log.timestamp_url, roots, mode=access.mode, gid=access.gid)
