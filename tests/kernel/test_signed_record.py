"""The signed log as the real recorder writes it: kept whole over kills, read on the record, proved elsewhere."""

from __future__ import annotations

import dataclasses
import errno
import grp
import hashlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard

from agentwatch import standalone
from agentwatch.log.reader import LogReader
from agentwatch.log.signed import Options, SignedLog
from agentwatch.records.encoding import decode
from tests.kernel.compare import differences
from tests.kernel.extent import FULL
from tests.kernel.fix_postgres import free_port
from tests.kernel.fix_watch import Watch
from tests.unit.collector.fix_collector import Authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agentwatch.records.encoding import Record
    from tests.kernel.fix_postgres import PostgresServer
    from tests.kernel.fix_watch import Row

pytestmark = pytest.mark.kernel

KILLS = int(os.environ.get("AGENTWATCH_TEST_KILLS", "20" if FULL else "3"))
BETWEEN_SECONDS = 0.5
PATIENCE_SECONDS = 120
SECRET = "hunter2-Staple-9317"  # noqa: S105 -- what must not be in the log
MARK = "a word beside the secret"


@dataclasses.dataclass(frozen=True, slots=True)
class Audited:
    """An instance with a reader group."""

    watch: Watch
    gid: int


@pytest.fixture(scope="module")
def readers() -> Iterator[grp.struct_group]:
    """A group, made for this run."""
    name = f"awread-{uuid.uuid4().hex[:8]}"
    subprocess.run(["/usr/sbin/groupadd", "--system", name], check=True)
    try:
        yield grp.getgrnam(name)
    finally:
        subprocess.run(["/usr/sbin/groupdel", name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def audited(agent_user: str, readers: grp.struct_group) -> Iterator[Audited]:
    """One running instance for this file."""
    instance = Watch(agent_user)
    instance.config.write_text(f'reader_group = "{readers.gr_name}"\n{instance.config.read_text()}')
    try:
        instance.start()
        yield Audited(instance, readers.gr_gid)
    finally:
        instance.stop()


# What is in it


def test_the_log_begins_with_its_keys_and_with_the_whole_configuration(audited: Audited) -> None:
    watch = audited.watch
    first, second, third = records(watch)[:3]
    assert (first["kind"], first["number"]) == ("epoch", 0)
    assert (second["kind"], third["kind"]) == ("observer_start", "config")
    content = watch.config.read_bytes()
    assert (third["path"], third["text"].encode()) == (str(watch.config), content)
    assert third["sha256"] == second["config_sha256"] == hashlib.sha256(content).hexdigest()


def test_what_an_agent_did_is_signed_while_it_runs_and_wholly_once_it_has_stopped(
    audited: Audited, postgres: PostgresServer
) -> None:
    watch = audited.watch
    start = postgres.log_position()
    run = watch.run(*psql(postgres, "SELECT 1 AS signed", "SELECT 1/0"), env=postgres.environment("tcp"), check=False)
    assert differences(postgres.logged_since(start), watch.statements(run.session)) == []
    await_signed(watch)
    before = identity(watch)
    assert watch.signal_recorder(signal.SIGTERM) == 0
    stopped = watch.cli("verify", "--json")
    (verdict,) = [json.loads(line) for line in stopped.stdout.splitlines()]
    assert (verdict["intact"], verdict["unsigned"], verdict["epochs"]) == (True, 0, 1)
    assert verdict["completeness"]["ended"]
    assert "no recorder runs" in stopped.stderr
    assert records(watch)[-1]["kind"] == "observer_stop"
    watch.start_recorder()
    await_signed(watch)  # in the epoch that had begun: the boot is the same
    assert identity(watch) == before


def test_heartbeats_tell_the_clock_that_nobody_sets(audited: Audited) -> None:
    watch = audited.watch
    before = time.monotonic_ns()
    watch.signal_recorder()
    watch.start_recorder()
    await_true(lambda: records(watch)[-1]["kind"] == "heartbeat" or len(watch.records("heartbeat")) > 1, "a heartbeat")
    beats = [record["monotonic"] for record in watch.records("heartbeat")]
    assert beats == sorted(beats)
    assert before < beats[-1] < time.monotonic_ns()
    (verdict,) = watch.rows("verify")
    assert verdict["completeness"]["silence_count"] == 0


def test_a_session_has_no_number_missing_though_the_recorder_is_killed(
    audited: Audited, postgres: PostgresServer
) -> None:
    watch = audited.watch
    before = identity(watch)
    known = {row["session"] for row in watch.rows("sessions")}
    start = postgres.log_position()
    script = watch.root / "statement.sql"
    script.write_text("\\set n random(1, 1000000000)\nSELECT :n, 'a statement that no other is like';\n")
    script.chmod(0o644)
    words = [str(postgres.bin / "pgbench"), "-n", "-c", "2", "-T", "600", "--rate", "500", "-f", str(script)]
    process = watch.start_agent(*words, env=postgres.environment("tcp"))
    watch.wait_agent_pid()
    for _ in range(KILLS):
        time.sleep(BETWEEN_SECONDS)
        watch.signal_recorder(signal.SIGKILL)
        killed = watch.rows("verify", "--log", str(watch.log_dir))[0]
        assert (killed["intact"], killed["epochs"]) == (True, 1)
        watch.start_recorder()
    for pid in watch.agent_pids():
        os.kill(pid, signal.SIGTERM)
    process.communicate(timeout=PATIENCE_SECONDS)
    session = watch.ended_session(known)
    assert differences(postgres.logged_since(start), watch.statements(session)) == []
    numbers = [record["session_seq"] for record in records(watch) if record.get("session") == session]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > KILLS
    assert watch.records("gap") == []
    await_signed(watch)
    assert identity(watch) == before
    assert set_aside(watch) == []


def test_a_log_whose_keys_are_gone_is_set_aside_and_the_new_one_says_so(
    own_watch: Watch, postgres: PostgresServer
) -> None:
    own_watch.run(*psql(postgres, "SELECT 'of the old log'"), env=postgres.environment("unix"))
    own_watch.signal_recorder()
    old = identity(own_watch)
    size = len(records(own_watch))
    shutil.rmtree(own_watch.root / "state" / "keys")
    own_watch.start_recorder()
    assert identity(own_watch) != old
    (aside,) = set_aside(own_watch)
    assert len(list(LogReader(aside).records())) == size
    (gap,) = own_watch.records("gap")
    assert gap["cause"] == "log-set-aside"
    assert str(aside) in gap["detail"]
    run = own_watch.run(*psql(postgres, "SELECT 'of the new log'"), env=postgres.environment("unix"))
    assert [row["db.query.text"] for row in own_watch.statements(run.session)] == ["SELECT 'of the new log'"]
    await_signed(own_watch)
    # With all that made it: the log alone does not know of another identity.
    against_old = own_watch.cli("verify", "--identity", old, check=False)
    assert against_old.returncode == 1
    kept = own_watch.rows("verify", "--log", str(aside), "--identity", old)[0]
    assert kept["intact"]
    asked = own_watch.cli("sessions", "--table", "accounts", check=False)
    assert asked.returncode == 3
    assert "log-set-aside" in asked.stderr


# Who reads it, and who cannot


def test_a_read_is_recorded_with_its_question_before_it_is_answered(audited: Audited) -> None:
    watch = audited.watch
    asked = watch.cli("sessions", "--table", "accounts", "--json", check=False)
    assert asked.stderr == ""
    read = watch.records("read")[-1]
    assert (read["command"], read["uid"], read["user"]) == ("sessions", 0, "root")
    assert read["question"][-4:] == ["sessions", "--table", "accounts", "--json"]
    assert watch.recorder is not None
    os.kill(watch.recorder.pid, signal.SIGSTOP)
    try:
        late = watch.cli("sessions", check=False)
    finally:
        os.kill(watch.recorder.pid, signal.SIGCONT)
    assert "this read is not recorded" in late.stderr


def test_a_hold_is_a_record_and_stays_until_it_is_released(audited: Audited) -> None:
    watch = audited.watch
    run = watch.run("/bin/true")
    watch.cli("hold", run.session, "--reason", "case 7")
    assert run.session in watch.cli("hold").stdout
    watch.signal_recorder(signal.SIGKILL)
    watch.start_recorder()
    assert {"session": run.session} in watch.rows("hold")
    watch.cli("hold", run.session, "--release", "--reason", "case 7 is closed")
    assert {"session": run.session} not in watch.rows("hold")
    told = [record for record in watch.records("hold") if record["held_session"] == run.session]
    assert [(r["held"], r["reason"], r["uid"]) for r in told] == [
        (True, "case 7", 0),
        (False, "case 7 is closed", 0),
    ]


def test_a_member_of_the_reader_group_reads_and_is_recorded(audited: Audited) -> None:
    watch = audited.watch
    run = watch.run("/bin/true")
    watch.cli("index")  # which the reader may not: it has the record of the last read by root now
    words = watch.command("sessions", "--session", run.session, "--json")
    _skip_unless_reachable(watch, words[0])
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, user="nobody", group=audited.gid, extra_groups=[]
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["session"] == run.session
    read = watch.records("read")[-1]
    assert (read["user"], read["uid"]) == ("nobody", pwd.getpwnam("nobody").pw_uid)
    assert read["question"][-4:] == ["sessions", "--session", run.session, "--json"]
    refused = subprocess.run(
        watch.command("hold", run.session, "--reason", "mine"),
        capture_output=True,
        text=True,
        check=False,
        user="nobody",
        group=audited.gid,
        extra_groups=[],
    )
    assert refused.returncode == 77
    assert watch.cli("hold").stdout == ""


ATTEMPTS = """
import json, os, socket, sys
run_dir, log_dir, state_dir, segment = sys.argv[1:]
def attempt(act, *args):
    try:
        act(*args)
    except OSError as e:
        return e.errno
    return 0
paths = [log_dir + "/checkpoint", log_dir + "/identity", segment,
         state_dir + "/keys/epoch", state_dir + "/keys/secrets", run_dir + "/recorder.state"]
found = {path: attempt(open, path) for path in paths}
found |= {path: attempt(os.listdir, path) for path in (log_dir, run_dir, state_dir + "/keys")}
found["connect"] = attempt(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect, run_dir + "/requests.sock")
print(json.dumps(found))
"""


def test_the_agents_user_reads_neither_log_nor_keys_and_cannot_speak_to_the_recorder(audited: Audited) -> None:
    watch = audited.watch
    paths = [watch.run_dir, watch.log_dir, watch.root / "state", max(watch.log_dir.glob("*.segment"))]
    run = watch.run(os.path.realpath(sys.executable), "-c", ATTEMPTS, *map(str, paths))
    found = json.loads(run.stdout)
    assert set(found.values()) == {errno.EACCES}, found
    ours = {path: Path(path).exists() for path in found if path.startswith("/")}
    assert all(ours.values()), ours
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(watch.run_dir / "requests.sock"))


# What is not in it


def test_a_password_is_nowhere_in_the_log_and_equal_ones_are_seen_to_be_equal(
    audited: Audited, postgres: PostgresServer
) -> None:
    watch = audited.watch
    role = f"role_{uuid.uuid4().hex[:8]}"
    postgres.execute(f"CREATE ROLE {role}")
    try:
        start = postgres.log_position()
        url = f"postgresql://{postgres.user}:{SECRET}@127.0.0.1:{postgres.port}/{postgres.database}?sslmode=disable"
        alter = f"ALTER ROLE {role} PASSWORD '{SECRET}' /* {MARK} */"
        script = watch.root / "script.sql"
        script.write_text(f"{alter};\nALTER ROLE {role} PASSWORD 'another-{SECRET[::-1]}';\n")
        script.chmod(0o644)
        run = watch.run(str(postgres.bin / "psql"), "-X", url, "-c", alter, "-f", str(script))
        assert sum(SECRET in entry.text for logged in postgres.logged_since(start).values() for entry in logged) == 2
    finally:
        postgres.execute(f"DROP ROLE {role}")
    told = {r["seq"]: r for r in watch.statements(run.session)}
    assert sum(MARK in row["db.query.text"] for row in told.values()) == 2
    ours = [record for record in records(watch) if record.get("session") == run.session]
    in_statements = [s["hmac"] for r in ours if r["kind"] == "statement" for s in r["secrets"]]
    in_words = {s["hmac"] for r in ours if r["kind"] == "exec" for s in r.get("secrets", [])}
    assert in_statements[0] == in_statements[1] != in_statements[2]
    assert in_words == {in_statements[0]}
    watch.signal_recorder()  # its segment is sealed with that, and compressed by the next one
    watch.start_recorder()
    await_true(lambda: not list(watch.log_dir.glob(f"{0:020d}.segment")), "the first segment is compressed")
    contents = [unpacked(path) for path in watch.log_dir.rglob("*") if path.is_file()]
    assert any(MARK.encode() in content for content in contents)
    for secret in (SECRET, SECRET[::-1]):
        assert not any(secret.encode() in content for content in contents)
        for path in (watch.root / "state").rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def unpacked(path: Path) -> bytes:
    """Return the content of a file of the log, decompressed."""
    content = path.read_bytes()
    if path.suffix != ".zst":
        return content
    with zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True) as stream:
        return stream.read()


# What others can prove by it


def test_evidence_is_checked_elsewhere_by_one_file(audited: Audited, postgres: PostgresServer, tmp_path: Path) -> None:
    watch = audited.watch
    run = watch.run(*psql(postgres, "SELECT 'evidence'"), env=postgres.environment("tcp"))
    await_signed(watch)
    bundle = tmp_path / "case.tlog.zip"
    watch.cli("evidence", run.session, "-o", str(bundle))
    checker = tmp_path / "elsewhere" / "agentwatch_verify.py"
    checker.parent.mkdir()
    shutil.copy(Path(standalone.__file__).with_name(checker.name), checker)
    key = watch.cli("checkpoint", "--identity").stdout.strip()

    def check(path: Path) -> tuple[int, Row]:
        words = [sys.executable, "-I", str(checker), "--json", "--identity", key, str(path)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=checker.parent)
        assert done.stdout, done.stderr
        result: Row = json.loads(done.stdout)
        return done.returncode, result

    status, result = check(bundle)
    assert (status, result["verdict"]) == (0, "intact"), result
    assert "whole" in result["completeness"]
    ours = [record for record in records(watch) if record.get("session") == run.session]
    assert {record["kind"] for record in ours} <= set(result["kinds"])
    for alter in (edit, omit):
        altered = alter(bundle, tmp_path / f"{alter.__name__}.tlog.zip")
        status, result = check(altered)
        assert (status, result["verdict"]) == (1, "broken"), (alter.__name__, result)


def edit(bundle: Path, target: Path) -> Path:
    """Copy a bundle with one letter of a statement changed."""
    return _rewritten(bundle, target, lambda entries: [entry.replace(b"evidence", b"Evidence") for entry in entries])


def omit(bundle: Path, target: Path) -> Path:
    """Copy a bundle without the record of the statement, its proof included."""
    return _rewritten(bundle, target, lambda entries: [e for e in entries if b"SELECT 'evidence'" not in e])


def _rewritten(bundle: Path, target: Path, change: Callable[[list[bytes]], list[bytes]]) -> Path:
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(target, "x") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "records.bin":
                entries = list(_entries(content))
                changed = change(entries)
                assert changed != entries
                content = b"".join(changed)
            new.writestr(name, content)
    return target


def _entries(content: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(content):
        length = int.from_bytes(content[at + 8 : at + 12], "big")
        end = at + 12 + length
        end += 1 + 32 * content[end]
        yield content[at:end]
        at = end


def test_a_checkpoint_that_was_kept_elsewhere_proves_the_log_and_no_other(audited: Audited, tmp_path: Path) -> None:
    watch = audited.watch
    kept = tmp_path / "kept"
    kept.write_text(watch.cli("checkpoint").stdout)
    with SignedLog(tmp_path / "other", tmp_path / "keys", Options("db-agents-2")) as other:
        other.writer.append(b"of another log")
    foreign = tmp_path / "other" / "checkpoint"
    size = int(kept.read_text().split("\n")[1])
    watch.run("/bin/true")
    proved = watch.cli("verify", "--against", str(kept))
    assert f"as in the checkpoint of {size} records" in proved.stdout
    assert watch.cli("verify", "--against", str(foreign), check=False).returncode == 1


def test_a_collector_keeps_a_mirror_that_verifies(audited: Audited, tmp_path: Path) -> None:
    watch = audited.watch
    authority = Authority(tmp_path / "authority")
    theirs, ours = authority.issue("collector-1"), authority.issue("db-agents-1")
    port = free_port()
    there = tmp_path / "collector.toml"
    there.write_text(
        f'log_dir = "{tmp_path}/own"\nstate_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n[collector]\n'
        f'listen = "127.0.0.1:{port}"\nhosts_dir = "{tmp_path}/hosts"\n'
        f'ca = "{theirs.ca}"\ncert = "{theirs.cert}"\nkey = "{theirs.key}"\n'
    )
    words = [watch.command()[0], "--config", str(there), "collector"]
    vkey = subprocess.run([*words, "--key"], check=True, capture_output=True, text=True).stdout.strip()
    here = tmp_path / "push.toml"
    here.write_text(
        f'{watch.config.read_text()}[push]\nto = "127.0.0.1:{port}"\ncollector_key = "{vkey}"\n'
        f'ca = "{ours.ca}"\ncert = "{ours.cert}"\nkey = "{ours.key}"\n'
    )
    mirror = tmp_path / "hosts" / "db-agents-1" / "log"
    with (
        (tmp_path / "collector.err").open("w") as errors,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True) as collector,
    ):
        try:
            assert collector.stdout is not None
            assert collector.stdout.readline() == "ready\n", (tmp_path / "collector.err").read_text()
            for _ in range(2):  # the second time it has only the rest to take
                run = watch.run("/bin/echo", "pushed")
                await_signed(watch)
                push = [watch.command()[0], "--config", str(here), "push", "--once"]
                subprocess.run(push, check=True, capture_output=True, timeout=PATIENCE_SECONDS)
                (verdict,) = watch.rows("verify", "--log", str(mirror), "--identity", identity(watch))
                assert (verdict["intact"], verdict["unsigned"]) == (True, 0)
                payloads = [payload for _, payload in LogReader(mirror).records()]
                assert any(decode(payload).get("session") == run.session for payload in payloads)
                assert payloads == [payload for _, payload in LogReader(watch.log_dir).records(0, len(payloads))]
        finally:
            collector.send_signal(signal.SIGTERM)
    assert collector.returncode == 0
    size = verdict["checkpoint"]["size"]
    assert (watch.log_dir / "anchors" / f"{size}.collector-1").exists()
    assert watch.cli("verify", "--against", str(mirror / "checkpoint")).returncode == 0


def records(watch: Watch) -> list[Record]:
    """Return all records, in the order of the log."""
    return [decode(payload) for _, payload in LogReader(watch.log_dir).records()]


def psql(postgres: PostgresServer, *statements: str) -> Sequence[str]:
    """Return the words of a psql that runs these statements."""
    return [str(postgres.bin / "psql"), "-X", *(word for statement in statements for word in ("-c", statement))]


def identity(watch: Watch) -> str:
    """Return the vkey of the log."""
    return watch.cli("checkpoint", "--identity").stdout.strip()


def set_aside(watch: Watch) -> list[Path]:
    """Return the logs that were not continued."""
    return list(watch.log_dir.glob("broken-*"))


def await_signed(watch: Watch) -> None:
    """Return once all records are signed by the keys of one epoch, and intact they must be."""

    def signed() -> bool:
        watch.check_recorder()
        # With --log the question is no read of the recorder's log, which would add a record each time.
        (verdict,) = watch.rows("verify", "--log", str(watch.log_dir))
        assert (verdict["intact"], verdict["epochs"], verdict["foreign"]) == (True, 1, []), verdict
        return bool(verdict["unsigned"] == 0)

    await_true(signed, "all is signed")


def await_true(condition: Callable[[], bool], what: str) -> None:
    """Return once it is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.1)


def _skip_unless_reachable(watch: Watch, program: str) -> None:
    if subprocess.run(["/usr/bin/test", "-x", program], check=False, user=watch.user).returncode:
        pytest.skip("the checkout lies where other users cannot go")
