"""Who a tgid is: a table fed by fork, exec and exit events, and a snapshot of what ran before a watch began.

The table answers from events alone: nothing is read from /proc, so a process that lived for a millisecond is as
complete as any other. A process that exited stays known until its place is needed (the last packets of a
connection come after the exit of the task that wrote them). Plain values, survives ``pickle``.

The snapshot reads /proc (through psutil) once, for processes that no event will ever announce.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import psutil

from agentwatch.identity import cgroups

MAX_PROCESSES = 65536
"""Processes kept, living and exited (about 0.5 KiB each). Above it the oldest exited one is dropped, else the
oldest of all; ``ProcessTable.evicted`` counts the latter."""
MAX_ANCESTORS = 64
"""Parents that are followed upwards: deeper chains are cut (a table that was fed nonsense could hold a circle)."""

_NANOSECONDS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """One process. Times are CLOCK_BOOTTIME in nanoseconds.

    ``started`` is the fork, ``began`` the fork or the exec that began the present program, ``exec_id`` the number of
    the exec that the program came from, its own or an ancestor's (None: before the watch).
    """

    tgid: int
    ppid: int
    exe: str | None
    exec_id: int | None
    session: str | None
    started: int | None
    began: int | None


class ProcessTable:
    """Processes by tgid. A tgid that is used again replaces the process that had it."""

    def __init__(self, limit: int = MAX_PROCESSES) -> None:
        self.evicted = 0
        self._limit = limit
        self._living: dict[int, Process] = {}
        self._exited: dict[int, Process] = {}

    def __len__(self) -> int:
        return len(self._living) + len(self._exited)

    def fork(self, tgid: int, ppid: int, boottime: int, session: str | None = None) -> Process:
        """Add a process; program and (unless given) session are its parent's."""
        parent = self.get(ppid)
        if parent is None:
            return self._add(Process(tgid, ppid, None, None, session, boottime, boottime))
        return self._add(Process(tgid, ppid, parent.exe, parent.exec_id, session or parent.session, boottime, boottime))

    def exec(self, tgid: int, exe: str | None, exec_id: int, boottime: int, *, ppid: int = 0) -> Process:
        """Begin a new program; ``ppid`` counts where the process was not known. Session and fork stay."""
        before = self._living.get(tgid) or Process(tgid, ppid, None, None, None, None, None)
        return self._add(before._replace(exe=exe, exec_id=exec_id, began=boottime))

    def assign(self, tgid: int, session: str) -> None:
        """Put a living process into a session (it entered the session's cgroup)."""
        process = self._living.get(tgid)
        if process is not None:
            self._living[tgid] = process._replace(session=session)

    def exit(self, tgid: int) -> Process | None:
        """End a process (its last thread); return what it was, None if it was not known."""
        process = self._living.pop(tgid, None)
        if process is not None:
            self._exited[tgid] = process
        return process

    def add(self, process: Process) -> None:
        """Add a process that was there before the watch."""
        self._add(process)

    def get(self, tgid: int) -> Process | None:
        """Return a process, also one that exited lately."""
        return self._living.get(tgid) or self._exited.get(tgid)

    def is_living(self, tgid: int) -> bool:
        """Tell whether a process is known and has not exited."""
        return tgid in self._living

    def of_session(self, session: str) -> list[Process]:
        """Return the living processes of a session."""
        return [process for process in self._living.values() if process.session == session]

    def ancestors(self, tgid: int) -> list[Process]:
        """Return the known parents of a process, the nearest first."""
        found: list[Process] = []
        process = self.get(tgid)
        while process is not None and len(found) < MAX_ANCESTORS:
            process = self.get(process.ppid) if process.ppid != process.tgid else None
            if process is not None:
                found.append(process)
        return found

    def _add(self, process: Process) -> Process:
        self._exited.pop(process.tgid, None)
        self._living[process.tgid] = process
        if len(self) > self._limit:
            oldest = self._exited or self._living
            self.evicted += oldest is self._living
            del oldest[next(iter(oldest))]
        return process


class Found(NamedTuple):
    """A process that a snapshot found. ``argv`` and paths are decoded as file names are; None: not readable.

    ``started`` is CLOCK_BOOTTIME in nanoseconds, to a clock tick (10 ms).
    """

    pid: int
    ppid: int
    exe: str | None
    argv: list[str] | None
    cwd: str | None
    uid: int
    gid: int
    started: int


def snapshot(cgroup: Path) -> list[Found]:
    """Return the processes in a cgroup and below it. One that ends meanwhile is left out."""
    return [found for pid in cgroups.processes(cgroup) if (found := read(pid)) is not None]


def read(pid: int) -> Found | None:
    """Return a running process as /proc shows it; None if there is none (any more)."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return Found(
                pid=pid,
                ppid=process.ppid(),
                exe=_link(pid, "exe"),
                argv=_argv(pid),
                cwd=_link(pid, "cwd"),
                uid=process.uids().real,
                gid=process.gids().real,
                started=_started(pid),
            )
    except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
        return None


def _link(pid: int, name: str) -> str | None:
    # Not psutil's: it takes " (deleted)" off. A kernel thread or a zombie has no such link.
    try:
        return str(Path(f"/proc/{pid}/{name}").readlink())
    except OSError:
        return None


def _argv(pid: int) -> list[str] | None:
    # Not psutil's cmdline(): it splits on spaces where there is one argument, which changes what was run.
    try:
        content = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    return [os.fsdecode(word) for word in content.removesuffix(b"\0").split(b"\0")] if content else None


def _started(pid: int) -> int:
    # Not psutil's create_time(): it is on the wall clock. Field 22, counted after comm, which may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[19]) * _NANOSECONDS_PER_TICK
