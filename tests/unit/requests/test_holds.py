from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from agentwatch.errors import LogError, StoreError
from agentwatch.requests import holds
from tests.unit.requests.fix_host import OTHER_SESSION, SESSION

if TYPE_CHECKING:
    from pathlib import Path


def test_holds_are_one_id_a_line_and_come_back(tmp_path: Path) -> None:
    assert holds.read_holds(tmp_path) == frozenset()
    held = {SESSION, OTHER_SESSION}
    holds.write_holds(tmp_path, held)
    assert (tmp_path / "holds").read_text() == f"{SESSION}\n{OTHER_SESSION}\n"
    assert stat.S_IMODE((tmp_path / "holds").stat().st_mode) == 0o600
    assert holds.read_holds(tmp_path) == held
    holds.write_holds(tmp_path, set())
    assert holds.read_holds(tmp_path) == frozenset()


@pytest.mark.parametrize("content", [b"# mine\n", SESSION[:-1].encode(), f"{SESSION} \n".encode(), b"\xff\n", b"\n"])
def test_a_file_that_is_not_understood_is_no_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "holds").write_bytes(f"{OTHER_SESSION}\n".encode() + content)
    with pytest.raises(LogError, match=r"line 2 of .* is no session id"):
        holds.read_holds(tmp_path)


def test_too_many_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "MAX_HOLDS", 1)
    holds.write_holds(tmp_path, {SESSION})
    with pytest.raises(LogError, match="more than 1 sessions"):
        holds.write_holds(tmp_path, {SESSION, OTHER_SESSION})
    assert holds.read_holds(tmp_path) == {SESSION}


def test_a_log_that_is_not_there_is_an_error_of_the_tree(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        holds.write_holds(tmp_path / "none", {SESSION})
