"""What it costs to write the log: appending, checkpoints, epochs, and opening a large one."""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.log import checkpoint, note, segment
from agentwatch.log.keys import KeyFolder
from agentwatch.log.signed import Options, SignedLog
from agentwatch.log.writer import LogWriter
from bench.timing import in_turn, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BATCHES = (1, 64, 1024)
"""Records of one commit."""
RUN_SECONDS = 1.5
"""Of each run: three checkpoints."""
MORE_RECORDS = 64
"""Between two checkpoints of which the time is taken."""
CHECKPOINTS = 50
OPTIONS = Options("db-agents-1")


class Append(NamedTuple):
    """Records a second at so many records a commit, of each run.

    ``bare``: the same frames into a plain file, with fdatasync. ``segments``: without a tree. ``signed``: with tree and
    checkpoints, as the recorder. ``always``: with a checkpoint after each commit. CPU: microseconds a record.
    """

    batch: int
    bare: list[float]
    segments: list[float]
    signed: list[float]
    always: list[float]
    segments_cpu_us: float
    signed_cpu_us: float


class Signing(NamedTuple):
    """Seconds of each checkpoint (``MORE_RECORDS`` records after the one before), check and change of keys; bytes."""

    checkpoints: list[float]
    checks: list[float]
    epochs: list[float]
    checkpoint_bytes: int
    epoch_bytes: int


class Opening(NamedTuple):
    """Seconds that opening a log of so many records took: as it was left, and without its tiles."""

    records: int
    whole: list[float]
    without_tiles: list[float]


def append(payloads: Sequence[bytes], batch: int, runs: int) -> Append:
    """Append for some time in each of the ways."""
    cpu: dict[str, list[float]] = {}

    def run(kind: str) -> float:
        with tempfile.TemporaryDirectory() as root:
            batches = _Batches(payloads, batch)
            begin, cpu_begin = time.monotonic(), time.process_time()
            _WAYS[kind](Path(root), batches)
            took = time.monotonic() - begin
            cpu.setdefault(kind, []).append((time.process_time() - cpu_begin) / batches.taken * 1e6)
            return batches.taken / took

    rates = in_turn(runs, {kind: partial(run, kind) for kind in _WAYS})
    segments_us, signed_us = (statistics.median(cpu[kind]) for kind in ("segments", "signed"))
    return Append(batch, **rates, segments_cpu_us=segments_us, signed_cpu_us=signed_us)


class _Batches:
    """Batches of payloads, without end, for ``RUN_SECONDS``."""

    def __init__(self, payloads: Sequence[bytes], size: int) -> None:
        self._endless = itertools.cycle(payloads)
        self._size = size
        self._limit = time.monotonic() + RUN_SECONDS
        self.taken = 0

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> list[bytes]:
        if time.monotonic() >= self._limit:
            raise StopIteration
        self.taken += self._size
        return list(itertools.islice(self._endless, self._size))


def _bare(root: Path, batches: _Batches) -> None:
    seed, seq = segment.seed(bytes(segment.LOG_ID_BYTES)), itertools.count()
    with (root / "file").open("wb", buffering=0) as file:
        for batch in batches:
            file.write(b"".join(segment.frame(payload, next(seq), seed) for payload in batch))
            os.fdatasync(file.fileno())


def _segments(root: Path, batches: _Batches) -> None:
    with LogWriter(root / "log") as writer:
        for batch in batches:
            for payload in batch:
                writer.append(payload)
            writer.commit()


def _signed(root: Path, batches: _Batches) -> None:
    with SignedLog(root / "log", root / "keys", OPTIONS) as log:
        for batch in batches:
            for payload in batch:
                log.writer.append(payload)
            log.writer.commit()
            log.tick(time.monotonic_ns())


def _always(root: Path, batches: _Batches) -> None:
    with SignedLog(root / "log", root / "keys", OPTIONS) as log:
        for batch in batches:
            for payload in batch:
                log.writer.append(payload)
            log.sign()


_WAYS: dict[str, Callable[[Path, _Batches], None]] = {
    "bare": _bare,
    "segments": _segments,
    "signed": _signed,
    "always": _always,
}


def sign(payloads: Sequence[bytes], *, post_quantum: bool) -> Signing:
    """Make checkpoints and change keys, with Ed25519 alone or with ML-DSA-44 beside it."""
    options = OPTIONS._replace(post_quantum=post_quantum)
    endless = itertools.cycle(payloads)
    with tempfile.TemporaryDirectory() as root:
        log_dir, keys = Path(root, "log"), Path(root, "keys")
        checkpoints, checks = [], []
        with SignedLog(log_dir, keys, options) as log:
            current = KeyFolder(keys).load()
            public = current.public if current is not None else ()
            for _ in range(CHECKPOINTS):
                for payload in itertools.islice(endless, MORE_RECORDS):
                    log.writer.append(payload)
                log.writer.commit()
                checkpoints.append(seconds(log.sign))
                signed = note.parse((log_dir / checkpoint.FILE).read_bytes())
                checks.append(seconds(partial(note.verify, signed, public)))
            size = (log_dir / checkpoint.FILE).stat().st_size
        with SignedLog(log_dir, keys, options._replace(epoch_ns=0)) as log:
            # Of a moment at which no checkpoint is due.
            epochs = [seconds(partial(log.tick, 0)) for _ in range(CHECKPOINTS)]
        last = max((log_dir / "epochs").iterdir())
        return Signing(checkpoints, checks, epochs, size, last.stat().st_size)


def opening(root: Path, records: int, payload: bytes, runs: int) -> Opening:
    """Open the log in ``root``. A record is added each time that its tiles were removed."""
    whole, without = [], []
    for _ in range(runs):
        begin = time.monotonic()
        with SignedLog(root / "log", root / "keys", OPTIONS):
            whole.append(time.monotonic() - begin)
        shutil.rmtree(root / "log" / "tile")
        begin = time.monotonic()
        with SignedLog(root / "log", root / "keys", OPTIONS) as log:
            without.append(time.monotonic() - begin)
            log.writer.append(payload)
    return Opening(records, whole, without)
