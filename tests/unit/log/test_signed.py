"""What SignedLog promises by itself: when it signs, what it signs with, and what it makes of what it finds."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentwatch.errors import BusyError, PrivilegeError, SegmentDamaged
from agentwatch.log import checkpoint, epochs, folder, merkle, note, segment, signed, tiles
from agentwatch.log.checkpoint import Checkpoint
from agentwatch.log.keys import CURRENT, NEXT, EpochKeys, KeyFolder
from agentwatch.log.reader import LogReader
from agentwatch.log.sealing import compress, set_append_only
from agentwatch.log.signed import Options, SignedLog
from agentwatch.log.tiles import TileReader
from agentwatch.log.verify import verify
from agentwatch.log.writer import LogWriter
from tests.unit.extent import sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
TURN_NS = 50 * 10**6
SECOND_NS = 10**9
OPTIONS = Options("host")
ROTATING = Options("host", epoch_ns=0)
"""Every opening begins an epoch."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a mount or an attribute of its own")


class Home:
    """A log, its keys, and what is asked of it after something happened to it."""

    def __init__(self, root: Path) -> None:
        self.log_dir = root / "log"
        self.key_dir = root / "keys"

    def open(self, options: Options = OPTIONS) -> SignedLog:
        return SignedLog(self.log_dir, self.key_dir, options)

    def write(self, count: int, options: Options = OPTIONS) -> None:
        with self.open(options) as log:
            for _ in range(count):
                log.writer.append(b"event %d" % log.writer.next_seq)

    def keys(self) -> EpochKeys:
        found = KeyFolder(self.key_dir).load()
        assert found is not None
        return found

    def identity(self) -> note.Key:
        return note.Key.parse((self.log_dir / epochs.IDENTITY_FILE).read_text())

    def checkpoint(self) -> Checkpoint:
        return Checkpoint.parse(note.parse((self.log_dir / checkpoint.FILE).read_bytes()).text)

    def records(self) -> list[tuple[int, bytes]]:
        return list(LogReader(self.log_dir).records())

    def last(self) -> Path:
        return folder.list_segments(self.log_dir)[-1].path

    def goes_on(self, *, broken_at: int | None = None) -> None:
        """Open the log: it is the same one, takes records, and all of it verifies but for what was lost."""
        before, size = self.identity(), LogReader(self.log_dir).end()
        with self.open() as log:
            assert log.set_aside is None
            assert log.writer.next_seq >= size
            log.writer.append(b"goes on")
            end = log.writer.next_seq
        assert self.identity() == before
        report = verify(self.log_dir, identity=before)
        assert report.broken_at == broken_at, report.problems
        assert report.signed == self.checkpoint()
        assert (self.checkpoint().size, report.unsigned) == (end, 0)

    def is_set_aside(self, why: str) -> Path:
        """Open the log: it is moved away whole, and another one begins; return where it is."""
        found = {path.name for path in self.log_dir.iterdir()} - {folder.LOCK_NAME}
        with self.open() as log:
            assert log.set_aside is not None
            assert why in log.set_aside.why
            log.writer.append(b"another log")
            aside = log.set_aside.path
        assert {path.name for path in aside.iterdir()} == found
        assert aside.parent == self.log_dir
        report = verify(self.log_dir, identity=self.identity())
        assert (report.ok, report.epochs, report.framing.records) == (True, 1, 2)
        assert report.framing.aside == [aside]
        # The keys that it has now are kept: it is not set aside again.
        with self.open() as log:
            assert log.set_aside is None
        return aside


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def used(home: Home) -> Home:
    """A log of three epochs with a few hundred records."""
    for _ in range(3):
        home.write(150, ROTATING)
    return home


# -- signing


@pytest.mark.parametrize("turn_ns", [1, TURN_NS, 7 * TURN_NS])
def test_every_record_is_signed_within_a_second_of_its_commit(home: Home, turn_ns: int) -> None:
    appended: dict[int, int] = {}
    with home.open() as log:
        for now_ns in range(10**12, 10**12 + 40 * turn_ns, turn_ns):
            appended[log.writer.append(b"event")] = now_ns
            log.writer.commit()
            log.tick(now_ns)
            size = home.checkpoint().size
            assert log.signed == home.checkpoint()
            assert all(now_ns - at < SECOND_NS for seq, at in appended.items() if seq >= size)
        signed_ = home.checkpoint()
        log.tick(10**12 + 40 * turn_ns + SECOND_NS)
        assert home.checkpoint().size == log.writer.durable_seq >= signed_.size


def test_nothing_is_signed_before_it_is_durable(home: Home) -> None:
    with home.open() as log:
        log.writer.append(b"waits")
        log.tick(SECOND_NS)
        assert home.checkpoint().size == log.writer.durable_seq == 1
        log.writer.commit()
        log.tick(2 * SECOND_NS)
        assert home.checkpoint().size == 2


def test_a_size_is_signed_once(home: Home) -> None:
    with home.open() as log:
        log.tick(SECOND_NS)
        inode = (home.log_dir / checkpoint.FILE).stat().st_ino
        for turn in range(2, 5):
            log.tick(turn * SECOND_NS)
        assert (home.log_dir / checkpoint.FILE).stat().st_ino == inode


def test_keys_change_when_their_time_is_over(home: Home) -> None:
    with home.open(OPTIONS._replace(epoch_ns=10**18)) as log:
        first = home.keys()
        log.tick(SECOND_NS)
        assert home.keys() == first
        log._options = ROTATING
        log.tick(2 * SECOND_NS)
        second = home.keys()
        assert (second.number, second.seq, second.ed25519 != first.ed25519) == (1, 1, True)
        assert not (home.key_dir / NEXT).exists()
    assert first.ed25519 not in (home.key_dir / CURRENT).read_bytes()
    report = verify(home.log_dir)
    assert (report.ok, report.epochs) == (True, 2)


def test_identity_key_is_nowhere(home: Home) -> None:
    home.write(1)
    assert {path.name for path in home.key_dir.iterdir()} == {CURRENT}
    assert home.keys().public[0].public != home.identity().public


def test_post_quantum_signatures_are_there_and_have_to_be(home: Home) -> None:
    home.write(3)
    both = OPTIONS._replace(post_quantum=True)
    home.write(3, both._replace(epoch_ns=0))
    home.write(3, both)
    stored = note.parse((home.log_dir / checkpoint.FILE).read_bytes())
    assert len(stored.signatures) == 2
    report = verify(home.log_dir)
    assert (report.ok, report.epochs) == (True, 2)
    for kept in stored.signatures:
        (home.log_dir / checkpoint.FILE).write_text(str(stored._replace(signatures=(kept,))))
        assert not verify(home.log_dir).ok


def test_secret_stays_the_same(home: Home) -> None:
    with home.open() as log:
        secret = log.secret("secrets")
    home.write(1, ROTATING)
    with home.open() as log:
        assert log.secret("secrets") == secret
    assert stat.S_IMODE((home.key_dir / "secrets").stat().st_mode) == 0o600


# -- restarts


def test_restart_in_the_same_boot_goes_on_with_the_key(home: Home) -> None:
    home.write(3)
    before = home.keys()
    home.write(3)
    assert home.keys() == before
    home.goes_on()
    assert verify(home.log_dir).epochs == 1


def test_other_boot_begins_an_epoch(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write(3)
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("0b0e5f0e-0000-4000-8000-000000000001\n")
    monkeypatch.setattr(signed, "BOOT_ID", boot_id)
    home.goes_on()
    assert (verify(home.log_dir).epochs, home.keys().number) == (2, 1)


def test_two_writers_are_refused(home: Home) -> None:
    with home.open() as log:
        before = (home.key_dir / CURRENT).read_bytes()
        with pytest.raises(BusyError):
            home.open(ROTATING)
        assert (home.key_dir / CURRENT).read_bytes() == before
        log.writer.append(b"still here")
    home.goes_on()


@pytest.mark.parametrize("name", ["", CURRENT, NEXT])
def test_keys_that_others_can_open_are_refused_and_left_alone(home: Home, name: str) -> None:
    home.write(3)
    shutil.copy(home.key_dir / CURRENT, home.key_dir / NEXT)  # as if it was to replace an older one
    path = home.key_dir / name
    mode = stat.S_IMODE(path.stat().st_mode)
    for open_to in (0o010, 0o004, 0o020):
        path.chmod(mode | open_to)
        with pytest.raises(PrivilegeError, match="can be opened by others"):
            home.open()
    path.chmod(mode)
    home.goes_on()


def test_folder_of_keys_that_is_a_link_is_refused(home: Home, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(0o700)
    home.key_dir.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PrivilegeError):
        home.open()


# -- what it finds: the log goes on


def test_torn_end_is_cut_off_and_the_log_goes_on(used: Home) -> None:
    with used.last().open("ab") as f:
        f.write(segment.frame(b"never acknowledged", 9, 9)[:-3])
    with used.open() as log:
        assert log.writer.torn_bytes == len(b"never acknowledged") + segment.FRAME_BYTES - 3
    assert len(verify(used.log_dir).framing.aside) == 1
    used.goes_on()


def remove_tiles(log_dir: Path) -> None:
    shutil.rmtree(log_dir / tiles.FOLDER)


def empty_tiles(log_dir: Path) -> None:
    for path in (log_dir / tiles.FOLDER).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def alter_partial_tile(log_dir: Path) -> None:
    level, index, width = next(tiles.partial_tiles(TileReader(log_dir, 453).size))
    path = log_dir / tiles.tile_path(level, index, width)
    path.write_bytes(bytes(len(path.read_bytes())))


def alter_upper_tile(log_dir: Path) -> None:
    (log_dir / tiles.tile_path(1, 0, 1)).write_bytes(bytes(32))


@pytest.mark.parametrize("damage", [remove_tiles, empty_tiles, alter_partial_tile, alter_upper_tile])
def test_tiles_are_made_again(used: Home, damage: Callable[[Path], None]) -> None:
    damage(used.log_dir)
    assert verify(used.log_dir).ok == (damage is remove_tiles)  # what is gone can be computed
    used.goes_on()


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"\xff" * 100, b"a\nb\n\n"])
def test_checkpoint_that_is_gone_or_none_is_made_again(used: Home, content: bytes | None) -> None:
    path = used.log_dir / checkpoint.FILE
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert verify(used.log_dir).broken_at == 0
    used.goes_on()


def test_tiles_and_checkpoint_are_made_again_together(used: Home) -> None:
    remove_tiles(used.log_dir)
    (used.log_dir / checkpoint.FILE).unlink()
    used.goes_on()


def test_older_checkpoint_is_replaced(used: Home) -> None:
    before = (used.log_dir / checkpoint.FILE).read_bytes()
    used.write(5)
    (used.log_dir / checkpoint.FILE).write_bytes(before)
    used.goes_on()


def test_copies_of_epochs_that_are_gone_break_nothing(used: Home) -> None:
    shutil.rmtree(used.log_dir / epochs.FOLDER)
    assert verify(used.log_dir).ok
    used.goes_on()
    assert (used.log_dir / epochs.FOLDER / f"{used.keys().seq:020d}").exists()


@pytest.mark.parametrize("lost", [1, 20, 150, 151, 160])
def test_lost_end_below_the_checkpoint_keeps_its_numbers(used: Home, lost: int) -> None:
    # 150 records are all of the last epoch, 151 its own record too, of which there is a copy.
    kept = used.records()[:-lost]
    end = used.checkpoint().size
    while folder.list_segments(used.log_dir)[-1].first_seq >= len(kept):
        used.last().unlink()
    last = folder.list_segments(used.log_dir)[-1]
    size = segment.HEADER_BYTES + sum(segment.FRAME_BYTES + len(payload) for _, payload in kept[last.first_seq :])
    os.truncate(last.path, size)
    report = verify(used.log_dir)
    assert (report.broken_at, report.framing.next_seq) == (len(kept), len(kept))
    used.goes_on(broken_at=len(kept))
    damage: list[SegmentDamaged] = []
    assert list(LogReader(used.log_dir).records(on_damage=damage.append)) == [*kept, (end, b"goes on")]
    assert [one.seq for one in damage] == [len(kept)]


def test_lost_end_behind_the_checkpoint_is_not_missed(used: Home) -> None:
    size = used.last().stat().st_size
    log = used.open()
    log.writer.append(b"durable, not signed")
    log.writer.close()
    used.last().unlink()
    assert size == used.last().stat().st_size
    used.goes_on()


def test_skipped_numbers_have_the_void_leaf(home: Home) -> None:
    home.write(3)
    log = home.open(OPTIONS._replace(segment_bytes=300))
    first = log.writer.next_seq
    for number in range(20):
        log.writer.append(b"not signed for %d" % number)
    log.writer.commit()
    log.writer.close()
    last = folder.list_segments(home.log_dir)[-1]
    last.path.write_bytes(b"\x5a" * last.path.stat().st_size)
    with home.open() as log:
        assert len(log.writer.damage) == 1
        behind = log.writer.append(b"behind it")
    leaves = TileReader(home.log_dir, behind + 1)
    assert last.first_seq > first
    assert {leaves.leaf(seq) for seq in range(last.first_seq, behind)} == {merkle.VOID_LEAF}
    assert leaves.leaf(behind) == merkle.leaf_hash(b"behind it")
    report = verify(home.log_dir)
    # The damage is named; the numbers that were never given out are not.
    assert (report.broken_at, len(report.problems)) == (last.first_seq, 1)
    assert report.skipped == behind - last.first_seq
    assert report.signed == home.checkpoint()


def test_record_that_was_given_up_takes_its_epoch_with_it(home: Home) -> None:
    with home.open() as log:
        # As a disk that refuses the record of an epoch leaves it: appended, not durable.
        coming = home.keys()._replace(number=1, seq=log.writer.next_seq, ed25519=bytes(range(32)))
        log._keys.store_next(coming)
        log._pending = (coming, b"the epoch's record")
        log.writer.append(b"the epoch's record")
        log.writer.drop_waiting()
        log.writer.append(b"something else")
        log.writer.commit()
        log.tick(SECOND_NS)
    assert home.keys().number == 0
    home.goes_on()


def test_negative_age_of_a_key_ends_it(home: Home) -> None:
    # CLOCK_BOOTTIME does not go back within a boot: what says so was altered, and such a key would never end.
    home.write(1)
    path = home.key_dir / CURRENT
    fields = json.loads(path.read_bytes())
    path.write_text(json.dumps(fields | {"began_ns": 1 << 62}))
    home.goes_on()
    assert home.keys().number == 1


# -- what it finds: the log does not go on


def test_key_that_is_gone(used: Home) -> None:
    (used.key_dir / CURRENT).unlink()
    records = used.records()
    aside = used.is_set_aside("there is no key")
    assert list(LogReader(aside).records()) == records
    assert verify(aside).ok


def test_folder_of_keys_that_is_gone(used: Home) -> None:
    shutil.rmtree(used.key_dir)
    used.is_set_aside("there is no key")


def test_key_of_another_log(used: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other")
    other.write(3)
    shutil.copy(other.key_dir / CURRENT, used.key_dir / CURRENT)
    used.is_set_aside("or another")


def test_older_copy_of_the_log(used: Home, tmp_path: Path) -> None:
    shutil.copytree(used.log_dir, tmp_path / "copy")
    used.write(3, ROTATING)
    shutil.rmtree(used.log_dir)
    (tmp_path / "copy").rename(used.log_dir)
    used.is_set_aside("older than its key")


def remove_upper_tiles(log_dir: Path) -> None:
    shutil.rmtree(log_dir / tiles.FOLDER / "1")


def alter_last_record(used: Home) -> None:
    path = used.last()
    data = path.read_bytes()
    seed = segment.seed(segment.Header.parse(data).log_id)
    seq = LogReader(used.log_dir).end() - 1
    old, new = (segment.frame(payload, seq, seed) for payload in (b"event %d" % seq, b"EVENT %d" % seq))
    assert data.endswith(old)
    path.write_bytes(data.removesuffix(old) + new)


def test_altered_records_without_tiles(used: Home) -> None:
    remove_tiles(used.log_dir)
    alter_last_record(used)
    used.is_set_aside("it was altered")


@pytest.mark.parametrize("change", [{"root": bytes(32)}, {"size": 400}, {"size": 460}, {"size": 10**17}])
def test_altered_checkpoint(used: Home, change: dict[str, int]) -> None:
    path = used.log_dir / checkpoint.FILE
    stored = note.parse(path.read_bytes())
    path.write_text(str(stored._replace(text=used.checkpoint()._replace(**change).text)))  # type: ignore[arg-type]
    used.is_set_aside("")


def test_records_that_are_gone(used: Home) -> None:
    for item in folder.list_segments(used.log_dir):
        item.path.unlink()
    used.is_set_aside("")


def test_records_and_checkpoint_that_are_gone(used: Home) -> None:
    (used.log_dir / checkpoint.FILE).unlink()
    for item in folder.list_segments(used.log_dir):
        item.path.unlink()
    used.is_set_aside("its records are gone")


def test_everything_that_is_gone_is_said(used: Home) -> None:
    before = used.identity()
    shutil.rmtree(used.log_dir)
    with used.open() as log:
        assert log.set_aside is not None
        assert log.set_aside.path == used.log_dir
        assert "nothing left" in log.set_aside.why
    assert used.identity() != before
    assert verify(used.log_dir).ok
    used.goes_on()


def test_log_from_before_there_were_signatures(home: Home) -> None:
    with LogWriter(home.log_dir) as writer:
        for number in range(10):
            writer.append(b"old %d" % number)
    records = home.records()
    aside = home.is_set_aside("there is no key")
    assert list(LogReader(aside).records()) == records


def test_log_that_is_set_aside_twice_keeps_both(used: Home) -> None:
    for number in range(1, 3):
        (used.key_dir / CURRENT).unlink()
        with used.open():
            pass
        assert len(list(used.log_dir.glob("broken-*"))) == number
    assert all(verify(aside).ok for aside in used.log_dir.glob("broken-*"))


@pytest.mark.parametrize("left", ["first segment", "last segment", "all segments", "tiles"])
def test_log_of_which_only_a_part_was_set_aside_is_not_continued(used: Home, left: str) -> None:
    # A writer that died while it moved the files. The checkpoint goes last, so what is left does not go with it.
    alter_last_record(used)
    remove_upper_tiles(used.log_dir)
    (used.log_dir / "broken-1").mkdir()
    segments = [item.path for item in folder.list_segments(used.log_dir)]
    parts = {
        "first segment": segments[:1],
        "last segment": segments[-1:],
        "all segments": segments,
        "tiles": [used.log_dir / tiles.FOLDER],
    }
    for path in used.log_dir.iterdir():
        if path not in parts[left] and path.name not in (checkpoint.FILE, folder.LOCK_NAME, "broken-1"):
            path.rename(used.log_dir / "broken-1" / path.name)
    with used.open() as log:
        assert log.set_aside is not None
    assert verify(used.log_dir).ok
    assert len(list(used.log_dir.glob("broken-*"))) == 2


@pytest.fixture
def sealed(used: Home) -> Iterator[Home]:
    """The same, its sealed segments compressed and marked append-only."""
    marked = [compress(item.path) for item in folder.list_segments(used.log_dir)[:-1]]
    try:
        if not all(marked):
            pytest.skip("this file system has no append-only files")
        yield used
    finally:
        for path in used.log_dir.rglob("*.zst"):
            set_append_only(path, on=False)


@needs_root
def test_append_only_segments_are_set_aside_too(sealed: Home) -> None:
    records = sealed.records()
    (sealed.key_dir / CURRENT).unlink()
    aside = sealed.is_set_aside("there is no key")
    assert list(LogReader(aside).records()) == records


@needs_root
def test_append_only_segments_keep_nobody_from_writing(sealed: Home) -> None:
    sealed.goes_on()


def test_damaged_key_file_never_keeps_a_recorder_from_starting(home: Home, tmp_path: Path) -> None:
    home.write(3)
    good = (home.key_dir / CURRENT).read_bytes()
    cases = [b"", b"[]", b"{}", b"null", good[:-1], good[: len(good) // 2], good + b"x"]
    flips = sample([(at, at % 8) for at in range(len(good))], 60)
    cases += [good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :] for at, bit in flips]
    for number, content in enumerate(cases):
        other = Home(tmp_path / str(number))
        shutil.copytree(home.log_dir, other.log_dir)
        other.key_dir.mkdir(0o700)
        (other.key_dir / CURRENT).write_bytes(content)
        (other.key_dir / CURRENT).chmod(0o600)
        with other.open() as log:
            log.writer.append(b"recording goes on")
            aside = log.set_aside
        report = verify(other.log_dir)
        assert (report.ok, report.unsigned) == (True, 0), content
        # A bit of the name of the boot, or of when it began, costs an epoch and not the log.
        assert aside is not None or report.epochs in (1, 2)


# -- a full disk


@needs_root
@pytest.mark.parametrize("what", ["wait", "reserve", "drop"])
def test_keys_change_when_there_is_space_again(tmp_path: Path, what: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    worker = HERE / "full_disk_worker.py"
    # The mount is seen by this one process and gone with it.
    command = f'mount -t tmpfs -o size=16m none "{disk}" && exec "{sys.executable}" -B "{worker}" "{disk}" "$1" "$2"'
    argv = ["unshare", "--mount", "sh", "-c", command, "sh", str(tmp_path / "keys"), what]
    done = subprocess.run(argv, capture_output=True, check=False, text=True)
    if "unshare failed" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["refused"]
    assert "the disk is full" in said["fault"]
    assert said["waited"] > 0
    assert said["unsigned"]
    # Until the record of the epoch is on disk nothing can be signed, and that is said.
    assert what != "wait" or said["last"] == said["fault"]
    assert said["after"] is None
    assert (said["ok"], said["epochs"], said["set_aside"], said["all"], said["signed"]) == (True, 2, None, True, True)
