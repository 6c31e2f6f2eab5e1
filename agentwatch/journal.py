"""What the recorder writes down: records, as they are to be stored, into the signed log.

In: records of the observer. Out: the log. What always holds:

* a record that belongs to a session has the number ``session_seq`` in it, 0, 1, 2, ... without omission, so that
  whoever has the records of a session sees whether one was left out;
* credentials are taken out before anything is stored (records/secrets.py);
* a disk that refuses is waited for, the records in memory and their events in the ring. What a full disk means beyond
  that, ``[log] disk_full`` says; it is recorded when it begins and when it is over, in space that was kept for it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from agentwatch.errors import StoreError
from agentwatch.log.appender import RESERVE_BYTES
from agentwatch.log.signed import Options, SignedLog
from agentwatch.log.writer import NO_SPACE
from agentwatch.records.encoding import encode
from agentwatch.records.secrets import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentwatch.config import Config
    from agentwatch.records.encoding import Record

log = logging.getLogger(__name__)

CRITICAL_KINDS = frozenset(
    {
        "session_start",
        "session_end",
        "gap",
        "fault",
        "hold",
        "observer_start",
        "observer_stop",
        "probe_attach",
        "probe_detach",
        "canary_missed",
        "canary_seen",
        "clock_step",
        "prune",
        "read",
    }
)
MAX_WAITING_BYTES = 128 * 1024 * 1024
"""Above it the recorder leaves events in the ring: there the kernel counts what finds no room."""
MAX_UNTRIED_BYTES = RESERVE_BYTES // 2
"""What waits has to find room in the space for last words, together with these."""
MAX_SESSIONS = 65536
"""Sessions whose numbers are remembered. The one that had no record for longest is forgotten; if it has another one
then, its numbers begin again, and who checks takes that for an omission: the safe side."""
SECRET_KEY = "secrets"  # noqa: S105 -- the name of a file
NO_ROOM = "no space"
ROOM_AGAIN = "space again"


class Journal:
    """The log of one recorder. Raises what SignedLog raises.

    Attributes: ``signed`` (the SignedLog), ``writer`` (its LogWriter), ``fault`` (why the log could not be written at
    the last try, None normally), ``full`` (it is because there is no space).
    """

    def __init__(self, config: Config, host: str, envelope: Callable[[str], Record]) -> None:
        """``envelope`` begins a record of some kind that nobody caused, as ``Observer.envelope`` does."""
        options = Options(host, config.reader_gid(), config.log.post_quantum)
        self.signed = SignedLog(config.log_dir, config.keys_path, options)
        self.writer = self.signed.writer
        self.fault: str | None = None
        self.full = False
        self.numbers: OrderedDict[str, int] = OrderedDict()
        self._policy = config.log.disk_full
        self._envelope = envelope
        self._redactor = Redactor(config.secrets, self.signed.secret(SECRET_KEY))
        self.make_room: Callable[[], bool] = lambda: False
        """Asked when ``disk_full`` is ``drop-oldest``; returns whether it made any."""

    @property
    def crowded(self) -> bool:
        """Whether so much waits for the disk that no more should be read.

        With ``drop-oldest`` while it is full as well: the record of what is pruned comes behind what waits, and all of
        that has to find room before anything is removed.
        """
        pruning = self.full and self._policy == "drop-oldest"
        return pruning or self.writer.waiting_bytes > MAX_WAITING_BYTES

    @property
    def wants_commit(self) -> bool:
        """Whether to commit before more is appended, so that a disk that turns out to be full can still be told of."""
        return self.fault is None and self.writer.waiting_bytes >= MAX_UNTRIED_BYTES

    @property
    def needs_trial(self) -> bool:
        """Whether it takes another record to find out if the disk still refuses: none waits that would be tried."""
        return self.fault is not None and self.writer.waiting_bytes == 0

    @property
    def must_stop(self) -> bool:
        """Whether the recorder is to end because the disk is full."""
        return self.full and self._policy == "stop"

    @property
    def holds_agents(self) -> bool:
        """Whether agents are to wait because the disk is full."""
        return self.full and self._policy == "hold"

    def append(self, record: Record) -> int:
        """Store a record at the next commit; return its sequence number."""
        session = record.get("session")
        if session is not None:
            record = record | {"session_seq": self._next_number(session)}
        return self.writer.append(encode(self._redactor.apply(record)), critical=record["kind"] in CRITICAL_KINDS)

    def commit(self, now_ns: int, *, everything: bool = False) -> bool:
        """Commit what is due, or everything; whether the log took it. ``now_ns`` is CLOCK_MONOTONIC."""
        before = self.writer.durable_seq
        try:
            if everything:
                self.writer.commit()
            else:
                self.writer.commit_if_due(now_ns)
        except StoreError as e:
            self._refused(e)
            return False
        if self.fault is not None and self.writer.durable_seq == before:
            # Nothing was tried: the disk rests, or what waited went into the space for last words.
            return self.writer.waiting_bytes == 0
        self.fault = None
        if self.full:
            self.full = False
            self._say(ROOM_AGAIN, 0, "the disk takes records again")
        while self.writer.faults:
            fault = self.writer.faults.popleft()
            self.append(self._envelope("fault") | fault._asdict() | {"path": str(fault.path)})
        return True

    def farewell(self, last: Callable[[], Record]) -> bool:
        """Write the last record and sign; whether everything that was appended is in the log.

        On a full disk what waits is given up (its events are in the ring still, for the next recorder) and the
        last words go where space was kept for them. Raises StoreError if not even that can be written.
        """
        try:
            self.append(last())
            self.signed.sign()
        except StoreError as e:
            if not _is_full(e):
                raise
            dropped = self.writer.drop_waiting()
            detail = f"{dropped} records found no room at the end; the next recorder records what is still in the ring"
            fields = {"cause": "disk-full", "count": None, "bytes": None, "detail": detail}
            for record in (self._envelope("gap") | fields, last()):
                self.append(record)
            self.writer.commit(reserve=True)
            return False
        return True

    def seen(self, record: Record) -> None:
        """Go on with a session's numbers behind this record of the log."""
        if (number := record.get("session_seq")) is not None:
            session = record["session"]
            self.numbers[session] = max(self.numbers.get(session, 0), number + 1)

    def close(self) -> None:
        """Let go of the log."""
        self.writer.close()

    def _next_number(self, session: str) -> int:
        number = self.numbers.pop(session, 0)
        self.numbers[session] = number + 1
        if len(self.numbers) > MAX_SESSIONS:
            self.numbers.popitem(last=False)
        return number

    def _refused(self, error: StoreError) -> None:
        if self.fault is None:  # once: how many records wait changes all the time
            log.error("%s", error)
        self.fault = str(error)
        if not _is_full(error):
            return
        if not self.full:
            self.full = True
            cause = error.__cause__
            number = cause.errno if isinstance(cause, OSError) else None
            self._say(NO_ROOM, number or 0, f"the disk is full; what happens now: {self._policy}")
        if self._policy == "drop-oldest" and self.make_room():
            self.writer.retry()

    def _say(self, operation: str, number: int, message: str) -> None:
        waiting = self.writer.next_seq - self.writer.durable_seq
        fields = {"path": str(self.signed.log_dir), "operation": operation, "errno": number, "message": message}
        more = {"first_seq": self.writer.durable_seq, "records": waiting, "policy": self._policy}
        self.append(self._envelope("fault") | fields | more)
        try:
            self.writer.commit(reserve=True)
        except StoreError as e:
            log.error("%s", e)  # noqa: TRY400 -- as above; it waits with the others


def _is_full(error: StoreError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_SPACE
