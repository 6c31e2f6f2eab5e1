"""The collector: takes connections from hosts, gives each a thread, and watches for silence.

One thread for each connection: what is done for a message is hashing and waiting for the disk, which would hold up an
event loop and so every other host; and hosts are counted in hundreds. What always holds:

* nobody without a certificate of the right authority gets further than the handshake, which has a time limit, a limit
  for each address and one for all;
* a host has one connection (hosts.py), and so a limited share of memory and threads;
* what a host sends touches that host's folder alone, its errors end that host's connection alone.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from agentwatch.collector.connection import Connection, LinkError, describe, name_in
from agentwatch.collector.session import Session
from agentwatch.collector.trust import CERTIFICATE, Refusal
from agentwatch.errors import AgentwatchError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentwatch.collector.hosts import Hosts
    from agentwatch.log import note

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10
MAX_HANDSHAKES = 64
"""Connections that have not shown a certificate; beyond that new ones are closed. Hosts come again."""
MAX_HANDSHAKES_AN_ADDRESS = 8
LARGE_FRAMES = 2
"""So many frames with a record of up to 64 MiB are in memory at once."""
TURN_SECONDS = 0.25
"""How long the accepting thread waits before it looks at everything else."""
CLOSE_SECONDS = 10
"""For threads to finish what they are writing."""
_NO_CERTIFICATE = "PEER_DID_NOT_RETURN_A_CERTIFICATE"


class Server:
    """Listens, and serves hosts until it is told to stop."""

    def __init__(self, listen: str, tls: ssl.SSLContext, hosts: Hosts, cosigner: note.Cosigner) -> None:
        """Listen at ADDRESS:PORT. Raises ConfigError."""
        self._tls = tls
        self._hosts = hosts
        self._cosigner = cosigner
        self._places = threading.BoundedSemaphore(LARGE_FRAMES)
        self._lock = threading.Lock()
        self._handshakes: Counter[str] = Counter()
        self._running: dict[threading.Thread, Connection | None] = {}
        host, _, port = listen.rpartition(":")
        address = host.strip("[]")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            self._listener = socket.create_server((address, int(port)), family=family, backlog=MAX_HANDSHAKES)
        except OSError as e:
            raise ConfigError(f"[collector]: cannot listen at {listen}: {describe(e)}") from e
        self._listener.settimeout(TURN_SECONDS)

    @property
    def address(self) -> str:
        """Where it listens, as HOST:PORT."""
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def run(self, stopping: Callable[[], bool], turn: Callable[[], None]) -> None:
        """Serve until ``stopping``; call ``turn`` a few times a second."""
        next_turn = 0.0
        try:
            while not stopping():
                self._accept()
                if time.monotonic() >= next_turn:
                    turn()
                    next_turn = time.monotonic() + TURN_SECONDS
        finally:
            self._close()

    def _accept(self) -> None:
        try:
            raw, address = self._listener.accept()
        except TimeoutError:
            return
        except OSError as e:
            # No file descriptor is left, or the peer is gone already: go on, and not in a tight loop.
            log.warning("cannot accept a connection: %s", describe(e))
            time.sleep(TURN_SECONDS)
            return
        source = str(address[0])
        with self._lock:
            if self._handshakes.total() >= MAX_HANDSHAKES or self._handshakes[source] >= MAX_HANDSHAKES_AN_ADDRESS:
                raw.close()
                return
            self._handshakes[source] += 1
            thread = threading.Thread(target=self._run, args=(raw, source), name=f"host at {source}", daemon=True)
            self._running[thread] = None
        thread.start()

    def _run(self, raw: socket.socket, source: str) -> None:
        try:
            tls = self._shake_hands(raw, source)
            with contextlib.closing(Connection(tls, self._places)) as connection:
                with self._lock:
                    self._running[threading.current_thread()] = connection
                self._serve(connection, name_in(tls.getpeercert()), source)
        except AgentwatchError as e:
            log.info("%s: %s", source, e)
        except Exception:
            log.exception("the connection from %s was ended by an error of the collector", source)
        finally:
            with self._lock:
                self._running.pop(threading.current_thread(), None)

    def _shake_hands(self, raw: socket.socket, source: str) -> ssl.SSLSocket:
        try:
            raw.settimeout(HANDSHAKE_SECONDS)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._tls.wrap_socket(raw, server_side=True)
        except OSError as e:
            raw.close()
            if isinstance(e, ssl.SSLCertVerificationError) or getattr(e, "reason", "") == _NO_CERTIFICATE:
                self._hosts.refused("", Refusal(CERTIFICATE, describe(e)), source)
            raise LinkError(f"no connection: {describe(e)}") from e
        finally:
            with self._lock:
                self._handshakes[source] -= 1
                if not self._handshakes[source]:
                    del self._handshakes[source]

    def _serve(self, connection: Connection, name: str | None, source: str) -> None:
        if name is None:
            refusal = Refusal(
                CERTIFICATE, "its certificate names no host: it needs a common name of letters, digits and .-_"
            )
            self._hosts.refused("", refusal, source)
            raise refusal
        log.info("%s: the host %s", source, name)
        Session(connection, self._hosts.get(name), source, self._hosts, self._cosigner).run()

    def _close(self) -> None:
        self._listener.close()
        with self._lock:
            running = dict(self._running)
        for connection in running.values():
            if connection is not None:
                connection.abort()
        limit = time.monotonic() + CLOSE_SECONDS
        for thread in running:
            thread.join(max(0.0, limit - time.monotonic()))
