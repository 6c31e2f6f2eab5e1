"""pgbench inside the watch over pgbench outside, and what the recorder used meanwhile."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    from bench.host import Server
    from tests.kernel.fix_watch import Watch

CLIENTS = 2
SCALE = 5
TRANSPORTS = ("tcp", "unix", "tls")
"""``tls`` is TCP with TLS 1.3."""
LOADS = {"select-only (-S)": ("-S",), "TPC-B": ()}
STATEMENTS = {"select-only (-S)": 1, "TPC-B": 7}
"""Statements of one transaction."""

_TPS = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)
_DONE = re.compile(r"^number of transactions actually processed: (\d+)", re.MULTILINE)


class Row(NamedTuple):
    """One load over one transport; the rates are transactions per second."""

    load: str
    transport: str
    outside: float
    inside: float
    ratios: list[float]
    recorder_cpu_us: float
    """Of one recorded statement, user and system time."""
    recorder_rss: int
    """Bytes resident at the end of the runs; the mapped ring, which the kernel owns, is among them."""
    recorder_private: int
    """Of these the ones that only the recorder has."""


class _Result(NamedTuple):
    tps: float
    transactions: int


def prepare(server: Server) -> None:
    """Make pgbench's tables."""
    words = [str(server.bin / "pgbench"), "-i", "-q", "-s", str(SCALE)]
    subprocess.run(words, check=True, capture_output=True, env=server.environment("unix"))


class Place(NamedTuple):
    """Where it is measured: an instance, a server, and the uid that the client has outside of the watch too."""

    watch: Watch
    server: Server
    uid: int


def measure(place: Place, pairs: int, seconds: int) -> list[Row]:
    """Run every load over every transport."""
    return [_measure(place, load, transport, pairs, seconds) for load in LOADS for transport in TRANSPORTS]


def _measure(place: Place, load: str, transport: str, pairs: int, seconds: int) -> Row:
    watch, server, uid = place
    words, environment = _words(server, load, seconds), server.environment(transport)
    assert watch.recorder is not None  # noqa: S101 - a recorder runs by construction
    recorder = psutil.Process(watch.recorder.pid)
    without, inside, cpu, transactions = [], [], 0.0, 0
    for number in range(pairs):
        print(f"{load}, {transport}: pair {number + 1} of {pairs}", file=sys.stderr, flush=True)
        without.append(_run_outside(words, environment, uid).tps)
        before = _cpu_seconds(recorder)
        result = _run_inside(watch, words, environment)
        cpu += _cpu_seconds(recorder) - before
        inside.append(result.tps)
        transactions += result.transactions
    return Row(
        load,
        transport,
        statistics.median(without),
        statistics.median(inside),
        [i / o for o, i in zip(without, inside, strict=True)],
        cpu / (transactions * STATEMENTS[load]) * 1e6,
        recorder.memory_info().rss,
        recorder.memory_full_info().uss,
    )


def outside(server: Server, uid: int, load: str, transport: str, seconds: int) -> float:
    """Run a load outside of the watch; return its transactions per second."""
    return _run_outside(_words(server, load, seconds), server.environment(transport), uid).tps


def _words(server: Server, load: str, seconds: int) -> list[str]:
    return [str(server.bin / "pgbench"), "-n", "-c", str(CLIENTS), "-T", str(seconds), *LOADS[load]]


def _run_outside(words: list[str], environment: dict[str, str], uid: int) -> _Result:
    # As the same user, but not under the watch root.
    done = subprocess.run(
        words, check=True, capture_output=True, text=True, env=environment, user=uid, group=uid, extra_groups=[]
    )
    return _result(done.stdout)


def _run_inside(watch: Watch, words: list[str], environment: dict[str, str]) -> _Result:
    run = watch.run(*words, env=environment)
    if unread := watch.session(run.session)["opaque_bytes"]:
        raise RuntimeError(f"{unread} bytes of pgbench's were not read: its rate is none of recorded statements")
    return _result(run.stdout)


def _result(output: str) -> _Result:
    tps, transactions = _TPS.search(output), _DONE.search(output)
    if tps is None or transactions is None:
        raise ValueError(f"pgbench did not say how fast it was: {output}")
    return _Result(float(tps[1]), int(transactions[1]))


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
