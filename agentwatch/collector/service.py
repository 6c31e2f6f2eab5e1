"""The collector put together from the configuration: its own log, its key, the hosts it knows, the server."""

from __future__ import annotations

import contextlib
import logging
import platform
import ssl
import time
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.x509.oid import NameOID

from agentwatch.collector.connection import context, name_in
from agentwatch.collector.hosts import Hosts
from agentwatch.collector.journal import LogJournal
from agentwatch.collector.server import Server
from agentwatch.errors import ConfigError, StoreError
from agentwatch.log import note
from agentwatch.log.access import Access
from agentwatch.log.keys import KeyFolder
from agentwatch.log.signed import Options, SignedLog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentwatch.config import Config

log = logging.getLogger(__name__)

COSIGNER_KEY = "cosigner"
WATCH_SECONDS = 1.0


def cosigner(config: Config) -> note.Cosigner:
    """Return who cosigns: named as the collector's certificate, with a key that is made once. Raises ConfigError."""
    path = config.collector.cert
    if path is None:
        raise ConfigError("[collector]: listen, ca, cert and key are needed to collect; see docs/operations.md")
    return note.Cosigner(_name(path), KeyFolder(config.keys_path).secret(COSIGNER_KEY))


def run(config: Config, stopping: Callable[[], bool], ready: Callable[[], None]) -> None:
    """Collect until ``stopping``; call ``ready`` once hosts can connect. Raises what opening log and hosts raises."""
    settings = config.collector
    signer = cosigner(config)
    if settings.listen is None or settings.ca is None or settings.cert is None or settings.key is None:
        raise ConfigError("[collector]: listen, ca, cert and key are needed to collect; see docs/operations.md")
    tls = context(ssl.PROTOCOL_TLS_SERVER, settings.ca, settings.cert, settings.key)
    gid = config.reader_gid()
    host = platform.node()
    options = Options(host=host, reader_gid=gid, post_quantum=config.log.post_quantum)
    with contextlib.ExitStack() as stack:
        journal = LogJournal(SignedLog(config.log_dir, config.keys_path, options), host)
        stack.callback(journal.close)
        hosts = Hosts(settings.hosts_dir, Access(gid), journal)
        stack.callback(hosts.close)
        server = Server(settings.listen, tls, hosts, signer)
        log.info("listening at %s; cosigns as %s", server.address, signer.key)
        turn = _Turn(journal, hosts, settings.silent_seconds)
        ready()
        server.run(stopping, turn)


class _Turn:
    # What the accepting thread does between connections.

    def __init__(self, journal: LogJournal, hosts: Hosts, silent_seconds: int) -> None:
        self._journal = journal
        self._hosts = hosts
        self._silent_ns = silent_seconds * 10**9
        self._watch_at = 0.0

    def __call__(self) -> None:
        self._journal.tick()
        if time.monotonic() >= self._watch_at:
            self._watch_at = time.monotonic() + WATCH_SECONDS
            try:
                self._hosts.watch(self._silent_ns)
            except StoreError as e:
                log.error("cannot record that a host is silent: %s", e)  # noqa: TRY400 -- one line for the operator


def _name(path: Path) -> str:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = [str(item.value) for item in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        with contextlib.suppress(x509.ExtensionNotFound):
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            names += found.value.get_values_for_type(x509.DNSName)
    except (OSError, ValueError) as e:
        raise ConfigError(f"[collector]: cannot read the certificate {path}: {e}") from e
    name = name_in({"subject": [[("commonName", first)] for first in names[:1]]})
    if name is None:
        raise ConfigError(f"[collector]: the certificate {path} names no host by a common name or a DNS name")
    return name
