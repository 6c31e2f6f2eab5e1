"""The one-file verifier and the product's ``verify``, on the same logs as the product writes them, whole and harmed.

Both must give the same verdict. They must name the same record, too, but for what ``same_record`` allows.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from agentwatch import evidence
from agentwatch.log import checkpoint, epochs, folder, note, retention, segment
from agentwatch.log.checkpoint import Checkpoint
from agentwatch.log.sealing import compress
from agentwatch.log.signed import Options, SignedLog
from agentwatch.log.verify import verify
from agentwatch.records.encoding import decode, encode
from agentwatch.standalone import agentwatch_verify as verifier
from tests.unit.log import test_tamper as tamper
from tests.unit.log.attacker import Attacker, Host
from tests.unit.log_builder import OTHER_SESSION, SESSION, LogBuilder
from tests.unit.standalone.log_maker import Signer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

kept, host = tamper.kept, tamper.host
"""The fixtures of the tamper matrix: a host with three epochs, and a copy of it to become root on."""

FLIPS = int(os.environ.get("AGENTWATCH_FLIPS", "300"))
"""Single bits to flip in a log. 2,000 take two minutes."""
OPTIONS = Options("host", segment_bytes=3000, epoch_ns=1 << 62)


class Verdict(NamedTuple):
    ok: bool
    record: int | None


def run(target: Path, *arguments: str) -> dict[str, Any]:
    """Run the verifier in this process."""
    out: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdout, "write", out.append)
        status = verifier.main(["--json", *arguments, str(target)])
    result: dict[str, Any] = json.loads(out[-1])
    assert status == {"intact": 0, "broken": 1, "cannot check": 3}[result["verdict"]]
    return result


def both(
    log_dir: Path, identity: note.Key | None = None, against: Sequence[note.Note] = ()
) -> tuple[Verdict, Verdict, dict[str, Any]]:
    """Return what the product and what the one file say, and the latter in full."""
    report = verify(log_dir, identity=identity, against=against)
    arguments = [] if identity is None else ["--identity", f"{identity}"]
    for number, one in enumerate(against):
        path = log_dir.parent / f"kept-{number}"
        path.write_text(str(one))
        arguments += ["--against", str(path)]
    result = run(log_dir, *arguments)
    assert result["verdict"] != "cannot check", result
    mine = Verdict(result["verdict"] == "intact", result["findings"][0][0] if result["findings"] else None)
    return Verdict(report.ok, report.broken_at), mine, result


def epochs_of(log_dir: Path) -> set[int]:
    return {int(path.name) for path in (log_dir / epochs.FOLDER).iterdir() if path.name.isdigit()} | {0}


def seqs_of(log_dir: Path) -> set[int]:
    """Return the first records of the segments."""
    return {item.first_seq for item in folder.list_segments(log_dir)}


def same_record(theirs: int, mine: int, begun: set[int], flipped: Path | None = None) -> bool:
    """Tell whether two records are the same place of a log, as far as docs/log-format.md says.

    * A tile that was altered is of no record in particular: any below it will do. If these were pruned, nothing but the
      signed roots tells: the ``epoch`` record before.
    * So are the tables of a compressed segment: any record of the segment.
    * Behind a damaged length the one file does not look for more records of the segment. If the record of pruning was
      one of them, it takes what was pruned for missing.
    """
    if theirs == mine:
        return True
    if flipped is None or flipped.parent.name == epochs.FOLDER or flipped.name in (checkpoint.FILE, "identity"):
        return False
    if flipped.suffix == ".zst":
        return all(int(flipped.name[:20]) <= record for record in (theirs, mine))
    if flipped.suffix == ".segment":
        return mine == 0 and 0 not in seqs_of(flipped.parent)
    level, number = flipped.parts[flipped.parts.index("tile") + 1 :][:2]  # there is no tile 1000 here
    width = 256 << 8 * int(level)
    first = int(number.removesuffix(".p")) * width
    below = range(first, first + width)
    return mine in below and (theirs in below or theirs in begun)


def assert_same(
    found: tuple[Verdict, Verdict, dict[str, Any]], begun: set[int], flipped: Path | None = None
) -> Verdict:
    theirs, mine, result = found
    assert theirs.ok == mine.ok, (theirs, flipped, result["findings"])
    if theirs.record is not None:
        assert mine.record is not None
        assert same_record(theirs.record, mine.record, begun, flipped), (theirs, flipped, result["findings"])
    return mine


# -- logs


class Home(NamedTuple):
    """Where a log and its keys are."""

    root: Path

    @property
    def log_dir(self) -> Path:
        return self.root / "log"

    def open(self, options: Options = OPTIONS) -> SignedLog:
        return SignedLog(self.log_dir, self.root / "keys", options)

    def copy(self, root: Path) -> Home:
        shutil.copytree(self.root, root)
        return Home(root)

    def segments(self) -> list[Path]:
        return [item.path for item in folder.list_segments(self.log_dir)]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def begin_epoch(log: SignedLog) -> None:
    log._begin_epoch()
    log._finish_epoch()


def record(log: SignedLog, count: int) -> None:
    for _ in range(count):
        log.writer.append(encode({"kind": "exec", "time": 1_700_000_000_000_000_000, "n": log.writer.next_seq}))
    log.writer.commit()


def prune(log: SignedLog, count: int) -> None:
    """Do as upkeep.py does: a record that names the segments, signed; then they go."""
    tree_size = log.signed.size if log.signed else 0
    keep = retention.Keep(size=1)
    found = retention.candidates(log.log_dir, keep, now_ns=0, tree_size=tree_size, is_held=lambda _: False)
    going = [one for one, _ in zip(found, range(count), strict=False)]
    assert len(going) == count
    for one in going:
        retention.check_tiles(log.log_dir, one, tree_size=tree_size)
    ranges = retention.coalesce((one.first_seq, one.next_seq) for one in going)
    log.writer.append(encode({"kind": "prune", "time": 1, "pruned": [list(pair) for pair in ranges]}))
    log.sign()
    for one in going:
        retention.remove(one)


def compress_all(home: Home) -> None:
    for path in home.segments()[:-1]:
        if path.suffix == ".segment":
            compress(path, append_only=False)


def write_varied(home: Home, *, post_quantum: bool = False) -> None:
    """Write a log with all that a log can have: three epochs, pruned, compressed and plain segments, a partial tile."""
    with home.open(OPTIONS._replace(post_quantum=post_quantum)) as log:
        record(log, 300)
        begin_epoch(log)
        record(log, 20)
        log.sign()
        compress_all(home)
        prune(log, 2)
        begin_epoch(log)
        record(log, 70)


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("varied") / "home")
    write_varied(home)
    return home


def test_varied_log_has_everything(varied: Home) -> None:
    names = [path.name for path in varied.segments()]
    assert names[0] != segment.segment_name(0)
    assert {Path(name).suffix for name in names} == {".zst", ".segment"}
    assert len(epochs_of(varied.log_dir)) == 3
    found = both(varied.log_dir)
    assert assert_same(found, set()) == Verdict(ok=True, record=None)
    assert found[2]["kinds"].keys() == {"exec", "epoch", "prune"}
    assert "what was in the" in str(found[2]["not_proved"])


def test_post_quantum_log(home: Home) -> None:
    write_varied(home, post_quantum=True)
    identity = note.Key.parse((home.log_dir / epochs.IDENTITY_FILE).read_text())
    assert assert_same(both(home.log_dir, identity), set()).ok
    path = home.log_dir / checkpoint.FILE
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 6
    path.write_text("".join(lines[:5]))  # without that of ML-DSA-44
    assert not assert_same(both(home.log_dir), epochs_of(home.log_dir)).ok
    path.write_text("".join(lines[:4] + lines[5:]))
    assert not assert_same(both(home.log_dir), epochs_of(home.log_dir)).ok


def test_time_in_a_post_quantum_certificate_is_refused(tmp_path: Path) -> None:
    host = Host(tmp_path)
    with SignedLog(host.log_dir, host.key_dir, OPTIONS._replace(post_quantum=True)) as log:
        begin_epoch(log)
        record(log, 3)
    a = Attacker(host)
    fields = decode(a.payloads[1])
    certificate = note.parse(fields["certificate"].encode())
    signed = certificate.signatures[1]
    timed = signed._replace(data=bytes(7) + b"\1" + signed.data[8:])
    fields["certificate"] = str(certificate._replace(signatures=(certificate.signatures[0], timed)))
    a.payloads[1] = encode(fields)
    a.write_all()
    a.sign(host.keys())
    assert assert_same(both(host.log_dir), {0, 1}) == Verdict(ok=False, record=0)


def test_log_of_a_writer_that_was_killed(home: Home) -> None:
    with home.open() as log:
        record(log, 100)
    log = home.open()
    record(log, 60)
    log.writer.close()
    assert assert_same(both(home.log_dir), set()).ok
    last = home.segments()[-1]
    whole = last.read_bytes()
    for size in (len(whole) - 1, segment.HEADER_BYTES + 1, segment.HEADER_BYTES, 10, 0):
        last.write_bytes(whole[:size])
        assert assert_same(both(home.log_dir), set()).ok, size
    last.write_bytes(whole + bytes(4096))
    assert assert_same(both(home.log_dir), set()).ok


def test_cut_at_every_fiftieth_byte(home: Home) -> None:
    with home.open(OPTIONS._replace(segment_bytes=1 << 20)) as log:
        record(log, 50)
    last = home.segments()[-1]
    whole = last.read_bytes()
    for size in range(0, len(whole), 50):
        last.write_bytes(whole[:size])
        assert not assert_same(both(home.log_dir), {0}).ok, size


def test_skipped_numbers_and_a_segment_of_which_nothing_is_provable(home: Home) -> None:
    with home.open() as log:
        record(log, 3)
    log = home.open(OPTIONS._replace(segment_bytes=300))
    record(log, 20)
    log.writer.close()
    last = home.segments()[-1]
    last.write_bytes(b"\x5a" * last.stat().st_size)
    with home.open() as log:
        record(log, 2)
    mine = assert_same(both(home.log_dir), set())
    assert mine == Verdict(ok=False, record=int(last.name[:20]))
    last.unlink()
    theirs, mine, result = both(home.log_dir)
    assert "0 numbers were skipped" not in result["completeness"]
    assert theirs.ok
    assert mine.ok


def test_superseded_records(home: Home) -> None:
    with home.open() as log:
        record(log, 200)
    one, following = home.segments()[1:3]
    log_id = segment.Header.parse(one.read_bytes()).log_id
    frame = segment.frame(b"written again in the next", int(following.name[:20]), segment.seed(log_id))
    one.write_bytes(one.read_bytes() + frame + b"torn")
    assert assert_same(both(home.log_dir), set()).ok


def test_missing_tiles_follow_from_the_records(home: Home) -> None:
    # To the document this is no damage, as all records are there.
    with home.open() as log:
        record(log, 300)
    shutil.rmtree(home.log_dir / "tile")
    assert run(home.log_dir)["verdict"] == "intact"


# -- what is done to them


@pytest.mark.parametrize("cell", tamper.CELLS)
@pytest.mark.parametrize("off_host", [False, True])
def test_cell_of_the_tamper_matrix(kept: tamper.Kept, host: Host, cell: tamper.Cell, *, off_host: bool) -> None:
    cell.attack(kept, host)
    against = [kept.off_host] if off_host else []
    assert_same(both(host.log_dir, kept.identity if cell.known else None, against), set(kept.begun))


def test_every_file_with_a_bit_flipped(varied: Home, tmp_path: Path) -> None:
    home, chance = varied.copy(tmp_path / "home"), random.Random(5)  # noqa: S311 -- repeatable
    begun = epochs_of(varied.log_dir)
    files = sorted(path for path in home.log_dir.rglob("*") if path.is_file() and path.stat().st_size)
    for _ in range(FLIPS):
        path = chance.choice(files)
        whole = path.read_bytes()
        at = chance.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
        assert_same(both(home.log_dir), begun, path)
        path.write_bytes(whole)
    assert assert_same(both(home.log_dir), begun).ok


def test_cut_of_any_file(varied: Home, tmp_path: Path) -> None:
    home, chance = varied.copy(tmp_path / "home"), random.Random(6)  # noqa: S311 -- repeatable
    begun = epochs_of(varied.log_dir)
    files = sorted(path for path in home.log_dir.rglob("*") if path.is_file() and path.stat().st_size)
    for path in files * 2:
        whole = path.read_bytes()
        path.write_bytes(whole[: chance.randrange(len(whole))])
        assert_same(both(home.log_dir), begun, path)
        path.write_bytes(whole)


def test_segments_that_are_gone_or_change_places(varied: Home, tmp_path: Path) -> None:
    begun = epochs_of(varied.log_dir)
    for number, (one, following) in enumerate(pairwise(varied.segments())):
        home = varied.copy(tmp_path / str(number))
        (home.log_dir / one.name).unlink()
        assert not assert_same(both(home.log_dir), begun).ok
        shutil.copy(following, home.log_dir / one.name)
        assert not assert_same(both(home.log_dir), begun, home.log_dir / one.name).ok


def edited(a: Attacker, at: int, **changes: Any) -> None:
    a.payloads[at] = encode(decode(a.payloads[at]) | changes)


def no_longer_epoch(a: Attacker, at: int) -> None:
    edited(a, at, kind="exec")


def other_number(a: Attacker, at: int) -> None:
    edited(a, at, number=7)


def no_certificate(a: Attacker, at: int) -> None:
    edited(a, at, certificate=None)


def wrong_signature(a: Attacker, at: int) -> None:
    certificate = decode(a.payloads[at])["certificate"]
    edited(a, at, certificate=certificate[:-10] + ("B" if certificate[-10] == "A" else "A") + certificate[-9:])


def trailing_byte(a: Attacker, at: int) -> None:
    a.payloads[at] += b"\xc0"


def more(a: Attacker, at: int) -> None:
    edited(a, at, more=1)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(
    "change", [no_longer_epoch, other_number, no_certificate, wrong_signature, trailing_byte, more]
)
def test_epoch_record_changed_and_all_signed_again(
    kept: tamper.Kept, host: Host, change: Callable[[Attacker, int], None], number: int
) -> None:
    a = Attacker(host)
    change(a, kept.begun[number])
    a.write_all()
    a.sign(host.keys())
    mine = assert_same(both(host.log_dir), set(kept.begun))
    assert mine.ok == (change is more and number == 2)  # the newest key signs what it likes, but its own certificate


@pytest.mark.parametrize("places", [(150, 300), (300, 150), (300, 500), (500, 300), (600, 700)])
def test_record_changed_with_its_tiles_and_another_without(
    kept: tamper.Kept, host: Host, places: tuple[int, int]
) -> None:
    with_tiles, without = places
    last = max(begun for begun in kept.begun if begun <= with_tiles)
    a = Attacker(host)
    tamper.edit(a, with_tiles)
    a.write_all()
    tamper.edit(a, without)
    a.write_segments()
    theirs, mine, _ = both(host.log_dir)
    assert (theirs.ok, mine.ok) == (False, False)
    # The roots below the first change follow from the tiles, so that a record without its tile is named itself. The
    # product goes back to the last root that follows from all records.
    assert mine.record == min(last, without)
    assert theirs.record is not None
    assert theirs.record <= mine.record + 1


@pytest.mark.parametrize("at", [100, 300, 700])
def test_record_changed_with_its_level_0_tile_alone(kept: tamper.Kept, host: Host, at: int) -> None:
    above = {path: path.read_bytes() for path in (host.log_dir / "tile/1").rglob("*") if path.is_file()}
    a = Attacker(host)
    tamper.edit(a, at)
    a.write_all()
    for path, content in above.items():
        path.write_bytes(content)
    assert not assert_same(both(host.log_dir), set(kept.begun)).ok


PRUNED = [[[0, 500]], [[0, 281], [400, 500]], [0, 500], {"0": 500}, None]
NOT_TO_THE_LETTER = [
    [[0, 10], [5, 500]],
    [[10, 500], [0, 10]],
    [[0, 843]],
    [[0, 500], [600, 600]],
    [[0, "500"]],
    [[0, 300.0], [300, 500]],
]
"""Not ascending, overlapping, not of older records, empty, no numbers: to the document none of these is a range."""


def prune_and_remove(host: Host, pruned: Any) -> None:
    a = Attacker(host)
    a.payloads[-1] = encode({"kind": "prune", "time": 1, "pruned": pruned})
    a.write_all()
    a.sign(host.keys())
    (host.log_dir / segment.segment_name(281)).unlink()


@pytest.mark.parametrize("pruned", PRUNED, ids=str)
def test_prune_record_and_a_segment_that_is_gone(kept: tamper.Kept, host: Host, pruned: Any) -> None:
    prune_and_remove(host, pruned)
    mine = assert_same(both(host.log_dir), set(kept.begun))
    assert mine == (Verdict(ok=True, record=None) if pruned == [[0, 500]] else Verdict(ok=False, record=281))


@pytest.mark.parametrize("pruned", NOT_TO_THE_LETTER, ids=str)
def test_prune_record_that_is_none_excuses_nothing(host: Host, pruned: Any) -> None:
    # Not compared: the product takes all of these, and only what its own recorder signed can be one.
    prune_and_remove(host, pruned)
    assert run(host.log_dir)["findings"][0][0] == 281


@pytest.mark.parametrize(("pruned", "named"), [([[0, 300], [300, 500]], None), ([[0, 300]], 300)])
def test_prune_record_covers_a_segment_in_parts(host: Host, pruned: Any, named: int | None) -> None:
    # Not compared: the product wants each segment in one range.
    prune_and_remove(host, pruned)
    result = run(host.log_dir)
    assert [record for record, _ in result["findings"][:1]] == ([] if named is None else [named])


@pytest.mark.parametrize("size", [0, 1, 281, 282, 562, 563, 564, 700, 842])
def test_smaller_checkpoint_of_the_present_key(kept: tamper.Kept, host: Host, size: int) -> None:
    a = Attacker(host)
    whole, a.payloads = a.payloads, a.payloads[:size]
    a.sign(host.keys())
    a.payloads = whole
    assert assert_same(both(host.log_dir), set(kept.begun)).ok == (size > kept.begun[2])


@pytest.mark.parametrize("name", ["checkpoint", "identity"])
@pytest.mark.parametrize("content", [None, b"", b"x\n", b"\xff\n"])
def test_checkpoint_or_identity_that_is_none(kept: tamper.Kept, host: Host, name: str, content: bytes | None) -> None:
    path = host.log_dir / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert assert_same(both(host.log_dir, kept.identity), set()) == Verdict(ok=False, record=0)


@pytest.mark.parametrize("seq", [1, 100, 281, 100_000])
@pytest.mark.parametrize("content", [b"", b"no copy"])
def test_copies_of_epochs_that_are_not_in_the_tree(host: Host, seq: int, content: bytes) -> None:
    (host.log_dir / epochs.FOLDER / f"{seq:020d}").write_bytes(content)
    assert assert_same(both(host.log_dir), set()) == (
        Verdict(ok=True, record=None) if seq == 100_000 else Verdict(ok=False, record=seq)
    )


def test_copies_of_epochs_that_are_gone(varied: Home, host: Host, tmp_path: Path) -> None:
    shutil.rmtree(host.log_dir / epochs.FOLDER)
    (host.log_dir / epochs.FOLDER).mkdir()
    assert assert_same(both(host.log_dir), set()).ok
    home = varied.copy(tmp_path / "varied")  # record 0 was pruned
    (home.log_dir / epochs.FOLDER / f"{0:020d}").unlink()
    assert assert_same(both(home.log_dir), set()) == Verdict(ok=False, record=0)


def test_anchors_of_a_log(kept: tamper.Kept, host: Host) -> None:
    """Whoever cosigned: what the log's own keys signed must go with it, and nothing else counts."""
    collector = Signer.new("collector.example/c1", 4)
    before, now = kept.old.checkpoint(), kept.host.checkpoint()
    anchors = host.log_dir / "anchors"
    anchors.mkdir()

    def anchor(one: note.Note) -> None:
        signed = str(one) + collector.line(one.text)
        (anchors / f"{Checkpoint.parse(one.text).size}.collector").write_text(signed)

    anchor(before)
    result = run(host.log_dir, "--cosigner", collector.vkey)
    assert result["verdict"] == "intact"
    assert f"up to size {kept.old.size()}" in str(result["remarks"])
    tamper.signed_again(tamper.edit)(kept, host, tamper.PRESENT)
    assert run(host.log_dir)["verdict"] == "intact"
    anchor(now)
    assert run(host.log_dir)["findings"][0][0] == kept.begun[2]
    (anchors / f"{kept.host.size()}.collector").write_text("something else")
    (anchors / "5.tsr").write_bytes(b"x")
    assert run(host.log_dir)["verdict"] == "intact"


# -- bundles


def add_session_records(home: Home) -> LogBuilder:
    """Add two sessions, one of which still runs, as the recorder numbers them."""
    builder = LogBuilder(home.log_dir)
    builder.start()
    ran = builder.exec(100, "/bin/sh", "-c", "psql")
    builder.connect()
    for number in range(40):
        builder.statement(f"select {number}")
    builder.start(OTHER_SESSION, "agent-report", "bob")
    builder.exec(200, "/bin/ls")
    builder.session, builder.agent = SESSION, "agent-backfill"
    builder.gap()
    builder.statement(b"\xff\xfe", params=[1, None, 1.5, b"\x80", {"a": 2**63}])
    builder.exit(ran)
    builder.end()
    numbers: dict[str, int] = {}
    with home.open() as log:
        for number, fields in enumerate(builder.records):
            session = fields["session"]
            numbers[session] = numbers.get(session, -1) + 1
            log.writer.append(encode(fields | {"session_seq": numbers[session]}))
            if number == 20:
                begin_epoch(log)
    return builder


@pytest.fixture
def sessions(varied: Home, tmp_path: Path) -> Home:
    home = varied.copy(tmp_path / "sessions")
    add_session_records(home)
    return home


def bundle(home: Home, session: str = SESSION, name: str = "x") -> Path:
    out = home.root / f"{name}{evidence.SUFFIX}"
    evidence.make(home.log_dir, session, out, lambda found: f"{len(found.records)} records\n")
    return out


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_bundles_of_both_sessions(sessions: Home) -> None:
    identity = (sessions.log_dir / epochs.IDENTITY_FILE).read_text().strip()
    result = run(bundle(sessions), "--identity", identity)
    assert (result["verdict"], result["records"]) == ("intact", 47), result
    assert result["completeness"] == "whole: session_seq 0 to 46, with its session_end"
    result = run(bundle(sessions, OTHER_SESSION, "other"), "--identity", identity)
    assert (result["verdict"], result["records"]) == ("intact", 2), result
    assert "no session_end" in result["completeness"]
    assert not verify(sessions.log_dir).problems


def test_post_quantum_bundle(home: Home) -> None:
    with home.open(OPTIONS._replace(post_quantum=True)) as log:
        begin_epoch(log)
    add_session_records(home)
    assert run(bundle(home))["verdict"] == "intact"


def test_bundle_of_a_session_whose_beginning_was_pruned(home: Home) -> None:
    add_session_records(home)
    with home.open() as log:
        record(log, 300)
        log.sign()
        prune(log, 2)
    assert verify(home.log_dir).ok
    result = run(bundle(home))
    assert result["verdict"] == "broken"
    assert "session_seq 0 to" in result["findings"][0][1]
    assert result["completeness"].startswith("NOT whole")


def test_bundle_with_an_anchor_of_the_collector(sessions: Home) -> None:
    collector = Signer.new("collector.example/c1", 4)
    path = sessions.log_dir / checkpoint.FILE
    size = Checkpoint.parse(note.parse(path.read_bytes()).text).size
    anchors = sessions.log_dir / "anchors"
    anchors.mkdir()
    cosigned = path.read_text() + collector.line(note.parse(path.read_bytes()).text)
    (anchors / f"{size}.collector").write_text(cosigned)
    with sessions.open() as log:
        record(log, 100)
    out = bundle(sessions)
    files = members(out)
    assert f"anchors/{size}.collector.consistency" in files
    result = run(out, "--cosigner", collector.vkey)
    assert result["verdict"] == "intact"
    assert f"up to size {size}" in str(result["remarks"])
    kept = sessions.root / "kept"
    kept.write_text(cosigned)
    assert run(out, "--against", str(kept))["verdict"] == "intact"
    proof = files[f"anchors/{size}.collector.consistency"]
    files[f"anchors/{size}.collector.consistency"] = proof[:-1] + bytes([proof[-1] ^ 1])
    assert run(zipped(files, sessions.root / "harmed.zip"), "--against", str(kept))["verdict"] == "broken"


@pytest.mark.parametrize("name", ["checkpoint", "identity", "records.bin", "epochs"])
def test_bit_flipped_in_a_bundle(sessions: Home, name: str) -> None:
    files, chance = members(bundle(sessions)), random.Random(name)  # noqa: S311 -- repeatable
    for _ in range(40):
        member = chance.choice(sorted(one for one in files if one.partition("/")[0] == name))
        whole = files[member]
        at = chance.randrange(len(whole))
        harmed = whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :]
        result = run(zipped(files | {member: harmed}, sessions.root / "harmed.zip"))
        assert result["verdict"] == "broken", (member, at)


# -- the file alone


def test_one_file_elsewhere(sessions: Home, tmp_path: Path) -> None:
    program = shutil.copy(verifier.__file__ or "", tmp_path / "verify.py")
    identity = (sessions.log_dir / epochs.IDENTITY_FILE).read_text().strip()
    compress_all(sessions)
    out = bundle(sessions)
    for target in (sessions.log_dir, out):
        command = [sys.executable, "-I", program, "--identity", identity, "--list", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "integrity:    intact: " in done.stdout
        assert '"db.query.text": "select 7"' in done.stdout
    last = sessions.segments()[-1]
    last.write_bytes(last.read_bytes()[:-1])
    done = subprocess.run(
        [sys.executable, "-I", program, str(sessions.log_dir)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"BROKEN at record {verify(sessions.log_dir).broken_at}: " in done.stdout
