"""How long a process is stopped that uses a TLS library which nobody has looked into (``tls.first_use = "hold"``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.kernel.fix_tls import client_sources, copied_drivers, installed_drivers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.host import Host
    from tests.kernel.fix_watch import Watch

CLIENTS = {"psycopg2": "with_psycopg2.py", "connectorx": "with_connectorx.py"}
"""A library beside the extension, and the largest that we know: linked into a file of 180 MB."""
STATEMENTS = "1"
TABLE = "CREATE TABLE tls_capture (id int, client text, note text)"


class FirstUse(NamedTuple):
    """A file with TLS functions in it, and for how long its first user was stopped, in each round."""

    client: str
    name: str
    bytes: int
    functions: int
    waited_ns: list[int]


def measure(host: Host, rounds: int) -> list[FirstUse]:
    """Run each client in each round with a copy of its drivers that was made just now."""
    found: dict[str, FirstUse] = {}
    host.server.execute(TABLE)
    with host.watching(first_use="hold") as watch, installed_drivers() as drivers, client_sources() as sources:
        for _ in range(rounds):
            with copied_drivers(drivers) as fresh:
                for name, source in CLIENTS.items():
                    words = sources.python(fresh, source, [STATEMENTS]).words
                    for use in _run(watch, host, name, words):
                        found.setdefault(use.name, use._replace(waited_ns=[])).waited_ns.extend(use.waited_ns)
    host.server.execute("DROP TABLE tls_capture")
    if missing := CLIENTS.keys() - {use.client for use in found.values()}:
        raise RuntimeError(f"no library was hooked that these brought: {', '.join(missing)}")
    return list(found.values())


def _run(watch: Watch, host: Host, client: str, words: Sequence[str]) -> Iterator[FirstUse]:
    run = watch.run(*words, env=host.server.environment("tls"))
    for record in watch.records("probe_attach"):
        if record["reason"] == "library" and record["session"] == run.session:
            file = Path(record["file"])
            yield FirstUse(client, file.name, file.stat().st_size, len(record["functions"]), [record["waited_ns"]])
