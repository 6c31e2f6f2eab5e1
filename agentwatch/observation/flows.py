"""The table of live flows: wire and Unix socket events find their connection here, and leave it when it ended.

A TCP connection is known by its socket cookie, a UDP peer by cookie and address, a Unix socket by its inode.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.kernel import abi
from agentwatch.observation import delegation, make
from agentwatch.observation.ties import Key, Ties
from agentwatch.protocols.base import Direction, Skipped
from agentwatch.streams.flow import FROM_LIBRARY, Author, Flow, Interest, Segment
from agentwatch.streams.secured import Plaintext

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.observation.ties import Session, Tied
    from agentwatch.streams.flow import Item

MAX_FLOWS = 65536
"""Live flows; beyond it the one that was quiet for longest is closed, which its records say."""
LINGER_NS = 2_000_000_000
"""After the application closed a TCP socket, how long its last packets are waited for."""
UDP_IDLE_NS = 60_000_000_000
"""A UDP peer that was quiet for this long is reported and forgotten."""
UNDECIDED_NS = 1_000_000_000
"""A flow with bytes whose protocol is not known after this long is reported as opaque so far."""
UNTIED_NS = 500_000_000
"""The same for one under TLS that no library was seen to speak on."""
REPORT_AGAIN_NS = 60_000_000_000
"""A living opaque flow that grew is reported again after this long."""
MAX_GONE = 16384
"""Cookies of closed connections that are remembered, so that their last packets do not open a flow."""

_DIRECTIONS = (Direction.OUT, Direction.IN)
Told = list[tuple[Flow, "list[Item]"]]


class Verdict(NamedTuple):
    """How much of a connection the kernel is to copy.

    ``identity``: a TCP socket's cookie, a Unix socket's inode, a TLS library's session (ALL: its socket is known).
    """

    transport: str
    identity: int
    interest: Interest


class FlowTable:
    """Live flows by key."""

    def __init__(self) -> None:
        self._flows: dict[Key, Flow] = {}
        self._unix_names: dict[int, tuple[str | None, bool]] = {}
        """Peer, and whether the connect was seen, of Unix sockets that have no flow yet."""
        self._gone: dict[Key, None] = {}
        self._outside: dict[int, int] = {}
        """Cookie -> inode of IP sockets that were made outside."""
        self.ties = Ties()
        self.verdicts: list[Verdict] = []
        """What the kernel has to be told; the recorder takes them out."""

    def __len__(self) -> int:
        return len(self._flows)

    def connected(self, e: abi.Connect, connection: str, peer: str) -> None:
        """Take note of a connect: a Unix socket's name is known, and that its beginning was seen."""
        del connection
        if e.family != socket.AF_UNIX and e.h.flags & abi.Flag.F_USER_MEMORY:
            self._name(e.inode, peer, seen=True)  # an IP socket that was made outside
        if e.family == socket.AF_UNIX and e.result == 0:
            self._name(e.inode, peer, seen=True)
            flow = self._flows.get(("unix", e.inode, b"", 0))
            if flow is not None:
                flow.peer = peer
                flow.container_daemon = delegation.speaks_docker(peer)

    def unix_open(self, e: abi.UnixOpen) -> str | None:
        """Take note of a Unix socket that was met for the first time; return its peer if no connect told it before."""
        known = self._unix_names.get(e.inode)
        if known is not None:
            return None
        peer = make.unix_peer(e.path) if e.path else None
        self._name(e.inode, peer, seen=False)
        return peer

    def outside(self, e: abi.Connect) -> Flow:
        """Take note of an IP socket whose packets are not seen."""
        key: Key = ("outside", e.inode, b"", 0)
        flow = self._flows.get(key)
        if flow is not None:
            return flow
        if e.cookie:
            self._outside[e.cookie] = e.inode
        fields = make.connect(e)
        connection, transport, peer, local = (fields[name] for name in ("connection", "transport", "peer", "local"))
        flow = self._add(key, Flow(connection, transport, peer, started=e.h.boottime, seen_by="task"))
        flow.local = local
        flow.cgroup = e.h.cgroup
        flow.joined = not self._unix_names.pop(e.inode, (None, False))[1]
        if transport != "tcp":
            flow.reason = "udp" if transport == "udp" else "unknown-protocol"
        return flow

    def of_socket(self, cookie: int, inode: int) -> Flow | None:
        """Return the flow of a socket."""
        flows = self._flows
        tcp = flows.get(("tcp", cookie, b"", 0)) if cookie else None
        return tcp or flows.get(("unix", inode, b"", 0)) or flows.get(("outside", inode, b"", 0))

    def wire(self, e: abi.Wire) -> tuple[Flow, list[Item]]:
        """Take one packet."""
        tcp = e.protocol == socket.IPPROTO_TCP
        key: Key = ("tcp", e.cookie, b"", 0) if tcp else ("ip", e.cookie, e.remote, e.remote_port << 8 | e.protocol)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._open_wire(key, e)
        elif flow.peer is None:  # it began with something that tells no address
            flow.peer = make.address(e.family, e.remote, e.remote_port)
            flow.local = make.address(e.family, e.local, e.local_port)
        if e.h.tgid and e.direction == abi.Way.OUT and flow.author.tid != e.h.tid:
            flow.author = Author(e.h.tgid, e.h.tid)
        if e.h.cgroup and not flow.cgroup:
            flow.cgroup = e.h.cgroup
        if not tcp:
            flow.touched = e.h.boottime
            flow.bytes[e.direction] += e.payload
            return flow, []
        segment = Segment(e.seq, e.ack, e.tcp_flags, e.data, e.payload)
        items = flow.tcp(_DIRECTIONS[e.direction], segment, e.h.boottime)
        if flow.secured is not None and flow.secured.fresh:
            items += self._look_for_records(key, flow)
        if flow.verdict is not Interest.TLS or flow.secured is None or not flow.secured.tied:
            self._judge(key, flow)
        return flow, items

    def rows(self, e: abi.Rows) -> tuple[Flow, list[Item]]:
        """Take a run of rows that the kernel stepped over."""
        key: Key = ("tcp", e.cookie, b"", 0)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._add(key, Flow(make.connection("tcp", e.cookie), "tcp", None, started=e.h.boottime))
            flow.cgroup = e.h.cgroup
        run = Skipped(e.length, e.lead, e.rest, e.rows, e.message)
        return flow, flow.skipped(e.seq, run, e.partial, e.h.boottime)

    def unix(self, e: abi.Unix) -> tuple[Flow, list[Item]]:
        """Take one piece of a Unix socket call."""
        outside = e.h.flags & abi.Flag.F_OUTSIDE
        key: Key = ("outside" if outside else "unix", e.inode, b"", 0)
        flow = self._flows.get(key) or self._open_unix(key, e.h)
        if e.direction == abi.Way.OUT and (not e.by_reader or flow.author.tgid == 0):
            flow.author = Author(e.h.tgid, e.h.tid)
        if not e.by_reader:
            flow.users.add(e.h.tgid)
        if e.total == 0:
            return flow, self._close_unix(flow, e.h.boottime)
        items: list[Item] = []
        if e.h.flags & abi.Flag.F_URGENT:
            flow.urgent(e.h.boottime, items)
        if e.by_reader:
            flow.seen_by = "receiver"
            items += flow.read(e.position + e.offset, e.data, e.payload, e.h.boottime)
            if flow.released is not None and not flow.unread():
                items += flow.close(e.h.boottime)
        else:
            if e.h.flags & abi.Flag.F_SUPPRESSED:
                flow.elsewhere()
            items += flow.unix(_DIRECTIONS[e.direction], e.data, e.payload, e.h.boottime)
        if flow.secured is not None and flow.secured.fresh:
            items += self._look_for_records(key, flow)
        self._judge(key, flow)
        return flow, items

    def unix_call(self, e: abi.UnixCall) -> tuple[Flow, list[Item]]:
        """Take a send on a Unix socket whose bytes come when they are read."""
        key: Key = ("unix", e.inode, b"", 0)
        flow = self._flows.get(key) or self._open_unix(key, e.h)
        flow.seen_by = "receiver"
        flow.author = Author(e.h.tgid, e.h.tid)
        flow.users.add(e.h.tgid)
        items: list[Item] = []
        if e.h.flags & abi.Flag.F_URGENT:
            flow.urgent(e.h.boottime, items)
        return flow, items + flow.sent(e.position, e.total, e.h.boottime)

    # -- TLS

    def tls(self, e: abi.Tls) -> Told:
        """Take a piece of the plaintext of a call into a TLS library."""
        session = self.ties.session(e.session, e.h)
        known = session.told[e.direction]
        position = e.position + e.offset
        session.told[e.direction] = max(known, position + e.payload)
        piece = Plaintext(
            e.session,
            _DIRECTIONS[e.direction],
            position,
            e.data,
            e.payload,
            None if e.offset else e.total,
            Author(e.h.tgid, e.h.tid),
            e.h.boottime,
            known,
        )
        told: Told = []
        if e.cookie and (session.key is None or session.key[1] not in (e.cookie, self._outside.get(e.cookie))):
            key = self._key_of(e.cookie)
            on = self._flows.get(key)
            if on is None or not on.in_plain_view:
                told += self._tied(self.ties.tie(session, key), e.h)
        whole = e.offset + e.payload >= e.total
        for one in self.ties.in_order(session, piece, writing=e.writing, whole=whole):
            told += self._pass_on(session, one)
        return told

    def _pass_on(self, session: Session, piece: Plaintext) -> Told:
        if session.key is not None:
            return [self._say(session, piece)]
        self.ties.wait(session, piece)
        return []

    def tls_record(self, e: abi.TlsRecord) -> Told:
        """Take the beginning of a record that a library without a socket made."""
        tied = self.ties.made(self.ties.session(e.session, e.h), e.data)
        return self._tied(tied, e.h) if tied is not None else []

    def tls_end(self, e: abi.TlsEnd) -> Told:
        """Take note that a library's connection was freed."""
        session = self.ties.ended(e.session)
        if session is None:
            return []
        told = self._all_of(session)
        flow = None if session.key is None else self._flows.get(session.key)
        if flow is None:
            return told
        for direction in Direction:
            position, known = e.position[direction], session.told[direction]
            if position > known:  # what it said last was lost, or is counted and was not told of yet
                author = Author(e.h.tgid, e.h.tid)
                last = Plaintext(e.session, direction, position, b"", 0, None, author, e.h.boottime, known)
                told.append(self._say(session, last))
        if flow.seen_by == FROM_LIBRARY:
            told.append((flow, flow.close(e.h.boottime)))
        return told

    def tls_overdue(self, now: int) -> Iterator[tuple[Flow, list[Item]]]:
        """Say what libraries said on sockets that were not found."""
        for session in self.ties.overdue(now):
            yield from self._all_of(session)

    def _key_of(self, cookie: int) -> Key:
        inode = self._outside.get(cookie)
        return ("tcp", cookie, b"", 0) if inode is None else ("outside", inode, b"", 0)

    def _look_for_records(self, key: Key, flow: Flow) -> list[Item]:
        assert flow.secured is not None  # noqa: S101 -- asked by the callers
        fresh, flow.secured.fresh = flow.secured.fresh, []
        items: list[Item] = []
        for record in fresh:
            tied = self.ties.sent(key, record.prefix, flow.cgroup)
            if tied is None:
                continue
            for _, more in self._tied(tied, None):
                items += more
        return items

    def _tied(self, tied: Tied, h: abi.Header | None) -> Told:
        """Say what has waited for the socket of a session that is known now."""
        session = tied.session
        assert session.key is not None  # noqa: S101 -- that is what tied means
        flow = self._flow_of(session)
        flow.tie(h.boottime if h is not None else flow.touched)
        self.verdicts.append(Verdict("tls", session.number, Interest.ALL))
        self._judge(session.key, flow)
        return [self._say(session, piece) for piece in tied.waiting]

    def _flow_of(self, session: Session) -> Flow:
        assert session.key is not None  # noqa: S101 -- asked by the callers
        flow = self._flows.get(session.key)
        if flow is None:
            kind = "tcp" if session.key[0] == "outside" else session.key[0]
            name = make.connection(kind, session.key[1])
            flow = self._add(session.key, Flow(name, kind, None, started=session.since))
            flow.cgroup = session.cgroup
            flow.joined = True
        return flow

    def _say(self, session: Session, piece: Plaintext) -> tuple[Flow, list[Item]]:
        flow = self._flow_of(session)
        flow.cgroup = flow.cgroup or session.cgroup
        items = flow.plaintext(piece)
        plain = flow.plain
        assert plain is not None  # noqa: S101 -- it has just said something
        unread = plain.reason is not None
        if unread and plain.verdict is not Interest.COUNT:
            plain.verdict = Interest.COUNT
            self.verdicts.append(Verdict("tls", session.number, Interest.COUNT))
        if unread or flow.verdict is not Interest.TLS:
            assert session.key is not None  # noqa: S101 -- as in _flow_of
            self._judge(session.key, flow)
        return flow, items

    def _all_of(self, session: Session) -> Told:
        """Say whatever waits for anything."""
        told: Told = []
        for piece in self.ties.overtaken(session):
            told += self._pass_on(session, piece)
        return told + self._without_socket(session)

    def _without_socket(self, session: Session) -> Told:
        """Say what waits, as a connection of which nothing else is known."""
        if not session.waiting:
            return []
        flow_key: Key = ("tls", session.number, b"", 0)
        tied = self.ties.tie(session, flow_key)
        flow = self._flow_of(session)
        flow.seen_by = FROM_LIBRARY
        flow.users.add(session.tgid)
        return [self._say(session, piece) for piece in tied.waiting]

    def _open_unix(self, key: Key, h: abi.Header) -> Flow:
        outside = key[0] == "outside"
        peer, seen = self._unix_names.pop(key[1], (None, False))
        kind, seen_by = ("tcp", "task") if outside else ("unix", "unix")
        flow = Flow(make.connection(kind, key[1]), kind, peer, started=h.boottime, seen_by=seen_by)
        flow.cgroup = h.cgroup
        flow.joined = not seen
        flow.container_daemon = delegation.speaks_docker(peer)
        return self._add(key, flow)

    @staticmethod
    def _close_unix(flow: Flow, at: int) -> list[Item]:
        """Close a Unix connection; what the other end has not read yet is waited for a moment."""
        if not flow.unread():
            return flow.close(at)
        flow.released = flow.released or at
        return []

    def released(self, cookie: int, at: int) -> None:
        """Take note that the application closed a socket: what is still on the way is waited for a moment."""
        flow = self._flows.get(("tcp", cookie, b"", 0))
        if flow is not None:
            flow.released = at

    def process_ended(self, tgid: int, at: int) -> Iterator[tuple[Flow, list[Item]]]:
        """Close the Unix sockets that only this process used."""
        for session in self.ties.process_ended(tgid):
            yield from self._all_of(session)
        for flow in list(self._flows.values()):
            if flow.seen_by != "wire" and not flow.closed and tgid in flow.users:
                flow.users.discard(tgid)
                if not flow.users:
                    yield flow, self._close_unix(flow, at)

    def session_ended(self, cgroup: int, at: int) -> Iterator[tuple[Flow, list[Item]]]:
        """Close the Unix sockets of a session without processes; TCP has still packets on the way."""
        for flow in self._flows.values():
            if flow.seen_by == "wire" and flow.released is None and flow.cgroup == cgroup:
                flow.released = at  # the event of its release was lost
            if flow.seen_by != "wire" and not flow.closed and flow.cgroup == cgroup:
                yield flow, self._close_unix(flow, at)

    def expire(self, now: int) -> Iterator[tuple[Flow, list[Item]]]:
        """Close what has been released for long enough, quiet UDP peers, and what is above the limit."""
        surplus = len(self._flows) - MAX_FLOWS
        oldest = sorted(self._flows.values(), key=lambda f: f.touched)[:surplus] if surplus > 0 else []
        for flow in [*self._flows.values(), *oldest]:
            if flow.closed:
                continue
            lingered = flow.released is not None and now - flow.released > LINGER_NS
            idle = flow.transport not in ("tcp", "unix") and now - flow.touched > UDP_IDLE_NS
            if lingered or idle or flow in oldest:
                yield flow, flow.close(now)
            elif items := flow.overdue(now):
                yield flow, items

    def due(self, now: int) -> list[Flow]:
        """Return opaque flows that a record is due for, and mark them as reported."""
        result = []
        for flow in self._flows.values():
            if flow.secured is not None:
                flow.secured.settle(now, closed=flow.closed)
            totals = flow.totals()
            if totals == (flow.reported or (0, 0)) and not (flow.closed and flow.reported):
                continue
            patience = UNDECIDED_NS if flow.secured is None else UNTIED_NS
            undecided = flow.undecided() and now - flow.started < patience
            # What was told too early is taken back at once.
            grows = flow.reported is not None and sum(totals) >= sum(flow.reported)
            recent = grows and now - flow.reported_at < REPORT_AGAIN_NS
            if flow.closed or not (undecided or recent):
                flow.reported, flow.reported_at = totals, now
                result.append(flow)
        return result

    def drop_closed(self) -> None:
        """Forget flows that ended and were reported."""
        closed = [key for key, flow in self._flows.items() if flow.closed]
        if secured := {key for key in closed if self._flows[key].secured is not None}:
            self.ties.flows_ended(secured)
        for key in closed:
            flow = self._flows.pop(key)
            if key[0] == "outside":
                self._outside = {cookie: inode for cookie, inode in self._outside.items() if inode != key[1]}
            if flow.verdict is not Interest.ALL:
                transport = key[0] if key[0] in ("tcp", "tls") else "unix"
                self.verdicts.append(Verdict(transport, key[1], Interest.ALL))
            self._gone[key] = None
            if len(self._gone) > MAX_GONE:
                del self._gone[next(iter(self._gone))]

    def _judge(self, key: Key, flow: Flow) -> None:
        """Say what the kernel has to be told of a connection, if that has changed."""
        interest = flow.interest()
        if key[0] == "outside":
            key = ("unix", *key[1:])  # the kernel counts both by inode
        if interest is not flow.verdict and (interest is Interest.COUNT or key[0] == "tcp"):
            flow.verdict = interest
            self.verdicts.append(Verdict(key[0], key[1], interest))

    def _open_wire(self, key: Key, e: abi.Wire) -> Flow:
        transport = make.transport(e.protocol)
        peer = make.address(e.family, e.remote, e.remote_port)
        flow = Flow(make.connection(transport, e.cookie), transport, peer, started=e.h.boottime)
        flow.local = make.address(e.family, e.local, e.local_port)
        flow.cgroup = e.h.cgroup
        if transport != "tcp":
            flow.reason = "udp" if transport == "udp" else "unknown-protocol"
        if key in self._gone and not e.payload:
            flow.closed = True  # the end of a connection that was dealt with
            return flow
        return self._add(key, flow)

    def _add(self, key: Key, flow: Flow) -> Flow:
        self._flows[key] = flow
        return flow

    def _name(self, inode: int, peer: str | None, *, seen: bool) -> None:
        self._unix_names[inode] = (peer, seen)
        if len(self._unix_names) > MAX_FLOWS:
            del self._unix_names[next(iter(self._unix_names))]
