"""Real TLS in memory: OpenSSL on both sides, and everything that a recorder beside the client is told of it."""

from __future__ import annotations

import ssl
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from agentwatch.protocols.base import Direction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from agentwatch.protocols.base import Instant

OUT, IN = Direction.OUT, Direction.IN
SUITES = (
    ("1.3", "ALL"),
    ("1.2", "ECDHE-RSA-AES128-GCM-SHA256"),
    ("1.2", "ECDHE-RSA-AES256-GCM-SHA384"),
    ("1.2", "ECDHE-RSA-CHACHA20-POLY1305"),
    ("1.2", "ECDHE-ARIA128-GCM-SHA256"),
    ("1.2", "AES128-CCM"),
    ("1.2", "AES256-CCM8"),
    ("1.2", "AES128-SHA"),
    ("1.2", "AES128-SHA256"),
    ("1.2", "ECDHE-RSA-AES256-SHA384"),
    ("1.2", "CAMELLIA256-SHA256"),
    ("1.0", "AES128-SHA"),
)
every_suite = pytest.mark.parametrize("suite", SUITES, ids=[f"{version} {cipher}" for version, cipher in SUITES])
both_versions = pytest.mark.parametrize("suite", SUITES[:2], ids=["1.3", "1.2"])


class Wire(NamedTuple):
    direction: Direction
    data: bytes
    at: Instant


class Wrote(NamedTuple):
    """A call that wrote; ``at``: when it began, before its ciphertext is on the wire."""

    data: bytes
    at: Instant


class Read(NamedTuple):
    """A call that read; ``at``: when it ended."""

    data: bytes
    at: Instant


Event = Wire | Wrote | Read


class Certificate(NamedTuple):
    key: Path
    certificate: Path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    folder = tmp_path_factory.mktemp("tls")
    files = Certificate(folder / "key.pem", folder / "certificate.pem")
    options = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    command = ["openssl", "req", "-x509", *options, "-keyout", str(files.key), "-out", str(files.certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return files


class Peers:
    """A client and a server that talk in memory; ``events`` is what a recorder beside the client is told.

    A call that wrote stands where it began.
    """

    def __init__(  # noqa: PLR0913 -- what handshakes differ in
        self,
        files: Certificate,
        suite: tuple[str, str] = SUITES[0],
        *,
        name: str | None = None,
        protocols: tuple[str, ...] = (),
        client_certificate: bool = False,
        retry: bool = False,
    ) -> None:
        self.events: list[Event] = []
        self.now = 1000
        self._to_client, self._to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        client, server = self._context(ssl.PROTOCOL_TLS_CLIENT, suite), self._context(ssl.PROTOCOL_TLS_SERVER, suite)
        server.load_cert_chain(files.certificate, files.key)
        if client_certificate:
            client.load_cert_chain(files.certificate, files.key)
            server.load_verify_locations(files.certificate)
            server.verify_mode = ssl.CERT_REQUIRED
        if protocols:
            client.set_alpn_protocols(protocols)
        if retry:
            server.set_ecdh_curve("secp521r1")
        self.client = client.wrap_bio(self._to_client, self._to_server, server_hostname=name)
        self.server = server.wrap_bio(self._to_server, self._to_client, server_side=True)

    @staticmethod
    def _context(side: int, suite: tuple[str, str]) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        version = {"1.0": ssl.TLSVersion.TLSv1, "1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[suite[0]]
        context.minimum_version = context.maximum_version = version
        context.set_ciphers(f"{suite[1]}:@SECLEVEL=0")
        return context

    def tick(self) -> Instant:
        self.now += 1
        return self.now

    def _pass_on(self, direction: Direction) -> None:
        bio = self._to_server if direction is OUT else self._to_client
        if data := bio.read():
            self.events.append(Wire(direction, data, self.tick()))
            bio.write(data)

    def until_done(self, *steps: Callable[[], object]) -> None:
        """Take the steps of client and server in turn until each is done."""
        left = list(steps)
        while left:
            for step, direction in zip(steps, Direction, strict=False):
                if step in left:
                    try:
                        step()
                        left.remove(step)
                    except ssl.SSLWantReadError:
                        pass
                self._pass_on(direction)

    def handshake(self) -> Peers:
        self.until_done(self.client.do_handshake, self.server.do_handshake)
        return self

    def plainly(self, direction: Direction, data: bytes) -> Peers:
        """Let one side send something that is not under TLS."""
        self.events.append(Wire(direction, data, self.tick()))
        return self

    def write(self, what: int | bytes, *, told: bool = True) -> Peers:
        """Let the client write bytes, or so many zeros."""
        data = bytes(what)
        if told:
            self.events.append(Wrote(data, self.tick()))
        self.client.write(data)
        self._pass_on(OUT)
        taken = 0
        while taken < len(data):
            taken += len(self.server.read(len(data) - taken))
        return self

    def answer(self, what: int | bytes, *, told: bool = True, at_once: int = 1 << 20) -> Peers:
        """Let the server write bytes, or so many zeros, and the client read them."""
        data = bytes(what)
        self.server.write(data)
        self._pass_on(IN)
        taken = 0
        while taken < len(data):
            got = self.client.read(min(at_once, len(data) - taken))
            taken += len(got)
            if told:
                self.events.append(Read(got, self.tick()))
        return self

    def close(self) -> Peers:
        """Send close_notify, both."""
        self.until_done(self.client.unwrap, self.server.unwrap)
        return self


def as_told(events: Iterable[Event]) -> list[Event]:
    """Return events in the order in which the kernel tells of them: a call when it returns, behind what it sent."""
    told: list[Event] = []
    calls: list[Event] = []
    for event in events:
        if not (calls and isinstance(event, Wire) and event.direction is OUT):
            told += calls
            calls = []
        (calls if isinstance(event, Wrote) else told).append(event)
    return told + calls


def stream(events: Sequence[Event], direction: Direction) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Wire) and event.direction is direction)


def cut(data: bytes) -> list[tuple[int, int]]:
    """Return begin and end of each record."""
    places = []
    begin = 0
    while begin < len(data):
        end = begin + 5 + int.from_bytes(data[begin + 3 : begin + 5], "big")
        places.append((begin, end))
        begin = end
    return places


def record(kind: int, payload: bytes, version: int = 0x0303) -> bytes:
    return bytes([kind]) + version.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload
