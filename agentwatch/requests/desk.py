"""What the recorder does with requests: has them written, and answers when they are durable.

In: requests (``server``), and how far the log is durable. Out: records of the kinds ``read`` and ``hold``, answers,
and the file of holds. What always holds: who is told "recorded" has a record on disk, and a session counts as held from
before the record of its hold is written until after the record of its release is on disk. So a crash holds too much,
never too little.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from agentwatch.errors import AgentwatchError
from agentwatch.requests import holds
from agentwatch.requests.server import Requests

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentwatch.config import Config
    from agentwatch.requests.server import Request


class Desk:
    """Listens at ``requests.sock``. ``write`` appends a record (its kind and fields) and returns its number.

    Raises StoreError if it cannot listen.
    """

    def __init__(self, config: Config, write: Callable[[str, dict[str, Any]], int]) -> None:
        self._config = config
        self._write = write
        self._requests = Requests(config)
        self._waiting: deque[tuple[int, Request]] = deque()
        """Written and not durable; bounded by the connections that wait for an answer, and what one poll takes."""

    def take(self, fault: str | None) -> None:
        """Write what was asked for; nothing while there is a ``fault`` of the log, which is the answer then."""
        for request in self._requests.poll():
            if fault is not None:
                self._requests.refuse(request, fault)
                continue
            try:
                if request.fields.get("held"):
                    self._change([request])
                self._waiting.append((self._write(request.kind, request.record), request))
            except AgentwatchError as e:
                self._requests.refuse(request, str(e))

    def answer(self, durable_seq: int) -> None:
        """Answer what is on disk: records before ``durable_seq``."""
        done: list[tuple[int, Request]] = []
        while self._waiting and self._waiting[0][0] < durable_seq:
            done.append(self._waiting.popleft())
        problem: str | None = None
        try:
            self._change([request for _, request in done if request.kind == "hold"])
        except AgentwatchError as e:
            problem = str(e)
        for seq, request in done:
            if problem is not None and request.kind == "hold":
                self._requests.refuse(request, f"record {seq} says so, but {problem}")
            else:
                self._requests.answer(request, seq)

    def close(self) -> None:
        """Stop listening; who waits still gets no answer."""
        self._requests.close()

    def _change(self, requests: Sequence[Request]) -> None:
        """Bring the file of holds up to these requests, in their order."""
        if not requests:
            return
        before = holds.read_holds(self._config.log_dir)
        after = set(before)
        for request in requests:
            (after.add if request.fields["held"] else after.discard)(request.fields["held_session"])
        if after != before:
            holds.write_holds(self._config.log_dir, after, reader_gid=self._config.reader_gid())
