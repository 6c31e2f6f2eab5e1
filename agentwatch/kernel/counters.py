"""The kernel's own account of what it captured and lost: counters for each program and CPU, losses for each cgroup."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import NamedTuple

from agentwatch.kernel import abi, bpf

CAUSES = tuple(cause.name.removeprefix("LOST_").lower() for cause in abi.Lost if cause is not abi.Lost.LOST_COUNT)
PROGRAMS = tuple(p for p in abi.Program if p is not abi.Program.P_COUNT)
MAX_LOSSES = 16384
"""Entries of the ``losses`` map, as in probes/maps.h."""


class Counters(NamedTuple):
    """One program's account, or the sum of several; ``lost`` and ``lost_bytes`` by cause.

    ``seen == submitted + sum(lost)``, always. ``held`` counts refused packets and stopped processes.
    """

    seen: int
    submitted: int
    lost: tuple[int, ...]
    lost_bytes: tuple[int, ...]
    held: int
    counted_bytes: int


class Loss(NamedTuple):
    """What one program lost of one cgroup for one reason since the load. Times are CLOCK_BOOTTIME, ns."""

    cgroup: int
    program: int
    cause: int
    events: int
    bytes: int
    first: int
    last: int


Account = dict[tuple[int, int], Counters]
"""(program, CPU) -> its counters."""


def read(fd: int) -> Account:
    """Return the counters of each program on each CPU, from the descriptor of the ``counters`` map."""
    cpus = possible_cpus()
    result = {}
    for program in PROGRAMS:
        raw = bpf.map_lookup(fd, struct.pack("<I", program), cpus * abi.COUNTERS.size) or b""
        for cpu, values in enumerate(abi.COUNTERS.iter_unpack(raw)):
            result[int(program), cpu] = _counters(values)
    return result


def _counters(values: tuple[int, ...]) -> Counters:
    causes = len(CAUSES)
    return Counters(values[0], values[1], values[2 : 2 + causes], values[2 + causes : 2 + 2 * causes], *values[-2:])


def of_program(account: Account, program: int) -> Counters:
    """Return the sum over all CPUs of a program."""
    return _sum([c for (p, _), c in account.items() if p == program])


def total(account: Account) -> Counters:
    """Return the sum over everything."""
    return _sum(list(account.values()))


def _sum(values: list[Counters]) -> Counters:
    return Counters(
        sum(c.seen for c in values),
        sum(c.submitted for c in values),
        tuple(sum(c.lost[i] for c in values) for i in range(len(CAUSES))),
        tuple(sum(c.lost_bytes[i] for c in values) for i in range(len(CAUSES))),
        sum(c.held for c in values),
        sum(c.counted_bytes for c in values),
    )


def losses(fd: int) -> list[Loss]:
    """Return whose events were lost, from the descriptor of the ``losses`` map."""
    items = bpf.map_items(fd, abi.LOSS_KEY.size, abi.LOSS.size, MAX_LOSSES)
    return [Loss(*abi.LOSS_KEY.unpack(key), *abi.LOSS.unpack(value)) for key, value in items]


def possible_cpus() -> int:
    """Return how many CPUs a per-CPU map has room for."""
    try:
        text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    except OSError:
        return os.cpu_count() or 1
    return int(re.split(r"[-,]", text)[-1]) + 1
