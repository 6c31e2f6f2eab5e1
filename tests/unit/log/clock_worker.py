"""A recorder whose wall clock somebody sets: argv is a folder, the length of an epoch in nanoseconds, then by how many
seconds the clock is off in each of its runs.

Nothing but the wall clock of this process is another one. It writes records as the recorder does: a start, heartbeats
with CLOCK_MONOTONIC in them, a stop; a heartbeat a minute, by a clock that is as far ahead as it says.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from agentwatch.log.signed import BOOT_ID, Options, SignedLog
from agentwatch.records.completeness import HEARTBEAT_NS
from agentwatch.records.encoding import encode

BEATS = 5


def run(root: Path, options: Options, monotonic_ns: int) -> int:
    """Let a recorder run for some minutes; return its clock at the end."""
    boot_id = BOOT_ID.read_text().strip()

    def record(kind: str, **more: object) -> bytes:
        return encode({"kind": kind, "time": time.time_ns(), "boot_id": boot_id, **more})

    with SignedLog(root / "log", root / "keys", options) as log:
        log.writer.append(record("observer_start", resumed=True))
        for beat in range(BEATS):
            monotonic_ns += HEARTBEAT_NS
            log.writer.append(record("heartbeat", monotonic=monotonic_ns))
            log.writer.commit()
            log.tick(beat * 10**9)
        log.writer.append(record("observer_stop"))
    return monotonic_ns


def set_wall_clock(offset_s: int) -> None:
    def time_ns() -> int:
        return time.clock_gettime_ns(time.CLOCK_REALTIME) + offset_s * 10**9

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 10**9


def main() -> None:
    root, epoch_ns, *offsets = sys.argv[1:]
    options = Options("host", epoch_ns=int(epoch_ns), segment_bytes=600)
    monotonic_ns = time.monotonic_ns()
    for offset in map(int, offsets):
        set_wall_clock(offset)
        monotonic_ns = run(Path(root), options, monotonic_ns)


if __name__ == "__main__":
    main()
