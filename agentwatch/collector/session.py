"""One host's connection: each message is answered, what is refused is recorded and ends it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from agentwatch.collector.connection import LinkError
from agentwatch.collector.frames import Alive, Commit, Epochs, Head, Hello, Message, Records, Refused
from agentwatch.collector.trust import Refusal
from agentwatch.errors import AgentwatchError

if TYPE_CHECKING:
    from agentwatch.collector.connection import Connection
    from agentwatch.collector.hosts import Hosts, Known
    from agentwatch.log import note

log = logging.getLogger(__name__)

IDLE_SECONDS = 90
"""Between two messages; a host says that it is alive every 20 s."""
UNAVAILABLE = "unavailable"
"""What a host is told when the collector itself fails: it comes again."""


class Session:
    """A connection that has shown the certificate of ``known``."""

    def __init__(
        self, connection: Connection, known: Known, address: str, hosts: Hosts, cosigner: note.Cosigner
    ) -> None:
        self._connection = connection
        self._known = known
        self._address = address
        self._hosts = hosts
        self._cosigner = cosigner

    def run(self) -> None:
        """Serve until the connection ends. Raises LinkError when it does, Refusal after one was recorded."""
        self._known.take_over(self._connection)
        while True:
            message = self._connection.receive(IDLE_SECONDS)
            self._connection.send(self._answer(message))

    def _answer(self, message: Message) -> Commit:
        known = self._known
        with known.lock:
            if known.user is not self._connection:
                raise LinkError("the host has connected again")
            try:
                before = known.host.size
                commit = self._take(message)
                if known.host.size > before:
                    self._hosts.grew(known)
            except LinkError:
                raise
            except Refusal as e:
                self._hosts.refused(known.host.name, e, self._address)
                self._connection.send(Refused(e.reason, str(e)))
                raise
            except AgentwatchError as e:
                log.error("cannot serve %s: %s", known.host.name, e)  # noqa: TRY400 -- one line for the operator
                self._connection.send(Refused(UNAVAILABLE, "the collector cannot go on; its own messages say why"))
                known.host.distrust_memory()
                raise
            return commit

    def _take(self, message: Message) -> Commit:
        host = self._known.host
        cosignature = ""
        if isinstance(message, Hello):
            host.greet(message)
        elif isinstance(message, Epochs):
            host.take_epochs(message.steps, lambda: self._hosts.enrol(self._known, self._address))
        elif isinstance(message, Head):
            accepted = host.take_head(message)
            cosignature = str(self._cosigner.sign(accepted.text, int(time.time())))
        elif isinstance(message, Records):
            host.take_records(message)
        elif isinstance(message, Alive):
            host.wake()
        else:
            raise LinkError(f"{type(message).__name__} is what a collector says, not a host")
        return host.commit_point(cosignature)
