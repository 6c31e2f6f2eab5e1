from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from agentwatch.log.checkpoint import Checkpoint, make_origin
from agentwatch.log.note import Ed25519Signer, Note
from tests.unit.anchors.fix_authority import Authority

if TYPE_CHECKING:
    from collections.abc import Callable

ORIGIN = make_origin("db-1", bytes(range(16)))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "tsa")


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[[int], bytes]:
    """Return a signed checkpoint of a tree of so many records; another root each time."""
    signer = Ed25519Signer(ORIGIN, os.urandom(32))

    def make(size: int) -> bytes:
        text = Checkpoint(ORIGIN, size, os.urandom(32)).text
        return str(Note(text, ()).signed_by(signer, 0)).encode()

    return make


@pytest.fixture
def checkpoint(make_checkpoint: Callable[[int], bytes]) -> bytes:
    return make_checkpoint(1834)
