"""Does the account add up: events' numbers and the kernel's counters in, what is missing out.

Every event carries the number that its program gave it on its CPU, counting those that were lost too. So what the
recorder holds says by itself how many are missing, and the kernel's counters say how many it lost and why:

* a loss that the counters know is *declared*: whose it was, how much, between when and when;
* a number that is missing and that no counter explains is *unaccounted*: something took events out of the ring, or
  agentwatch is wrong. It is declared as that.

Everything here is plain values that survive ``pickle``: a restarted recorder goes on with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agentwatch.kernel import abi, counters

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentwatch.kernel.counters import Account, Loss

_SERIALS = 1 << 32
GAP_CAUSES = {"ring": "ring-full", "memory": "user-memory", "map": "limit", "limit": "limit"}
EXPLANATIONS = {
    "ring": "the ring was full",
    "memory": "memory of the process or the packet was not readable",
    "map": "a kernel map was full",
    "limit": "larger than a limit of the probes",
}
UNACCOUNTED = "unaccounted"


class Missing(NamedTuple):
    """What one ``gap`` record declares. ``cgroup`` 0: not known whose; times are CLOCK_BOOTTIME, None: not known."""

    cause: str
    detail: str
    events: int
    bytes: int
    cgroup: int = 0
    since: int | None = None
    until: int | None = None


class Ledger:
    """What was received and declared so far, of one load of the probes.

    ``from_start``: the ring is read from its first event on; otherwise numbers count from the first one that is met.
    """

    def __init__(self, *, from_start: bool) -> None:
        self.received = 0
        self.undecodable = 0
        self.unaccounted = 0
        """Events that were declared as unaccounted."""
        self._from_start = from_start
        self._next: dict[tuple[int, int], int] = {}
        self._missing: dict[tuple[int, int], int] = {}
        self._base: dict[tuple[int, int], int] = {}
        """What was lost before the first number that was met."""
        self._declared: dict[tuple[int, int, int], tuple[int, int, int]] = {}
        self._nameless: dict[tuple[int, int], tuple[int, int]] = {}
        self._suspected: dict[object, int] = {}
        """Differences that the last look found. Only what lasts from one look to the next is believed: a program that
        is interrupted between two of its counters makes one that is gone a moment later."""

    def take(self, h: abi.Header) -> None:
        """Take note of an event that was received."""
        self.received += 1
        key = (h.program, h.cpu)
        expected = self._next.get(key)
        if expected == h.serial:
            self._next[key] = expected + 1
            return
        if expected is None:
            expected = 0 if self._from_start else h.serial
        ahead = (h.serial - expected) % _SERIALS
        if ahead >= _SERIALS // 2:
            # A packet's program was interrupted by another packet's between taking its room and its number.
            self._missing[key] = self._missing.get(key, 0) - 1
        else:
            self._missing[key] = self._missing.get(key, 0) + ahead
            self._next[key] = expected + ahead + 1

    def settle(self, account: Account, losses: Iterable[Loss], *, drained: bool) -> list[Missing]:
        """Return what has to be declared now.

        ``account`` must have been read before ``losses``, and after every event that was given to ``take``.
        ``drained``: everything that was submitted before ``account`` was read has been given to ``take``.
        """
        found = [m for loss in losses if (m := self._named(loss)) is not None]
        return found + self._without_name(account) + self._unexplained(account, drained=drained)

    def _named(self, loss: Loss) -> Missing | None:
        key = (loss.cgroup, loss.program, loss.cause)
        events, size, last = self._declared.get(key, (0, 0, loss.first))
        if (loss.events, loss.bytes) == (events, size):
            return None
        self._declared[key] = (loss.events, loss.bytes, loss.last)
        cause, detail = _words(loss.program, loss.cause)
        return Missing(cause, detail, loss.events - events, loss.bytes - size, loss.cgroup, last, loss.last)

    def _without_name(self, account: Account) -> list[Missing]:
        """Return what the counters know and the map of losses does not: it was full."""
        named: dict[tuple[int, int], tuple[int, int]] = {}
        for (_, program, cause), (events, size, _) in self._declared.items():
            before = named.get((program, cause), (0, 0))
            named[program, cause] = before[0] + events, before[1] + size
        result = []
        for program in counters.PROGRAMS:
            c = counters.of_program(account, program)
            for i, (events, size) in enumerate(zip(c.lost, c.lost_bytes, strict=True)):
                key = (int(program), i)
                known, told = named.get(key, (0, 0)), self._nameless.get(key, (0, 0))
                count = self._lasting((*key, "events"), events - known[0] - told[0])
                amount = self._lasting((*key, "bytes"), size - known[1] - told[1])
                if count or amount:
                    self._nameless[key] = told[0] + count, told[1] + amount
                    result.append(Missing(*_words(program, i), count, amount))
        return result

    def _unexplained(self, account: Account, *, drained: bool) -> list[Missing]:
        surplus = 0
        for key, c in account.items():
            lost = sum(c.lost)
            if key not in self._next:
                if not drained or not c.seen:
                    continue
                # Nothing of this program was ever received: from here on its numbers are known.
                self._next[key] = c.seen
                self._missing[key] = c.seen if self._from_start else 0
            if key not in self._base:
                self._base[key] = 0 if self._from_start else lost - self._missing.get(key, 0)
            missing = self._missing.get(key, 0)
            if drained:
                missing += (c.seen - self._next[key]) % _SERIALS
            surplus += missing - (lost - self._base[key])
        surplus = self._lasting(UNACCOUNTED, surplus - self.undecodable - self.unaccounted)
        if not surplus:
            return []
        self.unaccounted += surplus
        detail = "numbers of events are missing that no counter explains: the ring was read by something else"
        return [Missing(UNACCOUNTED, detail, surplus, 0)]

    def _lasting(self, what: object, difference: int) -> int:
        """Return how much of a difference was there at the last look, too."""
        before = self._suspected.pop(what, 0)
        lasting = max(min(before, difference), 0)
        if difference > lasting:
            self._suspected[what] = difference - lasting
        return lasting


def _words(program: int, cause: int) -> tuple[str, str]:
    """Return the gap's cause and its detail."""
    name = counters.CAUSES[cause]
    return GAP_CAUSES[name], f"{abi.Program(program).name.removeprefix('P_').lower()}: {EXPLANATIONS[name]}"
