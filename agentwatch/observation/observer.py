"""From kernel events to records: one event in, the records that it completes out.

Joins identity, streams and protocols. Holds the whole state of the observation (processes, sessions, flows) as plain
values, so that it survives ``pickle`` and a restarted recorder goes on in the middle of a connection. Does no
I/O but the registrations of sessions. The same events give the same records in the same order, which is what lets a
restart skip those that are in the log already.
"""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentwatch.identity.processes import Process, ProcessTable
from agentwatch.identity.tracker import Session, Tracker
from agentwatch.kernel import abi
from agentwatch.observation import clock, delegation, inputs, make
from agentwatch.observation.flows import FlowTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentwatch.accounting import Missing
    from agentwatch.config import Config
    from agentwatch.records.encoding import Record
    from agentwatch.streams.flow import Flow, Item

MAX_PARTIAL_EXECS = 1024
"""Execs whose arguments are still arriving (they come right after it, on the same CPU); beyond it the oldest is
recorded as far as it is known."""


class Observer:
    """The state of the observation."""

    def __init__(self, config: Config, host: str, boot_id: str) -> None:
        self.tracker = Tracker(config)
        self.processes = ProcessTable()
        self.flows = FlowTable()
        self.told = delegation.Told()
        self.inputs = inputs.InputLines()
        self.host = host
        self.boot_id = boot_id
        self.clock_offset = clock.offset()
        """CLOCK_REALTIME minus CLOCK_BOOTTIME, ns."""
        self._handled_until = 0
        """CLOCK_BOOTTIME, ns, of the last event."""
        self._partial: dict[int, tuple[abi.Exec, list[bytes], int]] = {}
        self._uids: dict[int, int] = {}

    def lost(self, missing: Missing) -> list[Record]:
        """Return the ``gap`` record of events that were lost. The session they belong to may have ended unseen."""
        records: list[Record] = []
        at = missing.until or time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        session = self._session_of(missing.cgroup, at, records) if missing.cgroup else None
        for suspect in self.tracker.live() if session is None else [session]:
            suspect.suspect = True
        fields = {"cause": missing.cause, "count": missing.events, "bytes": missing.bytes, "detail": missing.detail}
        if missing.since is not None:
            fields["since"] = missing.since
        records.append(self.envelope_of("gap", at, session) | fields)
        return records

    def set_clock(self, offset: int | None = None) -> list[Record]:
        """Take the present distance between the wall clock and the time since boot (ns; None: look).

        Returns the ``clock_step`` record of a jump; a slow drift is taken silently.
        """
        before, self.clock_offset = self.clock_offset, clock.offset() if offset is None else offset
        jump = clock.step(before, self.clock_offset)
        if jump is None:
            return []
        fields = {"before": before, "after": self.clock_offset, "step_ns": jump}
        return [self.envelope("clock_step") | fields]

    def handle(self, position: int, event: abi.Event) -> list[Record]:
        """Return the records that an event completes, in order, each with ``event`` = its ring position."""
        records: list[Record] = []
        tgid = event.h.tgid
        self._handled_until = event.h.boottime
        if self._partial and tgid in self._partial and type(event) is not abi.Argv:
            self._finish_exec(tgid, records)
        self._HANDLERS[type(event)](self, position, event, records)
        for record in records:
            record["event"] = position
        return records

    def tick(self, now: int, *, drained: bool = True) -> list[Record]:
        """Return what has become due by time alone (``now``: CLOCK_BOOTTIME): opaque flows, flows that ended.

        ``drained``: every event until now was handled, so that a line without its end is one that has none yet, and a
        process or a cgroup that is gone has no events left.
        """
        records: list[Record] = []
        if drained:
            self._lines(self.inputs.idle(now), records)
        # What is waited for can be among what was not handled yet.
        known = now if drained else self._handled_until
        for flow, items in self.flows.tls_overdue(known):
            self._items(flow, items, now, records)
        for flow, items in self.flows.expire(now):
            self._items(flow, items, now, records)
        records.extend(
            self.envelope_of("opaque", now, self.tracker.session(flow.cgroup)) | make.opaque(flow, final=flow.closed)
            for flow in self.flows.due(known)
        )
        self.flows.drop_closed()
        if drained:
            self._end_forgotten(now, records)
        return records

    def _end_forgotten(self, now: int, records: list[Record]) -> None:
        """End sessions whose last events were lost: only then are the cgroups and /proc asked.

        What they say is older than the next time that everything is handled: a session ends only then, or what is
        still in the ring would begin another one.
        """
        for session in self.tracker.live():
            if session.empty:
                session.members = {tgid for tgid in session.members if Path(f"/proc/{tgid}").exists()}
                self._end_if_over(session, now, records)
        self.tracker.ask_after_loss()

    # -- the life of processes

    def _on_fork(self, _position: int, e: abi.Fork, records: list[Record]) -> None:
        self._joined(self._begin(e.h.cgroup, e.h.boottime, records, root=e.h.tgid), e.h.tgid)
        self._lines(self.inputs.ended(e.h.tgid, inputs.EXIT), records)  # of one before it whose exit was lost
        self.processes.fork(e.h.tgid, e.ppid, e.h.boottime)
        self._uids[e.h.tgid] = e.uid

    def _on_exec(self, position: int, e: abi.Exec, records: list[Record]) -> None:
        self._joined(self._begin(e.h.cgroup, e.h.boottime, records, root=e.h.tgid), e.h.tgid)
        self._lines(self.inputs.ended(e.h.tgid, inputs.EXEC), records)
        self._uids[e.h.tgid] = e.uid
        self.processes.exec(e.h.tgid, make.text_of_path(e.exe), position, e.h.boottime, ppid=e.ppid)
        if e.args_total > len(e.args) > 0:
            if len(self._partial) >= MAX_PARTIAL_EXECS:
                self._finish_exec(next(iter(self._partial)), records)
            self._partial[e.h.tgid] = (e, [e.args], position)
        else:
            self._record_exec(e, e.args, position, records)

    def _on_argv(self, _position: int, e: abi.Argv, records: list[Record]) -> None:
        partial = self._partial.get(e.h.tgid)
        if partial is None:
            return
        exec_event, parts, _ = partial
        if e.offset != sum(map(len, parts)):
            return  # a piece before it was lost and is counted; what follows would be put in the wrong place
        parts.append(e.args)
        if e.offset + len(e.args) >= exec_event.args_total:
            self._finish_exec(e.h.tgid, records)

    def _finish_exec(self, tgid: int, records: list[Record]) -> None:
        event, parts, exec_id = self._partial.pop(tgid)
        self._record_exec(event, b"".join(parts), exec_id, records)

    def _record_exec(self, e: abi.Exec, args: bytes, exec_id: int, records: list[Record]) -> None:
        session = self._session_of(e.h.cgroup, e.h.boottime, records)
        fields = make.exec_(e, args, exec_id)
        records.append(self.envelope_of("exec", e.h.boottime, session) | fields)
        delegated = delegation.by_exec(fields, self.host)
        if delegated is not None:
            process = self._process(e.h)
            records.append(self.envelope_of("delegation", e.h.boottime, session) | process | delegated)

    def _on_exec_failed(self, _position: int, e: abi.ExecFailed, records: list[Record]) -> None:
        session = self._begin(e.h.cgroup, e.h.boottime, records, root=e.h.tgid)
        process = self._process(e.h)
        records.append(self.envelope_of("exec_failed", e.h.boottime, session) | process | make.exec_failed(e))

    def _on_exit(self, _position: int, e: abi.Exit, records: list[Record]) -> None:
        session = self._session_of(e.h.cgroup, e.h.boottime, records)
        self._lines(self.inputs.ended(e.h.tgid, inputs.EXIT), records)
        process = self.processes.get(e.h.tgid)
        fields = make.exit_(e, process)
        records.append(self.envelope_of("exit", e.h.boottime, session) | self._process(e.h) | fields)
        self.processes.exit(e.h.tgid)
        self._uids.pop(e.h.tgid, None)
        if session is not None and session.root_pid == e.h.tgid:
            session.status = fields["status"]
        for flow, items in self.flows.process_ended(e.h.tgid, e.h.boottime):
            self._items(flow, items, e.h.boottime, records)
        if session is not None:
            session.members.discard(e.h.tgid)
            self._end_if_over(session, e.h.boottime, records)

    def _on_input(self, _position: int, e: abi.Input, records: list[Record]) -> None:
        self._begin(e.h.cgroup, e.h.boottime, records, root=e.h.tgid)
        self._lines(self.inputs.take(e), records)

    def _lines(self, lines: list[inputs.Line], records: list[Record]) -> None:
        for line in lines:
            session = self._session_of(line.cgroup, line.began, records)
            envelope = self.envelope_of("command_input", line.began, session)
            records.append(envelope | self._author(line.tgid, line.tid) | make.command_input(line))

    # -- sockets

    def _on_connect(self, _position: int, e: abi.Connect, records: list[Record]) -> None:
        session = self._begin(e.h.cgroup, e.h.boottime, records, root=e.h.tgid)
        fields = make.connect(e)
        records.append(self.envelope_of("connect", e.h.boottime, session) | self._process(e.h) | fields)
        self.flows.connected(e, fields["connection"], fields["peer"])
        if fields["errno"] in (0, errno.EINPROGRESS):
            self._delegated(e, delegation.by_connect(fields), session, records)

    def _delegated(
        self, e: abi.Event, fields: dict[str, Any] | None, session: Session | None, records: list[Record]
    ) -> None:
        if fields is not None and self.told.is_new(fields):
            records.append(self.envelope_of("delegation", e.h.boottime, session) | self._process(e.h) | fields)

    def _on_outside(self, _position: int, e: abi.Outside, records: list[Record]) -> None:
        session = self._begin(e.h.cgroup, e.h.boottime, records, root=e.h.tgid)
        flow = self.flows.outside(e.connect)
        fields = {"technique": make.SOCKET_FROM_OUTSIDE} | make.place(flow)
        records.append(self.envelope_of("divergence", e.h.boottime, session) | self._process(e.h) | fields)
        used = delegation.by_use(flow.transport, flow.peer, flow.local, flow.connection)
        self._delegated(e, used, session, records)

    def _on_divergence(self, _position: int, e: abi.Divergence, records: list[Record]) -> None:
        session = self._session_of(e.h.cgroup, e.h.boottime, records)
        fields = make.divergence(e, self.flows.of_socket(e.cookie, e.inode))
        records.append(self.envelope_of("divergence", e.h.boottime, session) | self._process(e.h) | fields)

    def _on_wire(self, _position: int, e: abi.Wire, records: list[Record]) -> None:
        flow, items = self.flows.wire(e)
        if items:
            self._items(flow, items, e.h.boottime, records)

    def _on_rows(self, _position: int, e: abi.Rows, records: list[Record]) -> None:
        flow, items = self.flows.rows(e)
        if items:
            self._items(flow, items, e.h.boottime, records)

    def _on_sock_end(self, _position: int, e: abi.SockEnd, _records: list[Record]) -> None:
        self.flows.released(e.cookie, e.h.boottime)

    def _on_unix_open(self, _position: int, e: abi.UnixOpen, records: list[Record]) -> None:
        session = self._begin(e.h.cgroup, e.h.boottime, records, root=e.h.tgid)
        peer = self.flows.unix_open(e)
        self._delegated(e, delegation.by_use("unix", peer, None, make.connection("unix", e.inode)), session, records)

    def _on_unix(self, _position: int, e: abi.Unix, records: list[Record]) -> None:
        flow, items = self.flows.unix(e)
        session = self._session_of(e.h.cgroup, e.h.boottime, records)
        if e.h.flags & abi.Flag.F_SCM_RIGHTS and not e.offset:
            envelope = self.envelope_of("scm_rights", e.h.boottime, session)
            direction = make.DIRECTIONS[e.direction]
            records.append(envelope | self._process(e.h) | {"connection": flow.connection, "direction": direction})
        if items:
            self._items(flow, items, e.h.boottime, records)

    def _on_unix_call(self, _position: int, e: abi.UnixCall, records: list[Record]) -> None:
        flow, items = self.flows.unix_call(e)
        if e.h.flags & abi.Flag.F_SCM_RIGHTS:
            session = self._session_of(e.h.cgroup, e.h.boottime, records)
            fields = {"connection": flow.connection, "direction": "out"}
            records.append(self.envelope_of("scm_rights", e.h.boottime, session) | self._process(e.h) | fields)
        if items:
            self._items(flow, items, e.h.boottime, records)

    def _on_tls(self, _position: int, e: abi.Tls, records: list[Record]) -> None:
        self._told(self.flows.tls(e), e.h.boottime, records)

    def _on_tls_record(self, _position: int, e: abi.TlsRecord, records: list[Record]) -> None:
        self._told(self.flows.tls_record(e), e.h.boottime, records)

    def _on_tls_end(self, _position: int, e: abi.TlsEnd, records: list[Record]) -> None:
        self._told(self.flows.tls_end(e), e.h.boottime, records)

    def _told(self, told: list[tuple[Flow, list[Item]]], at: int, records: list[Record]) -> None:
        for flow, items in told:
            if items:
                self._items(flow, items, at, records)

    def _on_mapped(self, _position: int, e: abi.Mapped, records: list[Record]) -> None:
        self._begin(e.h.cgroup, e.h.boottime, records, root=e.h.tgid)

    def library(self, e: abi.Mapped, fields: dict[str, Any]) -> Record:
        """Return the ``probe_attach`` record of a TLS library that a process has mapped and that is hooked now."""
        session = self.tracker.session(e.h.cgroup)
        return self.envelope_of("probe_attach", e.h.boottime, session) | self._process(e.h) | fields

    def _items(self, flow: Flow, items: list[Item], at: int, records: list[Record]) -> None:
        session = self._session_of(flow.cgroup, at, records)
        for item in items:
            made = make.item(flow, item)
            if made is None:
                continue
            kind, when, author, fields = made
            if kind == "delegation" and not self.told.is_new(fields):
                continue
            process = {} if author is None else self._author(author.tgid, author.tid)
            records.append(self.envelope_of(kind, when or at, session) | process | fields)

    # -- cgroups and sessions

    def _on_cgroup(self, _position: int, e: abi.Cgroup, records: list[Record]) -> None:
        path = e.path.decode(errors="surrogateescape")
        operation = e.operation
        if operation != abi.CgroupOperation.CG_ATTACH or e.h.cgroup == e.id:
            self.tracker.learn(e.id, path)
        if operation == abi.CgroupOperation.CG_ATTACH:
            self._on_attach(e, path, records)
        elif operation == abi.CgroupOperation.CG_POPULATED:
            self.tracker.populated(e.id, populated=True)
        elif operation in (abi.CgroupOperation.CG_EMPTY, abi.CgroupOperation.CG_RMDIR):
            self._end_if_over(self.tracker.populated(e.id, populated=False), e.h.boottime, records)

    def _on_attach(self, e: abi.Cgroup, path: str, records: list[Record]) -> None:
        session = self._begin(e.h.cgroup, e.h.boottime, records, root=e.h.tgid)
        self._joined(session, e.h.tgid)
        if e.h.cgroup == e.id:
            if self.processes.get(e.h.tgid) is None:
                self.processes.add(Process(e.h.tgid, 0, None, None, None, None, e.h.boottime))
            return
        fields = {"from": self.tracker.path(e.h.cgroup), "to": path.strip("/")}
        records.append(self.envelope_of("cgroup_move", e.h.boottime, session) | self._process(e.h) | fields)

    def _begin(self, cgroup: int, boottime: int, records: list[Record], *, root: int | None) -> Session | None:
        known = self.tracker.session(cgroup)
        if known is not None and not known.ended:
            return known
        begun = self.tracker.begin(cgroup, boottime)
        if begun is None:
            return None
        session, is_new = begun
        if is_new:
            session.root_pid = root
            records.append(self.envelope_of("session_start", session.started, session) | make.session_start(session))
        return session

    @staticmethod
    def _joined(session: Session | None, tgid: int) -> None:
        if session is not None:
            session.members.add(tgid)

    def _end_if_over(self, session: Session | None, boottime: int, records: list[Record]) -> None:
        if session is None or not self.tracker.end_if_over(session):
            return
        for flow, items in self.flows.session_ended(session.cgroup_id, boottime):
            self._items(flow, items, boottime, records)
        records.append(self.envelope_of("session_end", boottime, session) | make.session_end(session))

    def _session_of(self, cgroup: int, boottime: int, records: list[Record]) -> Session | None:
        """Return the session of a cgroup, also one that has ended: its last packets are still its own."""
        known = self.tracker.session(cgroup)
        return known or self._begin(cgroup, boottime, records, root=None)

    # -- what every record has

    def envelope_of(self, kind: str, boottime: int, session: Session | None) -> Record:
        """Begin a record of something that happened at ``boottime``, in a session or in none."""
        record: Record = {
            "kind": kind,
            "time": boottime + self.clock_offset,
            "boottime": boottime,
            "host": self.host,
            "boot_id": self.boot_id,
        }
        if session is not None:
            record["session"] = session.id
            record["agent"] = session.agent
        return record

    def envelope(self, kind: str) -> Record:
        """Begin a record of the recorder's own, now."""
        return self.envelope_of(kind, time.clock_gettime_ns(time.CLOCK_BOOTTIME), None)

    def _process(self, h: abi.Header) -> dict[str, Any]:
        return self._author(h.tgid, h.tid)

    def _author(self, tgid: int, tid: int) -> dict[str, Any]:
        if not tgid:
            return {}
        process = self.processes.get(tgid)
        fields: dict[str, Any] = {"pid": tgid, "tid": tid, "exe": process.exe if process else None}
        uid = self._uids.get(tgid)
        if uid is not None:
            fields["uid"] = uid
        return fields

    _HANDLERS: dict[type, Callable[..., None]] = {  # noqa: RUF012 -- a table, never changed
        abi.Fork: _on_fork,
        abi.Exec: _on_exec,
        abi.Argv: _on_argv,
        abi.ExecFailed: _on_exec_failed,
        abi.Exit: _on_exit,
        abi.Connect: _on_connect,
        abi.Wire: _on_wire,
        abi.Outside: _on_outside,
        abi.Divergence: _on_divergence,
        abi.Rows: _on_rows,
        abi.SockEnd: _on_sock_end,
        abi.UnixOpen: _on_unix_open,
        abi.Unix: _on_unix,
        abi.UnixCall: _on_unix_call,
        abi.Input: _on_input,
        abi.Tls: _on_tls,
        abi.TlsRecord: _on_tls_record,
        abi.TlsEnd: _on_tls_end,
        abi.Mapped: _on_mapped,
        abi.Cgroup: _on_cgroup,
    }
