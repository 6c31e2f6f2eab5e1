"""What was there before the watch began: processes and sockets that no kernel event will announce.

Read once, when a recorder starts on freshly loaded probes; each becomes a record marked ``preexisting``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agentwatch.identity import cgroups, processes, sockets
from agentwatch.identity.processes import Process
from agentwatch.observation import delegation, make

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agentwatch.config import Config
    from agentwatch.kernel.pins import Loaded
    from agentwatch.observation.observer import Observer
    from agentwatch.records.encoding import Record


def describe(observer: Observer, config: Config, loaded: Loaded) -> Iterator[Record]:
    """Yield the records of sessions, processes and sockets that are older than the probes."""
    before = loaded.loaded_at - observer.clock_offset
    for directory in cgroups.subtree(config.watch_path):
        found = [p for pid in _members(directory) if (p := processes.read(pid)) is not None and p.started < before]
        if not found:
            continue
        cgroup_id = cgroups.cgroup_id(directory)
        observer.tracker.learn(cgroup_id, str(directory.relative_to(config.cgroup_root)))
        begun = observer.tracker.begin(cgroup_id, min(p.started for p in found))
        if begun is None:
            continue
        session, is_new = begun
        if is_new:
            fields = make.session_start(session) | {"preexisting": True}
            yield observer.envelope_of("session_start", session.started, session) | fields
        for p in found:
            session.members.add(p.pid)
            observer.processes.add(Process(p.pid, p.ppid, p.exe, None, session.id, p.started, p.started))
            yield observer.envelope_of("exec", p.started, session) | _exec(p)
        for s in sockets.existing([p.pid for p in found]):
            if s.peer is not None:
                fields = _connect(s)
                yield observer.envelope_of("connect", session.started, session) | fields
                opened = delegation.by_connect(fields)
                if opened is not None and observer.told.is_new(opened):
                    more = {"pid": s.pid, "preexisting": True}
                    yield observer.envelope_of("delegation", session.started, session) | more | opened


def _members(directory: Path) -> list[int]:
    try:
        return [int(line) for line in (directory / "cgroup.procs").read_text(encoding="ascii").split()]
    except OSError:
        return []  # it was removed meanwhile, or is threaded and has no list of its own


def _exec(p: processes.Found) -> make.Fields:
    argv = p.argv or []
    size = sum(len(os.fsencode(word)) + 1 for word in argv)
    return {
        "pid": p.pid,
        "tid": p.pid,
        "exe": p.exe,
        "argv": make.words(argv),
        "argv_bytes": size,
        "argv_captured": size,
        "cwd": p.cwd,
        "ppid": p.ppid,
        "uid": p.uid,
        "gid": p.gid,
        "exec_id": None,
        "preexisting": True,
    }


def _connect(s: sockets.Socket) -> make.Fields:
    kind = s.transport or "unix"
    identity = s.inode if kind == "unix" or s.cookie is None else s.cookie
    return {
        "pid": s.pid,
        "transport": kind,
        "peer": f"unix:{s.peer}" if kind == "unix" else s.peer,
        "local": s.local,
        "connection": make.connection(kind, identity),
        "fd": s.fd,
        "errno": 0,
        "latency_ns": None,
        "source": "kernel",
        "preexisting": True,
    }
