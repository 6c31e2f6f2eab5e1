"""The thread that has checkpoints stamped: what it stores, and that nothing stops or breaks it."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from agentwatch.anchors import timestamp
from agentwatch.anchors.stamper import Stamper
from agentwatch.log import folder
from tests.unit.anchors.fix_authority import Authority, Handler, Server, honest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HANGS_S = 3600.0
"""Longer than a test may take: what waits for it fails."""


class Log:
    """A log's folder with a checkpoint, and a stamper for it."""

    def __init__(self, log_dir: Path, make_checkpoint: Callable[[int], bytes]) -> None:
        self.path = log_dir
        self._make = make_checkpoint
        log_dir.mkdir()

    def checkpoint(self, size: int) -> bytes:
        data = self._make(size)
        folder.replace_file(self.path / "checkpoint", data, mode=0o600, gid=os.getegid())
        return data

    def stamper(self, url: str, authority: Authority | None, **options: Any) -> closing[Stamper]:
        roots = None if authority is None else authority.roots
        given = {"mode": 0o600, "gid": os.getegid(), "retry_s": 0.01, **options}
        return closing(Stamper(self.path, url, roots, **given))

    @property
    def stored(self) -> set[str]:
        anchors = self.path / "anchors"
        return {path.name for path in anchors.iterdir()} if anchors.exists() else set()


@pytest.fixture
def log(tmp_path: Path, make_checkpoint: Callable[[int], bytes]) -> Log:
    return Log(tmp_path / "log", make_checkpoint)


def until(condition: Callable[[], object]) -> None:
    """Wait for what must come; pytest's timeout is the limit."""
    while not condition():
        threading.Event().wait(0.01)


@pytest.fixture
def server(authority: Authority) -> Iterator[Server]:
    with Server(honest(authority)) as running:
        yield running


def test_first_checkpoint_after_the_start_is_stamped_and_stored(log: Log, authority: Authority, server: Server) -> None:
    log.checkpoint(5)  # of an earlier run
    with log.stamper(server.url, authority) as stamper:
        data = log.checkpoint(1834)
        until(lambda: stamper.last)
        log.checkpoint(1900)
    assert log.stored == {"1834.tsr", "1834.checkpoint"}
    anchors = log.path / "anchors"
    assert (anchors / "1834.checkpoint").read_bytes() == data
    moment = timestamp.verify((anchors / "1834.tsr").read_bytes(), data, authority.roots)
    assert stamper.last == (1834, moment, True)
    assert stamper.problem is None


def test_openssl_accepts_what_is_stored(log: Log, authority: Authority, server: Server) -> None:
    with log.stamper(server.url, authority) as stamper:
        log.checkpoint(1834)
        until(lambda: stamper.last)
    command = ["openssl", "ts", "-verify", "-in", "1834.tsr", "-data", "1834.checkpoint"]
    roots: list[str | Path] = ["-CAfile", authority.root_file]
    done = subprocess.run([*command, *roots], cwd=log.path / "anchors", capture_output=True, check=True, text=True)
    assert "Verification: OK" in done.stdout


def test_every_period_the_newest_checkpoint_is_stamped(log: Log, authority: Authority, server: Server) -> None:
    with log.stamper(server.url, authority, period_s=0.02):
        for size in (10, 20, 30):
            log.checkpoint(size)
            path = log.path / "anchors" / f"{size}.tsr"
            until(path.exists)
    assert log.stored == {f"{size}.{kind}" for size in (10, 20, 30) for kind in ("tsr", "checkpoint")}


def test_earlier_timestamp_of_the_same_tree_is_kept(log: Log, authority: Authority, server: Server) -> None:
    with log.stamper(server.url, authority, period_s=0.02) as stamper:
        log.checkpoint(10)
        until(lambda: stamper.last)
        first = (log.path / "anchors" / "10.tsr").read_bytes()
        again = log.checkpoint(10)
        until(lambda: stamper._seen == again)
    with log.stamper(server.url, authority) as stamper:
        again = log.checkpoint(10)
        until(lambda: stamper._seen == again)
    assert (log.path / "anchors" / "10.tsr").read_bytes() == first


@pytest.mark.parametrize(("mode", "folder_mode"), [(0o600, 0o700), (0o640, 0o750)])
def test_files_have_the_modes_of_the_log_whatever_the_umask(
    log: Log, authority: Authority, server: Server, mode: int, folder_mode: int
) -> None:
    before = os.umask(0)
    try:
        with log.stamper(server.url, authority, mode=mode) as stamper:
            log.checkpoint(1)
            until(lambda: stamper.last)
    finally:
        os.umask(before)
    anchors = log.path / "anchors"
    assert stat.S_IMODE(anchors.stat().st_mode) == folder_mode
    for path in anchors.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert path.stat().st_gid == os.getegid()


def test_failures_are_told_once_retried_and_over_when_a_timestamp_comes(
    log: Log, authority: Authority, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agentwatch.anchors.stamper")
    server.behaviour = lambda handler, _: handler.answer(b"", 503)
    with log.stamper(server.url, authority) as stamper:
        log.checkpoint(10)
        for _ in range(4):
            server.asked.acquire()
        assert stamper.problem is not None
        assert "503" in stamper.problem
        assert server.url in stamper.problem
        assert log.stored == set()
        log.checkpoint(20)
        server.behaviour = honest(authority)
        until(lambda: stamper.last and stamper.problem is None)
    assert log.stored == {"20.tsr", "20.checkpoint"}
    levels = [record.levelname for record in caplog.records if record.name == "agentwatch.anchors.stamper"]
    assert levels == ["WARNING", "INFO"]


def test_retries_become_rarer(log: Log, authority: Authority, server: Server) -> None:
    with log.stamper(server.url, authority, retry_s=7.0, period_s=50.0) as stamper:
        delays = [stamper._failed(OSError("for once")) for _ in range(6)]
        assert delays == [7.0, 14.0, 28.0, 50.0, 50.0, 50.0]
        stamper._failures = 10**9
        assert stamper._failed(OSError("for ever")) == 50.0


def test_answer_that_the_roots_do_not_verify_is_not_stored(log: Log, server: Server, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    with log.stamper(server.url, other) as stamper:
        log.checkpoint(10)
        until(lambda: stamper.problem)
        assert "not signed by an authority of these roots" in str(stamper.problem)
    assert log.stored == set()
    assert stamper.last is None


def test_without_roots_an_answer_to_our_question_is_stored_as_not_verified(
    log: Log, authority: Authority, server: Server
) -> None:
    with log.stamper(server.url, None) as stamper:
        data = log.checkpoint(10)
        until(lambda: stamper.last)
    assert stamper.last is not None
    assert not stamper.last.verified
    assert timestamp.verify((log.path / "anchors" / "10.tsr").read_bytes(), data, authority.roots)


def test_close_returns_though_the_authority_hangs_and_nothing_comes_afterwards(log: Log, authority: Authority) -> None:
    answered = threading.Event()

    def behaviour(handler: Handler, body: bytes) -> None:
        handler.released.wait()
        handler.answer(authority.reply(body))
        answered.set()

    with Server(behaviour) as server:
        with log.stamper(server.url, authority, timeout_s=HANGS_S) as stamper:
            log.checkpoint(10)
            server.asked.acquire()
        assert not server.released.is_set()
        server.released.set()
        answered.wait()
        stamper._thread.join()
    assert log.stored == set()
    assert stamper.last is None


def test_close_returns_though_the_next_timestamp_is_an_hour_away(
    log: Log, authority: Authority, server: Server
) -> None:
    with log.stamper(server.url, authority) as stamper:
        log.checkpoint(10)
        until(lambda: stamper.last)
    stamper._thread.join()


def test_checkpoint_that_is_none_and_a_folder_that_cannot_be_made_are_problems(
    log: Log, authority: Authority, server: Server
) -> None:
    (log.path / "anchors").write_text("in the way")
    with log.stamper(server.url, authority) as stamper:
        (log.path / "checkpoint").write_bytes(b"nonsense")
        until(lambda: stamper.problem)
        assert "no signatures" in str(stamper.problem)
        log.checkpoint(10)
        until(lambda: "exists" in str(stamper.problem) or "directory" in str(stamper.problem))
        (log.path / "anchors").unlink()
        until(lambda: stamper.last)
    assert stamper.problem is None
    assert log.stored == {"10.tsr", "10.checkpoint"}
