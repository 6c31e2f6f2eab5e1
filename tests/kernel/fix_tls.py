"""Both ends of TLS: servers, PostgreSQL with the log of every statement as the truth, and real drivers as its clients.

The servers have a certificate that they made themselves, so clients must encrypt and cannot verify. Which TLS version a
connection gets is the server's choice, because not every client can be told. The clients' sources are in clients/tls;
what they need is installed or compiled under temporary folders that every user may read, when the first test asks.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import psycopg
import pytest

from tests.kernel.extent import short
from tests.kernel.fix_postgres import TRUTH, PostgresServer, programs

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping, Sequence

VERSIONS = ("1.2", "1.3")
CONNECTIONS = 150
RELOAD_SECONDS = 30
PIECE_BYTES = 1 << 20

_SESSION, _MESSAGE = 5, 13
_AUTHORIZED = re.compile(r"connection authorized: .* SSL enabled \(protocol=TLSv([\d.]+),")

SOURCES = Path(__file__).parent / "clients" / "tls"
REQUIREMENTS = SOURCES.with_name("drivers.txt")
INSTALL_SECONDS = 900
PYTHON = "/usr/bin/python3"  # Debian's: its ssl module uses the system's libssl, and every user may run it
GO_PATH = Path("/usr/share/gocode")
JDBC = Path("/usr/share/java/postgresql.jar")
GNUTLS = Path("/usr/include/gnutls/gnutls.h")
DEBIAN_NODE_MODULES = Path("/usr/share/nodejs")
LARGE_PIECES = 128 * 1024

CLIENTS = {
    "psql": ("with_psql.sql",),
    "psycopg": ("with_psycopg.py",),
    "psycopg2": ("with_psycopg2.py",),
    "asyncpg": ("with_asyncpg.py", "asyncio"),
    "asyncpg-uvloop": ("with_asyncpg.py", "uvloop"),
    "sqlalchemy": ("with_sqlalchemy.py",),
    "pg8000": ("with_pg8000.py",),
    "adbc": ("with_adbc.py",),
    "connectorx": ("with_connectorx.py",),
    "pg": ("with_pg.js",),
    "pq": ("with_pq.go",),
    "pgx": ("with_pgx.go",),
    "gnutls": ("with_gnutls.c",),
    "gnutls-cork": ("with_gnutls.c", "cork"),
    "jdbc": ("WithJdbc.java",),
    "many": ("many_connections.py",),
    "download": ("bulk_download.py",),
}
"""Each client's source, and what it is told after its arguments (most have one: how many statements)."""
GO_MODULES = {
    "with_pq.go": ("github.com/lib/pq", "golang-github-lib-pq-dev"),
    "with_pgx.go": ("github.com/jackc/pgx/v4", "golang-github-jackc-pgx-v4-dev"),
}


class Client(NamedTuple):
    """The words that run a client, and the program that the kernel then runs."""

    words: Sequence[str]
    exe: str


def self_signed(folder: Path, **options: Any) -> None:
    """Make ``server.key`` and ``server.crt`` for this host's own names; options are those of subprocess."""
    words = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    words += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    words += ["-keyout", "server.key", "-out", "server.crt"]
    done = subprocess.run(words, cwd=folder, umask=0o077, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        pytest.fail(f"openssl req: {done.stderr}")


class TlsPostgresServer(PostgresServer):
    """A server whose TCP connections are encrypted if the client asks, and clients here are told to."""

    def __init__(self) -> None:
        connections = {"max_connections": str(CONNECTIONS), "log_connections": "on"}
        super().__init__({**TRUTH, **connections, "ssl": "on"})

    def furnish(self) -> None:
        """Make the key and the certificate, where and as whom the server looks for them."""
        self_signed(self.data, user="postgres", group="postgres", extra_groups=[])

    def conninfo(self, transport: str = "tcp") -> str:
        """Return a libpq connection string (of two values for a word the later counts): over TCP with TLS."""
        return f"{super().conninfo(transport)} sslmode={self._sslmode(transport)}"

    def environment(self, transport: str = "tcp") -> dict[str, str]:
        """Return the variables that point clients at this server: over TCP with TLS."""
        return {**super().environment(transport), "PGSSLMODE": self._sslmode(transport)}

    @staticmethod
    def _sslmode(transport: str) -> str:
        return "require" if transport == "tcp" else "disable"

    @contextlib.contextmanager
    def tls_version(self, version: str) -> Iterator[None]:
        """Let new connections have this TLS version, ``1.2`` or ``1.3``, and no other."""
        limits = ("ssl_min_protocol_version", "ssl_max_protocol_version")
        self.execute(*(f"ALTER SYSTEM SET {limit} = 'TLSv{version}'" for limit in limits), "SELECT pg_reload_conf()")
        self._wait_version(version)
        try:
            yield
        finally:
            self.execute(*(f"ALTER SYSTEM RESET {limit}" for limit in limits), "SELECT pg_reload_conf()")
            self._wait_version(VERSIONS[-1])

    def _wait_version(self, version: str) -> None:
        deadline = time.monotonic() + RELOAD_SECONDS
        got = None
        while got != (f"TLSv{version}",):
            if time.monotonic() > deadline:
                pytest.fail(f"after {RELOAD_SECONDS} s a new connection has {got}, not TLS {version}")
            with psycopg.connect(self.conninfo(), autocommit=True) as connection:
                got = connection.execute("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()

    def tls_since(self, position: int) -> dict[str, str]:
        """Return the TLS version (``1.3``) of each session id that began since ``position`` and was encrypted."""
        end = self.log_position()
        with (self.data / "log" / "server.csv").open("rb") as f:
            f.seek(position)
            content = f.read(end - position).decode(errors="surrogateescape")
        rows = csv.reader(io.StringIO(content, newline=""))
        found = ((row[_SESSION], _AUTHORIZED.match(row[_MESSAGE])) for row in rows if len(row) > _MESSAGE)
        return {session: match[1] for session, match in found if match}


class _Bytes(BaseHTTPRequestHandler):
    """GET /bytes/N is answered with N bytes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        size = int(self.path.removeprefix("/bytes/"))
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        piece = os.urandom(min(size, PIECE_BYTES))
        while size > 0:
            self.wfile.write(piece[:size])
            size -= len(piece)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing: what was served is counted by the client."""


class HttpsServer(ThreadingHTTPServer):
    """Serves ``/bytes/N`` over HTTPS on 127.0.0.1 from threads of the test's own process, outside every watch."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self_signed(folder)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "server.crt", folder / "server.key")
        super().__init__(("127.0.0.1", 0), _Bytes)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept, and leave the handshake to the connection's own thread."""
        accepted, address = self.socket.accept()
        return self._context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False), address

    @property
    def port(self) -> int:
        """Return the port that it listens on."""
        return self.server_port

    def url(self, size: int) -> str:
        """Return the address of a body of so many bytes."""
        return f"https://127.0.0.1:{self.port}/bytes/{size}"


def _make(*words: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
    """Run a step of making clients; what it writes, every user may read."""
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(
        words,
        env=environment,
        cwd=cwd,
        umask=0o022,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(
            f"{' '.join(map(str, words))}: exit status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )


def _program(name: str, package: str) -> str:
    found = shutil.which(name, path="/usr/local/bin:/usr/bin:/bin")
    if found is None:
        pytest.skip(f"needs {name}, of Debian's {package}")
    return found


def _needs(path: Path, package: str) -> None:
    if not path.exists():
        pytest.skip(f"needs {path}, of Debian's {package}")


class Clients:
    """Clients made from the sources in ``folder``: each when it is first asked for, and then kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def python(self, interpreter: Path, source: str, args: Sequence[str]) -> Client:
        """Return a script in Python for an interpreter."""
        return Client((str(interpreter), str(self.folder / source), *args), os.path.realpath(interpreter))

    def sql(self, source: str, args: Sequence[str]) -> Client:
        """Return psql with a script; the one argument is its variable ``count``."""
        program = str(programs() / "psql")
        options = ("-X", "-q", "-o", "/dev/null", "-v", f"count={args[0]}", "-f", str(self.folder / source))
        return Client((program, *options), program)

    def javascript(self, source: str, args: Sequence[str]) -> Client:
        """Return a script for node, which finds its modules in Debian's package, or installed from the registry."""
        node = os.path.realpath(_program("node", "nodejs"))
        modules = DEBIAN_NODE_MODULES
        if not (modules / "pg").exists():
            modules = self.folder / "node_modules"
        if not modules.exists():
            npm = _program("npm", "npm, or the module pg, of node-pg")
            _make(npm, "install", "--no-audit", "--no-fund", "--no-save", "pg", cwd=self.folder)
        return Client(("/usr/bin/env", f"NODE_PATH={modules}", node, str(self.folder / source), *args), node)

    def java(self, source: str, args: Sequence[str]) -> Client:
        """Return a class for Java, compiled."""
        java = os.path.realpath(_program("java", "default-jdk-headless"))
        _needs(JDBC, "libpostgresql-jdbc-java")
        path = self.folder / source
        if not path.with_suffix(".class").exists():
            _make(_program("javac", "default-jdk-headless"), "-d", self.folder, path)
        return Client((java, "-cp", f"{self.folder}:{JDBC}", path.stem, *args), java)

    def go(self, source: str, args: Sequence[str]) -> Client:
        """Return a program in Go, built with Debian's copies of its modules."""
        program = self.folder / Path(source).stem
        if not program.exists():
            module, package = GO_MODULES[source]
            _needs(GO_PATH / "src" / module, package)
            settings = {
                "GO111MODULE": "off",
                "GOPATH": str(GO_PATH),
                "GOCACHE": f"{self.folder}/gocache",
                "GOFLAGS": "",
            }
            _make(_program("go", "golang-go"), "build", "-o", program, self.folder / source, env=settings)
        return Client((str(program), *args), str(program))

    def c(self, source: str, args: Sequence[str]) -> Client:
        """Return a program in C that uses GnuTLS and takes its statements from a file."""
        program = self.folder / Path(source).stem
        if not program.exists():
            _needs(GNUTLS, "libgnutls28-dev")
            gcc = _program("gcc", "gcc")
            _make(gcc, "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, self.folder / source, "-lgnutls")
        count, *options = args
        queries = self.folder / f"{count}.queries"
        queries.write_text("".join(f"{line}\n" for line in _queries(int(count))))
        return Client((str(program), str(queries), *options), str(program))

    KINDS: ClassVar = {".sql": sql, ".js": javascript, ".java": java, ".go": go, ".c": c}


def _queries(count: int) -> Iterator[str]:
    insert = "INSERT INTO tls_capture (id, client, note) VALUES"
    for number in range(count):
        yield f"{'ab'[number % 2]} {insert} ({number}, 'gnutls', 'gnutls note {number}')"
    for name in "ab":
        for last in range(3000, 3005):
            yield f"{name} SELECT generate_series(1, {last}) AS n, '{name} row'"
        yield f"{name} PREPARE gnutls_{name} (int) AS SELECT $1 + 1, 'gnutls prepared'"
    for number in range(count):
        yield f"{'ab'[number % 2]} EXECUTE gnutls_{'ab'[number % 2]} ({number})"
    for name in "ab":
        yield f"{name} SELECT length('{''.join(f'{name}{number:06d},' for number in range(LARGE_PIECES))}')"
        yield f"{name} SELECT 1/0 AS gnutls_{name}"
        yield f"{name} BEGIN"
        yield f"{name} {insert} (-1, 'gnutls', 'rolled back by {name}')"
        yield f"{name} ROLLBACK"
        yield f"{name} SELECT 'gnutls after the rollback of {name}'"


@contextlib.contextmanager
def installed_drivers() -> Iterator[Path]:
    """Yield the Python of a virtual environment with the drivers in it, for every user."""
    root = Path(tempfile.mkdtemp(prefix="agentwatch-drivers-"))
    try:
        root.chmod(0o755)
        _make(PYTHON, "-m", "venv", root / "venv")
        python = root / "venv" / "bin" / "python"
        quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
        _make(python, "-m", "pip", "install", "-q", "--only-binary", ":all:", "-r", REQUIREMENTS, env=quiet)
        yield python
    finally:
        shutil.rmtree(root)


@contextlib.contextmanager
def copied_drivers(python: Path) -> Iterator[Path]:
    """Yield the Python of a copy of such an environment: files that no probe is attached to."""
    root = Path(tempfile.mkdtemp(prefix="agentwatch-fresh-"))
    try:
        root.chmod(0o755)
        shutil.copytree(python.parents[1], root / "venv", symlinks=True)
        yield root / "venv" / "bin" / "python"
    finally:
        shutil.rmtree(root)


@contextlib.contextmanager
def client_sources() -> Iterator[Clients]:
    """Yield the clients' sources in a folder that every user may read, where those that need it are compiled."""
    root = Path(tempfile.mkdtemp(prefix="agentwatch-clients-"))
    try:
        root.chmod(0o755)
        for source in SOURCES.iterdir():
            if source.is_file():
                shutil.copyfile(source, root / source.name)
                (root / source.name).chmod(0o644)
        yield Clients(root)
    finally:
        shutil.rmtree(root)


@contextlib.contextmanager
def serving_https(folder: Path) -> Iterator[HttpsServer]:
    """Yield a server of bytes over HTTPS that keeps its certificate in a folder."""
    with HttpsServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def drivers() -> Iterator[Path]:
    """The Python of one environment of drivers for the whole run."""
    with installed_drivers() as python:
        yield python


@pytest.fixture(scope="session")
def compiled() -> Iterator[Clients]:
    """The clients' sources, and what is compiled of them, for the whole run."""
    with client_sources() as clients:
        yield clients


@pytest.fixture
def tls_client(request: pytest.FixtureRequest, compiled: Clients) -> Callable[..., Client]:
    """Find a client by its name in CLIENTS and its arguments; of the drivers it installs none that nobody asks for."""

    def find(name: str, *args: object) -> Client:
        source, *options = CLIENTS[name]
        words = [*map(str, args), *options]
        kind = Path(source).suffix
        if kind == ".py":
            return compiled.python(request.getfixturevalue("drivers"), source, words)
        return Clients.KINDS[kind](compiled, source, words)

    return find


@pytest.fixture(scope="session")
def tls_postgres() -> Iterator[TlsPostgresServer]:
    """One server with TLS for the whole run, logging every statement."""
    if os.geteuid() != 0:
        pytest.skip("needs root to start a server as the user postgres")
    server = TlsPostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(params=short(["unix", "tls"], ["tcp"]))
def server(request: pytest.FixtureRequest) -> tuple[PostgresServer, str]:
    """A server, and the transport to reach it by."""
    if request.param == "tls":
        return request.getfixturevalue("tls_postgres"), "tcp"
    return request.getfixturevalue("postgres"), request.param


@pytest.fixture(scope="session")
def https_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpsServer]:
    """One server of bytes over HTTPS for the whole run."""
    with serving_https(tmp_path_factory.mktemp("https")) as server:
        yield server
