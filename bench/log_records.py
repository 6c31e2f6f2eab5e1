"""Records of a real run, over and over and never the same: what the logs of bench/log.py consist of.

In: the kernel's events in tests/golden/events (psql over TCP and a Unix socket, pgbench with prepared statements, some
commands), which go through the observer once; the statements of tests/golden/sql/corpus.sql. Out: sessions of any
length, encoded and numbered as the recorder's journal does it. Each turn of the run has other times, durations, pids,
cookies, ports and parameters; half of its prepared statements become some of the corpus, drawn at random, always the
same ones in the same order.
"""

from __future__ import annotations

import random
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from agentwatch.config import AgentConfig, Config
from agentwatch.kernel import abi
from agentwatch.observation.observer import Observer
from agentwatch.records.encoding import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.records.encoding import Record

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
EVENTS = GOLDEN / "events" / "psql-pgbench.msgpack"
STATEMENTS = GOLDEN / "sql" / "corpus.sql"
SESSION_RECORDS = 500
"""Of a session of which nothing else is asked."""
TURN_NS = 10**9
_COUNTERS = ("pid", "tid", "ppid", "exec_id", "event")
_DURATIONS = ("duration_ns", "latency_ns")
_ACCOUNTS = 100_000
_PORTS = range(32768, 60999)
REPEATED = 0.5
"""Of the prepared statements: so many stay what they were, with another parameter."""
SEED = 6962


class Records:
    """A source of sessions. The same calls give the same records, but for the sessions' ids."""

    def __init__(self) -> None:
        start, *body, end = observed()
        self._start, self._body, self._end = start, body, end
        self._statements = [line for line in STATEMENTS.read_text().splitlines() if line]
        self._chance = random.Random(SEED)  # noqa: S311 -- not for secrets
        self._turn = 0

    def session(self, count: int, session: str | None = None) -> Iterator[Record]:
        """Yield the records of one session: its start, ``count - 2`` of what it did, its end."""
        session = session or str(uuid.UUID(int=self._chance.getrandbits(128), version=4))
        for number, record in enumerate(self._run(count)):
            yield record | {"session": session, "session_seq": number}

    def payloads(self, count: int) -> Iterator[bytes]:
        """Yield stored records of sessions that follow each other."""
        while count > 0:
            for record in self.session(min(count, SESSION_RECORDS)):
                yield encode(record)
            count -= SESSION_RECORDS

    def _run(self, count: int) -> Iterator[Record]:
        yield self._varied(self._start)
        left = count - 2
        while left > 0:
            self._turn += 1
            for record in self._body[:left]:
                yield self._varied(record)
            left -= len(self._body)
        if count > 1:
            yield self._varied(self._end)

    def _varied(self, record: Record) -> Record:
        turn, chance = self._turn, self._chance
        varied = dict(record)
        varied["time"] += turn * TURN_NS
        varied["boottime"] += turn * TURN_NS
        for name in _COUNTERS:
            if name in varied:
                varied[name] += turn * 64
        for name in _DURATIONS:
            if name in varied:
                varied[name] = int(varied[name] * chance.uniform(0.5, 2))
        if varied.get("connection"):
            family, cookie = varied["connection"].split("-")
            varied["connection"] = f"{family}-{int(cookie) + turn * 8}"
        if varied.get("local"):
            varied["local"] = f"127.0.0.1:{chance.choice(_PORTS)}"
        if varied.get("params"):
            varied |= self._statement(varied)
        return varied

    def _statement(self, record: Record) -> dict[str, Any]:
        if self._chance.random() < REPEATED:
            text = record["db.query.text"]
            return {"params": [str(self._chance.randrange(_ACCOUNTS))], "text_length": len(text)}
        text = self._chance.choice(self._statements)
        return {"db.query.text": text, "text_length": len(text.encode()), "params": None}


def observed() -> list[Record]:
    """Return what the observer makes of the events: one session, from its start to its end."""
    with tempfile.TemporaryDirectory() as root:
        agents = (AgentConfig("agent-backfill", "lead.slice/agent-backfill*"),)
        config = Config(run_dir=Path(root, "run"), cgroup_root=Path(root), watch="lead.slice", agents=agents)
        observer = Observer(config, "db-agents-1", str(uuid.UUID(int=SEED)))
        records: list[Record] = []
        for position, data in msgpack.unpackb(EVENTS.read_bytes()):
            event = abi.decode(data)
            if event is None:
                raise ValueError(f"{EVENTS} has an event that is none of this version's")
            records += observer.handle(position, event)
    return records
