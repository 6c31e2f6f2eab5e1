"""The canary: what must be seen of it, and whose records are withheld. Records and events are made by hand here."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest

from agentwatch.canary import MAX_REMEMBERED, SIGNS, Canary, Expected
from agentwatch.config import CANARY_AGENT
from agentwatch.kernel import abi

if TYPE_CHECKING:
    from agentwatch.records.encoding import Record

PID, PORT, SESSION = 4711, 5555, "018bd0a6-5a00-7abc-8def-0123456789ab"
TCP, UNIX = b"a" * 32, b"b" * 32


def record(kind: str, *, agent: str | None = CANARY_AGENT, event: int | None = 1, **fields: Any) -> Record:
    envelope: Record = {"kind": kind} | ({} if agent is None else {"agent": agent, "session": SESSION})
    return envelope | ({} if event is None else {"event": event}) | fields


LIFE = [
    record("session_start", event=1),
    record("connect", event=2, pid=PID, peer=f"127.0.0.1:{PORT}", connection="tcp-1"),
    record("connect", event=2, pid=PID, peer="unix:/run/agentwatch/canary.sock", connection="unix-9"),
    record("exec", event=3, pid=PID, argv=["/bin/true"]),
    record("exit", event=4, pid=PID),
    record("session_end", event=5),
    record("opaque", event=None, connection="tcp-1", final=True),
    record("gap", event=None, connection="unix-9", cause="not-received"),
    record("opaque", event=None, connection="unix-9", final=True),
]


def header(tgid: int = PID) -> abi.Header:
    return abi.Header(0, 0, 0, 0, 7, tgid, tgid, 0, 0, 0, 0)


def wire(data: bytes, way: abi.Way = abi.Way.OUT) -> abi.Wire:
    return abi.Wire(header(0), 1, 0, 0, len(data), b"", b"", PORT, 1, 2, 6, 24, way, data)


def unix(data: bytes, way: abi.Way = abi.Way.OUT) -> abi.Unix:
    return abi.Unix(header(), 9, len(data), 0, len(data), way, by_reader=True, position=0, data=data)


def under_way() -> Canary:
    canary = Canary(0)
    canary.begin(Expected(PID, PORT, TCP, UNIX))
    canary.let_go()
    return canary


def see_all(canary: Canary) -> None:
    canary.see(wire(TCP))
    canary.see(unix(UNIX))


def withhold_all(canary: Canary, records: list[Record]) -> list[Record]:
    return [kept for each in records for kept in canary.withhold([dict(each)])]


def test_a_canary_that_is_wholly_seen_leaves_no_record_but_the_first_time() -> None:
    canary = under_way()
    see_all(canary)
    assert withhold_all(canary, LIFE) == []
    assert canary.absent == ()
    assert canary.end(100, 200, 60) == [("canary_seen", {"interval": 60})]
    assert (canary.sent, canary.seen, canary.last, canary.status) == (1, 1, 200, "seen")
    canary.begin(Expected(PID + 1, PORT, TCP, UNIX))
    canary.see(wire(TCP))
    canary.see(unix(UNIX))
    withhold_all(canary, [each | ({"pid": PID + 1} if "pid" in each else {}) for each in LIFE])
    assert canary.end(300, 400, 60) == []


@pytest.mark.parametrize("sign", SIGNS)
def test_what_is_missing_is_told_once_until_it_changes(sign: str) -> None:
    canary = under_way()
    if sign != "send":
        canary.see(wire(TCP))
    if sign != "unix":
        canary.see(unix(UNIX))
    withhold_all(canary, [each for each in LIFE if each["kind"] != sign])
    ((kind, fields),) = canary.end(100, 200, 60, "why")
    assert (kind, fields) == ("canary_missed", {"interval": 60, "missing": [sign], "since": 0, "detail": "why"})
    assert canary.status == f"missed {sign}"
    canary.begin(Expected(PID + 1, PORT, TCP, UNIX))
    ((_, fields),) = canary.end(300, 400, 60)
    assert (fields["missing"], fields["since"]) == (list(SIGNS), 100)
    assert canary.end(500, 600, 60) == []


def test_another_token_another_way_and_another_process_do_not_count() -> None:
    canary = under_way()
    canary.see(wire(b"c" * 32))
    canary.see(wire(TCP, abi.Way.IN))
    canary.see(unix(UNIX, abi.Way.IN))
    withhold_all(canary, [record("exec", pid=1), record("connect", pid=PID, peer="127.0.0.1:5", connection="tcp-2")])
    assert canary.absent == SIGNS


def test_records_of_others_are_kept() -> None:
    canary = under_way()
    others = [record("exec", agent="agent-backfill", pid=PID), record("gap", agent=None), record("exec", agent=None)]
    assert withhold_all(canary, others) == others


def test_somebody_else_in_the_canarys_cgroup_is_recorded_with_the_session() -> None:
    canary = under_way()
    see_all(canary)
    foreign = [record("exec", event=10, pid=1), record("exit", event=11, pid=1)]
    kept = withhold_all(canary, [*LIFE[:3], *foreign, *LIFE[3:]])
    assert kept == [record("session_start", event=10), *foreign, record("session_end", event=5)]


def test_a_session_without_a_canary_is_recorded_from_its_first_record_on() -> None:
    canary = Canary(0)
    assert withhold_all(canary, LIFE[:5]) == LIFE[:5]


def test_a_gap_of_the_canarys_own_is_kept() -> None:
    canary = under_way()
    kept = withhold_all(canary, [LIFE[0], record("gap", event=None, cause="ring-full")])
    assert [each["kind"] for each in kept] == ["session_start", "gap"]
    assert all("event" not in each for each in kept)


@pytest.mark.parametrize("at", range(len(LIFE) + 1))
def test_a_recorder_that_reads_the_same_again_withholds_the_same(at: int) -> None:
    canary = under_way()
    saved = pickle.dumps(canary)
    see_all(canary)
    assert withhold_all(canary, LIFE[:at]) == []
    again: Canary = pickle.loads(saved)  # noqa: S301 -- made above
    again.forget()
    see_all(again)
    assert withhold_all(again, LIFE) == []
    assert again.status == "waiting"


def test_children_whose_end_was_lost_are_forgotten() -> None:
    canary = Canary(0)
    for pid in range(1, 10 * MAX_REMEMBERED):
        canary.begin(Expected(pid, PORT, TCP, UNIX))
    assert withhold_all(canary, [record("exec", pid=1)]) == [record("exec", pid=1)]
    assert withhold_all(canary, [record("exec", pid=10 * MAX_REMEMBERED - 1)]) == []
