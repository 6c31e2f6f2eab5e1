"""Everything about TLS but pgbench over it: what is looked through, who waits, what is copied, who else pays."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import first_use, limits, scan, unwatched
from tests.kernel.fix_tls import serving_https

if TYPE_CHECKING:
    from bench.host import Host
    from tests.kernel.fix_watch import Watch

CURL = ("/usr/bin/curl", "-q", "-k", "-s", "-S", "-o", "/dev/null", "-w", "%{size_download} %{time_total}")


class Sizes(NamedTuple):
    """How much is measured: pairs of runs (or rounds), seconds of a run, bytes of the download, rows of the result."""

    pairs: int
    seconds: int
    download: int
    rows: int


class Measured(NamedTuple):
    """What the section of the page is made of."""

    scans: list[scan.Scanned]
    uses: list[first_use.FirstUse]
    file: limits.Payload
    result: limits.Rows
    calls: list[unwatched.Calls]


def measure(host: Host, sizes: Sizes) -> Measured:
    """Measure one after the other; the last needs drivers, which are installed."""
    _say("the scan for libraries")
    scans = [scan.measure(host, folders) for folders in scan.FOLDERS]
    _say("payload that nobody reads")
    with host.watching() as watch:
        file = _download(watch, host.uid, sizes.download, sizes.pairs)
        result = limits.select(watch, host.server.environment("tls"), host.uid, sizes.rows, sizes.pairs)
    _say("processes that are not watched")
    calls = unwatched.measure(host, sizes.pairs, sizes.seconds)
    _say("libraries that nobody has looked into")
    return Measured(scans, first_use.measure(host, sizes.pairs), file, result, calls)


def _download(watch: Watch, user: int, size: int, pairs: int) -> limits.Payload:
    """Have curl fetch so many bytes over loopback HTTPS, outside and inside in turn."""
    with tempfile.TemporaryDirectory(prefix="agentwatch-bench-") as folder, serving_https(Path(folder)) as server:
        return limits.fetch_pairs(watch, user, [*CURL, server.url(size)], size, pairs)


def _say(text: str) -> None:
    print(f"TLS: {text}", file=sys.stderr, flush=True)
