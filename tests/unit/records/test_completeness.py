"""What a log says was not seen: counted over parts of it as over the whole, and no false alarm by clocks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.records.completeness import HEARTBEAT_NS, SILENCE_NS, Completeness
from agentwatch.records.encoding import encode

YEAR_NS = 365 * 24 * 3600 * 10**9
T0 = 1_700_000_000 * 10**9


def seen(*payloads: bytes, first: int = 0) -> Completeness:
    found = Completeness()
    for seq, payload in enumerate(payloads, first):
        found.add(seq, payload)
    return found


def record(kind: str, **fields: Any) -> bytes:
    return encode({"kind": kind, "time": T0, "boot_id": "b"} | fields)


def beat(minute: int, **fields: Any) -> bytes:
    return record("heartbeat", monotonic=minute * HEARTBEAT_NS, **fields)


def opaque(connection: str, size: int, *, final: bool, reason: str = "tls") -> bytes:
    return record("opaque", connection=connection, reason=reason, bytes_out=size, bytes_in=0, final=final)


def told(found: Completeness) -> tuple[Any, ...]:
    return (
        +found.kinds,
        +found.gaps,
        +found.gap_bytes,
        +found.opaque,
        +found.opaque_bytes,
        +found.divergences,
        found.undecodable,
        found.silences,
        found.complete,
        found.ended,
        found.end(),
    )


def test_log_without_a_word_of_anything_missing_is_complete() -> None:
    found = seen(record("observer_start"), record("exec"), beat(1), record("observer_stop"))
    assert found.complete
    assert found.ended
    assert found.kinds == {"observer_start": 1, "exec": 1, "heartbeat": 1, "observer_stop": 1}


@pytest.mark.parametrize(
    "missing",
    [
        record("gap", cause="ring-full", bytes=7),
        record("divergence", technique="io_uring"),
        opaque("c1", 1, final=True),
        b"\xc1 is no record",
        record("observer_start", resumed=False),
    ],
)
def test_each_thing_that_is_missing_is_told(missing: bytes) -> None:
    assert not seen(record("observer_start"), missing, beat(1)).complete


def test_gaps_are_counted_by_cause_with_their_bytes() -> None:
    gaps = [record("gap", cause="ring-full", bytes=size) for size in (3, 4)]
    found = seen(*gaps, record("gap", cause="undecodable", bytes=None))
    assert found.gaps == {"ring-full": 2, "undecodable": 1}
    assert found.gap_bytes["ring-full"] == 7


def test_later_word_on_a_flow_replaces_the_earlier_one_also_with_fewer_bytes() -> None:
    found = seen(opaque("c1", 100, final=False), opaque("c2", 5, final=True), opaque("c1", 40, final=True))
    assert found.opaque_bytes["tls"] == 45
    assert found.opaque["tls"] == 2


def test_recorder_that_could_not_go_on_saw_nothing_of_the_time_between() -> None:
    assert seen(beat(1), record("observer_start", resumed=False)).gaps == {"no-recorder": 1}
    assert seen(beat(1), record("observer_start", resumed=True)).complete
    assert seen(record("observer_start", resumed=False), beat(1)).complete  # the first there was


def test_missing_heartbeats_are_a_silence() -> None:
    found = seen(beat(1), beat(2), beat(9), beat(10), first=100)
    assert [(s.since_seq, s.until_seq, s.length_ns) for s in found.silences] == [(101, 102, 7 * HEARTBEAT_NS)]
    assert not found.complete


@pytest.mark.parametrize("jump", [YEAR_NS, -YEAR_NS])
def test_wall_clock_that_jumps_is_no_silence(jump: int) -> None:
    assert seen(beat(1), beat(2, time=T0 + jump), beat(3)).complete


def test_host_that_slept_is_not_silent() -> None:
    # CLOCK_BOOTTIME goes on in sleep, CLOCK_MONOTONIC does not.
    assert seen(beat(1, boottime=0), beat(2, boottime=8 * 3600 * 10**9)).complete


def test_time_without_a_recorder_is_no_silence_of_one() -> None:
    later = SILENCE_NS * 100 // HEARTBEAT_NS
    assert seen(beat(1), record("observer_stop"), record("observer_start", resumed=True), beat(later)).complete
    assert seen(beat(9000), record("heartbeat", boot_id="next", monotonic=1)).complete


RECORDS = st.lists(
    st.sampled_from(
        [
            beat(1),
            beat(2),
            beat(9),
            record("observer_start", resumed=True),
            record("observer_start", resumed=False),
            record("observer_stop"),
            record("exec", argv=["x"]),
            record("gap", cause="ring-full", bytes=3),
            record("divergence", technique="splice"),
            *(opaque(c, n, final=final) for c in ("c1", "c2") for n in (1, 20) for final in (True, False)),
            b"\xc1",
        ]
    ),
    max_size=40,
)


@given(RECORDS, st.lists(st.integers(0, 40), max_size=4))
def test_parts_put_together_say_what_the_whole_says(payloads: list[bytes], cuts: list[int]) -> None:
    places = sorted({0, len(payloads), *(cut for cut in cuts if cut < len(payloads))})
    whole, together = seen(*payloads), Completeness()
    for begin, end in pairwise(places):
        together.merge(seen(*payloads[begin:end], first=begin))
    assert told(together) == told(whole)
