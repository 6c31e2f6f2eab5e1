"""The recorder: the one place that joins capture to log. Pinned ring in, records out. Root, one process, no BCC.

The order of things is what makes a kill at any moment lose nothing:

1. events are read from the ring, which keeps them, and become records;
2. records are committed to the log (group commit);
3. the observer's state is saved with the ring position and the log's length of that moment;
4. only then is the ring's space given back.

A recorder that starts reads the ring again from the saved position with the saved state. Records that the log
already has are skipped: each carries the ring position of its event, and the same events give the same records.
What the kernel could not put into the ring is declared: several times a second its account is compared with what
was received (``accounting``), and a difference becomes a ``gap`` record. Once a second what is attached and pinned is
compared with what was loaded (``watchdog``), and now and then something is done to see that it is seen (``canary``).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import resource
import socket
import time
from typing import TYPE_CHECKING, Any

from agentwatch import __version__, locks, state
from agentwatch.accounting import Ledger
from agentwatch.canary import Canary
from agentwatch.canary_run import CanaryRun
from agentwatch.errors import BusyError, PrivilegeError, StoreError
from agentwatch.journal import Journal
from agentwatch.kernel import abi, counters, pins
from agentwatch.kernel.interest import InterestMaps
from agentwatch.kernel.ring import Ring
from agentwatch.libraries import Libraries
from agentwatch.log import folder
from agentwatch.log.reader import LogReader
from agentwatch.observation.observer import Observer
from agentwatch.records.encoding import Record, decode, text
from agentwatch.requests.desk import Desk
from agentwatch.requests.place import prepare_run_dir
from agentwatch.upkeep import Upkeep
from agentwatch.waiting import Waiting
from agentwatch.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentwatch.config import Config
    from agentwatch.watchdog import Memory

log = logging.getLogger(__name__)

STATUS_FILE = "recorder.json"
LOCK_FILE = "recorder.lock"
BATCH_BYTES = 4 * 1024 * 1024
"""Read from the ring at one time, so that commits and ticks stay punctual under load."""
TICK_NS = 250_000_000
WATCH_NS = 1_000_000_000
"""How often the watchdog looks."""
SAVE_NS = 200_000_000
"""How often the state is saved at the most; also how long space in the ring stays taken."""
SAVE_COST = 20
"""A save that took t is not repeated for t * SAVE_COST: at most 5 % of the time goes into it."""
HEARTBEAT_NS = 60_000_000_000
SHORTEST_WAIT, LONGEST_WAIT = 0.005, 0.04
"""Seconds between looks at an idle ring; the kernel wakes the reader when an eighth of the ring was written."""
MODEST_NICE, URGENT_NICE = 10, 0
"""While the ring has room the work that is watched goes first; above URGENT_FILL the recorder takes its share."""
URGENT_FILL, MODEST_FILL = 1 / 4, 1 / 16


class Recorder:
    """One run of the recorder. Raises BusyError if another one is running, ProbesNotLoaded, PrivilegeError."""

    def __init__(self, config: Config) -> None:
        if os.geteuid() != 0:
            raise PrivilegeError("the recorder needs root: it reads the pinned ring and writes the log")
        pins.require(config)
        self.config = config
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # links of TLS libraries are held open
        prepare_run_dir(config.run_dir, config.reader_gid())
        self._lock = _lock(config.run_dir)
        self._loaded = pins.read_status(config)
        self._ring_name = f"{self._loaded.boot_id} {self._loaded.loaded_at}"
        self._ring_fd = pins.open_map(config, "ring")
        self._counters_fd = pins.open_map(config, "counters")
        self._ring = Ring(self._ring_fd)
        host = socket.gethostname()
        self._journal = Journal(config, host, self._envelope)
        self._upkeep = Upkeep(config, self._journal, self._envelope)
        self._journal.make_room = self._upkeep.make_room
        self._desk = Desk(config, self._write_down)
        self._losses_fd = pins.open_map(config, "losses")
        self._waiting = Waiting(config)
        self._interest = InterestMaps(config)
        self._libraries = Libraries(config)
        self._ledger = Ledger(from_start=self._ring.released == 0)
        self._skip_position, self._skip_count = -1, 0
        self._search_from = 0
        """Where in the log records of events at and after the saved position may begin."""
        self._saved_position = -1
        self._nice = URGENT_NICE
        self._saved_at = self._save_cost = self._ticked_at = self._beat_at = self._watched_at = 0
        self._canary = Canary(_boottime())
        self._observer = self._resume(host)
        self._canary_run = CanaryRun(config, self._canary)

    def _envelope(self, kind: str) -> Record:
        return self._observer.envelope(kind)

    def _write_down(self, kind: str, fields: dict[str, Any]) -> int:
        """Record what somebody asked for; return the record's number."""
        return self._journal.append(self._envelope(kind) | fields)

    # -- starting

    def _resume(self, host: str) -> Observer:
        saved, problem = state.load(self.config.run_dir, self._ring_name)
        if saved is None:
            self._interest.clear()
            observer = Observer(self.config, host, self._loaded.boot_id)
            self._begin(observer, None, resumed=False)
            if problem is not None:
                self._append(self._gap(observer, "state-lost", problem))
            from agentwatch.observation import existing  # noqa: PLC0415 -- pyroute2 is large; a restart does without

            for record in existing.describe(observer, self.config, self._loaded):
                self._append(record)
        else:
            observer = saved.observer
            observer.tracker.config = self.config
            steps = observer.set_clock()
            self._ring.position = max(saved.position, self._ring.released)
            self._ledger = saved.ledger
            self._canary = saved.canary
            self._canary.forget()
            for session in observer.tracker.live():
                self._waiting.begin(session.agent, session.cgroup_id)
            self._search_from = saved.seq
            self._journal.numbers.update(saved.numbers)
            self._find_what_is_logged(saved.seq)
            self._begin(observer, saved.memory, resumed=True)
            for record in steps:
                self._append(record)
        return observer

    def _begin(self, observer: Observer, memory: Memory | None, *, resumed: bool) -> None:
        signed, torn_bytes = self._journal.signed, self._journal.writer.torn_bytes
        path = self.config.path
        content = path.read_bytes() if path is not None else b""
        digest = hashlib.sha256(content).hexdigest()
        fields = {
            "version": __version__,
            "config_sha256": digest,
            "probe_mode": self._loaded.probe_mode,
            "resumed": resumed,
            "torn_bytes": torn_bytes,
        }
        self._append(observer.envelope("observer_start") | fields)
        fields = {"path": None if path is None else str(path), "sha256": digest, "text": text(content)}
        self._append(observer.envelope("config") | fields)
        if signed.set_aside is not None:
            detail = f"{signed.set_aside.why}; it is in {signed.set_aside.path}, and this log begins anew"
            self._append(self._gap(observer, "log-set-aside", detail))
        if torn_bytes and not resumed:  # else the events are still in the ring and give the records again
            detail = f"{torn_bytes} bytes of an unfinished write were cut off the log and kept beside it"
            self._append(self._gap(observer, "torn-tail", detail, length=torn_bytes))
        for damage in signed.writer.damage:
            self._append(self._gap(observer, "log-damaged", str(damage)))
        self._watchdog = Watchdog(self.config, self._loaded, memory)
        for kind, told in self._watchdog.begin(_boottime(), max(0, self._loaded.loaded_at - observer.clock_offset)):
            self._append(observer.envelope(kind) | told)

    def _find_what_is_logged(self, seq: int) -> None:
        """Find the last event of which the log has records, how many it has, and the numbers within sessions."""
        # What is damaged there was declared when the log was opened.
        for _, payload in LogReader(self.config.log_dir).records(seq, on_damage=lambda _: None):
            record = decode(payload)
            self._journal.seen(record)
            position = record.get("event")
            if position is None or position < self._skip_position:
                continue
            self._skip_count = self._skip_count + 1 if position == self._skip_position else 1
            self._skip_position = position

    # -- running

    def run(self, should_stop: Callable[[], bool], on_ready: Callable[[], None]) -> None:
        """Record until ``should_stop``; then read what the ring still has, and say goodbye in the log."""
        self._journal.signed.sign()  # a log that cannot be written at the start is an error, not something to wait out
        self._save(time.monotonic_ns())
        on_ready()
        wait = SHORTEST_WAIT
        while not should_stop() and not self._journal.must_stop:
            busy = self._step()
            wait = SHORTEST_WAIT if busy else min(wait * 2, LONGEST_WAIT)
            if not busy:
                self._ring.wait(wait)
        self._canary_run.close()
        while not self._journal.full and self._step():
            pass
        self._tick(force=True)
        full = self._journal.must_stop
        if self._journal.farewell(lambda: self._observer.envelope("observer_stop") | {"version": __version__}):
            self._desk.answer(self._journal.writer.durable_seq)
            self._save(time.monotonic_ns())
        if full:
            raise StoreError(
                f"the disk of {self.config.log_dir} is full, and disk_full = 'stop': make space, start again"
            )

    def close(self) -> None:
        """Close everything; the log is whole."""
        self._canary_run.close()
        self._libraries.close()
        self._watchdog.close()
        self._waiting.close()
        self._desk.close()
        self._upkeep.close()
        self._journal.close()
        self._ring.close()
        self._interest.close()
        for descriptor in (self._ring_fd, self._counters_fd, self._losses_fd, self._lock):
            os.close(descriptor)

    def _step(self) -> bool:
        """Read one batch and do what is due; whether there was anything to read."""
        self._yield_or_hurry()
        batch = self._ring.read(0 if self._journal.crowded else BATCH_BYTES)
        for position, data in batch.events:
            if self._journal.wants_commit and not self._journal.commit(time.monotonic_ns(), everything=True):
                self._ring.position = position  # the rest of the batch is read again, when there is room for more
                break
            records = self._records_of(position, data)
            if position <= self._skip_position:
                records = self._not_logged(position, records)
            for record in records:
                self._append(record)
        now = time.monotonic_ns()
        if self._observer.flows.verdicts:
            self._tell_verdicts()
        self._desk.take(self._journal.fault)
        committed = self._journal.commit(now)
        self._desk.answer(self._journal.writer.durable_seq)
        self._journal.signed.tick(now)
        if now - self._ticked_at >= TICK_NS:
            self._tick()
        due = committed and (self._canary_run.wants_save or self._save_is_due(now))
        if due and self._journal.commit(now, everything=True):
            self._save(now)
        return bool(batch.events)

    def _tell_verdicts(self) -> None:
        """Tell the kernel which connections nobody reads."""
        verdicts = self._observer.flows.verdicts
        for transport, identity, interest in verdicts:
            self._interest.set(transport, identity, interest)
        verdicts.clear()

    def _yield_or_hurry(self) -> None:
        """Change our priority when the ring fills up or has emptied."""
        fill = self._ring.backlog / self._ring.size
        wanted = URGENT_NICE if fill > URGENT_FILL else MODEST_NICE if fill < MODEST_FILL else self._nice
        if wanted != self._nice:
            self._nice = wanted
            os.setpriority(os.PRIO_PROCESS, 0, wanted)

    def _records_of(self, position: int, data: bytes) -> list[Record]:
        event = abi.decode(data)
        if event is None:
            self._ledger.undecodable += 1
            return [self._gap(self._observer, "undecodable", f"event of {len(data)} bytes", position=position)]
        self._ledger.take(event.h)
        self._canary.see(event)
        try:
            records = self._observer.handle(position, event)
            if type(event) is abi.Mapped and (library := self._libraries.mapped(event)) is not None:
                records.append(self._observer.library(event, library) | {"event": position})
            return self._canary.withhold(records)
        except Exception as e:
            # A fault of ours on one event must not end the observation, nor meet the same event at each restart.
            log.exception("the event at ring position %d was not understood", position)
            detail = f"{type(event).__name__}: {type(e).__name__}: {e}"
            return [self._gap(self._observer, "internal-error", detail, position=position)]

    def _not_logged(self, position: int, records: list[Record]) -> list[Record]:
        """Return those of an event's records that the log does not have yet."""
        return records[self._skip_count :] if position == self._skip_position else []

    def _append(self, record: Record) -> None:
        if record["kind"] == "session_start":
            self._waiting.begin(record["agent"], record["cgroup_id"])
        self._journal.append(record)

    def _tick(self, *, force: bool = False) -> None:
        self._ticked_at = now = time.monotonic_ns()
        for record in self._observer.set_clock():
            self._append(record)
        self._observer.tracker.tidy()
        due = self._observer.tick(_boottime(), drained=self._ring.backlog == 0)
        for record in self._canary.withhold(due):
            self._append(record)
            if record["kind"] == "command_input":
                self._saved_position = -1  # no event tells a restart that this line was recorded: save
        self._look_after_ourselves(now)
        account = counters.read(self._counters_fd)
        drained = self._ring.backlog == 0  # after the counters: what they know of was read, then
        for missing in self._ledger.settle(account, counters.losses(self._losses_fd), drained=drained):
            for record in self._observer.lost(missing):
                self._append(record)
        self._upkeep.tick()
        crowded = self._ring.fill >= MODEST_FILL * self._ring.size
        self._waiting.tick(disk_full=self._journal.holds_agents, crowded=crowded)
        self._write_status(account)
        if now - self._beat_at >= HEARTBEAT_NS or self._journal.needs_trial or force:
            self._beat_at = now
            total = counters.total(account)
            fields = {"seen": total.seen, "submitted": total.submitted, "received": self._ledger.received}
            canary = {"sent": self._canary.sent, "seen": self._canary.seen, "last": self._canary.last}
            beat = {"monotonic": now, "counters": fields, "canary": canary}
            self._append(self._observer.envelope("heartbeat") | beat)

    def _look_after_ourselves(self, now: int) -> None:
        """Do what the watchdog and the canary have to do."""
        if now - self._watched_at >= WATCH_NS:
            self._watched_at = now
            if self._ring.backlog == 0:  # else what a process waits for may be next
                self._libraries.release()
            for fields in self._libraries.restore():
                self._append(self._observer.envelope("probe_detach") | fields)
            for kind, fields in self._watchdog.look(_boottime()):
                if kind == "probe_detach":
                    log.error("%s: %s: %s", fields["pin"], fields["what"], fields["detail"])
                self._append(self._observer.envelope(kind) | fields)
            self._loaded = self._watchdog.loaded
        position = self._ring.position
        for kind, fields in self._canary_run.tick(now, position, position + self._ring.backlog):
            if kind == "canary_missed":
                log.error("the canary was not seen: %s missing", ", ".join(fields["missing"]))
            self._append(self._observer.envelope(kind) | fields)

    def _gap(
        self, observer: Observer, cause: str, detail: str, *, length: int | None = None, position: int | None = None
    ) -> Record:
        fields = {"cause": cause, "count": None, "bytes": length, "detail": detail}
        return observer.envelope("gap") | fields | ({} if position is None else {"event": position})

    # -- what a restart needs

    def _save_is_due(self, now: int) -> bool:
        if self._ring.position == self._saved_position:
            return False
        since = now - self._saved_at
        if self._ring.position - self._ring.released > self._ring.size // 2:
            return since > self._save_cost
        return since > max(SAVE_NS, SAVE_COST * self._save_cost)

    def _save(self, now: int) -> None:
        """Save the state, then give the ring's space back. The log must be committed up to here."""
        position = self._ring.position
        if position > self._skip_position:  # else what a recorder before us wrote of these events still lies behind it
            self._search_from = self._journal.writer.next_seq
        state.save(
            self.config.run_dir,
            state.State(
                ring=self._ring_name,
                position=position,
                seq=self._search_from,
                ledger=self._ledger,
                observer=self._observer,
                canary=self._canary,
                memory=self._watchdog.memory,
                numbers=dict(self._journal.numbers),
            ),
        )
        self._ring.release(position)
        self._saved_position = position
        self._saved_at = now
        self._save_cost = time.monotonic_ns() - now
        self._canary_run.saved()
        self._write_status(counters.read(self._counters_fd))

    def _write_status(self, account: counters.Account) -> None:
        total = counters.total(account)
        unsigned = self._journal.signed.fault
        content = {
            "pid": os.getpid(),
            "seen": total.seen,
            "submitted": total.submitted,
            "lost": sum(total.lost),
            "held": total.held,
            "received": self._ledger.received,
            "undecodable": self._ledger.undecodable,
            "unaccounted": self._ledger.unaccounted,
            "counted_bytes": total.counted_bytes,
            "ring_position": self._ring.position,
            "recorded": self._journal.writer.durable_seq,
            **self._upkeep.status,
            "signed": signed.size if (signed := self._journal.signed.signed) else 0,
            "flows": len(self._observer.flows),
            "backlog_bytes": self._ring.backlog,
            "probe_mode": self._loaded.probe_mode,
            "fault": self._journal.fault or (unsigned and f"cannot sign the log: {unsigned}"),
            "detached": self._watchdog.detached,
            "canary": self._canary.status if self.config.canary_seconds else "off",
        }
        folder.replace_file(self.config.run_dir / STATUS_FILE, json.dumps(content).encode(), mode=0o600, gid=-1)


def _boottime() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _lock(run_dir: Path) -> int:
    descriptor = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(descriptor)
        raise BusyError(f"another recorder is running on {run_dir}; stop it first") from e
    return descriptor


def is_running(run_dir: Path) -> bool:
    """Whether a recorder holds the lock of this run_dir. Raises PrivilegeError where that cannot be seen."""
    try:
        return locks.is_held(run_dir / LOCK_FILE)
    except PermissionError as e:
        raise PrivilegeError(f"cannot look into {run_dir}: run as root") from e


def last_status(run_dir: Path) -> dict[str, Any]:
    """Return what the recorder last told about itself; empty if it never did. Raises PrivilegeError."""
    try:
        content: dict[str, Any] = json.loads((run_dir / STATUS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except PermissionError as e:
        raise PrivilegeError(f"cannot look into {run_dir}: run as root") from e
    return content
