"""The one-file verifier, against logs and bundles made from the same document and from nothing else."""

from __future__ import annotations

import ast
import copy
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from crc32c import crc32c

from agentwatch.standalone import agentwatch_verify as verifier
from tests.unit.standalone.log_maker import (
    TIME_NS,
    Log,
    Signer,
    compressed,
    consistency,
    leaf,
    mth,
    ordinary_log,
    path,
    zipped,
)

if TYPE_CHECKING:
    from collections.abc import Callable

STARTS = (0, 250, 500)
SIZE = 600
Run = Any
"""Runs the verifier on a target and returns its status and its JSON."""


@pytest.fixture(scope="module")
def made() -> Log:
    return ordinary_log()


@pytest.fixture
def log(made: Log) -> Log:
    twin = copy.copy(made)
    twin.payloads, twin.epochs, twin.sessions = list(made.payloads), list(made.epochs), dict(made.sessions)
    return twin


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(target: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
        status = verifier.main([*arguments, "--json", str(target)])
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert not any(
            re.match(r"(Type|Attribute|Name|Lookup|Key|Index|Value|Assertion)Error", how) for how in result["cannot"]
        )
        return status, result

    return run


def assert_broken(outcome: tuple[int, dict[str, Any]], record: int, words: str = "") -> None:
    status, result = outcome
    assert status == 1, result
    assert result["findings"][0][0] == record, result["findings"]
    assert words in result["findings"][0][1], result["findings"]


def assert_intact(outcome: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    status, result = outcome
    assert status == 0, result
    assert result["proved"] > 0
    return result


def payload_at(log: Log, seq: int) -> bytes:
    payload = log.payloads[seq]
    assert payload is not None
    return payload


def rewritten(payload: bytes, **changes: Any) -> bytes:
    packed: bytes = msgpack.packb({**msgpack.unpackb(payload), **changes})
    return packed


# Whole logs


def test_intact_log(tmp_path: Path, log: Log, run: Run) -> None:
    outcome = run(log.write(tmp_path / "log", STARTS), "--identity", log.identity.vkey)
    result = assert_intact(outcome)
    assert result["integrity"] == "intact: 600 records, proved up to checkpoint of size 600"
    assert result["kinds"]["epoch"] == 3
    assert result["times_ns"] == [TIME_NS, TIME_NS + 599 * 10**9]
    assert not any("identity" in line for line in result["not_proved"])


def test_without_an_identity_it_says_what_that_leaves_open(tmp_path: Path, log: Log, run: Run) -> None:
    result = assert_intact(run(log.write(tmp_path / "log")))
    assert "no identity was given" in result["not_proved"][0]


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 511, 512, 513])
def test_every_shape_of_tree(tmp_path: Path, run: Run, size: int) -> None:
    log = ordinary_log(size, (0, 100, 256))
    assert_intact(run(log.write(tmp_path / "log"), "--identity", log.identity.vkey))


def test_three_levels_of_tiles(tmp_path: Path, run: Run) -> None:
    log = Log()
    log.start_epoch()
    log.payloads += [b"\x81\xa4kind\xa1x"] * 66_000
    log.start_epoch()
    folder = log.write(tmp_path / "log", (0, 30_000))
    assert (folder / "tile/0/256").exists()
    assert (folder / "tile/2/000.p/1").exists()
    assert_intact(run(folder))
    tile = folder / "tile/2/000.p/1"
    tile.write_bytes(bytes(32))
    assert_broken(run(folder), 0, "level-2 tile")


def test_post_quantum_log(tmp_path: Path, run: Run) -> None:
    log = ordinary_log(30, (0, 10, 20), post_quantum=True)
    folder = log.write(tmp_path / "log")
    result = assert_intact(run(folder))
    assert not any("ML-DSA" in line for line in result["not_proved"])
    (folder / "checkpoint").write_bytes(log.checkpoint(signers=log.epochs[-1][1][:1]))
    assert_broken(run(folder), 20, "ML-DSA-44")
    strange = [log.epochs[-1][1][0], Signer(log.origin, 6, Signer.new("x", 6).private)]
    (folder / "checkpoint").write_bytes(log.checkpoint(signers=strange))
    assert_broken(run(folder), 20, "not signed by")


def test_without_ml_dsa_it_cannot_check(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "MLDSA44PublicKey", None)  # as with cryptography 46
    log = ordinary_log(30, (0, 10, 20), post_quantum=True)
    status, result = run(log.write(tmp_path / "log"))
    assert status == 3
    assert "cryptography, 47" in result["integrity"]


def test_post_quantum_certificate_needs_both_signatures(tmp_path: Path, run: Run) -> None:
    log = ordinary_log(10, (0,), post_quantum=True)
    log.start_epoch(signers=log.epochs[-1][1][:1])
    assert_broken(run(log.write(tmp_path / "log")), 0, "ML-DSA-44")


# Records changed, by whom can write to the disk


def test_a_bit_of_a_payload(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    segment = folder / f"{250:020d}.segment"
    data = bytearray(segment.read_bytes())
    data[data.index(payload_at(log, 333)) + 5] ^= 1
    segment.write_bytes(data)
    assert_broken(run(folder), 333, "check of the frame")


def edited(log: Log, seq: int) -> None:
    log.payloads[seq] = rewritten(payload_at(log, seq), kind="harmless")


@pytest.mark.parametrize("seq", [1, 249, 250, 333, 511, 512, 599])
def test_edited_record_with_a_right_check(tmp_path: Path, log: Log, run: Run, seq: int) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    edited(log, seq)
    log.write_segments(folder, STARTS)
    assert_broken(run(folder), seq, "level-0 tile")


@pytest.mark.parametrize(("seq", "named"), [(100, 0), (300, 200), (333, 200), (550, 420)])
def test_edited_record_and_level_0_tile(tmp_path: Path, log: Log, run: Run, seq: int, named: int) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    tiles = {at: at.read_bytes() for at in (folder / "tile/1").rglob("*") if at.is_file()}
    edited(log, seq)
    log.write_segments(folder, STARTS)
    log.write_tiles(folder)
    for at, data in tiles.items():
        at.write_bytes(data)
    assert_broken(run(folder), named)


@pytest.mark.parametrize(("seq", "named"), [(100, 0), (300, 200), (550, 420)])
def test_edited_record_and_all_tiles_lie_between_two_signed_roots(
    tmp_path: Path, log: Log, run: Run, seq: int, named: int
) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    edited(log, seq)
    log.write_segments(folder, STARTS)
    log.write_tiles(folder)
    assert_broken(run(folder), named, "another root")


def test_who_has_the_newest_key_cannot_change_what_was_before_it(tmp_path: Path, log: Log, run: Run) -> None:
    edited(log, 300)
    assert_broken(run(log.write(tmp_path / "log", STARTS)), 200, "record 420: its certificate has another root")


def test_who_has_the_newest_key_is_found_by_a_checkpoint_kept_elsewhere(tmp_path: Path, log: Log, run: Run) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(log.checkpoint(580))
    edited(log, 500)
    folder = log.write(tmp_path / "log", STARTS)
    result = assert_intact(run(folder))
    assert any("who had the newest key" in line for line in result["not_proved"])
    assert_broken(run(folder, "--against", str(kept)), 420, "kept")


def shifted(log: Log, folder: Path, payloads: list[bytes | None]) -> None:
    log.payloads = payloads
    log.write_segments(folder, (0,))


def test_deleted_inserted_and_reordered_records(tmp_path: Path, log: Log, run: Run) -> None:
    folder, whole = log.write(tmp_path / "log"), log.payloads
    shifted(log, folder, whole[:301] + whole[302:])
    assert_broken(run(folder), 301)
    shifted(log, folder, [*whole[:300], msgpack.packb({"kind": "x"}), *whole[300:]])
    assert_broken(run(folder), 300)
    shifted(log, folder, [*whole[:100], whole[101], whole[100], *whole[102:]])
    assert_broken(run(folder), 100)


def test_frames_moved_as_they_are(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log")
    segment = folder / f"{0:020d}.segment"
    gone = log.frame(301, payload_at(log, 301))
    segment.write_bytes(segment.read_bytes().replace(gone, b""))
    assert_broken(run(folder), 301, "check of the frame")


@pytest.mark.parametrize("first", STARTS)
def test_removed_segment(tmp_path: Path, log: Log, run: Run, first: int) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    (folder / f"{first:020d}.segment").unlink()
    assert_broken(run(folder), first, "no segment")


def test_cut_end(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    segment = folder / f"{500:020d}.segment"
    segment.write_bytes(segment.read_bytes()[:-1])
    assert_broken(run(folder), 599, "cut short")


def test_cut_back_to_an_older_checkpoint_is_found_by_a_newer_one(tmp_path: Path, log: Log, run: Run) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(log.checkpoint())
    log.payloads = log.payloads[:580]
    folder = log.write(tmp_path / "log", STARTS)
    assert_intact(run(folder))
    assert_broken(run(folder, "--against", str(kept)), 580, "cut")


def test_a_kept_checkpoint_between_the_checkpoint_and_the_end(tmp_path: Path, log: Log, run: Run) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(log.checkpoint(590))
    folder = log.write(tmp_path / "log", STARTS, 500)
    result = assert_intact(run(folder, "--against", str(kept)))
    assert result["proved"] == 590
    assert "the 10 records behind the checkpoint" in result["not_proved"]


# Keys, epochs, identity


def test_signed_with_an_old_key(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    (folder / "checkpoint").write_bytes(log.checkpoint(signers=log.epochs[1][1]))
    assert_broken(run(folder), 420, "not signed by")


def test_signature_that_does_not_verify(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log")
    other, own = log.checkpoint(599).decode(), log.checkpoint().decode()
    (folder / "checkpoint").write_text(own.partition("\n\n")[0] + "\n\n" + other.partition("\n\n")[2])
    assert_broken(run(folder), 420, "does not verify")


def test_wrong_root_under_a_right_signature(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log")
    (folder / "checkpoint").write_bytes(log.checkpoint(root=bytes(32)))
    assert_broken(run(folder), 420, "another root")


def test_wrong_identity(tmp_path: Path, log: Log, run: Run) -> None:
    folder, other = log.write(tmp_path / "log"), Signer.new(f"{log.origin}/identity")
    assert_broken(run(folder, "--identity", other.vkey), 0, "identity")
    (folder / "identity").write_text(other.vkey + "\n")
    assert_broken(run(folder), 0, "not signed by")
    assert_broken(run(folder, "--identity", log.identity.vkey), 0, "identity")
    (folder / "identity").write_text("nonsense\n")
    assert_broken(run(folder, "--identity", log.identity.vkey), 0, "not a vkey")
    (folder / "identity").write_text(log.identity.vkey)
    assert_broken(run(folder), 0, "one line")
    (folder / "identity").unlink()
    assert_broken(run(folder, "--identity", log.identity.vkey), 0, "no identity")


def test_forged_certificate(tmp_path: Path, run: Run) -> None:
    log = ordinary_log(200, (0, 100))
    log.start_epoch(signers=[Signer.new(log.origin)])
    log.say("ada")
    assert_broken(run(log.write(tmp_path / "log")), 100, "not signed by")


def test_certificate_of_a_key_older_than_the_last(tmp_path: Path, run: Run) -> None:
    log = ordinary_log(200, (0, 100))
    log.start_epoch(signers=log.epochs[0][1])
    assert_broken(run(log.write(tmp_path / "log")), 100, "not signed by")


@pytest.mark.parametrize(
    ("change", "words"), [({"number": 3}, "missing"), ({"number": 1}, "missing"), ({"at": 7}, "at record 7")]
)
def test_certificate_of_another_epoch_or_place(tmp_path: Path, run: Run, change: dict[str, int], words: str) -> None:
    log = ordinary_log(200, (0, 100))
    log.start_epoch(**change)  # type: ignore[arg-type]
    assert_broken(run(log.write(tmp_path / "log")), 100, words)


def test_record_0_is_an_epoch(tmp_path: Path, run: Run) -> None:
    log = Log()
    log.add(kind="heartbeat")
    log.start_epoch()
    assert_broken(run(log.write(tmp_path / "log")), 0, "epoch 0 is missing")


def test_segment_of_another_log(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    name = folder / f"{250:020d}.segment"
    name.write_bytes(log.segment(250, [b"\x80"] * 250, log_id=bytes(16)))
    assert_broken(run(folder), 250, "another log")
    name.write_bytes((folder / f"{500:020d}.segment").read_bytes())
    assert_broken(run(folder), 250, "begins with record 500")
    name.write_bytes(b"\0" * 64)
    assert_broken(run(folder), 250, "header is damaged")


def test_version_is_refused_by_name(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log")
    data = bytearray((folder / f"{0:020d}.segment").read_bytes())
    data[8:12] = struct.pack(">I", 2)
    data[60:64] = struct.pack(">I", crc32c(bytes(data[:60])))
    (folder / f"{0:020d}.segment").write_bytes(data)
    status, result = run(folder)
    assert status == 3
    assert "version 2" in result["integrity"]


# Tiles


def test_altered_tiles(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    for name, at, record in (("0/001", 40, 296), ("0/002.p/88", 87, 599), ("1/000.p/2", 0, 200), ("1/000.p/2", 1, 420)):
        tile = folder / "tile" / name
        whole = tile.read_bytes()
        tile.write_bytes(whole[: at * 32] + bytes(32) + whole[at * 32 + 32 :])
        assert_broken(run(folder), record, "tile")
        tile.write_bytes(whole[:-1])
        assert_broken(run(folder), {"0/001": 511, "0/002.p/88": 599, "1/000.p/2": 256}[name], "hashes")
        tile.write_bytes(whole)
    assert_intact(run(folder))


def test_missing_tiles_are_computed(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    shutil.rmtree(folder / "tile")
    assert "4 tiles" in str(assert_intact(run(folder))["remarks"])
    (folder / f"{250:020d}.segment").unlink()
    assert_broken(run(folder), 200, "checkpoint")


def test_full_tile_stands_in_for_a_partial_one(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log", STARTS, 500)
    (folder / "tile/0/001.p/244").unlink()
    (folder / "tile/0/001").write_bytes(b"".join(log.leaves()[256:512]))
    assert not assert_intact(run(folder))["remarks"]


# Void numbers, superseded records, torn ends, pruning


def test_skipped_numbers(tmp_path: Path, run: Run) -> None:
    log = ordinary_log(100, (0, 60))
    log.payloads += [None, None]
    log.say("ada")
    log.start_epoch()
    folder = log.write(tmp_path / "log", (0, 102))
    assert "2 numbers were skipped" in assert_intact(run(folder))["completeness"]
    log.payloads[100] = b"\x81\xa4kind\xa1x"
    log.write_segments(folder, (0, 102))
    assert_broken(run(folder), 100, "level-0 tile")


def test_superseded_records(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    longer = log.segment(0, [payload_at(log, n) for n in range(250)] + [b"\x81\xa4kind\xa3old"] * 20) + b"torn"
    (folder / f"{0:020d}.segment").write_bytes(longer)
    assert assert_intact(run(folder))["records"] == SIZE


def test_torn_end_behind_the_checkpoint(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    segment = folder / f"{500:020d}.segment"
    whole = segment.read_bytes()
    for torn in (log.frame(600, b"\x80" * 50)[:-1], b"\0" * 4096, b"\0\0\0"):
        segment.write_bytes(whole + torn)
        assert "behind record 599" in str(assert_intact(run(folder))["remarks"])
    (folder / f"{600:020d}.segment").write_bytes(whole[:30])
    segment.write_bytes(whole)
    assert_intact(run(folder))
    segment.write_bytes(whole + b"torn in the middle of the log")
    (folder / f"{600:020d}.segment").unlink()
    (folder / f"{601:020d}.segment").write_bytes(log.segment(601, [b"\x80"]))
    assert_broken(run(folder), 600)


def pruned_log() -> Log:
    log = ordinary_log(600, (0, 200, 420))
    log.add(kind="prune", pruned=[[0, 100]])
    log.add(kind="prune", pruned=[[0, 250]])
    log.say("ada")
    return log


def test_pruned_records(tmp_path: Path, run: Run) -> None:
    log = pruned_log()
    folder = log.write(tmp_path / "log", STARTS)
    (folder / f"{0:020d}.segment").unlink()
    result = assert_intact(run(folder, "--identity", log.identity.vkey))
    assert "what was in the 250 records" in str(result["not_proved"])
    copied = folder / f"epochs/{200:020d}"
    copied.write_bytes(payload_at(log, 420))
    assert [200, f"epochs/{200:020d} is no copy of a record that is in the tree"] in run(folder)[1]["findings"]
    copied.unlink()
    assert_broken(run(folder), 0, "epoch 1 is missing")
    copied.write_bytes(payload_at(log, 200))
    (folder / f"{250:020d}.segment").unlink()
    assert_broken(run(folder), 250, "no signed prune record")


def test_prune_record_that_the_checkpoint_does_not_prove(tmp_path: Path, run: Run) -> None:
    log = pruned_log()
    folder = log.write(tmp_path / "log", STARTS, 601)
    (folder / f"{0:020d}.segment").unlink()
    assert_broken(run(folder), 100, "no signed prune record")


def test_pruned_without_tiles(tmp_path: Path, run: Run) -> None:
    log = pruned_log()
    folder = log.write(tmp_path / "log", STARTS)
    (folder / f"{0:020d}.segment").unlink()
    (folder / "tile/0/000").unlink()
    assert_broken(run(folder), 0, "neither the record nor a tile")


NO_RANGES = [None, [[0]], [[0, "1"]], {"a": 1}, [[True, 250]], [[0, 250], [300, 300]], [[0, 604]], [[-1, 250]]]


@pytest.mark.parametrize("pruned", [*NO_RANGES, [[0, 100], [99, 250]], [[100, 250], [0, 100]]])
def test_prune_record_that_is_none_names_nothing(tmp_path: Path, run: Run, pruned: Any) -> None:
    log = pruned_log()
    log.add(kind="prune", pruned=pruned)
    folder = log.write(tmp_path / "log", STARTS)
    assert "names nothing" in str(assert_intact(run(folder))["remarks"])
    (folder / f"{0:020d}.segment").unlink()
    assert_broken(run(folder), 0, "no signed prune record")


def test_prune_ranges_that_touch(tmp_path: Path, run: Run) -> None:
    log = pruned_log()
    log.add(kind="prune", pruned=[[0, 100], [100, 250]])
    folder = log.write(tmp_path / "log", STARTS)
    (folder / f"{0:020d}.segment").unlink()
    assert_intact(run(folder))


# Compressed segments


def compress(log: Log, folder: Path, first: int, following: int) -> Path:
    plain = folder / f"{first:020d}.segment"
    data = plain.read_bytes()
    middle = (first + following) // 2
    cut = data.index(log.frame(middle, payload_at(log, middle)))
    target = folder / f"{first:020d}.segment.zst"
    target.write_bytes(compressed(data, [(0, first), (cut, middle)]))
    return target


def test_compressed_segments(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    target = compress(log, folder, 250, 500)
    (folder / f"{250:020d}.segment").unlink()
    assert_intact(run(folder))
    whole = target.read_bytes()
    for at in range(8, len(whole) - 60, len(whole) // 20):
        target.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        status, result = run(folder)
        assert status == 1
        assert 250 <= result["findings"][0][0] < 500
    target.write_bytes(whole[: len(whole) // 2])
    assert 250 <= run(folder)[1]["findings"][0][0] < 500
    log.write_segments(folder, STARTS)
    assert_intact(run(folder))  # where both exist the plain one counts


def test_tables_of_a_compressed_segment(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    target = compress(log, folder, 250, 500)
    (folder / f"{250:020d}.segment").unlink()
    whole = target.read_bytes()
    for at in range(len(whole) - 57, len(whole)):
        target.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        status, result = run(folder)
        assert status == 1
        assert result["findings"][0][0] in (250, 375)  # the first records of its two frames
    target.write_bytes(whole + b"x")
    assert_broken(run(folder), 250, "seek table")


def test_frame_without_a_checksum(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    target = folder / f"{250:020d}.segment.zst"
    target.write_bytes(compressed((folder / f"{250:020d}.segment").read_bytes(), [(0, 250)], checksum=False))
    (folder / f"{250:020d}.segment").unlink()
    assert_broken(run(folder), 250, "no checksum")


def test_zstd_bomb(tmp_path: Path, log: Log, run: Run) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    (folder / f"{250:020d}.segment").unlink()
    target = folder / f"{250:020d}.segment.zst"
    target.write_bytes(compressed(bytes(257 << 20), [(0, 250)]))
    assert_broken(run(folder), 250, "too large")
    bomb = bytearray(compressed(bytes(64 << 20), [(0, 250)]))
    bomb[-13:-9] = struct.pack("<I", 1000)  # so the table says
    target.write_bytes(bomb)
    assert_broken(run(folder), 250, "another size")


# Anchors


def anchored(log: Log, size: int, cosigner: Signer) -> bytes:
    text = log.checkpoint(size).decode()
    return (text + cosigner.line(text.partition("\n\n")[0] + "\n")).encode()


def test_anchors_of_a_log(tmp_path: Path, log: Log, run: Run) -> None:
    collector = Signer.new("collector.example/c1", 4)
    folder = log.write(tmp_path / "log", STARTS)
    (folder / "anchors").mkdir()
    anchor = folder / "anchors/450.collector"
    anchor.write_bytes(anchored(log, 450, collector))
    (folder / "anchors/450.tsr").write_bytes(b"\x30\x03")
    stamped = folder / "anchors/450.checkpoint"
    stamped.write_bytes(log.checkpoint(450))
    result = assert_intact(run(folder, "--cosigner", collector.vkey))
    assert "cosigned by collector.example/c1" in str(result["remarks"])
    assert "the time in 1 anchors, 450.tsr" in str(result["not_proved"])
    assert "--cosigner" in str(assert_intact(run(folder))["not_proved"])
    stamped.write_bytes(log.checkpoint(450, signers=log.epochs[0][1]))
    assert "anything by anchors/450.checkpoint" in str(assert_intact(run(folder))["not_proved"])
    stamped.unlink()
    stranger = Signer.new("collector.example/c1", 4)
    assert "no checkpoint is cosigned" in str(run(folder, "--cosigner", stranger.vkey)[1]["not_proved"])
    anchor.write_bytes(log.checkpoint(450, root=bytes(32)))
    assert_broken(run(folder), 420, "another root")
    mixed = log.checkpoint(450).decode() + anchored(log, 449, collector).decode().splitlines(keepends=True)[-1]
    for no_anchor in (b"", b"x", anchored(log, 451, collector), mixed.encode()):
        anchor.write_bytes(no_anchor)
        assert "no checkpoint is cosigned" in str(
            assert_intact(run(folder, "--cosigner", collector.vkey))["not_proved"]
        )


def test_cosignature_of_no_time(tmp_path: Path, log: Log, run: Run) -> None:
    collector = Signer.new("collector.example/c1", 4)
    folder = log.write(tmp_path / "log", STARTS)
    (folder / "anchors").mkdir()
    for time, counts in (((1 << 63) - 1, True), (1 << 63, False)):
        text = log.checkpoint(450).decode()
        line = collector.line(text.partition("\n\n")[0] + "\n", time=time)
        (folder / "anchors/450.collector").write_text(text + line)
        result = assert_intact(run(folder, "--cosigner", collector.vkey))
        assert ("cosigned by" in str(result["remarks"])) == counts


def test_kept_checkpoint_that_no_key_of_this_log_signed(tmp_path: Path, log: Log, run: Run) -> None:
    """Where the two logs parted, nobody can tell: who kept an old key can certify new ones with it."""
    kept = tmp_path / "kept"
    kept.write_bytes(log.checkpoint(590, signers=[Signer.new(log.origin)]))
    assert_broken(run(log.write(tmp_path / "log", STARTS), "--against", str(kept)), 0, "not those of")


def test_checkpoint_of_another_log(tmp_path: Path, log: Log, run: Run) -> None:
    other, kept = Log(log_id=bytes(16)), tmp_path / "kept"
    other.start_epoch()
    kept.write_bytes(other.checkpoint())
    assert_broken(run(log.write(tmp_path / "log"), "--against", str(kept)), 0, "another log")
    kept.write_bytes(log.checkpoint().replace(b"/agentwatch/", b"/other/"))
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path / "log", "--against", str(kept))


# Bundles


def bundle(log: Log, tmp_path: Path, **changes: bytes | None) -> Path:
    files: dict[str, bytes | None] = {**log.bundle("ada")}
    files.update(changes)
    return zipped({name: data for name, data in files.items() if data is not None}, tmp_path / "ada.tlog.zip")


def entries(log: Log, seqs: list[int], **changes: Any) -> bytes:
    return b"".join(log.entry(seq, len(log.payloads), **(changes if seq == changes.get("seq") else {})) for seq in seqs)


def all_of(log: Log, session: str = "ada") -> list[int]:
    return sorted([*log.of_session(session, len(log.payloads)), *(seq for seq, _ in log.epochs)])


def test_intact_bundle(tmp_path: Path, log: Log, run: Run) -> None:
    result = assert_intact(run(bundle(log, tmp_path), "--identity", log.identity.vkey))
    assert result["completeness"].startswith("whole: session_seq 0 to")
    assert result["proved"] == SIZE
    assert set(result["kinds"]) == {"statement", "session_end"}


def test_bundle_with_the_epochs_behind_the_records(tmp_path: Path, log: Log, run: Run) -> None:
    apart = log.of_session("ada", SIZE) + [seq for seq, _ in log.epochs]
    assert_broken(run(bundle(log, tmp_path, **{"records.bin": entries(log, apart)})), 0, "behind record")


def test_bundle_of_a_session_that_still_runs(tmp_path: Path, log: Log, run: Run) -> None:
    result = assert_intact(run(zipped(log.bundle("bob", 500), tmp_path / "b.zip")))
    assert result["completeness"].startswith("whole up to record")
    assert "without session_end" in str(result["not_proved"])


def test_bundle_with_an_edited_record(tmp_path: Path, log: Log, run: Run) -> None:
    seqs = all_of(log)
    files = log.bundle("ada")
    payload = payload_at(log, 99)
    data = files["records.bin"].replace(payload, payload.replace(b"select", b"Select"))
    assert_broken(run(bundle(log, tmp_path, **{"records.bin": data})), 99, "inclusion proof")
    proof = path(99, log.leaves())
    data = entries(log, [seq for seq in seqs if seq != 99]) + log.entry(99, SIZE)
    assert_broken(run(bundle(log, tmp_path, **{"records.bin": data})), 99, "behind record")
    whole, part = log.entry(99, SIZE), log.entry(99, SIZE, proof=[*proof[:-1], bytes(32)])
    data = files["records.bin"].replace(whole, part)
    assert_broken(run(bundle(log, tmp_path, **{"records.bin": data})), 99, "inclusion proof")
    for short in (proof[:-1], [*proof, bytes(32)]):
        data = files["records.bin"].replace(whole, log.entry(99, SIZE, proof=short))
        assert_broken(run(bundle(log, tmp_path, **{"records.bin": data})), 99, "hashes")


def test_bundle_with_a_record_left_out(tmp_path: Path, log: Log, run: Run) -> None:
    mine = log.of_session("ada", SIZE)
    for at in (0, 5, len(mine) - 2):
        seqs = [seq for seq in all_of(log) if seq != mine[at]]
        outcome = run(bundle(log, tmp_path, **{"records.bin": entries(log, seqs)}))
        assert_broken(outcome, mine[at + 1], f"session_seq {at} to {at} are missing")
        assert outcome[1]["completeness"].startswith("NOT whole")
    cut = [seq for seq in all_of(log) if seq != mine[-1]]
    assert_broken(run(bundle(log, tmp_path, **{"records.bin": entries(log, cut)})), mine[-2] + 1, "manifest.json")


def test_bundle_with_records_of_another_session(tmp_path: Path, log: Log, run: Run) -> None:
    slipped = log.of_session("bob", SIZE)[3]
    data = entries(log, sorted([*all_of(log), slipped]))
    assert_broken(run(bundle(log, tmp_path, **{"records.bin": data})), slipped, "not of session ada but of bob")
    data = entries(log, sorted([*all_of(log), 7]))
    assert_broken(run(bundle(log, tmp_path, **{"records.bin": data})), 7, "not of session")
    empty = json.dumps({**json.loads(log.bundle("ada")["manifest.json"]), "records": 0}).encode()
    only_epochs = {"records.bin": entries(log, [0, 200, 420]), "manifest.json": empty}
    assert_broken(run(bundle(log, tmp_path, **only_epochs)), 0, "no record of the session")
    other = json.dumps({**json.loads(log.bundle("ada")["manifest.json"]), "session": "bob"}).encode()
    assert_broken(run(bundle(log, tmp_path, **{"manifest.json": other})), 0, "no record of the session")


def test_bundle_with_a_repeated_record(tmp_path: Path, log: Log, run: Run) -> None:
    seqs = all_of(log)
    at = seqs.index(99)
    data = entries(log, [*seqs[: at + 1], *seqs[at:]])
    assert_broken(run(bundle(log, tmp_path, **{"records.bin": data})), 99, "behind record 99")


@pytest.mark.parametrize(("gone", "named"), [(0, 0), (200, 0), (420, 200)])
def test_bundle_without_an_epoch(tmp_path: Path, log: Log, run: Run, gone: int, named: int) -> None:
    data = entries(log, [seq for seq in all_of(log) if seq != gone])
    outcome = run(bundle(log, tmp_path, **{f"epochs/{gone:020d}": None, "records.bin": data}))
    assert_broken(outcome, named)


def test_bundle_without_the_proof_of_an_epoch(tmp_path: Path, log: Log, run: Run) -> None:
    data = entries(log, [seq for seq in all_of(log) if seq != 200])
    assert_broken(run(bundle(log, tmp_path, **{"records.bin": data})), 0, "epoch 1 is missing")


def test_bundle_with_another_epoch_record(tmp_path: Path, log: Log, run: Run) -> None:
    other = rewritten(payload_at(log, 200), boot_id="1" * 32)
    for odd in (other, b"\xc1"):
        result = run(bundle(log, tmp_path, **{f"epochs/{200:020d}": odd}))[1]
        assert [200, f"it is not the record in epochs/{200:020d}, or none of an epoch"] in result["findings"]


def test_bundle_with_a_certificate_for_another_root(tmp_path: Path, log: Log, run: Run) -> None:
    """Who has the newest key makes a tree with a changed past: the inclusion proof of the epoch record shows it."""
    edited(log, 300)
    assert_broken(run(bundle(log, tmp_path)), 200, "record 420: its certificate has another root")


def test_bundle_with_another_checkpoint(tmp_path: Path, log: Log, run: Run) -> None:
    assert_broken(run(bundle(log, tmp_path, checkpoint=log.checkpoint(root=bytes(32)))), 0, "inclusion proof")
    assert_broken(run(bundle(log, tmp_path, checkpoint=log.checkpoint(signers=log.epochs[1][1]))), 420, "not signed")
    other = Signer.new(f"{log.origin}/identity")
    assert_broken(run(bundle(log, tmp_path, identity=f"{other.vkey}\n".encode())), 0, "not signed by")
    assert_broken(run(bundle(log, tmp_path), "--identity", other.vkey), 0, "identity")
    assert_broken(run(bundle(log, tmp_path, checkpoint=None)), 0, "no checkpoint")
    assert_broken(run(bundle(log, tmp_path, identity=None)), 0, "no identity")
    assert_broken(run(bundle(log, tmp_path, **{"records.bin": None})), 0, "is missing")
    assert_broken(run(bundle(log, tmp_path, **{"manifest.json": b"[" * 100_000})), 0, "recursion")


def test_bundle_against_kept_checkpoints(tmp_path: Path, log: Log, run: Run) -> None:
    target, kept = bundle(log, tmp_path), tmp_path / "kept"
    for size, word in ((SIZE, ""), (300, "no proof here for that size")):
        kept.write_bytes(log.checkpoint(size))
        assert word in str(assert_intact(run(target, "--against", str(kept)))["not_proved"])
    kept.write_bytes(log.checkpoint(SIZE, root=bytes(32)))
    assert_broken(run(target, "--against", str(kept)), 420, "another root")
    log.say("bob")
    kept.write_bytes(log.checkpoint())
    assert "no proof here for that size" in str(assert_intact(run(target, "--against", str(kept)))["not_proved"])


def test_anchors_of_a_bundle(tmp_path: Path, log: Log, run: Run) -> None:
    witness = Signer.new("witness.example/w1", 4)
    proof = b"".join(consistency(450, log.leaves()))
    names = {"anchors/450.w1": anchored(log, 450, witness), "anchors/450.w1.consistency": proof}
    anchors: dict[str, bytes | None] = {
        **names,
        "anchors/600.w1": anchored(log, SIZE, witness),
        "anchors/600.tsr": b"x",
    }
    anchors |= {"anchors/500.tsr": b"x", "anchors/500.checkpoint": log.checkpoint(500)}
    anchors |= {"anchors/500.tsr.consistency": b"".join(consistency(500, log.leaves()))}
    result = assert_intact(run(bundle(log, tmp_path, **anchors), "--cosigner", witness.vkey))
    assert "no proof here" not in str(result["not_proved"])
    assert "up to size 600" in str(result["remarks"])
    alone = {**names, "anchors/450.w1.consistency": None}
    assert "no proof here" in str(assert_intact(run(bundle(log, tmp_path, **alone)))["not_proved"])
    for bad in (proof[:-32], proof + bytes(32), bytes(32) + proof[32:], proof[:-1], b""):
        assert_broken(run(bundle(log, tmp_path, **{**names, "anchors/450.w1.consistency": bad})), 420, "another root")
    other = log.checkpoint(450, root=bytes(32))
    assert_broken(run(bundle(log, tmp_path, **{**names, "anchors/450.w1": other})), 420, "another root")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 21])
def test_proofs_of_every_place(size: int) -> None:
    leaves = [leaf(bytes([n])) for n in range(size)]
    for n in range(size):
        roots = verifier.inclusion_roots(n, size, leaves[n], path(n, leaves))
        assert roots == (mth(leaves), mth(leaves[:n]))
        for wrong in ([*path(n, leaves), bytes(32)], *([path(n, leaves)[:-1]] if size > 1 else [])):
            with pytest.raises(verifier.Malformed):
                verifier.inclusion_roots(n, size, leaves[n], wrong)
    for n in range(1, size):
        old, proof = mth(leaves[:n]), consistency(n, leaves)
        assert verifier.consistency_roots(n, size, proof, old) == (old, mth(leaves))
        assert verifier.consistency_roots(n, size, proof, bytes(32)) != (bytes(32), mth(leaves))
        for wrong in ([*proof, bytes(32)], proof[:-1]):
            with pytest.raises(verifier.Malformed):
                verifier.consistency_roots(n, size, wrong, old)


# Whatever else may come


@pytest.mark.parametrize(
    "data", [b"", b"PK\x05\x06" + bytes(18), b"\x89AWLOG\r\n", b"\0" * 1000, b"PK\x03\x04" + b"\xff" * 500]
)
def test_a_file_that_is_no_bundle(tmp_path: Path, run: Run, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    assert run(tmp_path / "x")[0] == 3


def test_things_that_are_neither(tmp_path: Path, run: Run) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert run(tmp_path / "pipe")[0] == 3
    (tmp_path / "folder").mkdir()
    assert_broken(run(tmp_path / "folder"), 0, "no checkpoint")
    (tmp_path / "loop").symlink_to("loop")
    assert run(tmp_path / "loop")[0] == 3


@pytest.mark.parametrize(
    "name", ["checkpoint", "identity", "tile", "epochs", "anchors", f"{0:020d}.segment", "tile/0/000"]
)
def test_links_out_of_the_folder_are_not_followed(tmp_path: Path, log: Log, run: Run, name: str) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    (folder / "anchors").mkdir()
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    status, result = run(folder)
    assert status == 3
    assert "symbolic link" in result["integrity"]


def test_pipes_and_folders_in_the_place_of_files(tmp_path: Path, log: Log, run: Run) -> None:
    for at, name in enumerate(("checkpoint", f"{0:020d}.segment", "tile/0/000", f"epochs/{0:020d}")):
        folder = log.write(tmp_path / str(at), STARTS)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert run(folder)[0] == 1
        (folder / name).unlink()
        (folder / name).mkdir()
        assert run(folder)[0] == 1


def test_zip_files_that_mean_harm(tmp_path: Path, log: Log, run: Run) -> None:
    for name in ("../../etc/passwd", "/etc/shadow", "epochs/../x", "a\x1b[2J", "anchors/", "account2.txt", "epochs/5"):
        outcome = run(zipped({**log.bundle("ada"), name: b""}, tmp_path / "a.zip"))
        assert_broken(outcome, 0, "is no part of a bundle")
        assert "\x1b" not in str(outcome)
    target = zipped(log.bundle("ada"), tmp_path / "b.zip")
    with zipfile.ZipFile(target, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("checkpoint", b"other")
    assert_broken(run(target), 0, "two files")
    for name in ("checkpoint", "identity", f"epochs/{0:020d}", "manifest.json", "records.bin"):
        assert run(bundle(log, tmp_path, **{name: bytes(8 << 20)}))[0] == 1
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("records.bin", b"x")
        archive.writestr("manifest.json", b"x")
    assert_broken(run(tmp_path / "c.zip"), 0, "neither stored nor deflated")


@pytest.mark.parametrize(
    "payload",
    [
        b"\x91" * 1000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x81",
        b"\xc1",
        b"\x80\x80",
        b"\xa1\xff",
        b"\x81\xa4kind\xa2\xff\xfe",
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x81\x01\x02",
        b"\xc7\x01\x05x",
        b"\x81\xa4kind\xa5epoch",
        b"\x81\xa4kind\xdd\x00\x20\x00\x00" + b"\xc0" * 0x200000,
    ],
)
def test_payloads_that_are_odd(tmp_path: Path, run: Run, payload: bytes) -> None:
    log = ordinary_log(20, (0, 10))
    log.payloads.append(payload)
    log.say("ada")
    status, result = run(log.write(tmp_path / "log"), "--list")
    assert status == (1 if b"epoch" in payload else 0)
    assert result["records"] == 22
    log.payloads[20] = rewritten(payload_at(log, 19), session="ada", session_seq=3)
    files = log.bundle("ada")
    files["records.bin"] = log.entry(0, 22) + log.entry(10, 22) + struct.pack(">QI", 20, len(payload)) + payload + b"\0"
    assert run(zipped(files, tmp_path / "x.zip"))[0] == 1


ROOT_LINE = b"A" * 43 + b"=\n"
SIGNED = "\n\u2014 o AAAAAAAA\n".encode()


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"\xff\xfe\n\n",
        b"a\n" * 200_000,
        b"\n\n\n\n",
        b"a\n1\nAAAA\n\n",
        b"o\n18446744073709551616999\n" + ROOT_LINE + SIGNED,
        b"o\n-1\n" + ROOT_LINE + SIGNED,
        b"o\n01\n" + ROOT_LINE + SIGNED,
        b"o\n\xd9\xa3\n" + ROOT_LINE + SIGNED,
        b"o\n3\n" + ROOT_LINE + b"extension\n" + SIGNED,
        b"o\n3\n" + ROOT_LINE.replace(b"=", b"") + SIGNED,
        b"o\n0\n" + ROOT_LINE + SIGNED,
        b"o\n99999999999999999999\n" + ROOT_LINE + SIGNED,
    ],
)
def test_checkpoints_that_are_none(tmp_path: Path, log: Log, run: Run, note: bytes) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    (folder / "checkpoint").write_bytes(note)
    assert run(folder)[0] == 1
    assert run(bundle(log, tmp_path, checkpoint=note))[0] == 1


def test_enormous_numbers(tmp_path: Path, log: Log, run: Run) -> None:
    """A checkpoint of 10**18 records and a segment of record 10**19 cost no more than those that are there."""
    folder = log.write(tmp_path / "log", STARTS)
    (folder / "checkpoint").write_bytes(log.checkpoint(10**18))
    far = 10**19
    (folder / f"{far:020d}.segment").write_bytes(log.segment(far, [b"\x80"]))
    assert_broken(run(folder), 420)
    (folder / "checkpoint").write_bytes(log.checkpoint())
    result = assert_intact(run(folder))
    assert result["proved"] == SIZE
    assert f"no records 600 to {far - 1}" in str(result["not_proved"])
    (folder / ("9" * 20 + ".segment")).write_bytes(b"")
    assert run(folder)[0] in (0, 1)


def flipped(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def harmed(data: bytes, chance: random.Random) -> bytes:
    """A copy with something cut out, put in, repeated or overwritten."""
    at, to = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    ways: list[Callable[[], bytes]] = [
        lambda: data[:at],
        lambda: data[:at] + data[to:],
        lambda: data[:to] + data[at:],
        lambda: data[:at] + chance.randbytes(chance.randrange(40)) + data[at:],
        lambda: data[:at] + b"\xff" * 4 + data[at + 4 :],
    ]
    return chance.choice(ways)()


def test_every_flip_in_a_segment_is_found(tmp_path: Path, run: Run) -> None:
    log, chance = ordinary_log(12, (0, 5)), random.Random(1)  # noqa: S311 -- repeatable
    folder = log.write(tmp_path / "log")
    segment = folder / f"{0:020d}.segment"
    whole = segment.read_bytes()
    for _ in range(300):
        segment.write_bytes(flipped(whole, chance))
        assert run(folder)[0] == 1


def test_harm_of_any_kind_to_any_file_of_a_log(tmp_path: Path, run: Run) -> None:
    log, chance = ordinary_log(40, (0, 20)), random.Random(2)  # noqa: S311 -- repeatable
    folder = log.write(tmp_path / "log", (0, 30))
    compress(log, folder, 0, 30)
    (folder / f"{0:020d}.segment").unlink()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    harmless = 0
    for _ in range(400):
        path = chance.choice(files)
        whole = path.read_bytes()
        path.write_bytes(chance.choice([flipped, harmed])(whole, chance))
        harmless += run(folder)[0] == 0
        path.write_bytes(whole)
    assert harmless < 200  # copies of epochs, the tables of the compressed segment
    assert_intact(run(folder))


def test_harm_of_any_kind_to_any_file_of_a_bundle(tmp_path: Path, run: Run) -> None:
    log, chance = ordinary_log(40, (0, 20)), random.Random(3)  # noqa: S311 -- repeatable
    files = log.bundle("ada")
    del files["account.txt"], files["manifest.json"]
    manifest = log.bundle("ada")["manifest.json"]
    for _ in range(400):
        name = chance.choice(sorted(files))
        harm = chance.choice([flipped, harmed])(files[name], chance)
        if harm != files[name]:
            outcome = run(zipped({**files, name: harm, "manifest.json": manifest}, tmp_path / "x.zip"))
            assert outcome[0] == 1, (name, outcome)


def test_harm_of_any_kind_to_the_zip_file(tmp_path: Path, run: Run) -> None:
    log, chance = ordinary_log(40, (0, 20)), random.Random(4)  # noqa: S311 -- repeatable
    target = zipped(log.bundle("ada"), tmp_path / "a.zip")
    whole = target.read_bytes()
    for _ in range(400):
        target.write_bytes(chance.choice([flipped, harmed])(whole, chance))
        assert run(target)[0] in (0, 1, 3)


def test_crc_of_our_own() -> None:
    for data in (b"", b"123456789", bytes(range(256)) * 3):
        assert verifier.crc32c_plain(data) == crc32c(data)
    assert verifier.crc32c_plain(b"123456789") == 0xE3069283


# The command


def test_one_file_elsewhere(tmp_path: Path, log: Log) -> None:
    """The file alone, in a process that cannot import agentwatch, says it for people."""
    program = tmp_path / "verify.py"
    shutil.copy(verifier.__file__ or "", program)
    folder = log.write(tmp_path / "log", STARTS)
    command = [sys.executable, "-I", str(program)]
    done = subprocess.run([*command, "--list", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "integrity:    intact: 600 records, proved up to checkpoint of size 600\n" in done.stdout
    assert "2025-10-09T08:53:20+00:00 to 2025-10-09T09:03:19+00:00\n" in done.stdout
    assert '\n{"seq": 99, "record": {"time": 1760000099000000000, "kind": "statement", "session": "ada"' in done.stdout
    (folder / f"{250:020d}.segment").unlink()
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "BROKEN at record 250: " in done.stdout
    for wrong in ([], [str(folder / "no such")], ["--identity", "x", str(folder)], ["--against", "/", str(folder)]):
        done = subprocess.run([*command, *wrong], capture_output=True, text=True, check=False)
        assert done.returncode == 2, wrong
        assert "Traceback" not in done.stderr


def test_output_that_nobody_reads(tmp_path: Path, log: Log) -> None:
    folder = log.write(tmp_path / "log", STARTS)
    with subprocess.Popen(
        [sys.executable, "-I", verifier.__file__, "--list", str(folder)], stdout=-1, stderr=-1
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.wait() == 3
        assert b"Traceback" not in process.stderr.read()


def test_it_imports_nothing_but_the_standard_library_and_cryptography() -> None:
    optional = {"crc32c", "zstandard", "compression"}
    for node in ast.walk(ast.parse(Path(verifier.__file__ or "").read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            top = name.partition(".")[0]
            assert top in sys.stdlib_module_names or top in optional | {"cryptography"}
