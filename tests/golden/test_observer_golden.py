"""A real kernel's events give the same records whatever happens to the recorder in between.

The corpus was made by tests/golden/record_events.py: psql over TCP and a Unix socket, pgbench with prepared statements,
and some commands.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from agentwatch.config import AgentConfig, Config
from agentwatch.kernel import abi
from agentwatch.observation.observer import Observer
from agentwatch.records.encoding import decode, encode

if TYPE_CHECKING:
    from agentwatch.records.encoding import Record

CORPUS = Path(__file__).parent / "events" / "psql-pgbench.msgpack"
EVENTS: list[tuple[int, bytes]] = [tuple(e) for e in msgpack.unpackb(CORPUS.read_bytes())]
STEP = 7
"""Events between two restarts: prime, so that every kind of moment is met."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        run_dir=tmp_path / "run",
        cgroup_root=tmp_path,
        watch="lead.slice",
        agents=(AgentConfig("agent-backfill", "lead.slice/agent-backfill*"),),
    )


def observe(config: Config, *, restart_every: int = 0) -> list[Record]:
    """Return the records of the corpus; the observer is saved and restored every so many events."""
    observer = Observer(config, "host", "boot")
    records: list[Record] = []
    for number, (position, data) in enumerate(EVENTS, 1):
        event = abi.decode(data)
        assert event is not None
        records += observer.handle(position, event)
        if restart_every and number % restart_every == 0:
            observer = pickle.loads(pickle.dumps(observer))  # noqa: S301 -- made one call before
    return records


def statements(records: list[Record]) -> list[Record]:
    return [r for r in records if r["kind"] == "statement"]


def test_statements_are_those_that_were_run(config: Config) -> None:
    records = observe(config)
    by_connection: dict[str, list[Any]] = {}
    for r in statements(records):
        by_connection.setdefault(r["connection"], []).append(r)
    first, second, *benches = [b for b in by_connection.values() if b[0]["transport"]]
    assert [(r["db.query.text"], r["outcome"], r["db.response.status_code"]) for r in first] == [
        ("SELECT 1 AS first", "ok", None),
        ("SELECT 1/0", "error", "22012"),
        ("BEGIN", "ok", None),
        ("SELECT 2", "ok", None),
        ("COMMIT", "ok", None),
    ]
    assert [(r["db.query.text"], r["transport"], r["seen_by"]) for r in second] == [
        ("SELECT 3 AS over_unix", "unix", "receiver")
    ]
    prepared = [b for b in benches if b[0]["params"]]
    assert [len(b) for b in prepared] == [20, 20]
    for r in (r for b in prepared for r in b):
        assert r["db.query.text"] == "SELECT abalance FROM pgbench_accounts WHERE aid = $1;"
        assert (r["outcome"], r["rows"], len(r["params"])) == ("ok", 1, 1)


def test_commands_have_status_and_arguments(config: Config) -> None:
    records = observe(config)
    status = {r["exec_id"]: r["status"] for r in records if r["kind"] == "exit"}
    execs = [(r["argv"], status.get(r["exec_id"])) for r in records if r["kind"] == "exec"]
    assert (["/bin/false"], 1) in execs
    assert (["/bin/true", "", "two words"], 0) in execs


def test_one_session_has_everything(config: Config) -> None:
    records = observe(config)
    assert [r["kind"] for r in records if r["kind"].startswith("session_")] == ["session_start", "session_end"]
    assert len({r["session"] for r in records}) == 1
    assert {r["agent"] for r in records} == {"agent-backfill"}


def test_a_restart_at_any_moment_changes_nothing(config: Config, tmp_path: Path) -> None:
    whole = observe(config)
    for every in (1, STEP):
        other = Config(run_dir=tmp_path / f"run{every}", cgroup_root=tmp_path, watch=config.watch, agents=config.agents)
        again = observe(other, restart_every=every)
        assert [_without_identity(r) for r in again] == [_without_identity(r) for r in whole]


def test_records_survive_their_encoding(config: Config) -> None:
    for record in observe(config):
        assert decode(encode(record)) == record


def test_damaged_events_never_raise(config: Config) -> None:
    observer = Observer(config, "host", "boot")
    for position, data in EVENTS:
        for cut in (0, 5, 31, 32, 40, len(data) // 2, len(data) - 1):
            abi.decode(data[:cut])
        flipped = bytes(b ^ 0x5A for b in data[: abi.HEADER.size + 24]) + data[abi.HEADER.size + 24 :]
        for event in (abi.decode(flipped), abi.decode(data)):
            if event is not None:
                observer.handle(position, event)


def _without_identity(record: Record) -> Record:
    """Leave out what a new observer makes anew: the session's id, and the wall clock's distance."""
    return {key: value for key, value in record.items() if key not in ("session", "time")}
