"""The hosts that a collector knows: their folders, and which of them are silent.

A log belongs to one host: the origin under which one was enrolled is refused from another. Silence is that no
*larger* tree was accepted for ``silent_seconds``. That somebody is connected says nothing: what pushes may live when
what records is dead.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from agentwatch.collector.store import Host
from agentwatch.collector.trust import IDENTITY, Refusal
from agentwatch.errors import LogError, StoreError
from agentwatch.log import epochs, folder

if TYPE_CHECKING:
    from pathlib import Path

    from agentwatch.collector.connection import Connection
    from agentwatch.collector.journal import Journal
    from agentwatch.log.access import Access
    from agentwatch.records.encoding import Record

log = logging.getLogger(__name__)

MAX_HOSTS = 4096
"""Each costs some open files and the keys of its epochs."""
REFUSALS_NS = 60 * 10**9
"""One record for a host and a reason in this time: who tries again and again does not fill the collector's log."""
LOCK_SECONDS = 0.1
"""To wait for a host that is being heard; for the alarm it is looked at again a second later."""
MAX_REFUSALS = 4096
"""Kinds of refusals remembered; beyond that the oldest is forgotten, and may be recorded again sooner."""


class Known:
    """A host, who uses it, and when its log last grew."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.lock = threading.RLock()
        """Held for each message: one connection at a time uses the host."""
        self.user: Connection | None = None
        """The connection that may."""
        self.grown_ns = _now_ns()
        self.silent = host.silent

    def take_over(self, connection: Connection) -> None:
        """Let a newer connection use the host; the one before ends, which may only look alive."""
        before, self.user = self.user, connection
        if before is not None:
            before.abort()


class Hosts:
    """All hosts. May be used by several threads."""

    def __init__(self, hosts_dir: Path, access: Access, journal: Journal) -> None:
        """Read what is kept of every host; one of whom that is damaged is passed over, and cannot connect.

        Raises StoreError, PrivilegeError.
        """
        self._hosts_dir = hosts_dir
        self._access = access
        self._journal = journal
        self._lock = threading.Lock()
        self._refused: dict[tuple[str, str], tuple[int, int]] = {}
        try:
            access.make_folder(hosts_dir)
            names = sorted(path for path in hosts_dir.iterdir() if (path / epochs.IDENTITY_FILE).exists())
        except OSError as e:
            raise folder.failure(e, f"cannot list the hosts in {hosts_dir}") from e
        self._known: dict[str, Known] = {}
        for path in names:
            try:
                self._known[path.name] = Known(Host(path, access))
            except LogError as e:
                log.error("the host %s is not watched: %s", path.name, e)  # noqa: TRY400 -- one line for the operator

    def get(self, name: str) -> Known:
        """Return the host of this name, known or new. Raises LogError where what is kept is damaged, StoreError."""
        with self._lock:
            known = self._known.get(name)
            if known is None:
                if len(self._known) >= MAX_HOSTS:
                    raise StoreError(f"{MAX_HOSTS} hosts are known; remove folders of old ones from {self._hosts_dir}")
                known = self._known[name] = Known(Host(self._hosts_dir / name, self._access))
            return known

    def enrol(self, known: Known, address: str) -> None:
        """Record that a host's first epoch is accepted. Raises Refusal if its log is another host's."""
        host = known.host
        with self._lock:
            for other in self._known.values():
                if other is not known and other.host.enrolled and other.host.origin == host.origin:
                    raise Refusal(IDENTITY, f"the log {host.origin} is that of the host {other.host.name}")
            fields = {"name": host.name, "origin": host.origin, "identity": host.identity, "address": address}
            self._journal.append("host_enrolled", fields)

    def grew(self, known: Known) -> None:
        """Note that a larger tree of a host was accepted. Raises StoreError."""
        silent_ns = _now_ns() - known.grown_ns
        known.grown_ns = _now_ns()
        if known.silent:
            self._journal.append(
                "host_back", {"name": known.host.name, "size": known.host.size, "silent_ns": silent_ns}
            )
            known.host.silent = known.silent = False

    def refused(self, name: str, refusal: Refusal, address: str) -> None:
        """Record a refusal, unless the same was recorded a moment ago. Raises StoreError."""
        key = (name, refusal.reason)
        with self._lock:
            recorded_ns, omitted = self._refused.pop(key, (None, 0))
            now_ns = _now_ns()
            if recorded_ns is not None and now_ns - recorded_ns < REFUSALS_NS:
                self._refused[key] = (recorded_ns, omitted + 1)
                return
            self._refused[key] = (now_ns, 0)
            if len(self._refused) > MAX_REFUSALS:
                del self._refused[next(iter(self._refused))]
        fields: Record = {"name": name, "reason": refusal.reason, "message": str(refusal), "address": address}
        if omitted:
            fields["omitted"] = omitted
        if refusal.evidence:
            fields["checkpoint"] = refusal.evidence
        self._journal.append("host_refused", fields)

    def watch(self, silent_ns: int) -> None:
        """Raise the alarm for hosts whose log has not grown for so long. Raises StoreError."""
        with self._lock:
            every = list(self._known.values())
        for known in every:
            # A host whose lock is taken is being heard at this moment; the next turn looks again.
            if known.lock.acquire(timeout=LOCK_SECONDS):
                try:
                    self._watch(known, silent_ns)
                finally:
                    known.lock.release()

    def _watch(self, known: Known, silent_ns: int) -> None:
        for_ns = _now_ns() - known.grown_ns
        if known.host.enrolled and not known.silent and for_ns >= silent_ns:
            fields = {"name": known.host.name, "size": known.host.size, "silent_ns": for_ns}
            self._journal.append("host_silent", fields)
            log.warning("%s has said nothing new for %d s", known.host.name, for_ns // 10**9)
            known.host.silent = known.silent = True

    def close(self) -> None:
        """Let go of all hosts' folders."""
        for known in self._known.values():
            with known.lock:
                known.host.close()


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
