"""The log by itself, without probes, a recorder or a server: writing, checking, evidence, and what is beside it.

In: sizes. Out: figures of each run. Logs are made with the writer that the recorder has, of records of a real run
(log_records.py), under a temporary folder: the disk below that one is what is measured.
"""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.log.signed import SignedLog
from agentwatch.records.encoding import encode
from bench import log_reading, log_writing
from bench.log_records import Records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.log_reading import Bundle, Packed, Reading, Redacted
    from bench.log_writing import Append, Opening, Signing

SESSION = "0192f1c0-0000-7000-8000-00000000c0de"
SESSION_RECORDS = 10_000
EVERY = 11
"""So many records of the smaller log are one of that session's."""
SAMPLE = 20_000
"""Records that are kept in memory, to be appended again and again."""
COMMIT_RECORDS = 1024


class Sizes(NamedTuple):
    """Runs of each measurement; records of the larger log."""

    runs: int
    records: int


class Measured(NamedTuple):
    """The section's figures. ``mean_bytes``: of a record. ``small``: records of the log with the session."""

    mean_bytes: float
    small: int
    appends: list[Append]
    ed25519: Signing
    post_quantum: Signing
    readings: list[Reading]
    packed: Packed
    bundle: Bundle
    indexed: list[float]
    pushed: list[float]
    redacted: Redacted
    opening: Opening


def measure(sizes: Sizes, progress: Callable[[str], None]) -> Measured:
    """Measure everything: ten minutes with a million records and three runs."""
    sample = list(Records().payloads(SAMPLE))
    with tempfile.TemporaryDirectory(prefix="agentwatch-bench-") as root:
        small, large = Path(root, "small"), Path(root, "large")
        progress("appending")
        appends = [log_writing.append(sample, batch, sizes.runs) for batch in log_writing.BATCHES]
        ed25519 = log_writing.sign(sample, post_quantum=False)
        post_quantum = log_writing.sign(sample, post_quantum=True)
        progress(f"logs of {EVERY * SESSION_RECORDS:,} and {sizes.records:,} records")
        _make(small, _with_session(Records()))
        _make(large, Records().payloads(sizes.records))
        progress("compressing, reading, verifying")
        packed = log_reading.packed_copy(large, Path(root, "large-packed"), sizes.runs)
        log_reading.packed_copy(small, Path(root, "small-packed"), 1)
        readings = [
            log_reading.reading(what, log / "log", log.with_name(f"{log.name}-packed") / "log", sizes.runs)
            for what, log in {
                log_reading.VERIFY: large,
                log_reading.COMPLETE: large,
                log_reading.TOGETHER: large,
                log_reading.IN_ORDER: large,
                log_reading.ANYWHERE: large,
                log_reading.ALONE: small,
            }.items()
        ]
        progress("index, evidence, collector")
        indexed = log_reading.index(small, sizes.runs)
        bundle = log_reading.bundle(small, SESSION, sizes.runs)
        pushed = log_reading.push(small, sizes.runs)
        progress("credentials, opening")
        redacted = log_reading.redact(sample, sizes.runs)
        opening = log_writing.opening(large, sizes.records, sample[0], sizes.runs)
    return Measured(
        sum(map(len, sample)) / len(sample),
        EVERY * SESSION_RECORDS,
        appends,
        ed25519,
        post_quantum,
        readings,
        packed,
        bundle,
        indexed,
        pushed,
        redacted,
        opening,
    )


def _with_session(records: Records) -> Iterator[bytes]:
    others = records.payloads((EVERY - 1) * SESSION_RECORDS)
    for record in records.session(SESSION_RECORDS, SESSION):
        yield from islice(others, EVERY - 1)
        yield encode(record)


def _make(root: Path, payloads: Iterator[bytes]) -> None:
    root.mkdir()
    with SignedLog(root / "log", root / "keys", log_writing.OPTIONS) as log:
        while batch := list(islice(payloads, COMMIT_RECORDS)):
            for payload in batch:
                log.writer.append(payload)
            log.writer.commit()
