"""The page of figures: what was measured, by which command, on what kind of machine."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from bench.throughput import CLIENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.drain import Drained
    from bench.limits import Payload, Rate, Rows
    from bench.throughput import Row

_HEAD = """\
# Performance

Made by `{command}`; run it on your own machine, where the figures will be others.

{machine}
"""

_CLIENTS = """
## Cost to the agent's clients

pgbench with {clients} clients in the watch ("inside", every statement and its outcome in the log) and as the same user
outside of it, runs interleaved. The ratio is the median over the pairs of runs, with the smallest and the largest.
Over "tls", which is TCP with TLS 1.3, the statements are read at the functions of libssl; PostgreSQL uses the same
file, so its calls meet the probes too, outside as inside.
Resident memory holds the ring, which is mapped; private is what the recorder alone has.
The recorder steps back while the ring has room, so part of its work falls after a run: its CPU per statement counts all
of it, and its inverse is the rate that one core sustains.

| load | transport | outside, tps | inside, tps | inside/outside | recorder CPU per statement | recorder RSS (private) |
|---|---|---|---|---|---|---|
"""


def machine(postgresql: str | None) -> str:
    """Describe the machine in a line, without its name; with the version of the server, if there is one."""
    kernel = ".".join(platform.release().split(".")[:2])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    server = f"PostgreSQL {postgresql} on the same machine, " if postgresql else ""
    return (
        f"{os.cpu_count()} cores ({_cpu_model()}), {memory:.0f} GiB, Linux {kernel}, {system}, "
        f"{server}Python {platform.python_version()}."
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def head(command: str, postgresql: str | None) -> str:
    """Return the top of the page."""
    return _HEAD.format(command=command, machine=machine(postgresql))


def clients(rows: Sequence[Row]) -> str:
    """Return the part of the page about pgbench."""
    lines = [
        f"| {row.load} | {row.transport} | {row.outside:,.0f} | {row.inside:,.0f} |"
        f" {spread(row.ratios)} |"
        f" {row.recorder_cpu_us:.0f} µs | {row.recorder_rss / 2**20:.0f} ({row.recorder_private / 2**20:.0f}) MiB |\n"
        for row in rows
    ]
    return "".join([_CLIENTS.format(clients=CLIENTS), *lines])


def spread(figures: Sequence[float], places: int = 2) -> str:
    """Return the median, with the smallest and the largest."""
    middle, least, most = (f"{f:,.{places}f}" for f in (statistics.median(figures), min(figures), max(figures)))
    return f"{middle} ({least}-{most})"


def recorder(load_seconds: float, drained: Drained) -> str:
    """Return the part of the page about loading, and about what follows a load."""
    took = drained.recorder_seconds
    rate = drained.records / took
    index_rate = drained.records / drained.index_seconds
    return f"""
## The recorder and the index

| what | figure |
|---|---|
| `agentwatch probes load`: compile, attach, pin | {load_seconds:.1f} s |
| events that waited in the ring for a recorder | {drained.events:,} ({drained.lost:,} lost) |
| from ready to {drained.records:,} records logged | {took:.1f} s, {rate:,.0f} records/s |
| `agentwatch index` of those records | {drained.index_seconds:.1f} s, {index_rate:,.0f} records/s |
"""


def payload(file: Payload, result: Rows) -> str:
    """Return the part of the page about payload that nobody reads."""
    return f"""
## Payload that nobody reads

| what | bytes | outside | inside | inside/outside | ring |
|---|---|---|---|---|---|
| a file over HTTP | {file.bytes:,} | {file.outside:.1f} s | {file.inside:.1f} s |\
 {file.outside / file.inside:.2f} | {file.ring:,} bytes |
| `SELECT` of {result.rows:,} rows ({result.recorded:,} recorded) | {result.bytes:,} | {result.outside:.1f} s |\
 {result.inside:.1f} s | {result.outside / result.inside:.2f} | {result.ring:,} bytes |

The file passes at full speed while the recorder has not seen its beginning yet: most of its ring bytes are of those
milliseconds. The times of `SELECT` hold the start of psql, and inside that of `agentwatch run`.
"""


def rates(found: Sequence[Rate]) -> str:
    """Return the part of the page about what the ring can take."""
    lines = [
        """
## Rates

Two processes that run `/bin/true`, or send 64 bytes of SQL over TCP, evenly; the ring has its default size. What
is lost is declared in the log.

| load | wanted | reached | events | lost |
|---|---|---|---|---|
"""
    ]
    lines += [
        f"| {rate.kind} | {f'{rate.wanted:,}/s' if rate.wanted else 'all'} | {rate.reached:,.0f}/s |"
        f" {rate.events:,} | {rate.lost:,} |\n"
        for rate in found
    ]
    return "".join(lines)
