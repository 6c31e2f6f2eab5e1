"""The section of the page about TLS; its pgbench rows stand with those of the other transports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.report import spread
from bench.throughput import CLIENTS

if TYPE_CHECKING:
    from bench.first_use import FirstUse
    from bench.limits import Payload, Rows
    from bench.scan import Scanned
    from bench.tls import Measured
    from bench.unwatched import Calls

_MIB = 1 << 20

_SCAN = """
## TLS

### Looking for libraries

Part of `agentwatch probes load`: what is installed is looked through by symbols, and what is found is hooked. The
memory is that of a process in which nothing else runs: the peak, above what was resident before.

| folders | files | libraries hooked | time | memory |
|---|---|---|---|---|
"""

_FIRST_USE = """
### A library that nobody has looked into

With `first_use = "hold"` a process that maps such a file is stopped until the recorder has looked into it and hooked
what it found. Times are medians, with the smallest and the largest; for each run of a client its driver is a copy that
was made just before.

| client | file | size | functions hooked | runs | stopped for |
|---|---|---|---|---|---|
"""

_PAYLOAD = """
### Payload over TLS that nobody reads

| what | bytes | counted | outside | inside | inside/outside | ring |
|---|---|---|---|---|---|---|
"""

_PAYLOAD_NOTE = """
Bytes are those of the file, and of the messages with the rows. What is counted is not copied; over TLS there are two of
each byte, the plaintext at the library (curl's, psql's) and the ciphertext at the socket, which is always counted. What
the ring holds more than for plain TCP is plaintext that was copied. The server's calls meet the probes as well, outside
as inside. The times of `SELECT` hold the start of psql, and inside that of `agentwatch run`.
"""

_CALLS = """
### Processes that are not watched

Two ends of a TLS connection outside of the watch hand 64 bytes to each other and back, as fast as it goes: in memory,
within one thread, so that there is nothing but calls of the library, or over loopback between two processes, where the
probes of what passes the kernel are met as well. A round trip is two calls of `SSL_write` and two of `SSL_read`; what
one of them takes longer includes its return, and half of a `BIO_write`. Below is pgbench over TLS with {clients}
clients, where PostgreSQL meets the probes too. Runs without and with the probes are interleaved.

A function that begins with an instruction which the kernel does not emulate is stepped through by a second exception,
and under a hypervisor that exits to it; Debian's libssl begins its functions so.

| what | without, per second | with, per second | with/without | added to a call |
|---|---|---|---|---|
"""


def section(found: Measured) -> str:
    """Return the section as Markdown."""
    parts = [_SCAN, *map(_scan, found.scans)]
    parts += [_FIRST_USE, *map(_first_use, found.uses)]
    parts += [_PAYLOAD, _download(found.file), _select(found.result), _PAYLOAD_NOTE]
    parts += [_CALLS.format(clients=CLIENTS), *map(_calls, found.calls)]
    return "".join(parts)


def _scan(scan: Scanned) -> str:
    folders = ", ".join(f"`{folder}`" for folder in scan.folders)
    return (
        f"| {folders} | {scan.files:,} | {scan.libraries} | {scan.seconds:.1f} s |"
        f" {scan.memory_more / _MIB:.1f} MiB above {scan.memory_before / _MIB:.1f} |\n"
    )


def _first_use(use: FirstUse) -> str:
    waited = spread([ns / 1e6 for ns in use.waited_ns], 1)
    return (
        f"| {use.client} | `{use.name}` | {use.bytes / _MIB:.1f} MiB | {use.functions} |"
        f" {len(use.waited_ns)} | {waited} ms |\n"
    )


def _download(file: Payload) -> str:
    return (
        f"| a file over HTTPS | {file.bytes:,} | {file.counted:,} | {file.outside:.1f} s | {file.inside:.1f} s |"
        f" {file.outside / file.inside:.2f} | {file.ring:,} bytes |\n"
    )


def _select(result: Rows) -> str:
    return (
        f"| `SELECT` of {result.rows:,} rows ({result.recorded:,} recorded) | {result.transferred:,} |"
        f" {result.bytes:,} | {result.outside:.1f} s | {result.inside:.1f} s |"
        f" {result.outside / result.inside:.2f} | {result.ring:,} bytes |\n"
    )


def _calls(calls: Calls) -> str:
    added = "" if calls.call_ns is None else f"{calls.call_ns:,.0f} ns"
    return f"| {calls.what} | {calls.unhooked:,.0f} | {calls.hooked:,.0f} | {spread(calls.ratios)} | {added} |\n"
