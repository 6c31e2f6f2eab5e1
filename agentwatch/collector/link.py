"""A host's side of one connection: what the collector has, and what is sent so that it has more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentwatch.collector.connection import LinkError
from agentwatch.collector.frames import Alive, Commit, Head, Message, Refused
from agentwatch.collector.session import UNAVAILABLE
from agentwatch.collector.source import Signed, Source
from agentwatch.errors import LogError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentwatch.collector.connection import Connection

REPLY_SECONDS = 120
"""For the collector to store a message; more than it waits for a place for a large one."""

MAX_SHOWN = 500
"""Characters shown of what the collector says."""


class RefusedError(LogError):
    """The collector refuses this log: it has recorded an alarm, and somebody has to look."""


class Link:
    """A connection over which a log is pushed; ``commit`` is the collector's last answer."""

    def __init__(
        self, connection: Connection, log_dir: Path, *, records: bool, keep: Callable[[Signed, str], None]
    ) -> None:
        """Say hello; ``keep`` takes checkpoints and their signature lines. Raises LinkError, RefusedError, LogError."""
        self.source = Source(log_dir)
        self._connection = connection
        self._records = records
        self._keep = keep
        self._newest: Signed | None = None
        hello = self.source.hello()
        self._origin = hello.origin
        self.commit = self._ask(hello)

    def send_trees(self, signed: Signed) -> None:
        """Send a checkpoint, and the epochs that lead to it."""
        if signed.checkpoint.origin != self._origin:
            raise LinkError(f"the log {self._origin} has ended, and {signed.checkpoint.origin} begun: connecting anew")
        for message in self.source.trees(self.commit, signed):
            self.commit = self._ask(message)
            if isinstance(message, Head):
                self._newest = signed
                self._keep(signed, self.commit.cosignature)

    def send_batch(self) -> bool:
        """Send one batch of the records that the collector needs; tell whether there was one to send."""
        first, newest = self.commit.next_seq, self._newest
        if not self._records or newest is None or first is None or first >= self.commit.size:
            return False
        self.commit = self._ask(self.source.records(first, self.commit.size, newest.checkpoint))
        return True

    def say_alive(self) -> None:
        """Ask for an answer, and give none of our own."""
        self.commit = self._ask(Alive())

    def _ask(self, message: Message) -> Commit:
        self._connection.send(message)
        answer = self._connection.receive(REPLY_SECONDS)
        if isinstance(answer, Refused):
            if answer.reason == UNAVAILABLE:
                raise LinkError(f"the collector: {_plain(answer.message)}")
            raise RefusedError(f"the collector refuses this log ({_plain(answer.reason)}): {_plain(answer.message)}")
        if not isinstance(answer, Commit):
            raise LinkError(f"{type(answer).__name__} is no answer of a collector")
        return answer


def _plain(text: str) -> str:
    # It goes to a terminal or into a journal, and is the other side's.
    return "".join(ch if ch.isprintable() else "?" for ch in text[:MAX_SHOWN])
