"""Reads and holds, from the peer's process to the record in the log."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentwatch.requests import client, wire
from agentwatch.requests.client import report_read, request_hold
from agentwatch.requests.holds import read_holds
from tests.unit.requests.fix_host import (
    GROUP,
    MEMBER,
    OTHER_SESSION,
    SESSION,
    STRANGER,
    Child,
    Host,
    connected,
    needs_root,
    read_message,
    say,
)

if TYPE_CHECKING:
    from agentwatch.config import Config

WHO = {"uid", "user", "login_uid", "pid", "exe"}


def hold_message(config: Config, session: str = SESSION, *, held: bool = True) -> bytes:
    return wire.hold_request(wire.log_identity(config.log_dir), session, "case 17", held=held)


def test_a_read_is_a_record_with_what_the_kernel_says_of_the_reader(host: Host) -> None:
    child = Child(lambda: report_read(host.config, "sessions", ["sessions", "--table", "orders"]))
    host.until(lambda: child.ended)
    assert child.result() is None
    login_uid = int(Path("/proc/self/loginuid").read_text())
    (record,) = host.records()
    assert record == {
        "kind": "read",
        "time": 1,
        "command": "sessions",
        "question": ["sessions", "--table", "orders"],
        "truncated": False,
        "uid": os.geteuid(),
        "user": "root" if os.geteuid() == 0 else record["user"],
        "login_uid": None if login_uid == 0xFFFF_FFFF else login_uid,
        "pid": child.pid,
        "exe": str(Path("/proc/self/exe").readlink()),
    }


@needs_root
def test_a_member_of_the_reader_group_is_recorded_as_itself(host: Host) -> None:
    assert host.serve(lambda: report_read(host.config, "show", ["show", "x"]), MEMBER) is None
    (record,) = host.records()
    assert (record["uid"], record["user"], record["exe"]) == (MEMBER, None, str(Path("/proc/self/exe").readlink()))


@needs_root
def test_who_is_not_in_the_reader_group_is_kept_out_by_the_kernel(host: Host) -> None:
    def ask() -> str:
        with pytest.raises(PermissionError):
            connected(host.config)
        return "refused"

    assert host.serve(ask, STRANGER, reader=False) == "refused"
    reason = host.serve(lambda: report_read(host.config, "show", []), STRANGER, reader=False)
    assert "may not speak to the recorder" in reason
    assert host.records() == []


@needs_root
def test_readers_pass_through_run_dir_and_see_nothing_else(host: Host) -> None:
    run_dir = host.config.run_dir
    private = run_dir / "recorder.state"
    private.touch(0o600)
    assert (stat.S_IMODE(run_dir.stat().st_mode), run_dir.stat().st_gid) == (0o710, GROUP.gr_gid)
    found = (run_dir / wire.SOCKET_NAME).stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o660, 0, GROUP.gr_gid)

    def look() -> str:
        for forbidden in (lambda: list(run_dir.iterdir()), private.read_bytes, (run_dir / "new").touch):
            with pytest.raises(PermissionError):
                forbidden()
        with pytest.raises(PermissionError):
            (run_dir / wire.SOCKET_NAME).unlink()
        return "nothing"

    assert host.serve(look, MEMBER) == "nothing"


@needs_root
def test_without_a_reader_group_all_is_roots(alone: Config) -> None:
    old = os.umask(0)
    try:
        host = Host(alone)
    finally:
        os.umask(old)
    assert stat.S_IMODE(alone.run_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((alone.run_dir / wire.SOCKET_NAME).stat().st_mode) == 0o600
    assert "may not speak" in host.serve(lambda: report_read(alone, "show", []), MEMBER)
    host.close()


@needs_root
def test_run_dir_that_others_use_too_is_not_closed_to_them(alone: Config) -> None:
    alone.run_dir.mkdir(mode=0o755)
    host = Host(replace(alone, reader_group=GROUP.gr_name))
    assert stat.S_IMODE(alone.run_dir.stat().st_mode) == 0o755
    assert host.serve(lambda: report_read(host.config, "show", []), MEMBER) is None
    host.close()


def test_nobody_is_told_of_a_record_that_is_not_on_disk(host: Host) -> None:
    connection = connected(host.config)
    connection.settimeout(0)
    connection.send(read_message(host.config))
    host.desk.take(None)
    host.desk.answer(host.writer.durable_seq)
    with pytest.raises(BlockingIOError):
        connection.recv(100)
    host.writer.commit()
    host.desk.answer(host.writer.durable_seq)
    assert wire.parse_answer(connection.recv(100)) == wire.Answer(0)
    connection.close()


def test_while_the_log_takes_nothing_reads_are_refused_with_the_reason(host: Host) -> None:
    host.fault = "the disk is full"
    assert host.serve(lambda: report_read(host.config, "show", [])) == "the disk is full"
    host.fault = None
    assert host.serve(lambda: report_read(host.config, "show", [])) is None
    assert len(host.records()) == 1


def test_the_end_of_the_recorder_is_no_answer(host: Host) -> None:
    child = Child(lambda: report_read(host.config, "show", []))
    while host.writer.next_seq == 0:
        host.desk.take(None)
    host.desk.close()
    assert child.result() == "the recorder ended the connection without an answer"


def test_a_copy_of_a_log_is_read_without_a_word(host: Host, place: Path) -> None:
    copy = replace(host.config, log_dir=place / "copy", run_dir=place / "none")
    shutil.copytree(host.config.log_dir, copy.log_dir)
    assert report_read(copy, "sessions", []) is None
    here = replace(copy, run_dir=host.config.run_dir)
    assert host.serve(lambda: report_read(here, "sessions", [])) is None
    assert host.records() == []


def test_without_a_recorder_the_reason_says_so(alone: Config) -> None:
    alone.log_dir.mkdir()
    alone.run_dir.mkdir()
    assert report_read(alone, "sessions", []) == "no recorder runs; start it (agentwatch record)"


def test_a_recorder_that_was_killed_is_no_recorder_and_the_next_one_serves(alone: Config) -> None:
    killed = Child(lambda: Host(alone) and None)
    killed.result()
    assert (alone.run_dir / wire.SOCKET_NAME).is_socket()
    assert report_read(alone, "sessions", []) == "no recorder runs; start it (agentwatch record)"
    host = Host(alone)
    assert host.serve(lambda: report_read(alone, "sessions", [])) is None
    host.close()
    assert not (alone.run_dir / wire.SOCKET_NAME).exists()


def test_a_recorder_that_hangs_does_not_keep_a_reader_waiting(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "READ_SECONDS", 0.1)
    assert report_read(host.config, "sessions", []) == "the recorder did not confirm it within 0.1 s"
    host.step()  # it comes round: that there was a read is recorded all the same
    assert [record["kind"] for record in host.records()] == ["read"]


def test_a_socket_deep_in_folders_is_reached(alone: Config, place: Path) -> None:
    deep = place / ("d" * 100) / "run"
    host = Host(replace(alone, run_dir=deep))
    assert host.serve(lambda: report_read(host.config, "sessions", [])) is None
    host.close()


@needs_root
def test_a_hold_is_a_record_and_a_line_and_ends_again(host: Host) -> None:
    assert host.serve(lambda: request_hold(host.config, SESSION, "case 17", held=True)) == 0
    assert read_holds(host.config.log_dir) == {SESSION}
    path = host.config.log_dir / "holds"
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o640, GROUP.gr_gid)
    assert host.serve(lambda: request_hold(host.config, OTHER_SESSION, "case 18", held=True)) == 1
    assert host.serve(lambda: request_hold(host.config, SESSION, "settled", held=False)) == 2
    assert read_holds(host.config.log_dir) == {OTHER_SESSION}
    told = [(record["held_session"], record["held"], record["reason"], record["uid"]) for record in host.records()]
    assert told == [(SESSION, True, "case 17", 0), (OTHER_SESSION, True, "case 18", 0), (SESSION, False, "settled", 0)]
    assert set(host.records()[0]) >= WHO


@needs_root
@pytest.mark.parametrize("held", [True, False])
def test_a_reader_cannot_have_a_session_held_or_released(host: Host, *, held: bool) -> None:
    host.serve(lambda: request_hold(host.config, OTHER_SESSION, "case 18", held=True))
    session = SESSION if held else OTHER_SESSION
    answer = host.serve(lambda: say(host.config, hold_message(host.config, session, held=held)), MEMBER)
    assert answer["error"] == f"only root may ask for a hold, not user {MEMBER}"
    assert read_holds(host.config.log_dir) == {OTHER_SESSION}
    assert len(host.records()) == 1


@needs_root
def test_a_session_is_held_before_it_is_recorded_and_released_after(host: Host) -> None:
    with connected(host.config) as hold, connected(host.config) as release:
        hold.send(hold_message(host.config))
        host.desk.take(None)
        assert read_holds(host.config.log_dir) == {SESSION}
        assert host.writer.durable_seq == 0
        host.step()
        release.send(hold_message(host.config, held=False))
        host.desk.take(None)
        assert read_holds(host.config.log_dir) == {SESSION}
        host.writer.commit()
        host.desk.answer(host.writer.durable_seq)
        assert read_holds(host.config.log_dir) == frozenset()


@needs_root
@pytest.mark.parametrize("order", [(True, False), (False, True), (True, False, True), (False, True, False)])
def test_the_last_of_several_at_once_counts(host: Host, order: tuple[bool, ...]) -> None:
    peers = [connected(host.config) for _ in order]
    for peer, held in zip(peers, order, strict=True):
        peer.send(hold_message(host.config, held=held))
        host.desk.take(None)
    host.step()
    assert [record["held"] for record in host.records()] == list(order)
    assert read_holds(host.config.log_dir) == ({SESSION} if order[-1] else frozenset())
    for peer in peers:
        peer.close()


@needs_root
def test_a_file_of_holds_that_is_not_understood_refuses_holds_and_nothing_else(host: Host) -> None:
    (host.config.log_dir / "holds").write_text("all of them\n")
    answer = host.serve(lambda: say(host.config, hold_message(host.config)))
    assert "is no session id; correct it" in answer["error"]
    assert host.serve(lambda: report_read(host.config, "sessions", [])) is None
    assert [record["kind"] for record in host.records()] == ["read"]
    assert (host.config.log_dir / "holds").read_text() == "all of them\n"
