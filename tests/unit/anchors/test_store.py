"""Listing the anchors of a log, as it was written and as someone may have left it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from agentwatch.anchors import store, timestamp
from agentwatch.anchors.store import Anchor, Unfit
from agentwatch.errors import LogError
from agentwatch.log import note
from agentwatch.log.note import Cosigner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.anchors.fix_authority import Authority

    MakeCheckpoint = Callable[[int], bytes]


@pytest.fixture
def anchors(tmp_path: Path) -> Path:
    path = tmp_path / "anchors"
    path.mkdir()
    return path


def cosigned(checkpoint: bytes) -> bytes:
    return str(note.parse(checkpoint).signed_by(Cosigner("collector-1", bytes(32)), 1_700_000_000)).encode()


def problems(log_dir: Path) -> list[str]:
    found = list(store.read_anchors(log_dir))
    assert all(isinstance(item, Unfit) for item in found)
    return [item.problem for item in found if isinstance(item, Unfit)]


def test_log_without_anchors_has_none(tmp_path: Path) -> None:
    assert list(store.read_anchors(tmp_path)) == []
    (tmp_path / "anchors").write_text("")
    with pytest.raises(LogError):
        list(store.read_anchors(tmp_path))


def test_anchors_come_newest_first_and_other_names_are_passed_over(
    anchors: Path, make_checkpoint: MakeCheckpoint, authority: Authority
) -> None:
    notes = {size: make_checkpoint(size) for size in (9, 10, 1834)}
    for size, data in notes.items():
        (anchors / f"{size}.collector-1").write_bytes(cosigned(data))
    response = authority.stamp(notes[10])
    (anchors / "10.checkpoint").write_bytes(notes[10])
    (anchors / "10.tsr").write_bytes(response)
    for name in (
        ".10.tsr.new",
        "10.w.consistency",
        "010.tsr",
        "10",
        "10.",
        "x.tsr",
        "10.tsr.consistency",
        "11.checkpoint",
        "10..tsr",
    ):
        (anchors / name).write_bytes(b"")
    moment = timestamp.verify(response, notes[10], authority.roots)
    assert list(store.read_anchors(anchors.parent)) == [
        Anchor("1834.collector-1", 1834, "collector-1", cosigned(notes[1834]), None, None),
        Anchor("10.tsr", 10, "tsr", notes[10], response, moment),
        Anchor("10.collector-1", 10, "collector-1", cosigned(notes[10]), None, None),
        Anchor("9.collector-1", 9, "collector-1", cosigned(notes[9]), None, None),
    ]


def test_of_too_many_the_newest_are_read_and_the_rest_is_counted(
    anchors: Path, make_checkpoint: MakeCheckpoint
) -> None:
    for size in range(1, 8):
        (anchors / f"{size}.w").write_bytes(make_checkpoint(size))
    *read, last = store.read_anchors(anchors.parent, limit=3)
    assert [item.name for item in read] == ["7.w", "6.w", "5.w"]
    assert isinstance(last, Unfit)
    assert "holds 7 anchors; only the newest 3" in last.problem


def test_file_that_is_none_is_told_with_the_reason(
    anchors: Path, make_checkpoint: MakeCheckpoint, authority: Authority
) -> None:
    checkpoint = make_checkpoint(10)
    whole = {"10.tsr": authority.stamp(checkpoint), "10.checkpoint": checkpoint, "10.w": checkpoint}
    long = bytes(1 << 20)
    for name, data, reason in (
        ("10.w", b"", "no signatures"),
        ("10.w", make_checkpoint(11), "of 11 records, its name says 10"),
        ("10.w", long, "longer than any"),
        ("10.tsr", b"", "not a TimeStampResp"),
        ("10.tsr", long, "no timestamp has"),
        ("10.checkpoint", make_checkpoint(10), "something else"),
        ("10.checkpoint", None, "No such file"),
    ):
        for other, content in whole.items():
            (anchors / other).write_bytes(content)
        assert not any(isinstance(item, Unfit) for item in store.read_anchors(anchors.parent))
        if data is None:
            (anchors / name).unlink()
        else:
            (anchors / name).write_bytes(data)
        (problem,) = [item.problem for item in store.read_anchors(anchors.parent) if isinstance(item, Unfit)]
        assert reason in problem


def test_links_pipes_and_folders_are_not_read(anchors: Path, tmp_path: Path, checkpoint: bytes) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(checkpoint)
    (anchors / "1834.a").symlink_to(elsewhere)
    os.mkfifo(anchors / "1834.b")
    (anchors / "1834.c").mkdir()
    assert len(problems(tmp_path)) == 3
