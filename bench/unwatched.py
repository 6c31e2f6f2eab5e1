"""What the probes cost processes that nobody watches, where they use a library that is hooked.

A breakpoint in a file is there for every process that maps the file. The library that is called as fast as it goes is a
copy of Debian's, so that only this instance's probes are in it, and the program says whether they are; pgbench and
PostgreSQL use Debian's own.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import throughput
from tests.kernel.fix_tls import self_signed
from tests.kernel.fix_watch import SCANNED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.host import Host

SOURCE = Path(__file__).parent / "pingpong.c"
LIBRARIES = ("libssl.so.3", "libcrypto.so.3")
MEDIA = ("memory", "loopback")
CALLS = 4
"""SSL_write and SSL_read at both ends: those of a round trip."""
LOAD, TRANSPORT = "select-only (-S)", "tls"
PGBENCH = "pgbench -S, transactions"


class Calls(NamedTuple):
    """Round trips, or transactions, per second: medians, and the ratio of each pair."""

    what: str
    unhooked: float
    hooked: float
    ratios: list[float]
    call_ns: float | None
    """What a call takes longer: the median of the pairs. None: it is not known how many calls there were."""


def measure(host: Host, pairs: int, seconds: int) -> list[Calls]:
    """Run without the probes and with them, in turn."""
    unhooked, hooked = [], []
    with _program() as program, host.idle(scan=(str(program.parent), *SCANNED)) as watch:
        for number in range(pairs):
            print(f"not watched: pair {number + 1} of {pairs}", file=sys.stderr, flush=True)
            unhooked.append(_rates(host, program, seconds, hooked=False))
            watch.cli("probes", "load")
            hooked.append(_rates(host, program, seconds, hooked=True))
            watch.cli("probes", "unload")
    whats = [what for what in unhooked[0] if all(what in rates for rates in (*unhooked, *hooked))]
    return [_calls(what, [u[what] for u in unhooked], [h[what] for h in hooked]) for what in whats]


def _rates(host: Host, program: Path, seconds: int, *, hooked: bool) -> dict[str, float]:
    rates = {}
    for medium in MEDIA:
        rates[f"{medium}, round trips"], state = _run(program, program.parent, medium, seconds)
        if state is not hooked:
            raise RuntimeError(f"the library was {'' if state else 'not '}hooked")
    if _run(program, Path(SCANNED[0]), "memory", 0)[1] is hooked:
        rates[PGBENCH] = throughput.outside(host.server, host.uid, LOAD, TRANSPORT, seconds)
    else:
        print("left out: pgbench, because another instance is in Debian's libssl", file=sys.stderr, flush=True)
    return rates


def _calls(what: str, unhooked: list[float], hooked: list[float]) -> Calls:
    pairs = list(zip(unhooked, hooked, strict=True))
    return Calls(
        what,
        statistics.median(unhooked),
        statistics.median(hooked),
        [h / u for u, h in pairs],
        None if what == PGBENCH else statistics.median((1 / h - 1 / u) / CALLS * 1e9 for u, h in pairs),
    )


@contextlib.contextmanager
def _program() -> Iterator[Path]:
    """Yield the program, beside its libraries and its certificate."""
    with tempfile.TemporaryDirectory(prefix="agentwatch-bench-") as name:
        folder = Path(name)
        libraries = [shutil.copy(Path(SCANNED[0]) / library, folder) for library in LIBRARIES]
        self_signed(folder)
        options = ["-O2", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["gcc", *options, "-o", folder / "pingpong", SOURCE, *libraries], check=True)
        yield folder / "pingpong"


def _run(program: Path, libraries: Path, medium: str, seconds: int) -> tuple[float, bool]:
    """Return the round trips per second with the libraries of a folder, and whether there is a probe in them."""
    words = [f"./{program.name}", medium, str(seconds), "server.crt", "server.key"]
    environment = {"LD_LIBRARY_PATH": str(libraries)}
    done = subprocess.run(words, cwd=program.parent, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    rate, state = done.stdout.split()
    return float(rate), state == "hooked"
