"""Unix connections whose bytes are those that the other end has read: order, authors, what is missing."""

from __future__ import annotations

import struct

from agentwatch.protocols.base import Direction, Outcome, Statement
from agentwatch.streams.flow import AUTHOR_NS, Author, Flow, Item, Missing, Said

FIRST, SECOND = Author(10, 10), Author(20, 21)
AT = 1_000


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


STARTUP = struct.pack(">II", 16, 3 << 16) + b"user\0u\0\0"
GREETING = message(b"R", b"\0\0\0\0") + b"Z\0\0\0\5I"
QUERY = message(b"Q", b"SELECT 1\0")
ANSWER = message(b"D", b"\0\0") + message(b"C", b"SELECT 1\0") + b"Z\0\0\0\5I"


def opened() -> Flow:
    flow = Flow("unix-1", "unix", "unix:/run/server", started=AT, seen_by="receiver")
    send(flow, STARTUP, 0)
    flow.read(0, STARTUP, len(STARTUP), AT)
    flow.unix(Direction.IN, GREETING, len(GREETING), AT)
    return flow


def send(flow: Flow, data: bytes, position: int, author: Author = FIRST, at: int = AT) -> list[Item]:
    flow.author = author
    return flow.sent(position, len(data), at)


def statements(items: list[Item]) -> list[tuple[bytes | None, Outcome, Author]]:
    return [
        (i.message.text, i.message.outcome, i.author)
        for i in items
        if isinstance(i, Said) and isinstance(i.message, Statement)
    ]


def test_what_was_read_is_the_senders() -> None:
    flow = opened()
    assert send(flow, QUERY, len(STARTUP), SECOND) == []
    flow.read(len(STARTUP), QUERY, len(QUERY), AT)
    items = flow.unix(Direction.IN, ANSWER, len(ANSWER), AT)
    assert statements(items) == [(b"SELECT 1", Outcome.OK, SECOND)]


def test_reading_may_be_told_of_before_the_send() -> None:
    flow = opened()
    assert flow.read(len(STARTUP), QUERY, len(QUERY), AT) == []
    send(flow, QUERY, len(STARTUP), SECOND)
    items = flow.unix(Direction.IN, ANSWER, len(ANSWER), AT)
    assert statements(items) == [(b"SELECT 1", Outcome.OK, SECOND)]


def test_bytes_do_not_wait_for_ever_for_their_author() -> None:
    flow = opened()
    flow.read(len(STARTUP), QUERY, len(QUERY), AT)
    assert flow.overdue(AT + AUTHOR_NS) == []
    flow.overdue(AT + AUTHOR_NS + 1)
    items = flow.unix(Direction.IN, ANSWER, len(ANSWER), AT)
    assert statements(items) == [(b"SELECT 1", Outcome.OK, FIRST)]


def test_an_answer_is_not_taken_before_its_question() -> None:
    flow = opened()
    flow.read(len(STARTUP), QUERY, len(QUERY), AT)
    items = flow.unix(Direction.IN, ANSWER, len(ANSWER), AT)
    assert statements(items) == [(b"SELECT 1", Outcome.OK, FIRST)]


def test_bytes_that_were_lost_are_missing_exactly() -> None:
    flow = opened()
    send(flow, bytes(1000) + QUERY, len(STARTUP))
    items = flow.read(len(STARTUP) + 1000, QUERY, len(QUERY), AT)
    assert [i for i in items if isinstance(i, Missing)] == [Missing(Direction.OUT, 1000, "unix-hole")]


def test_what_was_sent_and_never_read_is_missing_at_the_end() -> None:
    flow = opened()
    send(flow, QUERY, len(STARTUP))
    assert flow.unread() == len(QUERY)
    assert Missing(Direction.OUT, len(QUERY), "not-received") in flow.close(AT)


def test_positions_go_on_beyond_their_32_bits() -> None:
    flow = Flow("unix-1", "unix", None, started=AT, seen_by="receiver")
    flow.reason = "unknown-protocol"
    position, step = 0, 1 << 30
    for _ in range(9):
        flow.author = FIRST
        flow.sent(position & 0xFFFFFFFF, step, AT)
        assert flow.read(position & 0xFFFFFFFF, b"", step, AT) == []
        position += step
    assert flow.totals() == (9 * step, 0)
    assert flow.unread() == 0
