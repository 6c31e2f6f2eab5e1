"""What an answer is drawn from: the index, brought up to date where that is possible, and the log behind it.

``open_source`` never fails because the index lags: it states how far the index has come, and the answer says so.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentwatch.errors import BusyError, LogError, NotFoundError, PrivilegeError, StoreError
from agentwatch.index import store
from agentwatch.index.indexer import Indexer, belongs
from agentwatch.log.reader import LogReader
from agentwatch.records.encoding import Record, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from agentwatch.config import Config

FOLLOWER_PATIENCE_S = 2.0
"""How long a query waits for another process that is indexing to reach the end of the log."""
FOLLOWER_POLL_S = 0.02
BEGIN_RUN_RECORDS = 32
"""Two records that lie so near are read in one run, which fetches whole blocks; others are sought."""
KEEP_RUN_RECORDS = 256
"""A run reads over so many records that were not asked for: about what its next block holds anyway."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the log the index has read, and what ended it early."""

    indexed: int
    recorded: int
    problem: str | None

    @property
    def behind(self) -> int:
        """Records that the index does not know."""
        return max(0, self.recorded - self.indexed)


class Source:
    """The index and the log of one configuration, for reading."""

    def __init__(self, config: Config, db: sqlite3.Connection, reader: LogReader, coverage: Coverage) -> None:
        self.config = config
        self.db = db
        self.reader = reader
        self.coverage = coverage

    def fetch(self, seqs: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Read stored records by their numbers, which ascend."""
        run: Iterator[tuple[int, bytes]] | None = None
        last = -1 - KEEP_RUN_RECORDS
        for seq in seqs:
            if seq - last > (BEGIN_RUN_RECORDS if run is None else KEEP_RUN_RECORDS):
                run = None
                yield seq, self.reader.read(seq)
            else:
                run = run or self.reader.records(seq)
                yield seq, _advance(run, seq)
            last = seq

    def records(self, seqs: Iterable[int]) -> Iterator[tuple[int, Record]]:
        """Read records by their numbers, which ascend."""
        for seq, payload in self.fetch(seqs):
            yield seq, decode(payload)

    def close(self) -> None:
        """Close the index."""
        self.db.close()


def _advance(run: Iterator[tuple[int, bytes]], seq: int) -> bytes:
    for found, payload in run:
        if found == seq:
            return payload
    raise NotFoundError(f"record {seq} is in the index but not in the log; run `agentwatch index rebuild`")


@contextmanager
def open_source(config: Config, progress: Callable[[int, int], None] | None = None) -> Iterator[Source]:
    """Bring the index up to date if this process may, then open it; ``progress`` gets position and end.

    Raises PrivilegeError where log or index may not be read, NotFoundError or LogError where there is no log.
    """
    reader = LogReader(config.log_dir)
    end = reader.end()
    problem = _catch_up(config, reader, end, progress)
    with store.describing(store.path_of(config)):
        db = store.open_reader(config)
        try:
            # One transaction: all that an answer says is of one moment.
            db.execute("BEGIN")
            position = store.position(db)
            if problem is None and not belongs(position, reader):
                db.close()
                db, problem = store.empty(), "the index is of another log; run `agentwatch index rebuild`"
                position = store.position(db)
            yield Source(config, db, reader, Coverage(position.next_seq, max(end, position.next_seq), problem))
        finally:
            db.close()


def _catch_up(config: Config, reader: LogReader, end: int, progress: Callable[[int, int], None] | None) -> str | None:
    try:
        with Indexer(config, reader) as indexer:
            indexer.catch_up(progress=None if progress is None else lambda seq: progress(seq, end))
    except BusyError:
        _wait_for_other(config, end)
    except PrivilegeError:
        pass  # a reader: what there is will do, and the answer says how far it goes
    except LogError as e:
        return f"the log cannot be read to its end: {e}"
    except StoreError as e:
        return f"the index cannot be brought up to date: {e}"
    return None


def _wait_for_other(config: Config, end: int) -> None:
    give_up = time.monotonic() + FOLLOWER_PATIENCE_S
    while time.monotonic() < give_up:
        try:
            db = store.open_reader(config)
        except StoreError:
            pass
        else:
            try:
                if store.position(db).next_seq >= end:
                    return
            except sqlite3.Error:
                pass
            finally:
                db.close()
        time.sleep(FOLLOWER_POLL_S)
