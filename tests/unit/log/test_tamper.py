"""The table of attacks in agentwatch/log/README.md, cell by cell.

T0 really tries, as a user without privileges. T1 does it (attacker.py), and ``verify`` has to find it, at the right
record; where the table says that it cannot be found, ``verify`` has to say that all is well.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgpack
import pytest

from agentwatch.errors import NotFoundError
from agentwatch.log import checkpoint, epochs, folder, segment, tiles
from agentwatch.log.signed import Options, SignedLog
from agentwatch.log.verify import Report, verify
from tests.unit.log.attacker import OPTIONS, Attacker, Host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.log import note

README = Path(verify.__code__.co_filename).with_name("README.md")
NOBODY = 65534
IN_AN_EPOCH = 280
"""Records of an epoch: more than a tile has, so that there are tiles above it."""

EARLIER, PRESENT = "earlier", "present"


class Kept(NamedTuple):
    """A host with three epochs, and what was kept of it at times. ``begun``: numbers of the ``epoch`` records."""

    host: Host
    begun: list[int]
    old: Host
    """As it was in epoch 1."""
    younger: Host
    """As it was in the present epoch, 20 records ago."""
    identity: note.Key
    off_host: note.Note
    """The checkpoint of all records."""

    def since(self, when: str) -> int:
        """Return the first record that the keys of the epoch in question sign for."""
        return self.begun[1 if when == EARLIER else 2]

    def victim(self, when: str) -> int:
        """Return the record that the attack is about."""
        return self.since(when) + 100


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    root = tmp_path_factory.mktemp("tamper")
    host = Host(root / "host")
    begun = [host.record(IN_AN_EPOCH), host.record(IN_AN_EPOCH)]
    old = host.copy(root / "old")
    with SignedLog(host.log_dir, host.key_dir, OPTIONS) as log:
        begun.append(log.writer.next_seq - 1)
        for at in range(IN_AN_EPOCH):
            if at == IN_AN_EPOCH - 20:
                log.sign()
                younger = host.copy(root / "younger")
            log.writer.append(b"event %d" % log.writer.next_seq)
    found = Kept(host, begun, old, younger, host.identity(), host.checkpoint())
    report = verify(host.log_dir, identity=found.identity, against=[found.off_host])
    assert (report.problems, report.epochs, report.unsigned) == ([], 3, 0)
    return found


@pytest.fixture
def host(kept: Kept, tmp_path: Path) -> Host:
    """The host, for somebody to become root on."""
    return kept.host.copy(tmp_path / "host")


# -- what T1 does. Each returns the record from which on the log must be found broken, None if it is not found.

Attack = Callable[[Kept, Host, str], int | None]
Change = Callable[[Attacker, int], None]


def edit(a: Attacker, at: int) -> None:
    a.payloads[at] = a.payloads[at].replace(b"event", b"EVENT")


def delete(a: Attacker, at: int) -> None:
    del a.payloads[at]


def insert(a: Attacker, at: int) -> None:
    a.payloads.insert(at, b"never happened")


def reorder(a: Attacker, at: int) -> None:
    a.payloads[at], a.payloads[at + 1] = a.payloads[at + 1], a.payloads[at]


def cut(a: Attacker, at: int) -> None:
    del a.payloads[at:]


def fork(a: Attacker, at: int) -> None:
    a.payloads[at:] = [b"told to somebody else %d" % seq for seq in range(at, len(a.payloads))]


def segments_only(change: Change) -> Attack:
    def attack(kept: Kept, host: Host, when: str) -> int | None:
        a = Attacker(host)
        change(a, kept.victim(when))
        a.write_segments()
        return kept.victim(when)

    return attack


def with_tiles(change: Change) -> Attack:
    def attack(kept: Kept, host: Host, when: str) -> int | None:
        a = Attacker(host)
        change(a, kept.victim(when))
        a.write_all()
        return kept.since(when)

    return attack


def signed_again(change: Change) -> Attack:
    def attack(kept: Kept, host: Host, when: str) -> int | None:
        a = Attacker(host)
        change(a, kept.victim(when))
        a.write_all()
        a.sign(host.keys())
        return kept.since(when) if when == EARLIER else None

    return attack


def signed_with_an_old_key(change: Change) -> Attack:
    def attack(kept: Kept, host: Host, when: str) -> int | None:
        a = Attacker(host)
        change(a, kept.victim(when))
        a.write_all()
        a.sign(kept.old.keys())
        return kept.since(when)

    return attack


def grown_from_an_old_key(kept: Kept, host: Host, _when: str) -> int | None:
    # The chain that it began is left; another one grows out of its epoch, with a certificate that is right.
    a = Attacker(host)
    del a.payloads[kept.victim(EARLIER) :]
    keys = a.begin_epoch(kept.old.keys().signers, 2)
    a.payloads += [b"forged %d" % seq for seq in range(len(a.payloads), len(a.old))]
    a.write_all()
    a.sign(keys)
    return None


def older_copy(kept: Kept, host: Host, when: str) -> int | None:
    shutil.rmtree(host.log_dir)
    shutil.copytree((kept.old if when == EARLIER else kept.younger).log_dir, host.log_dir)
    return None


def replace(_: Kept, host: Host, when: str) -> int | None:
    del when
    a = Attacker(host)
    count = len(a.payloads)
    keys = a.begin_anew()
    a.payloads += [b"nothing happened %d" % seq for seq in range(1, count)]
    a.write_all()
    a.sign(keys)
    return None


def remove(_: Kept, host: Host, when: str) -> int | None:
    del when
    for path in host.log_dir.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return 0


class Row(NamedTuple):
    """One line of the table: how it begins there, its cells, how T1 goes about it."""

    name: str
    cells: tuple[str, str, str, str]
    attacks: dict[str, Attack]


REFUSED, DETECTED, NOT, SEEN = "refused", "detected", "not detectable", "seen"
EDITS: dict[str, Change] = {"delete": delete, "insert": insert, "reorder": reorder}

TABLE = [
    Row(
        "edit a record, checksum and all",
        (REFUSED, DETECTED, DETECTED, DETECTED),
        {"edit": segments_only(edit), "edit, tiles too": with_tiles(edit)},
    ),
    Row(
        "delete, insert, reorder records",
        (REFUSED, DETECTED, DETECTED, DETECTED),
        {name: segments_only(change) for name, change in EDITS.items()}
        | {f"{name}, tiles too": with_tiles(change) for name, change in EDITS.items()},
    ),
    Row(
        "the same, tree and checkpoint signed again with the present key",
        (REFUSED, DETECTED, NOT, DETECTED),
        {f"{name}, signed": signed_again(change) for name, change in ({"edit": edit} | EDITS).items()},
    ),
    Row(
        "the same, signed with an old key that was kept",
        (REFUSED, DETECTED, DETECTED, DETECTED),
        {f"{name}, old key": signed_with_an_old_key(change) for name, change in ({"edit": edit} | EDITS).items()},
    ),
    Row(
        "the same, under new keys that an old key certified",
        (REFUSED, NOT, NOT, DETECTED),
        {"grown from an old key": grown_from_an_old_key},
    ),
    Row(
        "cut the tail, keep the checkpoint",
        (REFUSED, DETECTED, DETECTED, DETECTED),
        {"cut": segments_only(cut), "cut, tiles too": with_tiles(cut)},
    ),
    Row(
        "cut the tail, sign again with the present key",
        (REFUSED, DETECTED, NOT, DETECTED),
        {"cut, signed": signed_again(cut)},
    ),
    Row("put an older copy of the whole log back", (REFUSED, SEEN, NOT, DETECTED), {"older copy": older_copy}),
    Row(
        "a fork: another history from some point on, shown to somebody else",
        (REFUSED, DETECTED, NOT, DETECTED),
        {"fork": signed_again(fork)},
    ),
    Row("replace the whole log, new identity", (REFUSED, DETECTED, DETECTED, DETECTED), {"replace": replace}),
    Row("remove everything", (REFUSED, SEEN, SEEN, DETECTED), {"remove": remove}),
]


class Cell(NamedTuple):
    row: Row
    name: str
    when: str
    known: bool

    def attack(self, kept: Kept, host: Host) -> int | None:
        return self.row.attacks[self.name](kept, host, self.when)

    def verify(self, kept: Kept, host: Host, *against: note.Note) -> Report:
        return verify(host.log_dir, identity=kept.identity if self.known else None, against=against)


CELLS = [
    pytest.param(Cell(row, name, when, known), id=f"{name}-{when}-{'known' if known else 'unknown'}")
    for row in TABLE
    for name in row.attacks
    for when in (EARLIER, PRESENT)
    for known in (False, True)
]


@pytest.mark.parametrize("cell", CELLS)
def test_root_without_an_off_host_checkpoint(kept: Kept, host: Host, cell: Cell) -> None:
    broken_at = cell.attack(kept, host)
    report = cell.verify(kept, host)
    told = cell.row.cells[1 if cell.when == EARLIER else 2]
    if cell.name == "replace":
        # Who knows the identity sees it at once, who does not never.
        broken_at = 0 if cell.known else None
    elif told in (DETECTED, NOT):
        assert (broken_at is not None) == (told == DETECTED)
    assert report.broken_at == broken_at, report.problems
    assert report.ok == (broken_at is None)


@pytest.mark.parametrize("cell", CELLS)
def test_root_and_an_off_host_checkpoint(kept: Kept, host: Host, cell: Cell) -> None:
    broken_at = cell.attack(kept, host)
    report = cell.verify(kept, host, kept.off_host)
    assert cell.row.cells[3] == DETECTED
    assert not report.ok
    if broken_at is None:
        # Nothing else finds it. It is broken where the copy ends, or from the last record that a dead key vouches for.
        broken_at = {
            "older copy": (kept.old if cell.when == EARLIER else kept.younger).size(),
            "cut, signed": kept.victim(cell.when),
            "delete, signed": kept.host.size() - 1,
            "replace": 0,
            "grown from an old key": 0,  # its keys are others: nothing of the checkpoint speaks for this log
        }.get(cell.name, kept.since(cell.when))
    assert report.broken_at == broken_at, report.problems


def test_what_was_recorded_before_the_cut_can_still_be_read(kept: Kept, host: Host) -> None:
    at = kept.victim(PRESENT)
    segments_only(cut)(kept, host, PRESENT)
    assert Attacker(host).payloads == Attacker(kept.host).payloads[:at]


def test_recorder_sets_an_older_copy_aside_and_says_so(kept: Kept, host: Host) -> None:
    older_copy(kept, host, EARLIER)
    with SignedLog(host.log_dir, host.key_dir, Options("host")) as log:
        assert log.set_aside is not None
        assert log.set_aside.path.parent == host.log_dir
        assert "older than its key" in log.set_aside.why
    assert host.identity() != kept.identity
    assert verify(host.log_dir).ok
    assert not verify(host.log_dir, identity=kept.identity).ok


def test_recorder_says_that_everything_was_removed(kept: Kept, host: Host) -> None:
    remove(kept, host, PRESENT)
    with SignedLog(host.log_dir, host.key_dir, Options("host")) as log:
        assert log.set_aside is not None
        assert "nothing left" in log.set_aside.why


def test_verify_says_that_there_is_no_log(kept: Kept, host: Host) -> None:
    shutil.rmtree(host.log_dir)
    with pytest.raises(NotFoundError):
        verify(host.log_dir, identity=kept.identity, against=[kept.off_host])


def test_only_one_side_of_a_fork_goes_with_a_checkpoint_from_behind_it(kept: Kept, host: Host) -> None:
    signed_again(fork)(kept, host, PRESENT)
    before, behind = kept.old.checkpoint(), [kept.off_host, host.checkpoint()]
    for number, side in enumerate([kept.host, host]):
        mine, other = behind[number], behind[1 - number]
        assert verify(side.log_dir, identity=kept.identity, against=[before, mine]).ok
        assert verify(side.log_dir, identity=kept.identity, against=[other]).broken_at == kept.since(PRESENT)


# -- what is not in the table


def test_older_copy_of_the_present_epoch_is_continued(kept: Kept, host: Host) -> None:
    # The key is the same: nothing on the host tells. Only a checkpoint from elsewhere does.
    older_copy(kept, host, PRESENT)
    with SignedLog(host.log_dir, host.key_dir, Options("host")) as log:
        assert log.set_aside is None
        log.writer.append(b"something else")
    assert verify(host.log_dir, identity=kept.identity).ok
    assert verify(host.log_dir, identity=kept.identity, against=[kept.off_host]).broken_at == kept.younger.size() + 1


def prune_record(*ranges: tuple[int, int]) -> bytes:
    packed: bytes = msgpack.packb({"kind": "prune", "pruned": ranges})
    return packed


def test_record_of_pruning_that_nobody_signed_excuses_nothing(kept: Kept, host: Host) -> None:
    segments = folder.list_segments(host.log_dir)
    gone, following, last = segments[3], segments[4], segments[-1]
    log_id = segment.Header.parse(last.path.read_bytes()).log_id
    with last.path.open("ab") as f:
        record = prune_record((gone.first_seq, following.first_seq))
        f.write(segment.frame(record, kept.host.size(), segment.seed(log_id)))
    gone.path.unlink()
    report = verify(host.log_dir, identity=kept.identity)
    assert (report.broken_at, report.pruned) == (gone.first_seq, 0)


def test_record_that_was_changed_into_one_of_pruning_excuses_nothing(kept: Kept, host: Host) -> None:
    segments = folder.list_segments(host.log_dir)
    gone, following = segments[3], segments[4]
    a = Attacker(host)
    a.payloads[-1] = prune_record((gone.first_seq, following.first_seq))
    a.write_segments()
    gone.path.unlink()
    assert verify(host.log_dir, identity=kept.identity).broken_at == gone.first_seq


def test_altered_epoch_record_is_named_itself(kept: Kept, host: Host) -> None:
    a = Attacker(host)
    at = kept.begun[1]
    a.payloads[at] = a.payloads[at].replace(b"agentwatch-epoch/v1\n", b"agentwatch-epoch/v2\n")
    a.write_segments()
    report = verify(host.log_dir, identity=kept.identity)
    assert (report.broken_at, report.epochs) == (at, 3)


def test_epoch_record_that_is_gone_from_the_tree_too_breaks_the_chain(kept: Kept, host: Host) -> None:
    a = Attacker(host)
    a.payloads[kept.begun[1]] = b"no epoch"
    a.write_all()
    a.sign(host.keys())
    assert verify(host.log_dir, identity=kept.identity).broken_at == kept.begun[0]


def test_checkpoint_of_any_size_is_refused_in_no_time(kept: Kept, host: Host) -> None:
    text = checkpoint.Checkpoint.parse(host.checkpoint().text)._replace(size=10**17).text
    (host.log_dir / checkpoint.FILE).write_text(str(host.checkpoint()._replace(text=text)))
    report = verify(host.log_dir, identity=kept.identity)
    assert report.broken_at == kept.since(PRESENT)
    with SignedLog(host.log_dir, host.key_dir, Options("host")) as log:
        assert log.set_aside is not None


@pytest.mark.parametrize("name", ["00000000000000000001", "x", f"{5:020d}"])
def test_odd_things_in_the_folder_of_epochs_do_not_stop_verification(kept: Kept, host: Host, name: str) -> None:
    (host.log_dir / epochs.FOLDER / name).mkdir()
    assert verify(host.log_dir, identity=kept.identity).ok == (name == "x")


def test_checkpoint_from_elsewhere_that_is_none_is_said_to_be(kept: Kept, host: Host) -> None:
    other = kept.off_host._replace(text="something else\n")
    report = verify(host.log_dir, against=[other])
    assert report.broken_at == 0
    assert "is no checkpoint" in report.problems[0].how


# -- T0


class World(NamedTuple):
    base: Path
    host: Host


@pytest.fixture
def world(kept: Kept) -> Iterator[World]:
    """The host's files where nothing but their own modes protects them: pytest's folders are closed to others."""
    base = Path(tempfile.mkdtemp(prefix="aw-tamper-"))
    try:
        base.chmod(0o755)
        shutil.copytree(kept.host.root, base / "host")
        (base / "host").chmod(0o755)
        yield World(base, Host(base / "host"))
    finally:
        shutil.rmtree(base)


def as_nobody(attempt: Callable[[], object], groups: list[int]) -> str:
    """Return "done", or the name of the error that the kernel refused it with."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            attempt()
            said = "done"
        except OSError as e:
            said = type(e).__name__
        except BaseException as e:  # noqa: BLE001 -- nothing may come out of the child
            said = repr(e)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def overwrite(path: Path) -> None:
    with path.open("r+b") as f:
        f.write(b"x")


def attempts(world: World) -> dict[str, list[Callable[[], object]]]:
    """Return by line of the table what somebody without privileges would have to be able to do, each alone."""
    log_dir, key_dir = world.host.log_dir, world.host.key_dir
    first = folder.list_segments(log_dir)[0].path
    tile = next(path for path in (log_dir / tiles.FOLDER).rglob("*") if path.is_file())
    copy = next((log_dir / epochs.FOLDER).iterdir())
    key, signed, identity = key_dir / "epoch", log_dir / checkpoint.FILE, log_dir / epochs.IDENTITY_FILE
    write = [lambda path=path: overwrite(path) for path in (first, tile, copy, signed, identity, key)]
    make = [(folder_ / "new").touch for folder_ in (log_dir, key_dir, log_dir / epochs.FOLDER, log_dir / tiles.FOLDER)]
    take_over = [lambda path=path: path.chmod(0o777) for path in (first, log_dir, key_dir, key)]
    cut_off = [lambda path=path: os.truncate(path, 64) for path in (first, signed, tile)]
    put = [
        lambda: first.rename(log_dir / "other"),
        lambda: tile.replace(first),
        lambda: log_dir.rename(world.base / "elsewhere"),
        lambda: log_dir.rename(Path(tempfile.gettempdir(), "elsewhere")),
    ]
    take = [path.unlink for path in (first, tile, copy, signed, identity, key, log_dir / folder.LOCK_NAME)]
    sign = [key.read_bytes, lambda: list(key_dir.iterdir()), lambda: os.link(key, world.base / "key")]
    return {
        "edit a record, checksum and all": [*write, *take_over],
        "delete, insert, reorder records": [*write, *cut_off, *make],
        "the same, tree and checkpoint signed again with the present key": [*sign, *write],
        "the same, signed with an old key that was kept": [*sign, *write],
        "the same, under new keys that an old key certified": [*sign, *write],
        "cut the tail, keep the checkpoint": [*cut_off, *take],
        "cut the tail, sign again with the present key": [*sign, *cut_off],
        "put an older copy of the whole log back": [*put, *make],
        "a fork: another history from some point on, shown to somebody else": [*sign, *write],
        "replace the whole log, new identity": [*put, *make, *write],
        "remove everything": [*take, log_dir.rmdir, (log_dir / epochs.FOLDER).rmdir],
    }


def read(world: World) -> list[Callable[[], object]]:
    log_dir = world.host.log_dir
    files = [path for path in log_dir.rglob("*") if path.is_file() and path.name != folder.LOCK_NAME]
    return [path.read_bytes for path in files]


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")


@needs_root
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_unprivileged_user_is_refused(world: World, row: Row) -> None:
    assert row.cells[0] == REFUSED
    tried = attempts(world)[row.name]
    assert [as_nobody(attempt, []) for attempt in tried] == ["PermissionError"] * len(tried)
    assert verify(world.host.log_dir).ok


@needs_root
def test_unprivileged_user_can_read_nothing(world: World) -> None:
    tried = read(world)
    assert {as_nobody(attempt, []) for attempt in tried} == {"PermissionError"}
    # The attempts themselves are sound: root's succeed.
    assert all(attempt() for attempt in tried)


@needs_root
def test_member_of_the_reader_group_reads_everything_and_changes_nothing(world: World) -> None:
    gid = 54321
    with SignedLog(world.host.log_dir, world.host.key_dir, Options("host", reader_gid=gid)) as log:
        log.writer.append(b"for the group")
    assert {as_nobody(attempt, [gid]) for attempt in read(world)} == {"done"}
    assert as_nobody(lambda: verify(world.host.log_dir).ok or 1 / 0, [gid]) == "done"
    tried = [attempt for line in attempts(world).values() for attempt in line]
    assert {as_nobody(attempt, [gid]) for attempt in tried} == {"PermissionError"}
    assert as_nobody((world.host.log_dir / folder.LOCK_NAME).read_bytes, [gid]) == "PermissionError"
    # And when the group is not to read any more, it cannot.
    with SignedLog(world.host.log_dir, world.host.key_dir, Options("host")):
        pass
    assert {as_nobody(attempt, [gid]) for attempt in read(world)} == {"PermissionError"}


@pytest.mark.parametrize("umask", [0, 0o777])
@pytest.mark.parametrize("reader_gid", [None, os.getegid()])
def test_modes_are_set_whatever_the_umask_is(tmp_path: Path, umask: int, reader_gid: int | None) -> None:
    host = Host(tmp_path)
    before = os.umask(umask)
    try:
        with SignedLog(host.log_dir, host.key_dir, OPTIONS._replace(reader_gid=reader_gid)) as log:
            for seq in range(300):
                log.writer.append(b"event %d" % seq)
    finally:
        os.umask(before)
    files, folders = (0o600, 0o700) if reader_gid is None else (0o640, 0o750)
    for path in (host.log_dir, *host.log_dir.rglob("*")):
        wanted = 0o600 if path.name == folder.LOCK_NAME else folders if path.is_dir() else files
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    assert stat.S_IMODE(host.key_dir.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in host.key_dir.iterdir()} == {0o600}


# -- the table itself


def verdict(cell: str, left: str) -> str:
    if cell in ("as before", "the same"):
        return left
    return next(found for found in (REFUSED, NOT, SEEN, DETECTED) if re.match(rf"\W*{found}", cell))


def test_the_table_in_the_readme_is_the_one_that_is_tested() -> None:
    text = README.read_text(encoding="utf-8")
    table = text[text.index("| attack | T0 |") :].split("\n\n", 1)[0].splitlines()[2:]
    told = []
    for line in table:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        verdicts: list[str] = []
        for cell in cells:
            verdicts.append(verdict(cell, verdicts[-1] if verdicts else ""))
        told.append((name, tuple(verdicts)))
    assert told == [(row.name, row.cells) for row in TABLE]
