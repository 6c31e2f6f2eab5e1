"""What looking for TLS libraries costs when the probes are loaded: files, seconds, memory.

The memory is measured where only the scan runs (``python -m bench.scan FOLDER...``): in ``agentwatch probes load`` the
compiler's would hide it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agentwatch import config
from agentwatch.kernel import pins
from agentwatch.kernel.uprobes import Uprobes
from tests.kernel.fix_watch import SCANNED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.host import Host

ROUNDS = 3
FOLDERS = (tuple(str(folder) for folder in config.TlsConfig().scan), SCANNED)
"""What is looked through by default, and Debian's libraries alone."""


class Scanned(NamedTuple):
    """A scan of these folders; the times are medians."""

    folders: Sequence[str]
    files: int
    libraries: int
    load_seconds: float
    """Of the scan in ``agentwatch probes load``, where it attaches to what it finds."""
    alone_seconds: float
    """Where it only looks."""
    memory_before: int
    """Bytes that were resident at most before the scan where it only looks, and how many more there were then."""
    memory_more: int


class _Looking(Uprobes):
    """A scan that attaches to nothing and takes note of nothing."""

    def __init__(self) -> None:
        self._folder = Path("none")
        self._links = {}

    def mark(self, device: int, inode: int) -> None:
        """Take no note."""

    def _attach(self, path: str, name: str, found: Sequence[Any]) -> None:
        """Attach to nothing."""


def measure(host: Host, folders: Sequence[str]) -> Scanned:
    """Scan in a load and alone, in turn; the instance's probes are unloaded afterwards."""
    loads, alone = [], []
    with host.idle(scan=folders) as watch:
        for _ in range(ROUNDS):
            watch.cli("probes", "load")
            loads.append(pins.read_status(config.load(watch.config)))
            watch.cli("probes", "unload")
            alone.append(_alone(folders))
    return Scanned(
        folders,
        loads[-1].scanned_files,
        len(loads[-1].libraries),
        statistics.median(load.scanned_seconds for load in loads),
        statistics.median(found["seconds"] for found in alone),
        alone[-1]["before"],
        max(found["more"] for found in alone),
    )


def _alone(folders: Sequence[str]) -> dict[str, Any]:
    words = [sys.executable, "-m", "bench.scan", *folders]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _peak_bytes() -> int:
    # Not ru_maxrss: that is never less than what the parent had when this process was made.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    before = _peak_bytes()
    scan = _Looking().scan([Path(folder) for folder in sys.argv[1:]])
    print(json.dumps({"seconds": scan.seconds, "before": before, "more": _peak_bytes() - before}))


if __name__ == "__main__":
    main()
