from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING

import pytest

from agentwatch.collector.connection import LinkError
from agentwatch.collector.frames import EPOCHS_BYTES
from agentwatch.collector.link import RefusedError
from agentwatch.log import note
from agentwatch.log.reader import LogReader
from agentwatch.log.tiles import TileReader
from tests.unit.collector.fix_collector import Authority, Client, Collector, assert_mirrored, client, wait_for
from tests.unit.collector.log_maker import HostLog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def pushing(host: HostLog, authority: Authority, collector: Collector) -> Client:
    return client(host, authority.issue("host-a"), collector.port, collector_key=collector.vkey)


@pytest.mark.parametrize("post_quantum", [False, True])
def test_mirror_holds_the_log_and_verifies(
    tmp_path: Path, authority: Authority, collector: Collector, *, post_quantum: bool
) -> None:
    log = HostLog(tmp_path / "log", post_quantum=post_quantum)
    pushing = client(log, authority.issue("host-a"), collector.port, collector_key=collector.vkey)
    for count in (1, 0, 3, 700):
        size = log.write(count).size
        assert pushing.push() == size
        assert_mirrored(collector, "host-a", log)


def test_more_epochs_than_a_frame_holds_are_pushed_at_first_contact(
    tmp_path: Path, authority: Authority, collector: Collector
) -> None:
    log = HostLog(tmp_path / "log", post_quantum=True)
    for _ in range(60):
        log.write(1)
    assert sum(path.stat().st_size for path in (log.log_dir / "epochs").iterdir()) > EPOCHS_BYTES
    assert client(log, authority.issue("host-a"), collector.port).push() == 120
    assert_mirrored(collector, "host-a", log)


def test_enrolment_is_recorded_once(pushing: Client, collector: Collector) -> None:
    pushing.log.write()
    pushing.push()
    pushing.log.write()
    pushing.push()
    (enrolled,) = collector.records("host_enrolled")
    assert enrolled["name"] == "host-a"
    assert enrolled["identity"] == pushing.log.identity().strip()
    assert enrolled["origin"] == pushing.log.signed().origin


def test_checkpoint_is_cosigned_and_kept_as_an_anchor(pushing: Client, collector: Collector) -> None:
    size = pushing.log.write().size
    pushing.push()
    anchor = pushing.log.log_dir / "anchors" / f"{size}.collector-1"
    parsed = note.parse(anchor.read_text())
    note.verify(parsed, [note.Key.parse(collector.vkey)])
    assert parsed.text == note.parse(pushing.log.stored()).text
    assert str(parsed).startswith(pushing.log.stored())


def test_another_collector_than_the_configured_one_is_not_believed(
    host: HostLog, authority: Authority, collector: Collector
) -> None:
    host.write()
    other = str(note.Cosigner("collector-1", bytes(32)).key)
    with pytest.raises(LinkError, match="is not the collector"):
        client(host, authority.issue("host-a"), collector.port, collector_key=other).push()
    assert not (host.log_dir / "anchors").exists()


def test_checkpoints_alone(host: HostLog, authority: Authority, collector: Collector) -> None:
    certificate = authority.issue("host-a")
    alone = client(host, certificate, collector.port, records=False)
    for count in (5, 300, 0):
        assert host.write(count).size == alone.push()
        assert (collector.hosts_dir / "host-a" / "checkpoint").read_text() == host.stored()
    assert not list(collector.mirror("host-a").glob("*.segment"))
    twin = host.copy(host.root.with_name("twin"))
    host.write()
    alone.push()
    twin.write(4)
    with pytest.raises(RefusedError, match="fork"):
        client(twin, certificate, collector.port, records=False).push()
    # Records may be asked for later.
    assert client(host, certificate, collector.port).push() == host.signed().size
    assert_mirrored(collector, "host-a", host)


def test_nothing_new_is_nothing_done(pushing: Client, collector: Collector) -> None:
    pushing.log.write(10)
    pushing.push()
    before = sorted(path.name for path in collector.mirror("host-a").glob("*.segment"))
    pushing.push()
    assert sorted(path.name for path in collector.mirror("host-a").glob("*.segment")) == before


def test_two_hosts_at_once(tmp_path: Path, authority: Authority, collector: Collector) -> None:
    logs = [HostLog(tmp_path / f"log-{name}", name) for name in ("host-a", "host-b")]
    clients = [
        client(log, authority.issue(name), collector.port) for log, name in zip(logs, ("host-a", "host-b"), strict=True)
    ]

    def push(pushing: Client) -> None:
        for _ in range(5):
            pushing.log.write(200)
            pushing.push()

    threads = [threading.Thread(target=push, args=(pushing,)) for pushing in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_mirrored(collector, "host-a", logs[0])
    assert_mirrored(collector, "host-b", logs[1])


def test_record_of_every_size(pushing: Client, collector: Collector) -> None:
    mib = 1 << 20
    pushing.log.write_payloads(
        b"a", b"b" * (mib - 4), b"c" * (mib - 3), b"d" * (3 * mib), b"e", b"f" * (64 * mib), b"g"
    )
    pushing.push()
    assert_mirrored(collector, "host-a", pushing.log)


@pytest.fixture
def following(pushing: Client) -> Iterator[Client]:
    pusher = pushing.pusher
    thread = threading.Thread(target=pusher.run)
    thread.start()
    yield pushing
    pusher.stop()
    thread.join()


def test_follows_the_log_as_it_grows(following: Client, collector: Collector) -> None:
    for count in (1, 300, 2):
        size = following.log.write(count).size
        wait_for(lambda: collector.size("host-a") == size, f"the mirror of {size}")  # noqa: B023 -- at once
    assert_mirrored(collector, "host-a", following.log)


def test_disconnected_for_a_while_loses_nothing(following: Client, collector: Collector) -> None:
    following.log.write(10)
    wait_for(lambda: collector.size("host-a") == following.log.signed().size, "the first push")
    collector.stop()
    for _ in range(5):
        following.log.write(100)
    collector.start()
    wait_for(lambda: collector.size("host-a") == following.log.signed().size, "the push after the collector is back")
    assert_mirrored(collector, "host-a", following.log)
    assert not collector.records("host_refused")


def test_collector_restored_from_an_older_backup_gets_the_rest_again(pushing: Client, collector: Collector) -> None:
    pushing.log.write(400)
    pushing.push()
    shutil.copytree(collector.hosts_dir, collector.root / "backup")
    pushing.log.write(400)
    pushing.push()
    collector.stop()
    shutil.rmtree(collector.hosts_dir)
    (collector.root / "backup").rename(collector.hosts_dir)
    collector.start()
    pushing.log.write(1)
    pushing.push()
    assert_mirrored(collector, "host-a", pushing.log)
    assert not collector.records("host_refused")


def test_collector_restored_from_pieces_of_different_age(pushing: Client, collector: Collector) -> None:
    pushing.log.write(400)
    pushing.push()
    trust = ("identity", "checkpoint")
    older = {name: (collector.hosts_dir / "host-a" / name).read_bytes() for name in trust}
    epochs = {path.name for path in (collector.hosts_dir / "host-a" / "epochs").iterdir()}
    pushing.log.write(400)
    pushing.push()
    collector.stop()
    for name, content in older.items():
        (collector.hosts_dir / "host-a" / name).write_bytes(content)
    for path in (collector.hosts_dir / "host-a" / "epochs").iterdir():
        if path.name not in epochs:
            path.unlink()
    collector.start()
    pushing.log.write(300)
    pushing.push()
    assert_mirrored(collector, "host-a", pushing.log)
    assert not collector.records("host_refused")


def test_records_that_the_host_lost_keep_their_leaves(pushing: Client, collector: Collector) -> None:
    pushing.log.write(3000)
    segments = sorted(pushing.log.log_dir.glob("*.segment"))
    assert len(segments) > 4
    segments[0].unlink()
    segments[2].unlink()
    size = pushing.push()
    pushing.log.write(3)
    collector.stop()
    collector.start()
    pushing.push()
    have = [seq for seq, _ in LogReader(pushing.log.log_dir).records(0, size, on_damage=lambda _: None)]
    assert 0 < len(have) < size
    mirror = collector.mirror("host-a")
    assert [seq for seq, _ in LogReader(mirror).records(0, size, on_damage=lambda _: None)] == have
    size = pushing.log.signed().size
    mine, its = TileReader(pushing.log.log_dir, size), TileReader(mirror, size)
    assert [mine.leaf(seq) for seq in range(size)] == [its.leaf(seq) for seq in range(size)]
    assert collector.size("host-a") == size


def test_tiles_that_a_crash_took_are_made_again(pushing: Client, collector: Collector) -> None:
    pushing.log.write(600)
    pushing.push()
    collector.stop()
    shutil.rmtree(collector.mirror("host-a") / "tile")
    collector.start()
    pushing.log.write(1)
    pushing.push()
    assert_mirrored(collector, "host-a", pushing.log)


def test_checkpoints_are_anchored_while_the_mirror_is_broken(pushing: Client, collector: Collector) -> None:
    pushing.log.write(600)
    pushing.push()
    collector.stop()
    (mirrored,) = collector.mirror("host-a").glob("checkpoint")
    mirrored.write_text("no checkpoint")
    collector.start()
    size = pushing.log.write(1).size
    with pytest.raises(Exception, match="takes no records now"):
        pushing.push()
    assert (collector.hosts_dir / "host-a" / "checkpoint").read_text() == pushing.log.stored()
    assert (pushing.log.log_dir / "anchors" / f"{size}.collector-1").exists()
    # Moved away, it is made again from the host's records.
    collector.stop()
    collector.mirror("host-a").rename(collector.root / "broken")
    collector.start()
    pushing.push()
    assert_mirrored(collector, "host-a", pushing.log)
