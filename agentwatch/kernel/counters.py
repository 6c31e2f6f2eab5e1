"""The kernel's own account of what it captured: the per-CPU counters, summed."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import NamedTuple

from agentwatch.kernel import abi, bpf

_CAUSES = tuple(cause.name.removeprefix("LOST_").lower() for cause in abi.Lost if cause is not abi.Lost.LOST_COUNT)
PROGRAMS = tuple(p for p in abi.Program if p is not abi.Program.P_COUNT)


class Counters(NamedTuple):
    """One program's account, or the sum of all; ``lost`` and ``lost_bytes`` by cause.

    ``seen == submitted + sum(lost)``, always.
    """

    seen: int
    submitted: int
    lost: tuple[int, ...]
    lost_bytes: tuple[int, ...]
    held: int
    counted_bytes: int


CAUSES = _CAUSES


def read(fd: int) -> dict[str, Counters]:
    """Return the counters of each program, from the descriptor of the ``counters`` map."""
    cpus = possible_cpus()
    result = {}
    for program in PROGRAMS:
        raw = bpf.map_lookup(fd, struct.pack("<I", program), cpus * abi.COUNTERS.size) or b""
        columns = list(zip(*abi.COUNTERS.iter_unpack(raw), strict=True)) or [(0,)] * (4 + 2 * len(_CAUSES))
        sums = [sum(column) for column in columns]
        causes = len(_CAUSES)
        result[program.name.removeprefix("P_").lower()] = Counters(
            sums[0], sums[1], tuple(sums[2 : 2 + causes]), tuple(sums[2 + causes : 2 + 2 * causes]), *sums[2 + 2 * causes :]
        )
    return result


def total(counters: dict[str, Counters]) -> Counters:
    """Return the sum over all programs."""
    values = counters.values()
    return Counters(
        sum(c.seen for c in values),
        sum(c.submitted for c in values),
        tuple(sum(c.lost[i] for c in values) for i in range(len(_CAUSES))),
        tuple(sum(c.lost_bytes[i] for c in values) for i in range(len(_CAUSES))),
        sum(c.held for c in values),
        sum(c.counted_bytes for c in values),
    )


def possible_cpus() -> int:
    """Return how many CPUs a per-CPU map has room for."""
    try:
        text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    except OSError:
        return os.cpu_count() or 1
    return int(re.split(r"[-,]", text)[-1]) + 1
