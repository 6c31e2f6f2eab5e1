"""What an agent has others do: a connect, an exec or a message in, the fields of a ``delegation`` record out.

What a daemon runs for somebody is the daemon's child: it is not in the session of whoever asked. So that somebody was
asked is told where it is noticed first: the socket of such a daemon is known by its path, a server on this host by its
port, a program by its name, and what is said by how it reads (``protocols.dbus``, ``protocols.docker``). Jobs that are
put into a spool by writing a file are not noticed. Pure functions, and the connections that were told.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from typing import TYPE_CHECKING, Any

from agentwatch.observation import programs
from agentwatch.records.encoding import text

if TYPE_CHECKING:
    from agentwatch.protocols.base import Delegated
    from agentwatch.streams.flow import Flow

Fields = dict[str, Any]

MAX_TOLD = 16384
"""Connections whose delegation was recorded; beyond it the oldest may be told again."""

_PATHS = (
    (re.compile(r"(?:^|/)docker\.sock"), "docker"),
    (re.compile(r"(?:^|/)podman(?:-[^/]*)?\.sock"), "podman"),
    (re.compile(r"(?:^|/)containerd\.sock(?:\.ttrpc)?"), "containerd"),
    (re.compile(r"(?:^|/)crio\.sock"), "crio"),
    (re.compile(r"(?:^|/)system_bus_socket"), "dbus-system"),
    (re.compile(r"(?:^|/)run/user/[0-9]+/bus"), "dbus-user"),
    (re.compile(r"(?:/|@/)tmp/dbus-[^/]+"), "dbus-user"),
    (re.compile(r"(?:^|/)run/(?:user/[0-9]+/)?systemd/private"), "systemd"),
    (re.compile(r"@/org/freedesktop/systemd1/private(?:/.*)?"), "systemd"),
    (re.compile(r"(?:^|/)systemd/machine/io\.systemd\.Machine"), "machined"),
    (re.compile(r"(?:^|/)tmux-[0-9]+/[^/]+"), "tmux"),
    (re.compile(r"(?:^|/)run/screen/S-[^/]+/[^/]+"), "screen"),
    (re.compile(r"(?:^|/)\.screen/[^/]+"), "screen"),
)
"""Ends of the paths of sockets: they may be reached through another root, or by a relative path."""
_PORTS = {22: "ssh", 2375: "docker", 2376: "docker"}
_CONTAINER_DAEMONS = frozenset({"docker", "podman"})


def channel_of_path(peer: str | None) -> str | None:
    """Return the channel that a Unix socket opens, by its name as in a ``connect`` record."""
    if peer is None or not peer.startswith("unix:"):
        return None
    path = peer.removeprefix("unix:")
    if not path.startswith("@"):
        path = posixpath.normpath(path)
    for pattern, channel in _PATHS:
        for found in pattern.finditer(path):
            if found.end() == len(path):
                return channel
    return None


def speaks_docker(peer: str | None) -> bool:
    """Tell whether a peer is the socket of a daemon with Docker's API."""
    return channel_of_path(peer) in _CONTAINER_DAEMONS


def on_this_host(peer: str | None, local: str | None) -> bool:
    """Tell whether a TCP peer is on this host: loopback, or the address that the connection comes from."""
    host = _host(peer)
    if host is None:
        return False
    return host.is_loopback or host.is_unspecified or host == _host(local)


def _host(address: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return None if address is None else ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return None  # a Unix socket


def by_connect(connect: Fields) -> Fields | None:
    """Return what a connect opens, from the fields of its record; None if that is no channel."""
    peer, local = connect["peer"], connect["local"]
    channel = _channel_of(connect["transport"], peer, local)
    return None if channel is None else _noticed("connect", channel, peer, connect["connection"])


def by_use(transport: str, peer: str | None, local: str | None, connection: str) -> Fields | None:
    """Return what a socket opens that the process did not connect itself, once it is used."""
    channel = _channel_of(transport, peer, local)
    return None if channel is None else _noticed("use", channel, peer, connection)


def _channel_of(transport: str, peer: str | None, local: str | None) -> str | None:
    if transport == "tcp" and peer is not None and on_this_host(peer, local):
        return _PORTS.get(int(peer.rpartition(":")[2]))
    return channel_of_path(peer)


def by_message(flow: Flow, message: Delegated) -> Fields | None:
    """Return what a daemon was asked; None where that daemon is on another host (ssh)."""
    channel = message.channel
    if channel == "ssh" and not on_this_host(flow.peer, flow.local):
        return None
    if channel in ("dbus", "docker"):
        channel = channel_of_path(flow.peer) or channel
    fields = _noticed("message", channel, flow.peer, flow.connection)
    fields["operation"] = message.operation
    fields["command"] = None if message.command is None else [text(word) for word in message.command]
    fields["detail"] = message.detail
    return fields


def by_exec(record: Fields, host: str) -> Fields | None:
    """Return what a program asks others to do, from the fields of its ``exec`` record; ``host``: this host's name."""
    argv = [word for word in record["argv"] if isinstance(word, str)]
    script = argv.index(record["filename"]) if record["filename"] in argv else 0  # behind its interpreter
    asked = programs.asked((record["exe"], record["filename"], *argv[:1]), argv[script + 1 :], host)
    if asked is None:
        return None
    channel, operation = asked
    fields = _noticed("exec", channel, None, None)
    fields |= {"operation": operation, "command": record["argv"], "exec_id": record["exec_id"]}
    return fields


def _noticed(how: str, channel: str, peer: str | None, connection: str | None) -> Fields:
    fields: Fields = {"channel": channel, "noticed": how, "operation": None, "command": None}
    if connection is not None:
        fields |= {"peer": peer, "connection": connection}
    return fields


class Told:
    """The connections whose channel was recorded."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], None] = {}

    def is_new(self, fields: Fields | None) -> bool:
        """Take note of what a connection opened; tell whether that was not told before. Commands always are new."""
        if fields is None:
            return False
        if fields["noticed"] == "exec" or (fields["noticed"] == "message" and fields["channel"] != "ssh"):
            return True
        key = (fields["channel"], fields["connection"])
        if key in self._told:
            return False
        self._told[key] = None
        if len(self._told) > MAX_TOLD:
            del self._told[next(iter(self._told))]
        return True
