from __future__ import annotations

import os
import stat
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import RFC_4122, UUID

import pytest

from agentwatch.errors import StoreError
from agentwatch.identity import sessions

if TYPE_CHECKING:
    from pathlib import Path


def registration(cgroup_id: int = 42, **changes: object) -> sessions.Registration:
    base = sessions.Registration(
        session=sessions.new_session_id(),
        agent="backfill",
        cgroup="agents.slice/agent-backfill-1",
        cgroup_id=cgroup_id,
        user="agent",
        uid=1000,
        login_uid=None,
        argv=["psql", "", os.fsdecode(b"\xff"), "ä"],
        origin="run",
        boottime=7,
    )
    return replace(base, **changes)  # type: ignore[arg-type] # the tests give the right types


def test_what_was_written_is_loaded(tmp_path: Path) -> None:
    written = registration()
    sessions.write(tmp_path, written)
    assert sessions.load(tmp_path, 42) == written
    assert sessions.load(tmp_path, 43) is None


def test_file_is_for_root_alone_and_nothing_else_is_left(tmp_path: Path) -> None:
    sessions.write(tmp_path, registration())
    sessions.write(tmp_path, registration())
    (path,) = (tmp_path / "sessions").iterdir()
    assert path.name == "42.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_claim_keeps_the_registration_that_was_first(tmp_path: Path) -> None:
    first, second = registration(), registration()
    assert sessions.claim(tmp_path, first) == first
    assert sessions.claim(tmp_path, second) == first
    assert sessions.load(tmp_path, 42) == first


def test_claims_at_the_same_time_agree(tmp_path: Path) -> None:
    results: list[str] = []
    barrier = threading.Barrier(8)

    def claim() -> None:
        barrier.wait()
        results.append(sessions.claim(tmp_path, registration()).session)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(set(results)) == 1


def test_registration_of_another_boot_is_none_and_is_replaced(tmp_path: Path) -> None:
    sessions.write(tmp_path, registration(boot_id="another"))
    assert sessions.load(tmp_path, 42) is None
    assert sessions.load_all(tmp_path) == []
    new = registration()
    assert sessions.claim(tmp_path, new) == new


def test_exit_status_is_added(tmp_path: Path) -> None:
    written = registration()
    sessions.write(tmp_path, written)
    sessions.set_status(tmp_path, 42, 143)
    assert sessions.load(tmp_path, 42) == replace(written, status=143)


def test_exit_status_of_a_session_that_was_removed_makes_no_file(tmp_path: Path) -> None:
    sessions.write(tmp_path, registration())
    sessions.remove(tmp_path, 42)
    sessions.set_status(tmp_path, 42, 0)
    assert sessions.load_all(tmp_path) == []


def test_all_are_loaded_the_oldest_first_without_damaged_ones(tmp_path: Path) -> None:
    assert sessions.load_all(tmp_path) == []
    later, earlier = registration(1, boottime=9), registration(2, boottime=3)
    sessions.write(tmp_path, later)
    sessions.write(tmp_path, earlier)
    (tmp_path / "sessions" / "3.json").write_text("{")
    (tmp_path / "sessions" / "other").write_text("{}")
    assert sessions.load_all(tmp_path) == [earlier, later]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"session": 1}', b"\xff", b"[" * 100_000], ids=lambda c: str(c[:10])
)
def test_damaged_file_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions" / "42.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"42\.json is damaged"):
        sessions.load(tmp_path, 42)


def test_file_of_another_cgroup_is_damaged(tmp_path: Path) -> None:
    sessions.write(tmp_path, registration())
    (tmp_path / "sessions" / "42.json").rename(tmp_path / "sessions" / "43.json")
    with pytest.raises(StoreError):
        sessions.load(tmp_path, 43)


def test_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "sessions").write_text("a file")
    with pytest.raises(StoreError, match="cannot write"):
        sessions.write(tmp_path, registration())


def test_session_ids_are_version_7_of_now_and_grow() -> None:
    before = time.time_ns() // 1_000_000
    made = [sessions.new_session_id() for _ in range(10_000)]
    after = time.time_ns() // 1_000_000
    assert made == sorted(set(made))
    for text in (made[0], made[-1]):
        value = UUID(text)
        assert value.version == 7
        assert value.variant == RFC_4122
        assert before <= value.int >> 80 <= after + 5


def test_session_ids_grow_when_the_clock_goes_back() -> None:
    ids = sessions._SessionIds()
    made = [ids.next(milliseconds) for milliseconds in (1000, 1000, 500, 999, 1001)]
    assert made == sorted(made)
