"""The rules of ``protocols.base``, for PostgreSQL: at every split, cut, gap and save."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwatch.protocols.base import Direction, Message, Outcome
from agentwatch.protocols.postgres import PostgresDecoder
from tests.unit.protocols.fix_wire import (
    AT,
    IN,
    OUT,
    Turn,
    conversation,
    pipelined,
    run,
    short,
    statements,
    wrongly_paired,
)

CONVERSATIONS = {"in turns": conversation(), "pipelined": pipelined()}
every_conversation = pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())


def bytes_of(turns: list[Turn], direction: Direction) -> int:
    return sum(len(data) for d, data in turns if d == direction)


@every_conversation
def test_every_statement_has_its_own_answer(turns: list[Turn]) -> None:
    found = statements(run(turns))
    assert not wrongly_paired(found)
    assert Outcome.UNKNOWN not in {s.outcome for s in found}


@every_conversation
def test_byte_by_byte_is_the_same(turns: list[Turn]) -> None:
    assert run([(d, data[i : i + 1]) for d, data in turns for i in range(len(data))]) == run(turns)


@every_conversation
def test_every_split_point_is_the_same(turns: list[Turn]) -> None:
    whole = run(turns)
    for number, (direction, data) in enumerate(turns):
        for at in range(1, len(data)):
            pieces = [*turns[:number], (direction, data[:at]), (direction, data[at:]), *turns[number + 1 :]]
            assert run(pieces) == whole


@every_conversation
def test_saved_and_loaded_at_every_piece_is_the_same(turns: list[Turn]) -> None:
    decoder = PostgresDecoder()
    messages: list[Message] = []
    for direction, data in turns:
        for at in range(0, len(data), 3):
            messages += decoder.feed(direction, data[at : at + 3], AT)
            decoder = pickle.loads(pickle.dumps(decoder))  # noqa: S301 - our own bytes
    assert messages + decoder.close(AT) == run(turns)


@every_conversation
def test_truncated_anywhere_keeps_what_was_answered(turns: list[Turn]) -> None:
    whole = short(run(turns))
    for number, (direction, data) in enumerate(turns):
        for at in range(len(data)):
            found = run([*turns[:number], (direction, data[:at])])
            assert not wrongly_paired(statements(found))
            known = [one for one in short(found) if one[1] != Outcome.UNKNOWN]
            assert all(one in whole for one in known)


@every_conversation
@pytest.mark.parametrize("direction", [OUT, IN])
@pytest.mark.parametrize("length", [1, 5, 6, 37, 400])
@pytest.mark.parametrize("told", [True, False], ids=["length known", "length unknown"])
def test_statement_after_lost_bytes_is_not_paired_with_another_result(
    turns: list[Turn], direction: Direction, length: int, *, told: bool
) -> None:
    total = bytes_of(turns, direction)
    for start in range(0, total - 1, 1 if length < 100 else 7):
        found = statements(with_gap(turns, direction, start, length, told=told))
        assert not wrongly_paired(found)


def with_gap(turns: list[Turn], direction: Direction, start: int, length: int, *, told: bool) -> list[Message]:
    decoder = PostgresDecoder()
    messages: list[Message] = []
    position = 0
    end = start + length
    for d, data in turns:
        if d != direction:
            messages += decoder.feed(d, data, AT)
            continue
        before = data[: max(0, start - position)]
        lost = data[len(before) : max(0, end - position)]
        if before:
            messages += decoder.feed(d, before, AT)
        if lost:
            messages += decoder.gap(d, len(lost) if told else 0, AT)
        messages += decoder.feed(d, data[len(before) + len(lost) :], AT)
        position += len(data)
    return messages + decoder.close(AT)


@pytest.mark.parametrize("direction", [OUT, IN])
def test_pairing_goes_on_after_a_gap(direction: Direction) -> None:
    turns = conversation()
    total = bytes_of(turns, direction)
    for start in range(0, int(total * 0.6), 11):
        last = short(with_gap(turns, direction, start, 9, told=False))[-1]
        assert last == (b"select 23", "ok", "SELECT 23"), start


def test_a_gap_of_known_length_in_rows_or_copied_data_loses_nothing() -> None:
    turns = [*conversation()[:4], *_long_rows()]
    whole = run(turns)
    decoder = PostgresDecoder()
    messages: list[Message] = []
    for direction, data in turns[:-1]:
        messages += decoder.feed(direction, data, AT)
    data = turns[-1][1]
    messages += decoder.feed(IN, data[:2000], AT)
    messages += decoder.gap(IN, 60_000, AT)
    messages += decoder.feed(IN, data[62_000:], AT)
    assert messages + decoder.close(AT) == whole


def _long_rows() -> list[Turn]:
    row = b"\0\1" + (99_000).to_bytes(4, "big") + b"x" * 99_000
    answer = b"D" + (len(row) + 4).to_bytes(4, "big") + row
    return [(OUT, b"Q\0\0\0\x0dselect 5\0"), (IN, answer + b"C\0\0\0\x0dSELECT 5\0" + b"Z\0\0\0\5I")]


def test_joined_anywhere_gives_marked_statements_and_pairs_from_the_next_turn() -> None:
    turns = conversation()
    for number in range(4, len(turns) - 4):
        for cut in (0, 1, 7):
            first = (turns[number][0], turns[number][1][cut:])
            found = statements(run([first, *turns[number + 1 :]], PostgresDecoder(joined=True)))
            assert not wrongly_paired(found)
            assert found
            assert all(s.joined for s in found)
            assert short(list(found))[-1] == (b"select 23", "ok", "SELECT 23")


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans())
def test_any_bytes_never_raise_and_do_not_depend_on_pieces(data: st.DataObject, joined: bool) -> None:  # noqa: FBT001
    turns = conversation()
    count = data.draw(st.integers(0, len(turns)))
    pieces: list[Turn] = turns[:count]
    noise = st.lists(st.tuples(st.sampled_from([OUT, IN]), st.binary(min_size=1, max_size=60)), max_size=6)
    pieces += data.draw(noise)
    pieces += turns[count : count + 2]
    whole = run(pieces, PostgresDecoder(joined=joined))
    single = [(d, x[i : i + 1]) for d, x in pieces for i in range(len(x))]
    assert run(single, PostgresDecoder(joined=joined)) == whole
