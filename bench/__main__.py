"""Measure agentwatch on this machine and write docs/performance.md: ``make bench``.

PostgreSQL, the probes and the recorder run under temporary roots, as in the kernel tests; each section of the page has
an instance of agentwatch to itself, that about the log none of all this. Ratios are medians over interleaved pairs of
runs (outside, inside, outside, inside ...), so that a slow drift of the machine meets both.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from pathlib import Path

from bench import drain, host, limits, loading, log, report, report_log, report_tls, throughput, tls

RATES = (1000, 2000, 5000, 10000, 20000, 50000, 0)
"""Execs and sends a second."""
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


def main() -> None:
    options = _options()
    arguments_given = f' BENCH_ARGS="{shlex.join(sys.argv[1:])}"' if sys.argv[1:] else ""
    parts = []
    with contextlib.ExitStack() as stack:
        place: host.Host | None = None
        for name in options.only or (*SECTIONS, *ALONE):
            progress(f"section {name}")
            if name in ALONE:
                parts.append(ALONE[name](options))
                continue
            if place is None:
                place = stack.enter_context(host.prepared())
                throughput.prepare(place.server)
            parts.append(SECTIONS[name](place, options))
        head = report.head(f"make bench{arguments_given}", place.server.version if place else None)
    page = "".join([head, *parts])
    if options.print:
        print(page)
    else:
        PAGE.write_text(page)
        progress(f"written: {PAGE}")


def _options() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(prog="python -m bench", description="Measure and write docs/performance.md.")
    arguments.add_argument("--seconds", type=int, default=10, help="of each run that has no end of its own")
    arguments.add_argument("--pairs", type=int, default=5, help="of runs, outside and inside the watch")
    arguments.add_argument("--transactions", type=int, default=20000, help="left in the ring for the recorder to drain")
    arguments.add_argument("--download", type=int, default=2 << 30, help="bytes of the file that is fetched")
    arguments.add_argument("--https-download", type=int, default=1 << 30, help="bytes that are fetched over HTTPS")
    arguments.add_argument("--rows", type=int, default=1_000_000, help="of the result that is fetched")
    arguments.add_argument("--log-records", type=int, default=1_000_000, help="of the log that is verified and opened")
    arguments.add_argument("--only", action="append", choices=[*SECTIONS, *ALONE], help="this section; needs --print")
    arguments.add_argument("--print", action="store_true", help="print the page and do not write it")
    options = arguments.parse_args()
    if options.only and not options.print:
        arguments.error("a page of some sections is not written: --only needs --print")
    return options


def _clients(place: host.Host, options: argparse.Namespace) -> str:
    with place.watching() as watch:
        where = throughput.Place(watch, place.server, place.uid)
        return report.clients(throughput.measure(where, options.pairs, options.seconds))


def _recorder(place: host.Host, options: argparse.Namespace) -> str:
    with place.idle() as watch:
        load_seconds = loading.measure(watch)
        watch.start()
        return report.recorder(load_seconds, drain.measure(watch, place.server, options.transactions))


def _payload(place: host.Host, options: argparse.Namespace) -> str:
    with place.watching() as watch:
        payload = limits.download(watch, place.uid, options.download, options.pairs)
        result = limits.select(watch, place.server.environment("tcp"), place.uid, options.rows, options.pairs)
    return report.payload(payload, result)


def _rates(place: host.Host, options: argparse.Namespace) -> str:
    rates = []
    with place.watching() as watch:
        for rate in limits.rates(watch, options.seconds, RATES):
            progress(f"{rate.kind} {rate.wanted or 'as fast as it goes'}: {rate.reached:,.0f}/s, {rate.lost} lost")
            rates.append(rate)
    return report.rates(rates)


def _tls(place: host.Host, options: argparse.Namespace) -> str:
    sizes = tls.Sizes(options.pairs, options.seconds, options.https_download, options.rows)
    return report_tls.section(tls.measure(place, sizes))


def _log(options: argparse.Namespace) -> str:
    return report_log.section(log.measure(log.Sizes(options.pairs, options.log_records), progress))


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


SECTIONS = {"clients": _clients, "recorder": _recorder, "payload": _payload, "rates": _rates, "tls": _tls}
"""In the order of the page."""
ALONE = {"log": _log}
"""Behind them: without a user, a server or probes, so also where there can be none."""


if __name__ == "__main__":
    main()
