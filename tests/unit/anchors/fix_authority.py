"""An RFC 3161 authority that is not ours: ``openssl ts -reply``, and an HTTP server that asks it or misbehaves."""

from __future__ import annotations

import subprocess
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

DAY = timedelta(days=1)
PEM = serialization.Encoding.PEM
DER = serialization.Encoding.DER
Key = ec.EllipticCurvePrivateKey

_CONFIG = """\
[tsa]
default_tsa = here
[here]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
{certs}
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
accuracy = secs:1
ess_cert_id_alg = sha256
"""


class Authority:
    """A root, perhaps an intermediate, a signer, and the configuration that ``openssl ts`` takes."""

    def __init__(
        self,
        folder: Path,
        *,
        begins: datetime | None = None,
        ends: datetime | None = None,
        through: bool = False,
        with_chain: bool = False,
    ) -> None:
        """``begins``, ``ends``: of the signer's certificate; ``through`` an intermediate; ``with_chain`` in answers."""
        folder.mkdir(parents=True)
        now = datetime.now(UTC)
        begins, ends = begins or now - DAY, ends or now + DAY
        root_key, middle_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self.root = _ca("root", "root", root_key, root_key, now)
        self.middle = _ca("intermediate", "root", middle_key, root_key, now)
        self.roots = [self.root]
        above, signs = ("intermediate", middle_key) if through else ("root", root_key)
        self._signs = signs
        self._builder = _certificate("authority", above, key, signs, (begins, ends))
        self.signer = self._for(ExtendedKeyUsageOID.TIME_STAMPING)
        self.root_file = folder / "root.pem"
        self.root_file.write_bytes(self.root.public_bytes(PEM))
        (folder / "chain.pem").write_bytes(self.middle.public_bytes(PEM) + self.root.public_bytes(PEM))
        (folder / "tsa.pem").write_bytes(self.signer.public_bytes(PEM))
        secret = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / "tsa.key").write_bytes(secret)
        (folder / "serial").write_text("01\n")
        certs = f"certs = {folder}/chain.pem" if with_chain else ""
        self._config = folder / "tsa.cnf"
        self._config.write_text(_CONFIG.format(folder=folder, certs=certs))

    def twin(self, usage: x509.ObjectIdentifier) -> x509.Certificate:
        """Return the signer's certificate, but for another use; as long in DER."""
        while True:
            twin = self._for(usage)  # the length of an ECDSA signature is chance
            if len(twin.public_bytes(DER)) == len(self.signer.public_bytes(DER)):
                return twin

    def _for(self, usage: x509.ObjectIdentifier) -> x509.Certificate:
        builder = self._builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        return builder.sign(self._signs, hashes.SHA256())

    def reply(self, query: bytes) -> bytes:
        """Answer a TimeStampReq."""
        with tempfile.TemporaryDirectory() as name:
            asked, answered = Path(name, "q"), Path(name, "r")
            asked.write_bytes(query)
            files: list[str | Path] = ["-config", self._config, "-queryfile", asked, "-out", answered]
            subprocess.run(["openssl", "ts", "-reply", *files], check=True, capture_output=True)
            return answered.read_bytes()

    def stamp(self, data: bytes, digest: str = "sha256") -> bytes:
        """Answer a question about ``data`` that openssl asks."""
        return self.reply(ask_openssl(data, digest))


def ask_openssl(data: bytes, digest: str = "sha256") -> bytes:
    """Make a TimeStampReq with the openssl command."""
    command = ["openssl", "ts", "-query", "-data", "/dev/stdin", f"-{digest}", "-cert"]
    return subprocess.run(command, check=True, input=data, capture_output=True).stdout


def _certificate(
    name: str, issuer: str, key: Key, signs: Key, lifetime: tuple[datetime, datetime]
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(_name(name)).issuer_name(_name(issuer))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(lifetime[0]).not_valid_after(lifetime[1])
    # All roots here have the same name: key ids tell them apart, as with real ones that were renewed.
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(signs.public_key())
    return builder.add_extension(above, critical=False)


def _ca(name: str, issuer: str, key: Key, signs: Key, now: datetime) -> x509.Certificate:
    builder = _certificate(name, issuer, key, signs, (now - 30 * DAY, now + 30 * DAY))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(signs, hashes.SHA256())


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"agentwatch test {name}")])


class Server:
    """Serves one behaviour at a time on loopback: ``behaviour`` gets the handler and the body of the question.

    ``released`` ends behaviours that would go on for ever.
    """

    def __init__(self, behaviour: Callable[[Handler, bytes], None]) -> None:
        self.behaviour = behaviour
        self.asked = threading.Semaphore(0)
        """One for each question that came."""
        self.released = threading.Event()
        self._http = _Http(("127.0.0.1", 0), Handler)
        self._http.owner = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Http(ThreadingHTTPServer):
    owner: Server


class Handler(BaseHTTPRequestHandler):
    server: _Http

    def do_POST(self) -> None:
        assert self.headers["Content-Type"] == "application/timestamp-query"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.owner.asked.release()
        try:
            self.server.owner.behaviour(self, body)
        except OSError:
            self.close_connection = True  # the client had enough of it

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/timestamp-reply", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @property
    def released(self) -> threading.Event:
        return self.server.owner.released

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the name is the base class's
        del format, args


def honest(authority: Authority) -> Callable[[Handler, bytes], None]:
    """Answer as an authority does."""
    return lambda handler, body: handler.answer(authority.reply(body))
