"""A protocol is known by what is said, never by the port."""

from __future__ import annotations

import pytest

from agentwatch.protocols.detect import DBUS, DOCKER, ENOUGH_BYTES, NEED_MORE, POSTGRESQL, SSH, TLS, UNKNOWN, detect
from tests.unit.protocols.fix_delegation import call
from tests.unit.protocols.fix_wire import (
    SYNC,
    bind,
    complete,
    execute,
    message,
    packet,
    parse,
    query,
    ready,
    startup,
)

CLIENT_HELLO = b"\x16\3\1\2\0\1\0\1\xfc\3\3" + bytes(32)
POSTGRES = {
    "startup": startup(user="bob"),
    "newer startup": startup((3 << 16) + 2, user="bob"),
    "SSLRequest": packet(80877103),
    "GSSENCRequest": packet(80877104),
    "cancel": packet(80877102, bytes(8)),
}
OTHERS = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "http with a path like Docker's": b"GET /images/logo.png HTTP/1.1\r\nHost: x\r\n\r\n",
    "http with a version in its path": b"POST /v1.2/orders HTTP/1.1\r\nHost: x\r\n\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "smtp": b"EHLO there\r\n",
    "mysql": b"\x20\0\0\1\x85\xa6\xff\x01" + bytes(28),
    "zeros": bytes(64),
    "protocol 2": packet(2 << 16, bytes(288)),
}


@pytest.mark.parametrize("first", POSTGRES.values(), ids=POSTGRES.keys())
def test_postgresql_is_known_by_its_first_packet(first: bytes) -> None:
    assert detect(first, b"", joined=False) == POSTGRESQL
    for length in range(len(first)):
        assert detect(first[:length], b"", joined=False) in (NEED_MORE, POSTGRESQL)


@pytest.mark.parametrize("joined", [False, True])
def test_tls_is_known_by_its_client_hello(*, joined: bool) -> None:
    assert detect(CLIENT_HELLO, b"", joined=joined) == TLS
    assert all(detect(CLIENT_HELLO[:n], b"", joined=joined) == NEED_MORE for n in range(6))


def tls_record(kind: int, length: int = 100, version: int = 0x0303) -> bytes:
    return bytes([kind]) + version.to_bytes(2, "big") + length.to_bytes(2, "big") + bytes(range(min(length, 200)))


@pytest.mark.parametrize("length", [1, 2, 19, 100, 16384 + 17, 16384 + 2048])
def test_a_joined_tls_connection_is_known_by_a_record_of_application_data(length: int) -> None:
    first = tls_record(23, length)
    assert detect(first, b"", joined=True) == TLS
    assert detect(first, tls_record(23), joined=True) == TLS
    assert detect(first, b"", joined=False) == UNKNOWN
    assert all(detect(first[:n], b"", joined=True) == NEED_MORE for n in range(6))


@pytest.mark.parametrize(
    "first",
    [
        tls_record(23, 16384 + 2049),
        tls_record(23, version=0x0203),
        tls_record(23, version=0x0305),
        tls_record(24),
        tls_record(19),
        b"and the rest of a record" + tls_record(23),
    ],
)
def test_what_begins_no_record_of_application_data_is_not_tls(first: bytes) -> None:
    assert detect(first, b"", joined=True) == UNKNOWN


@pytest.mark.parametrize(
    ("out", "in_"),
    [
        (tls_record(20, 1) + tls_record(23), b""),
        (tls_record(21, 26), b""),
        (tls_record(22, 40), b""),
        (tls_record(23, version=0x0302), b""),
        (b"", tls_record(23)),
        (b"", tls_record(22, 90)),
    ],
    ids=[
        "change of the cipher",
        "alert",
        "end of the handshake",
        "TLS 1.1",
        "data that came in",
        "answer of the server",
    ],
)
def test_a_joined_tls_connection_is_known_by_any_record(out: bytes, in_: bytes) -> None:
    assert detect(out, in_, joined=True) == TLS


@pytest.mark.parametrize("first", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("joined", [False, True])
def test_other_protocols_are_unknown(first: bytes, *, joined: bool) -> None:
    assert detect(first, b"", joined=joined) == UNKNOWN


@pytest.mark.parametrize(
    "first",
    [
        query(b"select 1"),
        parse(b"select 1") + bind() + execute() + SYNC,
        SYNC,
        query(b"insert into t values ('" + b"x" * 100_000)[:4096],
        bind(b"x" * 10, name=b"s") + execute() + SYNC,
        POSTGRES["startup"],
    ],
)
def test_a_joined_connection_is_known_by_its_messages(first: bytes) -> None:
    assert detect(first, b"", joined=True) == POSTGRESQL


def test_a_joined_connection_is_known_by_the_servers_messages_alone() -> None:
    rows = message("D", b"\0\1\0\0\0\1x") * 2
    assert detect(b"", rows + complete(b"SELECT 2") + ready(), joined=True) == POSTGRESQL
    assert detect(b"", OTHERS["http"], joined=True) == UNKNOWN


def test_nothing_said_is_not_enough_and_much_said_is() -> None:
    assert detect(b"", b"", joined=False) == NEED_MORE
    begun = bind(b"x" * 100_000)
    assert detect(begun[:100], b"", joined=True) == NEED_MORE
    assert detect(begun[:ENOUGH_BYTES], b"", joined=True) != NEED_MORE


DELEGATING = {
    "D-Bus": (b"\0AUTH EXTERNAL 30\r\n", DBUS),
    "D-Bus without a mechanism": (b"\0AUTH\r\n", DBUS),
    "ssh": (b"SSH-2.0-OpenSSH_9.2p1\r\n", SSH),
    "Docker": (b"HEAD /_ping HTTP/1.1\r\n", DOCKER),
    "Docker with a version": (b"POST /v1.47/containers/create?name=x HTTP/1.1\r\n", DOCKER),
    "Podman": (b"GET http://d/v4.0.0/libpod/info HTTP/1.1\r\n", DOCKER),
}


@pytest.mark.parametrize(("first", "protocol"), DELEGATING.values(), ids=DELEGATING.keys())
@pytest.mark.parametrize("joined", [False, True])
def test_channels_are_known_by_their_first_bytes(first: bytes, protocol: str, *, joined: bool) -> None:
    assert detect(first, b"", joined=joined) == protocol
    for length in range(len(first)):
        assert detect(first[:length], b"", joined=joined) in (NEED_MORE, protocol)


def test_any_request_to_a_container_daemon_is_one_to_its_api() -> None:
    assert detect(b"GET /%69nfo HTTP/1.1\r\n", b"", joined=False, docker=True) == DOCKER
    assert detect(b"\x01GET /", b"", joined=False, docker=True) == UNKNOWN


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_joined_bus_connection_is_known_by_a_message(order: str) -> None:
    message = call("StartUnit", order=order)
    assert detect(message, b"", joined=True) == DBUS
    for length in range(len(message)):
        assert detect(message[:length], b"", joined=True) in (NEED_MORE, DBUS)
