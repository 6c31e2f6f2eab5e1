"""Attacks on the record itself: the pins, the log, the ring; see docs/bypasses.md."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.kernel.fix_bypass import COVERED, DECLARED, PYTHON, Arena, seen
from tests.kernel.fix_watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.fix_postgres import PostgresServer

pytestmark = pytest.mark.kernel

ECHO = "/bin/echo"
RING_BYTES = 256 * 1024
WAIT_SECONDS = 30


@pytest.fixture
def small(agent_user: str, postgres: PostgresServer, attackers: Path) -> Iterator[Arena]:
    """An instance with a small ring."""
    instance = Watch(agent_user, ring_bytes=RING_BYTES)
    try:
        instance.start()
        yield Arena(instance, postgres, attackers)
    finally:
        instance.stop()


def test_deleting_the_pins(arena: Arena) -> None:
    pins = [arena.watch.pin_dir, *arena.watch.pin_dir.rglob("*")]
    attack = arena.run(
        PYTHON, arena.tool("commands.py"), "remove_pins", "marker", env={"PINS": ":".join(map(str, pins))}
    )
    assert attack.stdout == "marker\n"
    assert len(pins) > 10
    assert all(pin.exists() for pin in pins)
    assert seen(attack.ran(ECHO, "marker"), attack) == COVERED


def test_mounting_over_the_log(arena: Arena) -> None:
    hidden = f"{arena.watch.log_dir}:{arena.watch.pin_dir}"
    attack = arena.run(PYTHON, arena.tool("commands.py"), "hide_log", "marker", env={"HIDDEN": hidden})
    assert attack.stdout == "marker\n"
    assert seen(attack.ran(ECHO, "marker"), attack) == COVERED
    arena.watch.cli("verify")


def test_flooding_the_ring(small: Arena) -> None:
    """The recorder is stopped meanwhile, as if it were too slow: who wins the race is not what is tested."""
    go, stopped = small.watch.root / "go", small.watch.root / "stopped"
    recorder = small.watch.recorder
    assert recorder is not None

    def meanwhile() -> None:
        small.watch.wait_agent_pid()
        os.kill(recorder.pid, signal.SIGSTOP)
        stopped.touch()
        time.sleep(3)
        os.kill(recorder.pid, signal.SIGCONT)
        small.watch.wait_drained()  # the end of the session is to find room
        go.touch()

    text = small.statement()
    state, attack = small.sql(
        PYTHON,
        small.tool("flood.py"),
        text=text,
        env={"GO": str(go), "STOPPED": str(stopped)},
        meanwhile=meanwhile,
    )
    assert attack.said(text) == []
    assert state == DECLARED
    assert "ring-full" in {record["cause"] for record in attack.of("gap")}
