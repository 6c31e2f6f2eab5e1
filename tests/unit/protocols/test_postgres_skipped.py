"""Rows that were not copied: whatever part of a result is stepped over, the statement is the same."""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from agentwatch.protocols.base import Direction, Outcome, Skipped, Statement
from agentwatch.protocols.postgres import PostgresDecoder

if TYPE_CHECKING:
    from agentwatch.protocols.base import Message

READY = b"Z\0\0\0\5I"
AT = 1


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


def opened() -> PostgresDecoder:
    decoder = PostgresDecoder()
    body = struct.pack(">I", 3 << 16) + b"user\0u\0\0"
    decoder.feed(Direction.OUT, struct.pack(">I", len(body) + 4) + body, AT)
    decoder.feed(Direction.IN, message(b"R", b"\0\0\0\0") + READY, AT)
    decoder.feed(Direction.OUT, message(b"Q", b"SELECT\0"), AT)
    return decoder


def answer(sizes: list[int]) -> tuple[bytes, list[int]]:
    """Return the rows of a result and where each one begins."""
    stream, starts = b"", []
    for size in sizes:
        starts.append(len(stream))
        stream += message(b"D", bytes(size + 2))
    return stream, starts


def end(decoder: PostgresDecoder, count: int) -> list[Message]:
    return decoder.feed(Direction.IN, message(b"C", b"SELECT %d\0" % count) + READY, AT)


def steps(stream: bytes, starts: list[int], cuts: list[int]) -> list[bytes | Skipped]:
    """Cut the stream; every second piece is one that was stepped over, as the kernel tells it."""
    bounds = [0, *sorted({c % (len(stream) + 1) for c in cuts}), len(stream)]
    ends = [*starts[1:], len(stream)]
    result: list[bytes | Skipped] = []
    for number, (low, high) in enumerate(itertools.pairwise(bounds)):
        cut_header = any(s < edge < s + 5 for s in starts for edge in (low, high))
        if number % 2 == 0 or cut_header or low == high:
            result.append(stream[low:high])
            continue
        lead = next((e - low for s, e in zip(starts, ends, strict=True) if s < low < e), 0)
        rest = next((e - high for s, e in zip(starts, ends, strict=True) if s < high < e), 0)
        begun = sum(low <= s < high for s in starts)
        result.append(Skipped(high - low, lead, rest, begun, ord("D")))
    return result


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.lists(st.integers(0, 1000), max_size=8))
def test_any_part_of_the_rows_can_be_stepped_over(sizes: list[int], cuts: list[int]) -> None:
    stream, starts = answer(sizes)
    decoder = opened()
    for piece in steps(stream, starts, cuts):
        done = decoder.skipped(piece, AT) if isinstance(piece, Skipped) else decoder.feed(Direction.IN, piece, AT)
        assert done == []
    (statement,) = end(decoder, len(sizes))
    assert isinstance(statement, Statement)
    assert (statement.outcome, statement.rows) == (Outcome.OK, len(sizes))


def test_a_claim_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    rows, _ = answer([10, 10])
    for wrong in (
        Skipped(17, 5, 0, 1, ord("D")),  # in the middle of a message, where there is none
        Skipped(17, 0, 0, 4, ord("D")),  # too short for so many headers
        Skipped(17, 0, 0, 1, ord("C")),  # not a message that may be stepped over
        Skipped(17, 0, 3, 0, ord("D")),  # no message begins, but one goes on
    ):
        decoder = opened()
        assert decoder.skipped(wrong, AT) is None
        decoder.feed(Direction.IN, rows, AT)
        (statement,) = end(decoder, 2)
        assert isinstance(statement, Statement)
        assert (statement.outcome, statement.rows) == (Outcome.OK, 2)


def test_half_a_header_refuses() -> None:
    decoder = opened()
    decoder.feed(Direction.IN, b"D\0\0", AT)
    assert decoder.skipped(Skipped(17, 0, 0, 1, ord("D")), AT) is None
