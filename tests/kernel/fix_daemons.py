"""Daemons that run things for others, outside the watch: real ones where there are, each under a folder of its own.

A bus is a real ``dbus-daemon`` with a real ``dbus-monitor`` as the witness of what reached it; ssh is a real ``sshd``.
Docker is a small server that answers as dockerd does and executes on this host what a container would: the client is
real.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socketserver
import struct
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_SECONDS = 60
_PCAP_HEADER, _PCAP_RECORD = 24, struct.Struct("=IIII")

_BUS_CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <servicedir>{services}</servicedir>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow eavesdrop="true"/> <allow send_destination="*" eavesdrop="true"/>
  </policy>
</busconfig>
"""


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip where a program is not installed."""
    missing = [name for name in programs if program(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def program(name: str) -> str | None:
    """Return the path of a program, also of a daemon's."""
    return shutil.which(name, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")


def until(what: str, condition: Callable[[], object]) -> Any:
    """Return what a condition gives, once that is something."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    return pytest.fail(f"not within {WAIT_SECONDS} s: {what}")


@contextlib.contextmanager
def started(*words: str | Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon; end it by its process id."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


class Bus(NamedTuple):
    """A bus and its witness. ``services``: folder of the services that it starts on demand."""

    path: Path
    services: Path
    witness: Path

    @property
    def address(self) -> str:
        """Return the address for a client."""
        return f"unix:path={self.path}"

    def saw(self, member: str) -> list[bytes]:
        """Return the messages that the witness has of calls of a method."""
        data = self.witness.read_bytes()
        at, found = _PCAP_HEADER, []
        while at + _PCAP_RECORD.size <= len(data):
            *_, kept, _ = _PCAP_RECORD.unpack_from(data, at)
            at += _PCAP_RECORD.size
            message = data[at : at + kept]
            if message[1:2] == b"\1" and f"\0{member}\0".encode() in message:
                found.append(message)
            at += kept
        return found

    def await_call(self, member: str, number: int = 1) -> list[bytes]:
        """Return the calls of a method once there are so many."""
        until(f"the bus saw {member}", lambda: len(self.saw(member)) >= number)
        return self.saw(member)


@contextlib.contextmanager
def bus(path: Path) -> Iterator[Bus]:
    """Run a bus at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    one = Bus(path, path.parent / "services", path.parent / "witness.pcap")
    one.services.mkdir()
    config = path.parent / "bus.conf"
    config.write_text(_BUS_CONFIG.format(path=path, services=one.services))
    with started(
        "dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--nosyslog", stderr=subprocess.DEVNULL
    ):
        until("the bus listens", path.exists)
        path.chmod(0o777)
        with one.witness.open("wb") as out, started("dbus-monitor", "--address", one.address, "--pcap", stdout=out):
            # The witness writes the beginning of its file when it is one.
            until("the witness watches", lambda: one.witness.stat().st_size > _PCAP_HEADER)
            yield one


class Asked(NamedTuple):
    """A request as the server got it."""

    method: str
    path: str
    body: Any


class Dockerd:
    """What answers as dockerd: it keeps what was asked and executes it on this host."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.commands: dict[str, list[str]] = {}
        self.printed: list[str] = []

    def execute(self, name: str) -> bytes:
        """Run what was created under a name."""
        done = subprocess.run(self.commands[name], check=True, capture_output=True)
        self.printed.append(done.stdout.decode())
        return done.stdout


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextlib.contextmanager
def dockerd(address: Path | tuple[str, int]) -> Iterator[tuple[Dockerd, Any]]:
    """Serve on a Unix socket or a TCP port; gives the server's memory and its address."""
    daemon = Dockerd()
    handler = type("Handler", (_Handler,), {"dockerd": daemon})
    server: socketserver.BaseServer
    if isinstance(address, Path):
        server = _UnixServer(str(address), handler)
        address.chmod(0o777)
    else:
        server = socketserver.ThreadingTCPServer(address, handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield daemon, server.server_address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    dockerd: Dockerd

    def do_GET(self) -> None:
        path, _ = self._asked()
        if path.endswith("/_ping"):
            self._answer(200, b"OK")
        elif "/exec/" in path:
            self._answer(200, {"Running": False, "ExitCode": 0, "Pid": 1})
        else:
            state = {"Running": True, "Status": "running"}
            self._answer(200, {"Id": path.split("/")[-2], "State": state, "Config": {}, "HostConfig": {}})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        path, body = self._asked()
        if path.endswith("/containers/create"):
            self._create([*(body.get("Entrypoint") or ()), *body["Cmd"]])
        elif path.endswith("/exec"):
            self._create(body["Cmd"])
        elif "/containers/" in path and path.endswith("/start"):
            self.dockerd.execute(path.split("/")[-2])
            self._answer(204, None)
        elif path.endswith("/wait"):
            self._answer(200, {"StatusCode": 0})
        else:
            self._hand_over(path)

    def _create(self, command: list[str]) -> None:
        name = f"{len(self.dockerd.commands):064x}"
        self.dockerd.commands[name] = command
        self._answer(201, {"Id": name, "Warnings": []})

    def _hand_over(self, path: str) -> None:
        self.send_response(101, "UPGRADED")
        self.send_header("Content-Type", "application/vnd.docker.multiplexed-stream")
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "tcp")
        self.end_headers()
        output = self.dockerd.execute(path.split("/")[-2])
        self.wfile.write(struct.pack(">BxxxI", 1, len(output)) + output)
        self.close_connection = True

    def _asked(self) -> tuple[str, Any]:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.dockerd.asked.append(Asked(self.command, path, json.loads(body) if body else None))
        return path, self.dockerd.asked[-1].body

    def _answer(self, status: int, body: Any) -> None:
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Api-Version", "1.41")
        self.send_header("Ostype", "linux")
        if body is not None:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def address_string(self) -> str:
        return "client"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Sshd(NamedTuple):
    """A server on loopback and the key that opens it."""

    port: int
    key: Path

    def client(self, user: str, *command: str, ssh: str = "/usr/bin/ssh") -> list[str]:
        """Return the words that run a command there."""
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"]
        words = [ssh, "-F", "none", "-p", str(self.port), "-i", str(self.key)]
        return [*words, *(word for option in options for word in ("-o", option)), f"{user}@127.0.0.1", *command]


@contextlib.contextmanager
def sshd(folder: Path, user: str, port: int) -> Iterator[Sshd]:
    """Run an ``sshd`` that lets the agent's user in as itself, by a key made for this test."""
    folder.mkdir()
    folder.chmod(0o755)
    host_key, key = folder / "host_key", folder / "user_key"
    for path in (host_key, key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    shutil.chown(key, user)
    # Without PAM, sshd lets nobody in whose account is locked: '*' is no password, and no lock.
    subprocess.run(["/usr/sbin/usermod", "-p", "*", user], check=True)
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {host_key}\nAuthorizedKeysFile {key}.pub\nAllowUsers {user}\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it confines itself to
    log = folder / "log"
    with started(str(program("sshd")), "-D", "-f", config, "-E", log):
        until("sshd listens", lambda: log.exists() and "Server listening" in log.read_text())
        yield Sshd(port, key)


@contextlib.contextmanager
def atd() -> Iterator[None]:
    """Have an ``atd`` run, unless there is one."""
    pid_file = Path("/run/atd.pid")
    running = pid_file.exists() and pid_file.read_text().strip()
    if running and (Path("/proc") / running / "comm").exists():
        yield
        return
    with started(str(program("atd")), "-f", env={"PATH": os.defpath}):
        until("atd runs", lambda: pid_file.exists() and pid_file.read_text().strip())
        yield
