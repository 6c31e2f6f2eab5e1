"""A PostgreSQL server of Debian's package, on a folder, a port and a socket of its own.

It logs every statement with all its parameters (``log_statement=all``, ``log_parameter_max_length=-1``): that log
is the truth that captures are compared with. ``log_duration`` is on so that an error can be told to belong to the
statement logged before it (no duration in between) or to one that was never executed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.kernel import server_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

START_SECONDS = 60
LOG_SECONDS = 30

TRUTH = {
    "logging_collector": "on",
    "log_destination": "csvlog",
    "log_directory": "log",
    "log_filename": "server.log",
    "log_rotation_age": "0",
    "log_rotation_size": "0",
    "log_statement": "all",
    "log_duration": "on",
    "log_parameter_max_length": "-1",
}
"""Settings that make the server's log the record of what it was asked."""


def programs() -> Path:
    """Return the folder of the newest PostgreSQL server that is installed."""
    found = [p for p in Path("/usr/lib/postgresql").glob("*/bin") if (p / "postgres").exists()]
    if not found:
        pytest.fail("no PostgreSQL server under /usr/lib/postgresql; 'make setup' installs one")
    return max(found, key=lambda p: int(p.parent.name))


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        port: int = s.getsockname()[1]
    return port


class PostgresServer:
    """One running server. ``host(transport)`` is what a client gives as its host."""

    user = "postgres"
    database = "postgres"

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.bin = programs()
        self.root = Path(tempfile.mkdtemp(prefix="agentwatch-pg-"))
        self.root.chmod(0o755)  # the agent's user reaches the socket in it
        self.port = free_port()
        self.data = self.root / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.root),
            "fsync": "off",
            "synchronous_commit": "off",
            "shared_buffers": "64MB",
            "max_connections": "60",
            "ssl": "off",
            **settings,
        }

    def start(self) -> None:
        """Make the database cluster and start the server; return when it answers."""
        shutil.chown(self.root, "postgres", "postgres")
        self._as_postgres("initdb", "-D", self.data, "-U", self.user, "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        with (self.data / "postgresql.conf").open("a") as f:
            f.writelines(f"{key} = '{value}'\n" for key, value in self._settings.items())
        self.furnish()
        output = (self.root / "output").open("wb")
        self._process = subprocess.Popen(
            [self.bin / "postgres", "-D", self.data], stdout=output, stderr=output, cwd=self.root, **_POSTGRES
        )
        output.close()
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"PostgreSQL did not start: {(self.root / 'output').read_text()}")
                time.sleep(0.05)
            else:
                return

    def furnish(self) -> None:
        """Put files into the data folder before the server starts; this one needs none."""

    def stop(self) -> None:
        """Stop the server by its process id and remove its folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(30)
        shutil.rmtree(self.root, ignore_errors=True)

    def _as_postgres(self, program: str, *args: str | Path) -> None:
        subprocess.run([self.bin / program, *args], check=True, capture_output=True, cwd=self.root, **_POSTGRES)

    @property
    def version(self) -> str:
        """Return the server's version number."""
        done = subprocess.run([self.bin / "postgres", "--version"], check=True, capture_output=True, text=True)
        return done.stdout.split()[2]

    def host(self, transport: str) -> str:
        """Return the host for ``tcp`` or ``unix``."""
        return "127.0.0.1" if transport == "tcp" else str(self.root)

    def conninfo(self, transport: str = "tcp") -> str:
        """Return a libpq connection string without TLS."""
        host = self.host(transport)
        return (
            f"host={host} port={self.port} user={self.user} dbname={self.database} sslmode=disable gssencmode=disable"
        )

    def environment(self, transport: str) -> dict[str, str]:
        """Return the variables that point libpq's programs at this server."""
        return {
            "PGHOST": self.host(transport),
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGDATABASE": self.database,
            "PGSSLMODE": "disable",
            "PGGSSENCMODE": "disable",
        }

    def connect(self) -> psycopg.Connection[Any]:
        """Connect from the test itself, outside every watch."""
        return psycopg.connect(self.conninfo("unix"), autocommit=True)

    def execute(self, *statements: str) -> None:
        """Run statements from the test itself."""
        with self.connect() as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def log_position(self) -> int:
        """Return where the statement log ends once everything done so far is in it."""
        path = self.data / "log" / "server.csv"
        marker = f"log position {uuid.uuid4()}"
        self.execute(f"SELECT '{marker}'")
        deadline = time.monotonic() + LOG_SECONDS
        while time.monotonic() < deadline:
            content = path.read_bytes()
            found = content.rfind(marker.encode())
            end = content.find(b"\n", found)
            if found >= 0 and end >= 0:
                return end + 1
            time.sleep(0.02)
        pytest.fail(f"the marker did not reach {path} in {LOG_SECONDS} s")

    def logged_since(self, position: int) -> dict[str, list[server_log.Logged]]:
        """Return what each client connection ran since ``position``, the tests' own connections left out."""
        end = self.log_position()
        with (self.data / "log" / "server.csv").open("rb") as f:
            f.seek(position)
            content = f.read(end - position)
        return {
            session: logged
            for session, logged in server_log.connections(content.decode(errors="surrogateescape")).items()
            if not any(entry.text.startswith("SELECT 'log position ") for entry in logged)
        }


_POSTGRES: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []}


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for the whole run, logging every statement."""
    if os.geteuid() != 0:
        pytest.skip("needs root to start a server as the user postgres")
    server = PostgresServer(TRUTH)
    try:
        server.start()
        yield server
    finally:
        server.stop()
