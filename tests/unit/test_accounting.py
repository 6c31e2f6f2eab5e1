"""The ledger: whatever is lost is declared once, and a number that nothing explains is never passed over."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from agentwatch.accounting import UNACCOUNTED, Ledger, Missing
from agentwatch.kernel import abi
from agentwatch.kernel.counters import Account, Counters, Loss

EXEC = abi.Program.P_EXEC
RING = abi.Lost.LOST_RING


def event(serial: int, *, cpu: int = 0) -> abi.Header:
    return abi.Header(40, abi.EventKind.EXEC, 0, serial, 7, 1, 1, serial % (1 << 32), cpu, EXEC, 0)


def account(seen: int, lost: int, *, size: int = 0) -> Account:
    return {(EXEC, 0): Counters(seen, seen - lost, (lost, 0, 0, 0), (size, 0, 0, 0), 0, 0)}


def loss(events: int, *, size: int = 0, first: int = 100, last: int = 200) -> Loss:
    return Loss(7, EXEC, RING, events, size, first, last)


def settle(ledger: Ledger, kernel: Account, *losses: Loss, drained: bool = True) -> list[Missing]:
    """Look as often as the recorder does in a second."""
    return [m for _ in range(3) for m in ledger.settle(kernel, losses, drained=drained)]


def test_a_loss_is_declared_once_with_its_owner_and_interval() -> None:
    ledger = Ledger(from_start=True)
    for serial in (0, 1, 4):
        ledger.take(event(serial))
    assert settle(ledger, account(5, 2, size=64), loss(2, size=64)) == [
        Missing("ring-full", "exec: the ring was full", 2, 64, 7, 100, 200)
    ]
    assert settle(ledger, account(6, 3, size=65), loss(3, size=65, last=300)) == [
        Missing("ring-full", "exec: the ring was full", 1, 1, 7, 200, 300)
    ]


def test_a_loss_whose_owner_found_no_place_is_declared_without_one() -> None:
    ledger = Ledger(from_start=True)
    ledger.take(event(0))
    assert settle(ledger, account(3, 2, size=9)) == [Missing("ring-full", "exec: the ring was full", 2, 9)]


def test_what_a_program_is_about_to_count_is_not_declared() -> None:
    ledger = Ledger(from_start=True)
    ledger.take(event(0))
    assert ledger.settle(account(2, 1), [], drained=True) == []
    assert ledger.settle(account(2, 1), [loss(1)], drained=True) == [
        Missing("ring-full", "exec: the ring was full", 1, 0, 7, 100, 200)
    ]
    assert settle(ledger, account(2, 1), loss(1)) == []


def test_events_that_vanish_in_the_middle_are_unaccounted() -> None:
    ledger = Ledger(from_start=True)
    for serial in (0, 1, 5):
        ledger.take(event(serial))
    (found,) = settle(ledger, account(6, 0), drained=False)
    assert (found.cause, found.events) == (UNACCOUNTED, 3)


def test_events_that_vanish_at_the_end_are_unaccounted_once_the_ring_is_empty() -> None:
    ledger = Ledger(from_start=True)
    ledger.take(event(0))
    assert settle(ledger, account(3, 0), drained=False) == []
    (found,) = settle(ledger, account(3, 0))
    assert (found.cause, found.events) == (UNACCOUNTED, 2)


def test_a_program_of_which_nothing_ever_came_is_unaccounted() -> None:
    (found,) = settle(Ledger(from_start=True), account(4, 1), loss(1))[1:]
    assert (found.cause, found.events) == (UNACCOUNTED, 3)


def test_an_undecodable_event_is_declared_as_that_alone() -> None:
    ledger = Ledger(from_start=True)
    ledger.take(event(0))
    ledger.undecodable += 1
    ledger.take(event(2))
    assert settle(ledger, account(3, 0)) == []


def test_a_recorder_that_begins_in_the_middle_counts_from_there() -> None:
    ledger = Ledger(from_start=False)
    ledger.take(event(1000))
    ledger.take(event(1002))
    assert settle(ledger, account(1003, 41), Loss(7, EXEC, RING, 41, 0, 1, 2))[1:] == []


def test_numbers_go_round() -> None:
    ledger = Ledger(from_start=False)
    for serial in range((1 << 32) - 2, (1 << 32) + 2):
        ledger.take(event(serial))
    assert settle(ledger, account((1 << 32) + 2, 0)) == []


@given(
    lost=st.sets(st.integers(0, 199)),
    vanished=st.sets(st.integers(0, 199)),
    swapped=st.sets(st.integers(0, 198)),
    saved=st.integers(0, 199),
)
def test_the_sum_is_always_right(lost: set[int], vanished: set[int], swapped: set[int], saved: int) -> None:
    """Whatever is lost, vanishes, comes a place too early or lies before a restart: each is declared exactly."""
    order = list(range(200))
    for i in swapped:
        order[i], order[i + 1] = order[i + 1], order[i]
    ledger = Ledger(from_start=True)
    for number in order:
        if number not in lost | vanished:
            ledger.take(event(number))
        if number == saved:
            ledger = pickle.loads(pickle.dumps(ledger))  # noqa: S301 -- made on this line
    losses = [loss(len(lost))] if lost else []
    found = settle(ledger, account(200, len(lost)), *losses)
    declared = {m.cause: m.events for m in found}
    assert declared.get("ring-full", 0) == len(lost)
    assert declared.get(UNACCOUNTED, 0) == len(vanished - lost)
    assert ledger.received + sum(declared.values()) == 200
