"""A certificate authority, collectors in threads and in processes, pushers: all real, on the loopback."""

from __future__ import annotations

import datetime as dt
import ipaddress
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agentwatch import config
from agentwatch.collector import service
from agentwatch.collector.push import Pusher
from agentwatch.log.reader import LogReader
from agentwatch.log.verify import verify
from agentwatch.records import encoding
from tests.unit.collector.log_maker import HostLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

AGENTWATCH = (sys.executable, "-c", "from agentwatch.cli import main; main(prog_name='agentwatch')")
PATIENCE_S = 60


def wait_for(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit, f"waited in vain for {what}"
        time.sleep(0.05)


class Credentials(NamedTuple):
    ca: Path
    cert: Path
    key: Path


class Authority:
    """Gives certificates away."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {root.name}")])
        builder = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.certificate = root / "ca.pem"
        self.certificate.write_bytes(self._sign(builder))

    def issue(self, name: str | None, *, dns: str | None = None) -> Credentials:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name is not None else [])
        names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        if dns is not None:
            names.append(x509.DNSName(dns))
        builder = self._builder(subject, key).add_extension(x509.SubjectAlternativeName(names), critical=name is None)
        stem = (name or dns or "nobody").encode().hex()
        made = Credentials(self.certificate, self._root / f"{stem}.pem", self._root / f"{stem}.key")
        made.cert.write_bytes(self._sign(builder))
        made.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return made

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        day = dt.timedelta(days=1)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
        )

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Collector:
    """A collector in a thread, or in a process of its own; it can be stopped and started again at the same port."""

    def __init__(self, root: Path, credentials: Credentials, *, silent_seconds: int = 3600) -> None:
        self.root = root
        root.mkdir()
        self.port = _free_port()
        self.hosts_dir = root / "hosts"
        self.file = root / "agentwatch.toml"
        self.file.write_text(f"""
            log_dir = "{root}/log"
            state_dir = "{root}/state"
            run_dir = "{root}/run"
            cgroup_root = "{root}"
            [collector]
            listen = "127.0.0.1:{self.port}"
            ca = "{credentials.ca}"
            cert = "{credentials.cert}"
            key = "{credentials.key}"
            hosts_dir = "{self.hosts_dir}"
            silent_seconds = {silent_seconds}
        """)
        self.config = config.load(self.file)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None

    @property
    def vkey(self) -> str:
        return str(service.cosigner(self.config).key)

    def start(self) -> None:
        ready = threading.Event()
        self._stopping.clear()
        self._thread = threading.Thread(target=service.run, args=(self.config, self._stopping.is_set, ready.set))
        self._thread.start()
        assert ready.wait(PATIENCE_S)

    def start_process(self) -> None:
        argv = [*AGENTWATCH, "collector", "--config", str(self.file)]
        with (self.root / "stderr").open("a") as stderr:
            self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=stderr, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", (self.root / "stderr").read_text()

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._reap()

    def stop(self) -> None:
        if self._thread is not None:
            self._stopping.set()
            self._thread.join(PATIENCE_S)
            assert not self._thread.is_alive()
            self._thread = None
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            assert self._reap() == 0, (self.root / "stderr").read_text()

    def records(self, kind: str) -> list[encoding.Record]:
        """Return what its own log says."""
        every = [encoding.decode(payload) for _, payload in LogReader(self.root / "log").records()]
        return [record for record in every if record["kind"] == kind]

    def mirror(self, name: str) -> Path:
        return self.hosts_dir / name / "log"

    def size(self, name: str) -> int:
        """Return the size of the mirror's own checkpoint."""
        path = self.mirror(name) / "checkpoint"
        return int(path.read_text().split("\n")[1]) if path.exists() else 0

    def _reap(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        status = self._process.wait(PATIENCE_S)
        self._process.stdout.close()
        self._process = None
        return status


class Client(NamedTuple):
    """What one host needs to push."""

    log: HostLog
    file: Path

    @property
    def pusher(self) -> Pusher:
        return Pusher(config.load(self.file))

    def push(self) -> int:
        return self.pusher.push_once()

    def start_process(self) -> subprocess.Popen[bytes]:
        argv = [*AGENTWATCH, "push", "--config", str(self.file)]
        with (self.log.root / "stderr").open("a") as stderr:
            return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=stderr)


def client(
    log: HostLog, credentials: Credentials, port: int, *, records: bool = True, collector_key: str | None = None
) -> Client:
    log.root.mkdir(exist_ok=True)
    file = log.root / f"push-{os.urandom(4).hex()}.toml"
    key = f'collector_key = "{collector_key}"' if collector_key else ""
    file.write_text(f"""
        log_dir = "{log.log_dir}"
        state_dir = "{log.root}/state"
        run_dir = "{log.root}/run"
        cgroup_root = "{log.root}"
        [push]
        to = "127.0.0.1:{port}"
        ca = "{credentials.ca}"
        cert = "{credentials.cert}"
        key = "{credentials.key}"
        records = {str(records).lower()}
        {key}
    """)
    return Client(log, file)


def assert_mirrored(collector: Collector, name: str, log: HostLog) -> None:
    """The mirror verifies on its own, and holds the very records of the log."""
    report = verify(collector.mirror(name))
    assert report.ok, report.problems
    assert report.signed == log.signed()
    assert not report.framing.foreign
    size = log.signed().size
    assert list(LogReader(collector.mirror(name)).records()) == list(LogReader(log.log_dir).records(0, size))


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "ours")


@pytest.fixture
def stopped_collector(tmp_path: Path, authority: Authority) -> Iterator[Collector]:
    made = Collector(tmp_path / "collector", authority.issue("collector-1"))
    yield made
    made.stop()


@pytest.fixture
def collector(stopped_collector: Collector) -> Collector:
    stopped_collector.start()
    return stopped_collector


@pytest.fixture
def host(tmp_path: Path) -> HostLog:
    return HostLog(tmp_path / "host-a")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
