"""The canary: at intervals a child of the recorder does in a watched cgroup what agents do, and must be seen.

What it is seen by is the whole way of an event: probes, ring, decoding, observer. The exec and the connect must come
out of the observer as records; the bytes of the two tokens must come as a packet and as a call on a Unix socket. What
did not come after ``SECONDS`` is an alarm.

The records of the child itself are not written to the log, only counted. What is withheld depends on the state in here
and on the records alone, so that a restarted recorder that reads the same events again withholds the same: the child is
let go only after a state that names it is saved. Anybody else in that cgroup is recorded like every agent.
Plain values, survives ``pickle``; ``canary_run`` has the process and the sockets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from agentwatch.config import CANARY_AGENT
from agentwatch.kernel import abi
from agentwatch.observation import make

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentwatch.records.encoding import Record

SECONDS = 5
"""How long after the child ended, and after everything up to then was read, its events may still come."""
SIGNS = ("exec", "connect", "send", "unix")
_BYTES = frozenset({abi.Wire, abi.Unix})
MAX_REMEMBERED = 64
"""Children and connections whose records are withheld; beyond it the oldest, whose end was lost, is forgotten."""


class Expected(NamedTuple):
    """What the child that is under way must be seen by."""

    pid: int
    port: int
    tcp: bytes
    unix: bytes


class Canary:
    """What was sent, what was seen, and whose records are withheld."""

    def __init__(self, now: int) -> None:
        """``now``: CLOCK_BOOTTIME, ns."""
        self.sent = 0
        self.seen = 0
        self.last: int | None = None
        """When one was last wholly seen, CLOCK_REALTIME, ns."""
        self.judged_at = now
        """CLOCK_BOOTTIME, ns, of the last judgement: what was missed may be missed since then."""
        self.missing: tuple[str, ...] = ()
        """What the last one was not seen by."""
        self.told: tuple[str, ...] | None = None
        """What the log says of it: the signs that are missing, none of them; None: nothing yet."""
        self._expected: Expected | None = None
        self._signs: set[str] = set()
        self._pids: dict[int, None] = {}
        self._connections: dict[str, None] = {}
        self._starts: dict[str, Record] = {}
        """The ``session_start`` of sessions in which only the canary was seen so far."""

    @property
    def status(self) -> str:
        """Say in a word or two what became of the last one: ``seen``, ``missed exec,send``, ``waiting`` for it."""
        if self.told is None:
            return "waiting"
        return f"missed {','.join(self.missing)}" if self.missing else "seen"

    # -- one canary

    def begin(self, expected: Expected) -> None:
        """Expect a child; from now on its records are withheld."""
        self._expected, self._signs = expected, set()
        _remember(self._pids, expected.pid)

    def fail(self) -> None:
        """Take note that no child could be started: nothing will be seen."""
        self._expected, self._signs = None, set()

    def let_go(self) -> None:
        """Take note that the child was told to begin."""
        self.sent += 1

    @property
    def absent(self) -> tuple[str, ...]:
        """What has not been seen of the child that is under way."""
        return tuple(sign for sign in SIGNS if sign not in self._signs)

    def end(self, now: int, wall: int, interval: int, detail: str | None = None) -> list[tuple[str, dict[str, Any]]]:
        """Judge it (``now``: CLOCK_BOOTTIME, ``wall``: CLOCK_REALTIME); return kind and fields of a record to write.

        A record is written when the answer is another than that of the last time.
        """
        self.missing = self.absent
        self._expected = None
        since, self.judged_at = self.judged_at, now
        if not self.missing:
            self.seen += 1
            self.last = wall
        if self.told == self.missing:
            return []
        self.told = self.missing
        fields: dict[str, Any] = {"interval": interval}
        if not self.missing:
            return [("canary_seen", fields)]
        return [("canary_missed", fields | {"missing": list(self.missing), "detail": detail, "since": since})]

    def forget(self) -> None:
        """Give up the child that is under way: its recorder is gone. Its records are withheld all the same."""
        self._expected = None
        self.missing = ()
        self.told = None

    # -- what comes out of the ring

    def see(self, event: abi.Event) -> None:
        """Look for a token in an event."""
        expected = self._expected
        if expected is None or type(event) not in _BYTES:
            return
        assert isinstance(event, abi.Wire | abi.Unix)  # noqa: S101 -- as just seen
        if event.direction != abi.Way.OUT:
            return
        if type(event) is abi.Wire and expected.tcp in event.data:
            self._signs.add("send")
            _remember(self._connections, make.connection("tcp", event.cookie))
        elif type(event) is abi.Unix and expected.unix in event.data:
            self._signs.add("unix")  # it is read at the other end, perhaps after the child has ended

    def withhold(self, records: Sequence[Record]) -> list[Record]:
        """Return the records that belong into the log."""
        if not any(record.get("agent") == CANARY_AGENT for record in records):
            return list(records)
        kept: list[Record] = []
        for record in records:
            if record.get("agent") != CANARY_AGENT:
                kept.append(record)
            else:
                kept.extend(self._judged(record))
        return kept

    def _judged(self, record: Record) -> list[Record]:
        kind, session = record["kind"], record["session"]
        if kind == "session_start" and self._pids:
            _remember(self._starts, session, record)
            return []
        if kind == "session_end" and session in self._starts:
            del self._starts[session]
            return []
        if self._is_own(record):
            return []
        start = self._starts.pop(session, None)
        if start is None:
            return [record]
        if "event" in record:
            start["event"] = record["event"]
        else:
            start.pop("event", None)
        return [start, record]

    def _is_own(self, record: Record) -> bool:
        """Tell whether a record is of a child of ours or of its connections, and take note of what it says."""
        kind, pid, connection = record["kind"], record.get("pid"), record.get("connection")
        if pid in self._pids:
            self._recognise(kind, record)
            return True
        if pid is not None or connection not in self._connections:
            return False
        if kind == "opaque" and record["final"]:
            del self._connections[connection]
        # What was not received is what we have not read, having been killed.
        return bool(kind == "opaque" or (kind == "gap" and record["cause"] == "not-received"))

    def _recognise(self, kind: str, record: Record) -> None:
        if kind == "exit":
            del self._pids[record["pid"]]
        elif kind == "connect" and "connection" in record:
            _remember(self._connections, record["connection"])
        if self._expected is None or record["pid"] != self._expected.pid:
            return
        if kind == "exec":
            self._signs.add("exec")
        elif kind == "connect" and str(record["peer"]).endswith(f":{self._expected.port}"):
            self._signs.add("connect")


def _remember(known: dict[Any, Any], key: Any, value: Any = None) -> None:
    known[key] = value
    if len(known) > MAX_REMEMBERED:
        del known[next(iter(known))]
