"""Agents that are to be held when the ring is full: which cgroups, and the processes that were stopped for it.

The kernel side is in probes/filter.h: packets of such a cgroup are refused, and its processes stopped when the ring is
half full. Nothing but this module continues them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import time
from typing import TYPE_CHECKING

from agentwatch.errors import ProbesNotLoaded
from agentwatch.kernel import bpf, pins

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.config import Config

HOLD = 1
"""OVERFLOW_HOLD in probes/maps.h."""
MAX_STOPPED = 65536
"""Entries of the ``stopped`` and ``waiting`` maps."""
_QUIET_ROUNDS, _ROUND_SECONDS = 3, 0.05
_CGROUP, _TGID, _POLICY = struct.Struct("<Q"), struct.Struct("<I"), struct.Struct("<I")


def hold(config: Config, cgroup_id: int) -> None:
    """Hold what happens in a cgroup from now on. Raises ProbesNotLoaded; a cgroup that goes away is forgotten."""
    policies = pins.open_map(config, "policies")
    try:
        bpf.map_update(policies, _CGROUP.pack(cgroup_id), _POLICY.pack(HOLD))
    finally:
        os.close(policies)


def pass_on(config: Config, cgroup_id: int) -> None:
    """Hold a cgroup no longer. Raises ProbesNotLoaded."""
    policies = pins.open_map(config, "policies")
    try:
        bpf.map_delete(policies, _CGROUP.pack(cgroup_id))
    finally:
        os.close(policies)


def release(stopped: int) -> int:
    """Let the stopped processes go on, from the descriptor of a map of them; return how many there were."""
    found = [key for key, _ in bpf.map_items(stopped, _TGID.size, bpf.map_value_bytes(stopped), MAX_STOPPED)]
    for key in found:
        release_one(stopped, key)
    return len(found)


def release_one(stopped: int, key: bytes) -> None:
    """Let one of them go on, by its key."""
    bpf.map_delete(stopped, key)  # first: it may be stopped again at once
    with contextlib.suppress(ProcessLookupError):
        os.kill(_TGID.unpack(key)[0], signal.SIGCONT)


@contextlib.contextmanager
def released_afterwards(config: Config) -> Iterator[None]:
    """Let every process go on once the probes are unpinned within; the kernel detaches them a moment later."""
    held: list[int] = []
    for name in ("stopped", "waiting"):
        with contextlib.suppress(ProbesNotLoaded):
            held.append(pins.open_map(config, name))
    try:
        yield
        quiet = 0
        while held and quiet < _QUIET_ROUNDS:
            quiet = 0 if sum([release(stopped) for stopped in held]) else quiet + 1
            time.sleep(_ROUND_SECONDS)
    finally:
        for stopped in held:
            os.close(stopped)
