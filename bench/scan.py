"""What looking for TLS libraries costs when the probes are loaded: files, seconds, memory.

The memory is measured where only the scan runs (``python -m bench.scan CONFIG FOLDER...``): in ``agentwatch probes
load`` the compiler's would hide it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agentwatch import config, config_tables
from agentwatch.kernel import pins
from agentwatch.kernel.uprobes import Uprobes
from tests.kernel.fix_watch import SCANNED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.host import Host
    from tests.kernel.fix_watch import Watch

ROUNDS = 3
FOLDERS = (tuple(str(folder) for folder in config_tables.TlsConfig().scan), SCANNED)
"""What is looked through by default, and Debian's libraries alone."""


class Scanned(NamedTuple):
    """A scan of these folders."""

    folders: Sequence[str]
    files: int
    libraries: int
    seconds: float
    """Of the scan in ``agentwatch probes load``: the median."""
    memory_before: int
    """Bytes that were resident at most before the scan where nothing else runs, and how many more there were then."""
    memory_more: int


def measure(host: Host, folders: Sequence[str]) -> Scanned:
    """Scan in a load, some times, and once alone."""
    loads = []
    with host.idle(scan=folders) as watch:
        for _ in range(ROUNDS):
            watch.cli("probes", "load")
            loads.append(pins.read_status(config.load(watch.config)))
            watch.cli("probes", "unload")
    with host.idle(scan=()) as watch:
        watch.cli("probes", "load")
        before, more = _memory_alone(watch, folders)
    seconds = statistics.median(load.scanned_seconds for load in loads)
    return Scanned(folders, loads[-1].scanned_files, len(loads[-1].libraries), seconds, before, more)


def _memory_alone(watch: Watch, folders: Sequence[str]) -> tuple[int, int]:
    words = [sys.executable, "-m", "bench.scan", str(watch.config), *folders]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    before, more = json.loads(done.stdout)
    return before, more


def _peak_bytes() -> int:
    # Not ru_maxrss: that is never less than what the parent had when this process was made.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    attacher = Uprobes(config.load(Path(sys.argv[1])))
    before = _peak_bytes()
    attacher.scan([Path(folder) for folder in sys.argv[2:]])
    print(json.dumps([before, _peak_bytes() - before]))


if __name__ == "__main__":
    main()
