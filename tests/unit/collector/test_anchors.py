from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agentwatch.collector.anchors import KEEP_NEWEST, PRUNE_EVERY, Anchors

if TYPE_CHECKING:
    from pathlib import Path

DAY_S = 86_400


def test_newest_and_the_last_of_each_day_are_kept(tmp_path: Path) -> None:
    anchors = Anchors(tmp_path)
    for size in range(1, 1001):
        path = anchors.store(size, "collector", "cosigned\n")
        os.utime(path, (0, size // 100 * DAY_S))
    anchors.store(1001, "collector", "cosigned\n")
    (tmp_path / "anchors" / "7.tsr").write_bytes(b"")
    # A new pusher looks at once.
    Anchors(tmp_path).store(1002, "collector", "cosigned\n")
    kept = {int(path.name.split(".")[0]) for path in (tmp_path / "anchors").glob("*.collector")}
    assert kept >= {size * 100 + 99 for size in range(10)}
    assert kept >= set(range(1003 - KEEP_NEWEST, 1003))
    assert len(kept) < KEEP_NEWEST + PRUNE_EVERY
    assert (tmp_path / "anchors" / "7.tsr").exists()


def test_name_of_a_cosigner_stays_in_the_folder(tmp_path: Path) -> None:
    path = Anchors(tmp_path).store(5, "../../x/y", "cosigned\n")
    assert path.parent == tmp_path / "anchors"
    assert path.exists()
