"""Measure agentwatch on this machine and write docs/performance.md: ``make bench``.

PostgreSQL, the probes and the recorder run under temporary roots, as in the kernel tests. Ratios are medians over
interleaved pairs of runs (outside, inside, outside, inside ...), so that a slow drift of the machine meets both.
"""

from __future__ import annotations

import argparse
import pwd
import subprocess
import sys
import uuid
from pathlib import Path

from bench import drain, limits, loading, report, throughput
from tests.kernel.fix_postgres import PostgresServer
from tests.kernel.fix_watch import Watch

RATES = (1000, 2000, 5000, 10000, 20000, 50000, 0)
"""Execs and sends a second."""
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m bench", description="Measure and write docs/performance.md.")
    arguments.add_argument("--seconds", type=int, default=10, help="of each pgbench run")
    arguments.add_argument("--pairs", type=int, default=5, help="of runs, outside and inside the watch")
    arguments.add_argument("--transactions", type=int, default=20000, help="left in the ring for the recorder to drain")
    arguments.add_argument("--download", type=int, default=2 << 30, help="bytes of the file that is fetched")
    arguments.add_argument("--rows", type=int, default=1_000_000, help="of the result that is fetched")
    arguments.add_argument("--print", action="store_true", help="print the page and do not write it")
    options = arguments.parse_args()
    user = f"awbench-{uuid.uuid4().hex[:8]}"
    subprocess.run(["/usr/sbin/useradd", "--system", "--no-create-home", "--shell", "/bin/sh", user], check=True)
    server = PostgresServer({"synchronous_commit": "off", "autovacuum": "off"})
    watch = Watch(user)
    try:
        server.start()
        throughput.prepare(server)
        progress("loading the probes")
        load = loading.measure(watch)
        watch.start()
        place = throughput.Place(watch, server, pwd.getpwnam(user).pw_uid)
        rows = throughput.measure(place, options.pairs, options.seconds)
        progress("draining what waits in the ring")
        drained = drain.measure(watch, server, options.transactions)
        progress("payload that nobody reads")
        payload = limits.download(watch, place.uid, options.download, options.pairs)
        result = limits.select(watch, server, place.uid, options.rows, options.pairs)
        rates = []
        for rate in limits.rates(watch, options.seconds, RATES):
            progress(f"{rate.kind} {rate.wanted or 'as fast as it goes'}: {rate.reached:,.0f}/s, {rate.lost} lost")
            rates.append(rate)
    finally:
        watch.stop()
        server.stop()
        subprocess.run(["/usr/sbin/userdel", user], check=True)
    arguments_given = f' BENCH_ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else ""
    page = report.page(f"make bench{arguments_given}", server.version, load, rows, drained)
    page += report.limits(payload, result, rates)
    if options.print:
        print(page)
    else:
        PAGE.write_text(page)
        progress(f"written: {PAGE}")


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
