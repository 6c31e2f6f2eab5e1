"""The recorder's own eyes are touched: it notices, tells, repairs what it can, answers know. And it proves it sees."""

from __future__ import annotations

import os
import shutil
import struct
import time
from typing import TYPE_CHECKING

import pytest

from agentwatch import config
from agentwatch.kernel import bpf, hooks, pins
from tests.kernel.fix_watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentwatch.records.encoding import Record

pytestmark = pytest.mark.kernel

SECONDS = 60
"""How long something is waited for on a machine that may be busy."""
PROMPT_NS = 3_000_000_000
CANARY = "agentwatch-canary"


@pytest.fixture
def proving(agent_user: str) -> Iterator[Watch]:
    """An instance whose canary sings every second."""
    instance = Watch(agent_user, canary_seconds=1)
    try:
        instance.start()
        yield instance
    finally:
        instance.stop()


def await_records(watch: Watch, kind: str, wanted: Callable[[Record], bool]) -> list[Record]:
    """Return the records of a kind that are wanted, once there are any."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        watch.check_recorder()
        if found := [record for record in watch.records(kind) if wanted(record)]:
            return found
        time.sleep(0.05)
    pytest.fail(f"no {kind} record: {watch.records(kind)}; {watch.recorder_errors()}")


def await_status(watch: Watch, key: str, value: object) -> None:
    """Return when ``status`` says so."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if watch.status()[key] == value:
            return
        time.sleep(0.1)
    pytest.fail(f"status does not say {key} {value}: {watch.status()}")


def detach(watch: Watch, link: str) -> None:
    """Detach a cgroup link as anybody with CAP_BPF can: BPF_LINK_DETACH."""
    fd = bpf.obj_get(watch.pin_dir / "links" / link)
    try:
        bpf.link_detach(fd, link)
    finally:
        os.close(fd)


def empty_slot(watch: Watch, program: str) -> None:
    """Take a program out of the slot that its tracepoint calls."""
    settings = config.load(watch.config)
    slot = pins.read_status(settings).slots[program]
    fd = pins.open_map(settings, "raw_programs")
    try:
        bpf.map_delete(fd, struct.pack("<I", slot))
    finally:
        os.close(fd)


def test_the_recorder_says_at_its_start_what_is_attached(watch: Watch) -> None:
    (record,) = watch.records("probe_attach")
    assert record["reason"] == "start"
    assert sorted(record["hooks"]) == sorted(hook.link for hook in hooks.HOOKS)
    assert record["probe_mode"] == "tracepoint"
    assert len(record["source_sha256"]) == 64
    assert sorted(record["tags"]) == sorted(record["hooks"])
    assert all(len(bytes.fromhex(tag)) == 8 for tag in record["tags"].values())
    assert watch.records("probe_detach") == []
    status = watch.cli("status")
    assert status.returncode == 0


def test_a_deleted_pin_is_told_and_made_again_and_costs_nothing(own_watch: Watch) -> None:
    for pin in ("links/on_exec-sched_process_exec", "links/on_egress", "maps/raw_programs"):
        (own_watch.pin_dir / pin).unlink()
        (told,) = await_records(own_watch, "probe_detach", lambda record, pin=pin: record["pin"] == pin)  # type: ignore[misc]
        assert (told["what"], told["capturing"]) == ("pin-deleted", True)
        (again,) = await_records(own_watch, "probe_attach", lambda record, pin=pin: pin in record["pins"][:1])  # type: ignore[misc]
        assert again["reason"] == "pin-restored"
        assert (own_watch.pin_dir / pin).exists()
    run = own_watch.run("/bin/echo", "still seen")
    assert ["/bin/echo", "still seen"] in [row["argv"] for row in own_watch.commands(run.session)]
    assert own_watch.cli("status", check=False).returncode == 0
    assert own_watch.cli("sessions", "--table", "nothing", check=False).returncode == 1
    own_watch.signal_recorder()  # and the pins alone hold it again
    assert own_watch.rows("probes", "status")[0]["missing"] == []


def test_pins_that_are_removed_with_their_folder_are_made_again(own_watch: Watch) -> None:
    before = sorted(path.relative_to(own_watch.pin_dir) for path in own_watch.pin_dir.rglob("*"))
    shutil.rmtree(own_watch.pin_dir, ignore_errors=True)  # the recorder may be faster
    await_records(own_watch, "probe_attach", lambda record: record["reason"] == "pin-restored")
    await_status(own_watch, "detached", [])
    assert sorted(path.relative_to(own_watch.pin_dir) for path in own_watch.pin_dir.rglob("*")) == before
    assert own_watch.pin_dir.stat().st_mode & 0o777 == 0o700
    own_watch.run("/bin/true")
    own_watch.cli("probes", "upgrade")
    own_watch.run("/bin/true")
    await_records(own_watch, "probe_attach", lambda record: record["reason"] == "upgrade")
    assert all(record["capturing"] for record in own_watch.records("probe_detach"))


def test_a_detached_link_makes_answers_uncertain_until_an_upgrade_repairs_it(own_watch: Watch) -> None:
    own_watch.run("/bin/true")
    assert own_watch.cli("sessions", "--table", "nothing", check=False).returncode == 1
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    detach(own_watch, "on_egress")
    (told,) = await_records(own_watch, "probe_detach", lambda _: True)
    assert (told["hook"], told["link"], told["what"]) == ("on_egress", "on_egress", "link-detached")
    assert told["capturing"] is False
    assert told["boottime"] - before < PROMPT_NS
    assert told["since"] <= before + PROMPT_NS
    await_status(own_watch, "detached", ["links/on_egress"])
    assert own_watch.cli("status", check=False).returncode == 1
    own_watch.cli("index")
    answer = own_watch.cli("sessions", "--table", "nothing", check=False)
    assert answer.returncode == 3
    assert "probe-detached" in answer.stdout + answer.stderr
    own_watch.cli("probes", "upgrade")
    (again,) = await_records(own_watch, "probe_attach", lambda record: record["reason"] == "upgrade")
    assert "on_egress" in again["hooks"]
    assert own_watch.cli("probes", "status").returncode == 0
    await_status(own_watch, "detached", [])
    assert own_watch.cli("status", check=False).returncode == 0
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(again["time"] / 1e9 + 2))
    own_watch.cli("index")
    assert own_watch.cli("sessions", "--table", "nothing", "--since", since, check=False).returncode == 1
    assert own_watch.cli("sessions", "--table", "nothing", check=False).returncode == 3


def test_an_upgrade_is_no_attack(own_watch: Watch) -> None:
    for times in range(1, 4):
        own_watch.cli("probes", "upgrade")
        await_records(own_watch, "probe_attach", lambda _: len(own_watch.records("probe_attach")) == times + 1)  # noqa: B023
    assert own_watch.records("probe_detach") == []
    assert [record["reason"] for record in own_watch.records("probe_attach")] == ["start", *["upgrade"] * 3]
    assert own_watch.cli("status").returncode == 0


def test_what_was_touched_while_no_recorder_ran_is_told_by_the_next(own_watch: Watch) -> None:
    own_watch.run("/bin/true")
    own_watch.signal_recorder()
    empty_slot(own_watch, "on_exit")
    detach(own_watch, "on_ingress")
    (own_watch.pin_dir / "links" / "on_connect4").unlink()
    own_watch.start_recorder()
    found = {record["link"]: record for record in await_records(own_watch, "probe_detach", lambda _: True)}
    assert {link: record["what"] for link, record in found.items()} == {
        "on_exit-sched_process_exit": "program-replaced",
        "on_ingress": "link-detached",
        "on_connect4": "pin-deleted",
    }
    assert all(record["capturing"] is False and record["since"] < record["boottime"] for record in found.values())
    started = own_watch.records("probe_attach")[-1]
    assert set(started["hooks"]) == {hook.link for hook in hooks.HOOKS} - set(found)


def test_unloading_under_a_running_recorder_ends_capture_and_is_told(own_watch: Watch) -> None:
    own_watch.cli("probes", "unload")
    told = await_records(
        own_watch, "probe_detach", lambda _: len(own_watch.records("probe_detach")) == len(hooks.HOOKS)
    )
    assert {record["detail"] for record in told} == {"the probes were unloaded"}
    assert not own_watch.pin_dir.exists()
    own_watch.check_recorder()


def test_the_mode_of_the_pins_is_watched(own_watch: Watch) -> None:
    (own_watch.pin_dir / "maps").chmod(0o755)
    (told,) = await_records(own_watch, "probe_detach", lambda _: True)
    assert (told["pin"], told["what"]) == ("maps", "pin-changed")
    (own_watch.pin_dir / "maps").chmod(0o700)
    (again,) = await_records(own_watch, "probe_attach", lambda record: record["reason"] == "restored")
    assert again["pins"] == ["maps"]


def test_the_canary_is_seen_and_leaves_no_records_of_its_own(proving: Watch) -> None:
    await_records(proving, "canary_seen", lambda _: True)
    await_status(proving, "canary", "seen")
    run = proving.run("/bin/true")
    proving.signal_recorder()
    (beat, *_) = [record["canary"] for record in proving.records("heartbeat")[-1:]]
    assert beat["sent"] >= 1
    assert beat["sent"] - beat["seen"] <= 1
    assert proving.records("canary_missed") == []
    assert proving.records("gap") == []
    everything = [
        record
        for kind in ("session_start", "session_end", "exec", "exit", "connect", "opaque", "cgroup_move")
        for record in proving.records(kind)
    ]
    assert [record for record in everything if record.get("agent") == CANARY] == []
    assert [row["session"] for row in proving.rows("sessions")] == [run.session]
    assert not (proving.cgroup / CANARY).exists()


def test_without_a_program_the_canary_is_missed_and_the_watchdog_says_which(proving: Watch) -> None:
    await_records(proving, "canary_seen", lambda _: True)
    empty_slot(proving, "on_exec")
    (told,) = await_records(proving, "probe_detach", lambda _: True)
    assert (told["hook"], told["what"]) == ("on_exec", "program-replaced")
    missed = await_records(proving, "canary_missed", lambda _: True)[0]
    assert missed["missing"] == ["exec"]
    assert missed["interval"] == 1
    await_status(proving, "canary", "missed exec")
    assert proving.cli("status", check=False).returncode == 1
    proving.cli("index")
    answer = proving.cli("sessions", "--table", "nothing", check=False)
    assert answer.returncode == 3
    assert "canary-missed" in answer.stdout + answer.stderr
    proving.cli("probes", "upgrade")
    await_records(proving, "canary_seen", lambda record: record["boottime"] > missed["boottime"])
    await_status(proving, "canary", "seen")
    await_status(proving, "detached", [])
    done = proving.cli("status", check=False)
    assert done.returncode == 0, done.stdout


def test_somebody_else_in_the_canarys_cgroup_is_recorded(proving: Watch) -> None:
    await_records(proving, "canary_seen", lambda _: True)
    pid = os.fork()
    if pid == 0:
        try:
            (proving.cgroup / CANARY / "cgroup.procs").write_text("0")
            os.execv("/bin/echo", ["/bin/echo", "I am no canary"])  # noqa: S606 -- no shell is the point
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    (record,) = await_records(proving, "exec", lambda _: True)
    assert (record["agent"], record["argv"], record["pid"]) == (CANARY, ["/bin/echo", "I am no canary"], pid)
    assert record["session"] in [start["session"] for start in proving.records("session_start")]


def test_a_recorder_killed_under_a_canary_withholds_it_when_it_reads_it_again(proving: Watch) -> None:
    for _ in range(5):
        await_records(proving, "canary_seen", lambda _: True)
        proving.signal_recorder(9)
        proving.start_recorder()
    await_status(proving, "canary", "seen")
    proving.signal_recorder()
    assert [r for kind in ("exec", "exit", "session_start", "opaque") for r in proving.records(kind)] == []
    assert proving.records("gap") == []


def test_a_jump_of_the_clock_is_told(own_watch: Watch) -> None:
    step = 2_000_000_000

    def jump(by: int) -> None:
        time.clock_settime_ns(time.CLOCK_REALTIME, time.clock_gettime_ns(time.CLOCK_REALTIME) + by)

    try:
        jump(0)
    except PermissionError:
        pytest.skip("may not set this machine's clock")
    jump(step)
    try:
        (told,) = await_records(own_watch, "clock_step", lambda _: True)
    finally:
        jump(-step)
    assert abs(told["step_ns"] - step) < step // 10
    assert told["after"] - told["before"] == told["step_ns"]
    back = await_records(own_watch, "clock_step", lambda record: record["step_ns"] < 0)
    assert len(back) == 1
