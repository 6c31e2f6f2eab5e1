"""Statements sent by every way that avoids, or confuses, who looks at system calls; see docs/bypasses.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel.fix_bypass import COVERED, DECLARED, NEEDS_IO_URING, PYTHON, seen

if TYPE_CHECKING:
    from tests.kernel.fix_bypass import Arena, Attack

pytestmark = pytest.mark.kernel

BOTH = pytest.mark.parametrize("transport", ["tcp", "unix"])
ZERO_COPY = pytest.mark.parametrize("way", ["sendfile", "splice", "vmsplice"])


@BOTH
def test_plain_statement(arena: Arena, transport: str) -> None:
    state, attack = arena.sql(arena.tool("plain"), transport=transport)
    assert state == COVERED
    assert attack.declared() == []  # or every attack would seem to be declared


@NEEDS_IO_URING
@pytest.mark.parametrize("way", ["send", "sqpoll", "decoy", "worker"])
def test_io_uring_on_tcp(arena: Arena, way: str) -> None:
    state, attack = arena.sql(arena.tool("io_uring"), way)
    assert state == COVERED
    assert attack.techniques() == {"io_uring"}


@NEEDS_IO_URING
@pytest.mark.parametrize("way", ["send", "sqpoll"])
def test_io_uring_on_unix(arena: Arena, way: str) -> None:
    state, attack = arena.sql(arena.tool("io_uring"), way, transport="unix")
    assert state == COVERED
    assert attack.techniques() == {"io_uring"}


@NEEDS_IO_URING
@pytest.mark.parametrize("way", ["decoy", "worker"])
def test_io_uring_under_another_call_on_unix(arena: Arena, way: str) -> None:
    state, attack = arena.sql(arena.tool("io_uring"), way, transport="unix")
    assert state == COVERED
    assert attack.techniques() == {"io_uring"}


def test_aio_on_tcp(arena: Arena) -> None:
    state, attack = arena.sql(arena.tool("aio"))
    assert state == COVERED
    assert attack.techniques() == {"aio"}


def test_aio_on_unix(arena: Arena) -> None:
    state, attack = arena.sql(arena.tool("aio"), transport="unix")
    assert state == COVERED
    assert attack.techniques() == {"aio"}


@ZERO_COPY
def test_sendfile_and_splice_on_tcp(arena: Arena, way: str) -> None:
    state, attack = arena.sql(arena.tool("zero_copy"), way)
    assert state == COVERED
    assert attack.techniques() == {"sendfile" if way == "sendfile" else "splice"}


@ZERO_COPY
def test_sendfile_and_splice_on_unix(arena: Arena, way: str) -> None:
    state, attack = arena.sql(arena.tool("zero_copy"), way, transport="unix")
    assert state == COVERED
    assert attack.techniques() == {"sendfile" if way == "sendfile" else "splice"}


def test_pages_rewritten_after_sendfile_on_tcp(arena: Arena) -> None:
    state, attack = arena.sql(arena.tool("zero_copy"), "rewrite")
    assert state == DECLARED
    assert attack.techniques() == {"sendfile"}


def test_buffer_rewritten_during_the_call_on_tcp(arena: Arena) -> None:
    state, _ = arena.sql(arena.tool("rewrite"), text=arena.slow_statement())
    assert state == COVERED


def test_buffer_rewritten_during_the_call_on_unix(arena: Arena) -> None:
    state, _ = arena.sql(arena.tool("rewrite"), transport="unix", text=arena.slow_statement())
    assert state == COVERED


@BOTH
def test_sendmmsg_of_100_messages(arena: Arena, transport: str) -> None:
    text = f"{arena.statement()} /* {'x' * 1000} */"
    state, _ = arena.sql(arena.tool("mmsg"), "hundred", transport=transport, text=text)
    assert state == COVERED


def test_sendmmsg_with_an_empty_message_on_unix(arena: Arena) -> None:
    state, _ = arena.sql(arena.tool("mmsg"), "empty", transport="unix")
    assert state == COVERED


def test_int_0x80_on_tcp(arena: Arena) -> None:
    state, attack = arena.sql(arena.tool("compat"), "query")
    assert state == COVERED
    assert attack.techniques() == {"32-bit-call"}
    assert len(attack.of("connect")) == 1


def test_int_0x80_on_unix(arena: Arena) -> None:
    state, _ = arena.sql(arena.tool("compat"), "query", transport="unix")
    assert state == DECLARED


@BOTH
def test_out_of_band_bytes(arena: Arena, transport: str) -> None:
    state, attack = arena.sql(arena.tool("urgent"), transport=transport)
    assert state == DECLARED
    assert "urgent-data" in {record["reason"] for record in attack.of("opaque")}


@BOTH
def test_one_byte_at_a_time(arena: Arena, transport: str) -> None:
    state, _ = arena.sql(PYTHON, arena.tool("connections.py"), "bytewise", transport=transport)
    assert state == COVERED


@BOTH
def test_sending_and_leaving(arena: Arena, transport: str) -> None:
    text = arena.statement()
    _, attack = arena.sql(PYTHON, arena.tool("connections.py"), "forget", transport=transport, text=text)
    assert seen(len(attack.said(text)) == 1, attack) == COVERED  # whatever outcome: the agent has not waited for it


@BOTH
def test_plain_after_refused_tls(arena: Arena, transport: str) -> None:
    state, _ = arena.sql(PYTHON, arena.tool("connections.py"), "refused_tls", transport=transport)
    assert state == COVERED


def test_huge_statement(arena: Arena) -> None:
    text = arena.statement()
    position = arena.postgres.log_position()
    attack = arena.run(
        PYTHON, arena.tool("connections.py"), "huge", text, env=arena.postgres.environment("tcp"), known=_one_statement
    )
    (logged,) = (entry.text for entries in arena.postgres.logged_since(position).values() for entry in entries)
    assert text in logged
    (record,) = attack.of("statement")
    assert text not in record["db.query.text"]
    assert record["text_length"] == len(logged)
    assert seen(None, attack) == DECLARED


def _one_statement(attack: Attack) -> object:
    return attack.of("statement")


def test_function_call_message(arena: Arena) -> None:
    attack = arena.run(PYTHON, arena.tool("connections.py"), "function_call", "", env=arena.postgres.environment("tcp"))
    assert "PostgreSQL" in attack.stdout
    (request,) = attack.of("request")
    assert request["operation"] == "function_call"
    assert seen(None, attack) == DECLARED  # which function is not told
