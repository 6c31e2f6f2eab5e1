"""The client: follow a log and keep its collector at the newest checkpoint. A process of its own, that only reads.

In: the log's folder, ``[push]`` of the configuration. Out: what the collector has, and the cosigned checkpoints in
``anchors/``. What always holds:

* nothing is remembered here: after any interruption the collector's commit point says what comes next, also when it was
  restored from an older state;
* checkpoints go before records: while many records are still to be sent, new checkpoints are anchored all the same;
* whatever goes wrong is tried again, more and more slowly, and never disturbs the recorder.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import ssl
import time
from typing import TYPE_CHECKING

from agentwatch.collector import connection
from agentwatch.collector.anchors import Anchors
from agentwatch.collector.link import Link, RefusedError
from agentwatch.errors import AgentwatchError, ConfigError, StoreError
from agentwatch.log import note

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.collector.source import Signed
    from agentwatch.config import Config
    from agentwatch.config_tables import PushConfig

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10
POLL_SECONDS = 0.5
"""Between two looks for a new checkpoint; the recorder writes one as often."""
ALIVE_SECONDS = 20
RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0
"""The delay doubles with each failure up to this; half of it is chance, so that hosts do not all come at once."""
SLEEP_SECONDS = 0.1
"""Between two looks whether to stop."""


class Pusher:
    """Pushes the log of a configuration. For one thread, but for ``stop``."""

    def __init__(self, config: Config) -> None:
        """Raise ConfigError where ``[push]`` cannot be used."""
        self._host, self._port, self._tls = _peer(config.push)
        self._key = _collector_key(config.push)
        self._records = config.push.records
        self._log_dir = config.log_dir
        self._anchors = Anchors(config.log_dir)
        self._fault = ""
        self._connection: connection.Connection | None = None
        self._stopping = False
        self._delay = RETRY_SECONDS

    def stop(self) -> None:
        """End ``run`` soon. May be called from a signal handler."""
        self._stopping = True
        if self._connection is not None:
            self._connection.abort()

    def push_once(self) -> int:
        """Bring the collector to the newest checkpoint; return its size. Raises StoreError, RefusedError, LogError."""
        with self._linked() as link:
            link.send_trees(link.source.signed())
            while link.send_batch():
                pass
            if self._records and link.commit.next_seq is None:
                raise StoreError(
                    "the checkpoint is anchored, and the collector takes no records now; its messages say why"
                )
            return link.commit.size

    def run(self) -> None:
        """Follow the log until ``stop``."""
        while not self._stopping:
            try:
                with self._linked() as link:
                    self._follow(link)
            except AgentwatchError as e:
                if self._stopped():
                    return
                self._delay = MAX_RETRY_SECONDS if isinstance(e, RefusedError) else self._delay
                log.warning("%s; trying again in %d s at most", e, self._delay)
                self._sleep(self._delay * random.uniform(0.5, 1.0))  # noqa: S311 -- not for secrets
                self._delay = min(2 * self._delay, MAX_RETRY_SECONDS)

    def _follow(self, link: Link) -> None:
        pushed = ""
        alive_at = time.monotonic() + ALIVE_SECONDS
        while not self._stopping:
            signed = link.source.signed()
            if signed.stored != pushed:
                link.send_trees(signed)
                pushed = signed.stored
                self._delay = RETRY_SECONDS
            elif not link.send_batch():
                self._sleep(POLL_SECONDS)
                if time.monotonic() < alive_at:
                    continue
                link.say_alive()
            alive_at = time.monotonic() + ALIVE_SECONDS

    @contextlib.contextmanager
    def _linked(self) -> Iterator[Link]:
        with contextlib.closing(connection.Connection(self._connect())) as made:
            self._connection = made
            try:
                if self._stopping:
                    made.abort()
                yield Link(made, self._log_dir, records=self._records, keep=self._keep)
            finally:
                self._connection = None

    def _connect(self) -> ssl.SSLSocket:
        where = f"{self._host}:{self._port}"
        try:
            raw = socket.create_connection((self._host, self._port), CONNECT_SECONDS)
        except OSError as e:
            raise connection.LinkError(f"cannot connect to the collector {where}: {connection.describe(e)}") from e
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._tls.wrap_socket(raw, server_hostname=self._host)
        except (OSError, ValueError) as e:
            raw.close()
            raise connection.LinkError(f"cannot connect to the collector {where}: {connection.describe(e)}") from e

    def _keep(self, signed: Signed, line: str) -> None:
        cosigned = f"{signed.stored}{line}\n"
        try:
            parsed = note.parse(cosigned)
            name = parsed.signatures[-1].name
            if self._key is not None:
                note.verify(parsed, [self._key])
        except note.NoteError as e:
            raise connection.LinkError(f"who answers at {self._host}:{self._port} is not the collector: {e}") from e
        try:
            self._anchors.store(signed.checkpoint.size, name, cosigned)
            self._fault = ""
        except AgentwatchError as e:
            # The collector has the checkpoint, which is what counts. Said once.
            if str(e) != self._fault:
                log.warning("%s", e)
            self._fault = str(e)

    def _stopped(self) -> bool:
        return self._stopping

    def _sleep(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        while not self._stopping and (rest := limit - time.monotonic()) > 0:
            time.sleep(min(SLEEP_SECONDS, rest))


def _peer(settings: PushConfig) -> tuple[str, int, ssl.SSLContext]:
    if settings.to is None or settings.ca is None or settings.cert is None or settings.key is None:
        raise ConfigError("[push]: to, ca, cert and key are needed to push; see docs/operations.md")
    host, _, port = settings.to.rpartition(":")
    tls = connection.context(ssl.PROTOCOL_TLS_CLIENT, settings.ca, settings.cert, settings.key)
    return host.strip("[]"), int(port), tls


def _collector_key(settings: PushConfig) -> note.Key | None:
    if settings.collector_key is None:
        return None
    try:
        key = note.Key.parse(settings.collector_key)
    except note.NoteError as e:
        raise ConfigError(f"[push]: collector_key: {e}; `agentwatch collector --key` prints it") from e
    if key.kind != note.COSIGNATURE:
        raise ConfigError("[push]: collector_key is not the key of a cosigner; `agentwatch collector --key` prints it")
    return key
