"""What needs no root: the tree as it is on this machine. Making and removing: tests/kernel/test_run.py."""

from __future__ import annotations

import os

from agentwatch.config import find_cgroup2_mount
from agentwatch.identity import cgroups


def own_cgroup() -> str:
    with open("/proc/self/cgroup") as f:  # noqa: PTH123 (procfs)
        return next(line.split(":", 2)[2].strip() for line in f if line.startswith("0:"))


def test_own_process_is_in_its_cgroup() -> None:
    path = find_cgroup2_mount() / own_cgroup().strip("/")
    assert os.getpid() in cgroups.processes(path)
    assert os.getpid() in cgroups.processes(find_cgroup2_mount())


def test_identifier_leads_back_to_the_path() -> None:
    root = find_cgroup2_mount()
    for path in cgroups.subtree(root)[1:6]:
        assert cgroups.path_of(cgroups.cgroup_id(path), root) == str(path.relative_to(root))


def test_unknown_identifier_has_no_path() -> None:
    assert cgroups.path_of(1 << 62, find_cgroup2_mount()) is None


def test_vanished_cgroup_is_empty_and_removed() -> None:
    gone = find_cgroup2_mount() / "agentwatch-never-made"
    assert cgroups.processes(gone) == []
    assert not cgroups.populated(gone)
    assert cgroups.remove(gone)
