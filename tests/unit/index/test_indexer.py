from __future__ import annotations

import grp
import os
import sqlite3
import stat
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentwatch.config import Config
from agentwatch.errors import BusyError, ConfigError, NotFoundError
from agentwatch.index import indexer as indexer_module
from agentwatch.index import store
from agentwatch.index.indexer import Indexer
from agentwatch.log.writer import LogWriter
from tests.unit.log_builder import BOOT0, MS, OTHER_SESSION, SESSION, T0, LogBuilder


def index(config: Config, limit: int | None = None) -> int:
    with Indexer(config) as indexer:
        return indexer.catch_up(limit)


def dump(config: Config) -> list[str]:
    db = sqlite3.connect(store.path_of(config))
    try:
        return list(db.iterdump())
    finally:
        db.close()


def rows(config: Config, sql: str) -> list[tuple[object, ...]]:
    db = store.open_reader(config)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def busy_day(log: LogBuilder) -> LogBuilder:
    log.observer_start()
    log.start()
    shell = log.exec(100, "/bin/sh", "backfill.sh")
    psql = log.exec(101, "/usr/bin/psql", "-f", "x.sql", ppid=100)
    log.connect()
    log.statement("SELECT * FROM orders")
    log.statement("PREPARE fill AS INSERT INTO public.orders SELECT * FROM staging")
    log.start(OTHER_SESSION, "agent-report", "bob")
    log.statement("SELECT 1 FROM customers", "c2", db__namespace=None)
    log.session, log.agent = SESSION, "agent-backfill"
    log.statement("EXECUTE fill")
    log.statement("DO $$ BEGIN END $$", outcome="error", db__response__status_code="42601")
    log.gap()
    log.opaque(final=False, bytes_out=1)
    log.exec_failed(102, "/nonexistent")
    log.exit(psql, 3)
    log.exit(shell)
    log.opaque(bytes_out=10)
    log.gap(own=False, cause="ring-full", count=4)
    log.end()
    return log


def test_every_way_of_catching_up_gives_the_content_of_a_rebuild(config: Config, log: LogBuilder) -> None:
    busy_day(log).write()
    total = index(config)
    expected = dump(config)
    for step in (1, 2, 3, 5, total):
        store.path_of(config).unlink()
        while index(config, step):
            pass
        assert dump(config) == expected
    with Indexer(config) as indexer:
        assert indexer.rebuild() == total
    assert dump(config) == expected


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 6), max_size=10), lasting=st.booleans())
def test_content_does_not_depend_on_when_the_indexer_ran(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], *, lasting: bool
) -> None:
    root = tmp_path_factory.mktemp("split")
    config = Config(log_dir=root / "log", state_dir=root / "state", cgroup_root=root)
    log = busy_day(LogBuilder(config.log_dir))
    records, log.records = log.records, []
    indexer = None
    for cut in cuts:
        log.records, records = records[:cut], records[cut:]
        log.write()
        if lasting:
            indexer = indexer or Indexer(config)
            indexer.catch_up()
        else:
            index(config)
    if indexer is not None:
        indexer.close()
    log.records = records
    log.write()
    index(config)
    grown = dump(config)
    with Indexer(config) as again:
        again.rebuild()
    assert dump(config) == grown


def test_nothing_is_indexed_twice(config: Config, log: LogBuilder) -> None:
    count = len(busy_day(log).records)
    log.write()
    assert index(config) == count
    before = dump(config)
    assert index(config) == 0
    assert dump(config) == before


def test_position_moves_with_the_rows_of_its_transaction(config: Config, log: LogBuilder) -> None:
    busy_day(log).write()
    index(config, 6)
    assert rows(config, "SELECT next_seq, (SELECT count(*) FROM statement) FROM position") == [(6, 1)]


def test_replaced_log_is_indexed_anew(config: Config, log: LogBuilder) -> None:
    busy_day(log).write()
    index(config)
    for path in config.log_dir.iterdir():
        path.unlink()
    other = LogBuilder(config.log_dir)
    for _ in range(40):
        other.start(OTHER_SESSION)
    other.write()
    assert index(config) == 40
    assert rows(config, "SELECT uuid FROM session") == [(OTHER_SESSION,)]


def test_log_that_lost_its_end_is_indexed_anew(config: Config, log: LogBuilder) -> None:
    log.start()
    log.write()
    segment = max(config.log_dir.glob("*.segment"))
    size = segment.stat().st_size
    log.statement("SELECT 1 FROM gone")
    log.write()
    assert index(config) == 2
    for path in config.log_dir.glob("*.segment"):
        if path.name > segment.name:
            path.unlink()
    with segment.open("r+b") as f:
        f.truncate(size)
    log.statement("SELECT 1 FROM kept")
    log.write()
    assert index(config) == 2
    assert rows(config, "SELECT name FROM relation") == [("kept",)]


def test_other_schema_version_is_rebuilt(config: Config, log: LogBuilder) -> None:
    busy_day(log).write()
    total = index(config)
    db = sqlite3.connect(store.path_of(config))
    db.execute("PRAGMA user_version = 999")
    db.execute("DROP TABLE statement")
    db.close()
    assert rows(config, "SELECT next_seq FROM position") == [(0,)], "a reader sees an empty index"
    assert index(config) == total


@pytest.mark.parametrize("damage", ["garbage", "empty", "half", "page"])
def test_damaged_index_is_rebuilt_by_the_next_writer(config: Config, log: LogBuilder, damage: str) -> None:
    busy_day(log).write()
    total = index(config)
    expected = dump(config)
    path = store.path_of(config)
    data = bytearray(path.read_bytes())
    if damage == "garbage":
        data = bytearray(b"not a database at all" * 1000)
    elif damage == "empty":
        data = bytearray()
    elif damage == "half":
        data = data[: len(data) // 2]
    else:
        data[100:4096] = bytes(3996)
    path.write_bytes(data)
    busy_day(log).write()
    with Indexer(config) as indexer:
        indexer.catch_up()
    log_total = 2 * total
    assert rows(config, "SELECT next_seq FROM position") == [(log_total,)]
    with Indexer(config) as indexer:
        indexer.rebuild()
    assert dump(config)[: len(expected) // 2] != []


def test_second_writer_is_told_that_the_first_is_busy(config: Config, log: LogBuilder) -> None:
    log.start()
    log.write()
    with Indexer(config), pytest.raises(BusyError, match="another process"):
        Indexer(config)
    index(config)


def test_index_is_for_root_alone(config: Config, log: LogBuilder) -> None:
    log.start()
    log.write()
    with Indexer(config) as indexer:
        indexer.catch_up()
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in config.state_dir.iterdir()}
    assert stat.S_IMODE(config.state_dir.stat().st_mode) == 0o700
    assert set(modes.values()) == {0o600}
    assert "index.db-wal" in modes


def test_reader_group_may_read(config: Config, log: LogBuilder, group: str) -> None:
    log.start()
    log.write()
    index(replace(config, reader_group=group))
    assert stat.S_IMODE(config.state_dir.stat().st_mode) == 0o750
    assert stat.S_IMODE(store.path_of(config).stat().st_mode) == 0o640


def test_unknown_reader_group_is_an_error_of_the_configuration(config: Config, log: LogBuilder) -> None:
    log.start()
    log.write()
    with pytest.raises(ConfigError, match="no group 'no-such-group'"):
        index(replace(config, reader_group="no-such-group"))


def test_missing_log_is_named(config: Config) -> None:
    with pytest.raises(NotFoundError, match="there is no log"):
        Indexer(config)


def test_record_that_is_no_record_becomes_a_gap(config: Config, log: LogBuilder) -> None:
    log.start()
    log.write()
    with LogWriter(config.log_dir) as writer:
        writer.append(b"\xc1 not msgpack")
    log.statement("SELECT 1 FROM after_it")
    log.write()
    assert index(config) == 3
    assert rows(config, "SELECT seq, cause, count FROM gap") == [(1, "unreadable-record", 1)]
    assert rows(config, "SELECT name FROM relation") == [("after_it",)]


def test_damaged_segment_becomes_a_gap_of_exactly_its_records(config: Config, log: LogBuilder) -> None:
    log.start()
    for number in range(10):
        log.statement(f"TABLE t{number}")
    log.write()
    (segment,) = config.log_dir.glob("*.segment")
    data = bytearray(segment.read_bytes())
    data[data.index(b"TABLE t4")] ^= 1
    segment.write_bytes(data)
    log.statement("SELECT * FROM later")
    log.write()
    index(config)
    ((seq, cause, count),) = rows(config, "SELECT seq, cause, count FROM gap")
    assert (cause, count) == ("log-damaged", 1)
    assert seq == 5
    names = {name for (name,) in rows(config, "SELECT name FROM relation")}
    assert names == {"later", *(f"t{n}" for n in range(10) if n != 4)}


def test_execute_is_resolved_through_the_prepare_of_its_connection(config: Config, log: LogBuilder) -> None:
    log.start()
    log.statement("PREPARE q AS DELETE FROM orders", "c1")
    log.statement("PREPARE q AS SELECT * FROM customers", "c2")
    log.statement("EXECUTE q", "c1")
    log.statement("EXECUTE q", "c2")
    log.statement("EXECUTE q", "c3")
    log.write()
    index(config)
    touched = rows(
        config, "SELECT statement, name, access FROM touch JOIN relation ON relation.id = relation WHERE statement > 2"
    )
    assert sorted(touched) == [(3, "orders", "write"), (4, "customers", "read")]
    assert rows(config, "SELECT doubt & 1 FROM statement WHERE seq > 2 ORDER BY seq") == [(0,), (0,), (1,)]


def test_program_ends_with_its_exit_or_the_next_exec_of_its_process(config: Config, log: LogBuilder) -> None:
    log.start()
    first = log.exec(100, "/bin/sh")
    log.exec(101, "/bin/true", ppid=100)
    second = log.exec(100, "/usr/bin/psql")
    log.exit(first, 9)
    log.exit(second, 3, duration_ns=42)
    log.write()
    index(config)
    assert rows(config, "SELECT seq, status, duration_ns FROM command ORDER BY seq") == [
        (1, None, 2 * MS),
        (2, None, None),
        (3, 3, 42),
    ]


def test_later_opaque_record_replaces_the_earlier_one(config: Config, log: LogBuilder) -> None:
    log.start()
    log.connect("c9", "203.0.113.5:443")
    log.opaque(final=False, bytes_out=1, bytes_in=1)
    log.opaque(bytes_out=10, bytes_in=20)
    log.write()
    index(config)
    assert rows(config, "SELECT since, bytes_out, bytes_in, final FROM opaque") == [(T0 + 2 * MS, 10, 20, 1)]


def test_sessions_of_an_earlier_boot_are_over(config: Config, log: LogBuilder) -> None:
    log.start()
    log.exec(7, "/bin/sleep", "9")
    log.boot_id = "another-boot"
    log.observer_start()
    log.write()
    index(config)
    assert rows(config, "SELECT ended FROM session") == [(T0 + 2 * MS,)]
    assert rows(config, "SELECT ended_seq FROM command") == [(2,)]


def test_time_without_a_recorder_is_a_gap(config: Config, log: LogBuilder) -> None:
    log.observer_start()
    log.add("observer_stop", own=False)
    log.now_ns += 1000 * MS
    log.observer_start()
    log.observer_start(resumed=True)
    log.write()
    index(config)
    assert rows(config, "SELECT since, time, cause FROM gap") == [(T0 + 2 * MS, T0 + 1003 * MS, "no-recorder")]


def test_time_without_a_recorder_begins_before_what_the_next_one_found(config: Config, log: LogBuilder) -> None:
    log.observer_start()
    log.now_ns += 1000 * MS
    log.gap(own=False, cause="torn-tail", since=None)
    log.observer_start()
    log.write()
    index(config)
    assert rows(config, "SELECT since, time FROM gap WHERE cause = 'no-recorder'") == [(T0 + MS, T0 + 1003 * MS)]


def test_gap_reaches_back_to_where_it_began(config: Config, log: LogBuilder) -> None:
    log.start()
    log.now_ns += 100 * MS
    log.gap(since=BOOT0 + 51 * MS)
    log.write()
    index(config)
    assert rows(config, "SELECT since, time FROM gap") == [(T0 + 51 * MS, T0 + 102 * MS)]


@pytest.mark.parametrize("value", [None, -1, 2**64 - 1, 1.5, "x", b"\xff", [], {}, True])
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("exec", "pid"),
        ("exec", "exec_id"),
        ("exit", "status"),
        ("connect", "connection"),
        ("connect", "peer"),
        ("opaque", "bytes_out"),
        ("gap", "since"),
        ("statement", "time"),
        ("statement", "session"),
        ("statement", "db.namespace"),
        ("statement", "db.query.text"),
        ("statement", "db.system.name"),
    ],
)
def test_no_value_of_a_field_stops_the_indexer(
    config: Config, log: LogBuilder, kind: str, key: str, value: object
) -> None:
    log.start()
    for record in busy_day(log).records:
        if record["kind"] == kind:
            record[key] = value
    count = len(log.records)
    log.write()
    assert index(config) == count


def test_follow_indexes_what_is_recorded_later(config: Config, log: LogBuilder) -> None:
    log.start()
    log.write()
    stop = threading.Event()
    indexer = Indexer(config)
    follower = threading.Thread(target=lambda: _follow(config, stop))
    indexer.close()
    follower.start()
    try:
        log.statement("SELECT 1 FROM orders")
        log.write()
        deadline = time.monotonic() + 10
        while rows(config, "SELECT next_seq FROM position") != [(2,)]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        stop.set()
        follower.join()


def _follow(config: Config, stop: threading.Event) -> None:
    with Indexer(config) as indexer:
        indexer.follow(stop.is_set, poll_s=0.01)


def test_batches_are_bounded(config: Config, log: LogBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer_module, "BATCH_RECORDS", 3)
    busy_day(log).write()
    seen: list[int] = []
    with Indexer(config) as indexer:
        total = indexer.catch_up(progress=seen.append)
    assert seen == [*range(3, total + 1, 3), *([total] if total % 3 else [])]


@pytest.fixture
def group() -> str:
    return grp.getgrgid(os.getegid()).gr_name
