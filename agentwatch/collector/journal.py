"""Where the collector says what happened: records in a log of its own, signed as a host's is.

Kinds: ``host_enrolled``, ``host_refused``, ``host_silent``, ``host_back``.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agentwatch.errors import StoreError
from agentwatch.records import encoding

if TYPE_CHECKING:
    from agentwatch.log.signed import SignedLog

log = logging.getLogger(__name__)


class Journal(Protocol):
    """Takes records. May be called by several threads."""

    def append(self, kind: str, fields: encoding.Record) -> None:
        """Take a record: durable when this returns, or as soon as the disk takes it. Raises StoreError if never."""

    def tick(self) -> None:
        """Do what is due: to be called at least once a second."""


class LogJournal:
    """A journal in a signed log."""

    def __init__(self, signed: SignedLog, host: str) -> None:
        """``host`` is the name of this host, for the records."""
        self._signed = signed
        self._envelope = {
            "host": host,
            "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        }
        self._lock = threading.Lock()

    def append(self, kind: str, fields: encoding.Record) -> None:
        """Take a record and make it durable."""
        times = {"time": time.time_ns(), "boottime": time.clock_gettime_ns(time.CLOCK_BOOTTIME)}
        payload = encoding.encode({"kind": kind, **times, **self._envelope, **fields})
        with self._lock:
            self._signed.writer.append(payload, critical=True)
            self._commit()

    def tick(self) -> None:
        """Write what the disk did not take before, and sign."""
        with self._lock:
            self._commit()
            self._signed.tick(time.monotonic_ns())

    def close(self) -> None:
        """Sign and close the log. Raises StoreError."""
        with self._lock:
            self._signed.close()

    def _commit(self) -> None:
        try:
            self._signed.writer.commit_if_due(time.monotonic_ns())
        except StoreError as e:
            # It waits in memory: the next tick tries again.
            log.error("%s", e)  # noqa: TRY400 -- one line for the operator
