"""Which protocol a connection speaks, by the first bytes of it and never by its port.

In: the first bytes that the watched process sent and those that it received. Out: a ``Detection``: the name of a
decoder, ``TLS``, ``SSH``, ``UNKNOWN``, or ``NEED_MORE`` while the bytes would still fit. ``NEED_MORE`` is never the
answer once ``ENOUGH_BYTES`` were sent.
"""

from __future__ import annotations

from agentwatch.protocols import dbus_frames, docker_requests, postgres_startup
from agentwatch.protocols.postgres_frames import Reading, read_headers

Detection = str

NEED_MORE: Detection = "need-more"
TLS: Detection = "tls"
UNKNOWN: Detection = "unknown"
POSTGRESQL: Detection = "postgresql"
DBUS: Detection = "dbus"
DOCKER: Detection = "docker"
SSH: Detection = "ssh"

ENOUGH_BYTES = 16 * 1024
"""With so many bytes there is always an answer: a joined connection may begin with one long message."""
_TLS_RECORD_BYTES = 6
_CLIENT_HELLO = 1
_RECORD_TYPES = range(20, 24)
_MAX_MINOR, _MAX_RECORD_BYTES = 4, (1 << 14) + 2048
_DBUS_BEGINS = (b"\0AUTH ", b"\0AUTH\r\n")
_SSH_BEGINS = (b"SSH-2.0-", b"SSH-1.99-")


def detect(out: bytes, in_: bytes, *, joined: bool, docker: bool = False) -> Detection:
    """Tell the protocol of a connection by its first bytes; ``joined`` if they are not its beginning.

    ``docker``: the peer is the socket of a container daemon, where any HTTP request is one to its API; elsewhere only
    one whose path says so.

    A joined connection is PostgreSQL's if its first bytes are a message of a client (type, sane length, and what it
    must hold), or several headers in a row, or where nothing was sent yet, messages of a server.
    """
    if not out and not (joined and in_):
        return NEED_MORE
    if (tls := _record(out or in_) if joined else _client_hello(out)) != UNKNOWN:
        return tls
    if out and (other := _by_beginning(out, joined=joined, docker=docker)) != UNKNOWN:
        return other
    return _joined(out, in_) if joined else _startup(out)


def _by_beginning(out: bytes, *, joined: bool, docker: bool) -> Detection:
    found = [_begins(out, _DBUS_BEGINS, DBUS), _begins(out, _SSH_BEGINS, SSH)]
    http = docker_requests.begins_with_request(out, any_path=docker)
    found.append(NEED_MORE if http is None else DOCKER if http else UNKNOWN)
    if joined:
        message = dbus_frames.looks_like_message(out)
        found.append(NEED_MORE if message is None else DBUS if message else UNKNOWN)
    for one in found:
        if one not in (UNKNOWN, NEED_MORE):
            return one
    if NEED_MORE in found and (not joined or len(out) < ENOUGH_BYTES):
        return NEED_MORE
    return UNKNOWN


def _begins(out: bytes, beginnings: tuple[bytes, ...], detection: Detection) -> Detection:
    if out.startswith(beginnings):
        return detection
    return NEED_MORE if any(one.startswith(out) for one in beginnings) else UNKNOWN


def _client_hello(out: bytes) -> Detection:
    # A TLSPlaintext record: handshake, version 3.x, length; in it a ClientHello (RFC 8446, sections 5.1 and 4).
    if out[0] != postgres_startup.TLS_HANDSHAKE or out[1:2] not in (b"", b"\3"):
        return UNKNOWN
    if len(out) < _TLS_RECORD_BYTES:
        return NEED_MORE
    return TLS if out[5] == _CLIENT_HELLO else UNKNOWN


def _record(data: bytes) -> Detection:
    # Any TLS record, of either side (RFC 8446, section 5.1; RFC 5246, section 6.2).
    if data[0] not in _RECORD_TYPES or data[1:2] not in (b"", b"\3"):
        return UNKNOWN
    if len(data) < _TLS_RECORD_BYTES:
        return NEED_MORE
    return TLS if data[2] <= _MAX_MINOR and int.from_bytes(data[3:5], "big") <= _MAX_RECORD_BYTES else UNKNOWN


def _startup(out: bytes) -> Detection:
    length = postgres_startup.packet_length(out)
    if length is None:
        return UNKNOWN
    return POSTGRESQL if length else NEED_MORE


def _joined(out: bytes, in_: bytes) -> Detection:
    if out and _startup(out) == POSTGRESQL:
        return POSTGRESQL
    reading = read_headers(0, out) if out else read_headers(1, in_)
    if reading is Reading.NOT_YET:
        return UNKNOWN if max(len(out), len(in_)) >= ENOUGH_BYTES else NEED_MORE
    return POSTGRESQL if reading is Reading.FITS else UNKNOWN
