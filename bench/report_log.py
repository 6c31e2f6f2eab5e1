"""The section of the page about the log by itself."""

from __future__ import annotations

import os
import statistics
from typing import TYPE_CHECKING

from bench.log import EVERY
from bench.log_writing import CHECKPOINTS, MORE_RECORDS
from bench.report import spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.log import Measured
    from bench.log_reading import Reading
    from bench.log_writing import Append, Signing

_MIB = 1 << 20
_MS, _US = 1e3, 1e6

_HEAD = """
## The log

No probes and no recorder here. The records are what the observer makes of the events in tests/golden/events (psql,
pgbench with prepared statements, some commands: 67 records), over and over, each time with other times, durations,
pids, cookies, ports and parameters, half of the prepared statements being some of tests/golden/sql/corpus.sql: on
average {mean:.0f} bytes. Figures are medians, with the smallest and the largest.

### Appending

Records a second that are durable, by records in one commit. "A file" is the same frames appended to a plain file with
fdatasync: what the disk can do. "Segments" is the log without a tree; "signed" is what the recorder does: a tree, and a
checkpoint each half second; the last column has a checkpoint after each commit.

| a commit | a file | segments | signed | signed/segments | CPU per record, segments and signed | checkpoint each time |
|---|---|---|---|---|---|---|
"""

_SIGNING = """
### Signing

Of {count} each. A checkpoint is one of {more} more records that are durable already: tiles, signature, fdatasync.

| what | Ed25519 | with ML-DSA-44 |
|---|---|---|
"""

_READING = """
### Verifying and reading

Records a second; of one core's time, whatever else runs, but for those on all {cores} cores and agentwatch_verify.py,
which are whole runs by the clock. "With what is missing" is what `agentwatch verify` does.

| what | records in the log | segments | compressed | compressed/segments |
|---|---|---|---|---|
"""


def section(found: Measured) -> str:
    """Return the section as Markdown."""
    parts = [_HEAD.format(mean=found.mean_bytes), *map(_append, found.appends)]
    parts += [_SIGNING.format(count=CHECKPOINTS, more=MORE_RECORDS), _signing(found.ed25519, found.post_quantum)]
    parts += [_READING.format(cores=len(os.sched_getaffinity(0))), *map(_reading, found.readings)]
    return "".join([*parts, _rest(found)])


def _append(row: Append) -> str:
    ratios = [signed / segments for signed, segments in zip(row.signed, row.segments, strict=True)]
    return (
        f"| {row.batch:,} | {_rate(row.bare)} | {_rate(row.segments)} | {_rate(row.signed)} | {spread(ratios)} |"
        f" {row.segments_cpu_us:.1f} and {row.signed_cpu_us:.1f} µs | {_rate(row.always)} |\n"
    )


def _signing(plain: Signing, both: Signing) -> str:
    both_ways = (plain, both)
    rows = (
        ("checkpoint", [f"{_times(way.checkpoints, _MS)} ms" for way in both_ways]),
        ("its size", [f"{way.checkpoint_bytes:,} bytes" for way in both_ways]),
        ("check of its signatures", [f"{_times(way.checks, _US, 0)} µs" for way in both_ways]),
        ("change of keys: record, certificate, files", [f"{_times(way.epochs, _MS)} ms" for way in both_ways]),
        ("its record", [f"{way.epoch_bytes:,} bytes" for way in both_ways]),
    )
    return "".join(f"| {what} | {' | '.join(figures)} |\n" for what, figures in rows)


def _reading(row: Reading) -> str:
    ratios = [packed / plain for packed, plain in zip(row.packed, row.plain, strict=True)]
    return f"| {row.what} | {row.records:,} | {_rate(row.plain)} | {_rate(row.packed)} | {spread(ratios)} |\n"


def _rest(found: Measured) -> str:
    packed, bundle, redacted, opening = found.packed, found.bundle, found.redacted, found.opening
    smaller = f"{packed.plain_bytes / packed.packed_bytes:.1f} times smaller"
    sealed = f"{spread([rate / _MIB for rate in packed.rates], 0)} MiB/s"
    return f"""
### Compression, evidence and the rest

| what | figure |
|---|---|
| sealing {packed.plain_bytes / _MIB:,.0f} MiB: zstd, compared, durable | {smaller}, {sealed} |
| evidence of {bundle.records:,} records in {bundle.of:,} (each {EVERY}th) | {bundle.bytes / _MIB:.1f} MiB, \
proofs of {bundle.proof_bytes / _MIB:.1f} MiB deflated with them |
| `agentwatch evidence` | {spread(bundle.made)} s |
| of that, {bundle.records:,} inclusion proofs | {spread(bundle.proved)} s |
| agentwatch_verify.py of the bundle | {spread(bundle.verified)} s |
| opening a log of {opening.records:,} records to write | {spread(opening.whole, 3)} s |
| the same when its tiles are gone | {spread(opening.without_tiles)} s |
| `agentwatch index rebuild` of {found.small:,} records | {_rate(found.indexed)} records/s |
| `agentwatch push` of them to a collector on the loopback | {_rate(found.pushed)} records/s |
| looking for credentials ({redacted.changed} of {redacted.records:,} records have one), statements that come again |\
 {spread(redacted.again_ns, 0)} ns a record |
| the same, statements never seen before | {spread(redacted.new_ns, 0)} ns a record |
"""


def _rate(rates: Sequence[float]) -> str:
    return spread(rates, 0)


def _times(seconds: Sequence[float], unit: float, places: int = 1) -> str:
    """Return the median, with the tenth and the ninetieth of a hundred: single ones may wait for the disk."""
    tenths = statistics.quantiles(seconds, n=10)
    middle = statistics.median(seconds)
    return f"{middle * unit:,.{places}f} ({tenths[0] * unit:,.{places}f}-{tenths[-1] * unit:,.{places}f})"
