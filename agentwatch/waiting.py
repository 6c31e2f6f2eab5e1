"""Agents that wait for the recorder: because the ring is full (``overflow``), or the disk (``[log] disk_full``).

In: what is full. Out: policies of cgroups in the kernel (``kernel/holding``), and processes that go on. What always
holds: nobody goes on before what gathered meanwhile is read, and whoever waits because of the disk is let go by the
next recorder if this one is killed.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from agentwatch.errors import ProbesNotLoaded
from agentwatch.identity import cgroups
from agentwatch.identity.agents import match
from agentwatch.kernel import holding, pins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agentwatch.config import Config


class Waiting:
    """Who waits, for one run of the recorder. Raises ProbesNotLoaded."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stopped_fd = pins.open_map(config, "stopped")
        self._agents = frozenset(agent.name for agent in config.agents if agent.overflow == "hold")
        self._all = False
        """Whether every agent waits because the disk is full."""
        self._may_wait = True
        """Whether agents may wait for that reason: a recorder before this one may have been killed meanwhile."""

    def begin(self, agent: str, cgroup_id: int) -> None:
        """Let a session that begins wait if its agent has to."""
        # agentwatch run does it before the first process; this is for cgroups that something else makes.
        if agent in self._agents or self._all:
            holding.hold(self._config, cgroup_id)

    def tick(self, *, disk_full: bool, crowded: bool) -> None:
        """Do what is due. ``disk_full``: all are to wait for the disk; ``crowded``: the ring has not been read yet."""
        if disk_full:
            self._hold_all()
        elif self._may_wait and not crowded:
            # Not before what gathered meanwhile is read: it would take them no time to fill the rest of the ring.
            self._let_go()
        if (self._agents or self._all) and not crowded:
            holding.release(self._stopped_fd)

    def close(self) -> None:
        """Close the map."""
        os.close(self._stopped_fd)

    def _hold_all(self) -> None:
        # What is in the watch, and what is made there from now on.
        if self._all:
            return
        self._all = self._may_wait = True
        with contextlib.suppress(ProbesNotLoaded):  # then nobody is held any more
            for _, cgroup_id in self._watched_cgroups():
                holding.hold(self._config, cgroup_id)

    def _let_go(self) -> None:
        # Those that wait only because of the disk.
        self._all = self._may_wait = False
        with contextlib.suppress(ProbesNotLoaded):
            for path, cgroup_id in self._watched_cgroups():
                found = match(self._config.agents, os.path.relpath(path, self._config.cgroup_root))
                if found is None or found[0].name not in self._agents:
                    holding.pass_on(self._config, cgroup_id)
        holding.release(self._stopped_fd)

    def _watched_cgroups(self) -> Iterator[tuple[Path, int]]:
        # The root first, and those below it are listed when the caller is done with it: what is made then inherits.
        root, canary = self._config.watch_path, self._config.cgroup_root / self._config.canary_cgroup
        with contextlib.suppress(OSError):
            yield root, cgroups.cgroup_id(root)
        for path in cgroups.subtree(root):
            if path not in (root, canary):
                with contextlib.suppress(OSError):  # it is gone
                    yield path, cgroups.cgroup_id(path)
