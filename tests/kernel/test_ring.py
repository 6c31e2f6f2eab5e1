"""Reading the pinned ring in place: order, wrap-around, discarded space, and what a reader that dies leaves."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from agentwatch import config
from agentwatch.kernel import abi, pins
from agentwatch.kernel.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.fix_watch import Watch

pytestmark = pytest.mark.kernel


@pytest.fixture
def ring(own_watch: Watch) -> Iterator[tuple[Watch, Ring]]:
    assert own_watch.signal_recorder() == 0
    descriptor = pins.open_map(config.load(own_watch.config), "ring")
    ring = Ring(descriptor)
    yield own_watch, ring
    ring.close()
    os.close(descriptor)


def test_events_are_read_in_order_and_again_until_released(ring: tuple[Watch, Ring]) -> None:
    watch, reader = ring
    begin = reader.position
    _run(watch, "/bin/true")
    first = reader.read(1 << 30)
    kinds = [abi.decode(data).__class__.__name__ for _, data in first.events]
    assert kinds.index("Exec") < kinds.index("Exit")
    assert [position for position, _ in first.events] == sorted(position for position, _ in first.events)
    reader.position = begin  # as a reader that died and came back
    assert reader.read(1 << 30) == first
    reader.release(first.end)
    assert (reader.released, reader.backlog) == (first.end, 0)


def test_an_event_that_wraps_is_whole(ring: tuple[Watch, Ring]) -> None:
    watch, reader = ring
    words = [f"{n:05d}" * 1000 for n in range(20)]
    seen = []
    for _ in range(2 * reader.size // 100_000 + 2):  # a hundred kilobytes each: more than twice around
        _run(watch, "/bin/true", *words)
        batch = reader.read(1 << 30)
        seen.append(_arguments(batch.events))
        reader.release(batch.end)
    expected = b"\0".join(word.encode() for word in ["/bin/true", *words]) + b"\0"
    assert all(arguments == expected for arguments in seen)
    assert reader.position > 2 * reader.size


def test_a_limit_stops_between_events(ring: tuple[Watch, Ring]) -> None:
    watch, reader = ring
    for _ in range(5):
        _run(watch, "/bin/true")
    begin = reader.position
    whole = reader.read(1 << 30).events
    reader.position = begin
    piecewise: list[tuple[int, bytes]] = []
    while batch := reader.read(1).events:
        assert len(batch) == 1
        piecewise += batch
    assert piecewise == whole


def _run(watch: Watch, *command: str) -> None:
    """Run a command in a watched cgroup."""
    cgroup = watch.cgroup / "agent-test-ring"
    cgroup.mkdir(exist_ok=True)
    enter = f'echo $$ > {cgroup}/cgroup.procs; exec "$@"'
    subprocess.run(["/bin/sh", "-c", enter, "sh", *command], check=True)


def _arguments(events: list[tuple[int, bytes]]) -> bytes:
    result = b""
    for _, data in events:
        event = abi.decode(data)
        if isinstance(event, abi.Exec):
            result = event.args
        elif isinstance(event, abi.Argv):
            assert event.offset == len(result)
            result += event.args
    return result
