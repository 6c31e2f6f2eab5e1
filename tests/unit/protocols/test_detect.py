"""A protocol is known by what is said, never by the port."""

from __future__ import annotations

import pytest

from agentwatch.protocols.detect import ENOUGH_BYTES, NEED_MORE, POSTGRESQL, TLS, UNKNOWN, detect
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
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2p1\r\n",
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
