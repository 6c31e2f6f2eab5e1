"""From the log to the index: incrementally, one transaction for each batch, the position in the same transaction.

A process that dies in between leaves whole batches; they are not read twice, as the position moved with
them. ``rebuild`` gives the same content as growing did. The log's own checks happen in its reader; records that it
finds damaged become a gap of the index, and indexing goes on behind them.
"""

from __future__ import annotations

import sqlite3
import time
from itertools import islice
from typing import TYPE_CHECKING, Self

from agentwatch.errors import SegmentDamaged
from agentwatch.index import store
from agentwatch.index.names import Names
from agentwatch.log.reader import LogReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from agentwatch.config import Config

BATCH_RECORDS = 5_000
"""Records of one transaction: some megabytes of rows in memory, and a reader sees news about twice a second."""
POLL_S = 0.2
"""How often ``follow`` looks for new records; the recorder writes at most every 50 ms."""


class Indexer:
    """The one writer of an index. Holds the writer's lock from its making until ``close``."""

    def __init__(self, config: Config, reader: LogReader | None = None) -> None:
        """Open the index, making it or making it anew where need be. Raises BusyError, PrivilegeError, StoreError.

        ``reader``: one that the caller has of the same log; it remembers where records lie.
        """
        self._config = config
        self._reader = reader or LogReader(config.log_dir)
        self._lock = store.WriterLock(config)
        self._db: sqlite3.Connection | None = None
        try:
            self._use(store.open_writer(config))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def next_seq(self) -> int:
        """The number of the next record to read."""
        return store.position(self._opened).next_seq

    def catch_up(self, limit: int | None = None, progress: Callable[[int], None] | None = None) -> int:
        """Read the log up to its present end, or ``limit`` records of it; return how many were indexed.

        ``progress`` is called with the position after each batch. An index of another log, or of one that was
        cut since, is made anew first; so is one that SQLite finds damaged.
        """
        try:
            return self._catch_up(limit, progress)
        except sqlite3.DatabaseError as e:
            if not store.is_damage(e):
                with store.describing(store.path_of(self._config)):
                    raise
        self._start_again()
        with store.describing(store.path_of(self._config)):
            return self._catch_up(limit, progress)

    def rebuild(self, progress: Callable[[int], None] | None = None) -> int:
        """Make the index anew from the whole log; return how many records were indexed."""
        self._start_again()
        with store.describing(store.path_of(self._config)):
            return self._catch_up(None, progress)

    def follow(self, stop: Callable[[], bool], poll_s: float = POLL_S) -> None:
        """Keep the index at the end of the log until ``stop()`` is true."""
        while not stop():
            if not self.catch_up(limit=BATCH_RECORDS):
                time.sleep(poll_s)

    def close(self) -> None:
        """Close the index and let the next writer in."""
        if self._db is not None:
            self._db.close()
            self._db = None
        self._lock.close()

    @property
    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            raise RuntimeError("this Indexer is closed")
        return self._db

    def _use(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._names = Names(db)

    def _start_again(self) -> None:
        self._opened.close()
        self._db = None
        self._use(store.create(self._config))

    def _catch_up(self, limit: int | None, progress: Callable[[int], None] | None) -> int:
        if not belongs(store.position(self._opened), self._reader):
            self._start_again()
        done = 0
        if self._reader.end() <= self.next_seq:
            return done
        # Damage is passed over: the batch sees the numbers jump, and keeps a gap of exactly that many records.
        records = self._reader.records(self.next_seq, on_damage=lambda _: None)
        while limit is None or done < limit:
            wanted = BATCH_RECORDS if limit is None else min(BATCH_RECORDS, limit - done)
            read = self._index_batch(records, wanted)
            done += read
            if progress is not None and read:
                progress(self.next_seq)
            if read < wanted:
                break
        return done

    def _index_batch(self, records: Iterator[tuple[int, bytes]], wanted: int) -> int:
        from agentwatch.index.rows import Batch  # noqa: PLC0415 - brings the parser, which most queries never need

        db = self._opened
        read = 0
        db.execute("BEGIN IMMEDIATE")
        try:
            batch = Batch(db, self._names)
            for seq, payload in islice(records, wanted):
                batch.add(seq, payload)
                read += 1
            batch.flush()
            db.execute("COMMIT")
        except BaseException:
            self._names.forget()
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return read


def belongs(position: store.Position, reader: LogReader) -> bool:
    """Tell whether an index at this position was made of this log, as it is now."""
    if position.next_seq == 0:
        return True
    if reader.end() < position.next_seq:
        return False
    try:
        return store.digest(reader.read(position.next_seq - 1)) == position.last_digest
    except SegmentDamaged:
        return True  # nothing tells otherwise; what is read from there will fail on its own
