"""Record the corpora of this folder anew: real clients against a real PostgreSQL, through a proxy that keeps every
byte.

Run as root (the server runs as user postgres): ``python tests/golden/record.py [NAME...]``. Writes
postgres/NAME.capture.gz and postgres/NAME.csv.gz, the latter being the server's own log with log_statement=all: the
truth of the golden tests.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from tests.golden import corpus  # noqa: E402 - after the root is known

BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
SETTINGS = {
    "logging_collector": "on",
    "log_destination": "csvlog",
    "log_directory": "log",
    "log_filename": "server.log",
    "log_statement": "all",
    "log_duration": "on",
    "log_parameter_max_length": "-1",
    "log_timezone": "UTC",
    "timezone": "UTC",
    "fsync": "off",
    "wal_level": "logical",
}
_FROM = 4


class Server:
    """A PostgreSQL of Debian's package on a folder and a port of its own."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="golden-"))
        shutil.chown(self.root, "postgres", "postgres")
        with socket.create_server(("127.0.0.1", 0)) as s:
            self.port = s.getsockname()[1]
        self._as_postgres(BIN / "initdb", "-A", "trust", "-E", "UTF8", "--locale=C", "-D", self.root / "data")
        here = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.root}
        options = [f"-c{name}={value}" for name, value in (SETTINGS | here).items()]
        self._process = subprocess.Popen(
            [*_postgres(), str(BIN / "postgres"), "-D", str(self.root / "data"), *options],
            stderr=subprocess.DEVNULL,
        )
        for _ in range(200):
            ready: list[str | Path] = [BIN / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
            if subprocess.run(ready, check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise SystemExit("the server did not start")

    def _as_postgres(self, *command: object) -> None:
        subprocess.run([*_postgres(), *map(str, command)], check=True, stdout=subprocess.DEVNULL)

    def log_of(self, addresses: set[str]) -> str:
        """Return the rows of the log that these clients caused."""
        time.sleep(0.5)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        with (self.root / "data/log/server.csv").open(newline="") as f:
            writer.writerows(row for row in csv.reader(f) if len(row) > _FROM and row[_FROM] in addresses)
        return out.getvalue()

    def stop(self) -> None:
        """End the server and remove its folder."""
        self._process.terminate()
        self._process.wait(30)
        shutil.rmtree(self.root)


def _postgres() -> list[str]:
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]


class Proxy:
    """Passes bytes on and keeps them, in the order in which they passed."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.events: list[corpus.Event] = []
        self._lock = threading.Lock()
        self._count = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            host, port = server.getsockname()
            number = self._count
            self._count += 1
            self._keep(number, corpus.OPENED, f"{host}:{port}".encode())
            for kind, source, sink in ((0, client, server), (1, server, client)):
                threading.Thread(target=self._pump, args=(number, kind, source, sink), daemon=True).start()

    def _pump(self, number: int, kind: int, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._keep(number, kind, data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        if kind:
            self._keep(number, corpus.CLOSED, b"")

    def _keep(self, number: int, kind: int, data: bytes) -> None:
        with self._lock:
            self.events.append(corpus.Event(number, kind, data))

    def close(self) -> None:
        """Accept nothing more; wait until what was accepted has ended."""
        for _ in range(100):
            closed = sum(e.kind == corpus.CLOSED for e in self.events)
            if closed == self._count:
                break
            time.sleep(0.05)
        self._listener.close()


def run(port: int, *command: object) -> None:
    """Run a client; its exit status is not looked at: many of these fail on purpose."""
    environment = dict(os.environ, PGHOST="127.0.0.1", PGPORT=str(port), PGUSER="postgres", PGDATABASE="postgres")
    subprocess.run(list(map(str, command)), env=environment, check=False, stdout=subprocess.DEVNULL)


def record_psql(port: int) -> None:
    """Record psql: a script, several statements in one Query, copies, cursors."""
    script = HERE / "clients" / "psql.sql"
    run(port, "psql", "-X", "-f", script)
    run(port, "psql", "-X", "-c", "select 1; select 'a;b'; /* c; */ select 2 -- end\n;")
    run(port, "psql", "-X", "-c", "select 1; select 1/0; select 3")
    run(port, "psql", "-X", "-c", "select 1; selec 2; select 3")
    run(port, "psql", "-X", "-c", "selec 1; select 2")
    run(port, "psql", "-X", "-c", "  select 'one' ;  ")
    run(port, "psql", "-X", "-c", ";")
    run(port, "psql", "-X", "-c", "begin; select 1; commit; select 2;; ;select 3")
    run(port, "psql", "-X", "-1", "-v", "ON_ERROR_STOP=1", "-f", script)


def record_pgbench(port: int) -> None:
    """Record pgbench in its three modes."""
    run(port, BIN / "pgbench", "-i", "-q", "-s", "1", "-I", "dtGp")
    for mode in ("simple", "extended", "prepared"):
        run(port, BIN / "pgbench", "-n", "-M", mode, "-c", "2", "-t", "15")
        run(port, BIN / "pgbench", "-n", "-M", mode, "-S", "-t", "15")
    run(port, BIN / "pgbench", "-n", "-M", "prepared", "-t", "10", "-f", HERE / "clients" / "pipeline.pgbench")


def record_psycopg(port: int) -> None:
    """Record psycopg 3 in every way it has of asking."""
    run(port, sys.executable, HERE / "clients" / "with_psycopg.py")


def record_raw(port: int) -> None:
    """Record what no library sends, but a client may."""
    run(port, sys.executable, HERE / "clients" / "raw.py", str(port))


CORPORA = {"psql": record_psql, "pgbench": record_pgbench, "psycopg": record_psycopg, "raw": record_raw}


def main() -> None:
    """Record the corpora that the arguments name, or all."""
    for name in sys.argv[1:] or CORPORA:
        server = Server()
        try:
            proxy = Proxy(server.port)
            CORPORA[name](proxy.port)
            proxy.close()
            addresses = {e.data.decode() for e in proxy.events if e.kind == corpus.OPENED}
            log = server.log_of(addresses)
        finally:
            server.stop()
        corpus.write(HERE / "postgres" / f"{name}.capture.gz", proxy.events)
        (HERE / "postgres" / f"{name}.csv.gz").write_bytes(gzip.compress(log.encode(), mtime=0))


if __name__ == "__main__":
    main()
