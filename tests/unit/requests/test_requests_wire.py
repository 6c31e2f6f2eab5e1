from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.records.encoding import decode, encode
from agentwatch.requests import wire
from tests.unit.requests.fix_host import SESSION

LOG = (2049, 77)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
FIELDS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["read", "hold"]), "log": st.just(list(LOG))},
    optional={
        key: JSON | st.text() | st.booleans() | st.lists(st.text()) | st.just(SESSION)
        for key in ("command", "question", "truncated", "session", "held", "reason")
    },
)


def test_a_read_arrives_as_it_was_typed() -> None:
    typed = ["sessions", "--text", "O'Neil \u202e \U0001f512", os.fsdecode(b"\xff\xfe"), ""]
    asked = wire.parse_request(wire.read_request(LOG, "sessions", typed))
    assert (asked.kind, asked.log) == ("read", LOG)
    assert asked.fields == {
        "command": "sessions",
        "question": ["sessions", "--text", "O'Neil \u202e \U0001f512", b"\xff\xfe", ""],
        "truncated": False,
    }


def test_a_hold_arrives_as_it_was_asked_for() -> None:
    asked = wire.parse_request(wire.hold_request(LOG, SESSION, "case 17", held=True))
    assert asked == ("hold", LOG, {"held_session": SESSION, "held": True, "reason": "case 17"})


@pytest.mark.parametrize("letter", ["a", "\u00e4", "\U0001f512", "\n", os.fsdecode(b"\xff")])
@pytest.mark.parametrize("words", [1, 100_000])
def test_a_question_that_is_too_long_is_cut_and_says_so(letter: str, words: int) -> None:
    typed = [letter * (500_000 // words)] * words
    message = wire.read_request(LOG, "statements", typed)
    assert len(message) <= wire.MAX_MESSAGE_BYTES
    fields = wire.parse_request(message).fields
    assert fields["truncated"] is True
    assert len(fields["question"]) in range(1, words + 1)


def test_a_question_that_just_fits_is_whole() -> None:
    typed = ["x" * (wire.MAX_QUESTION_BYTES - len('"", '))]
    assert wire.parse_request(wire.read_request(LOG, "sessions", typed)).fields["truncated"] is False


GARBAGE = {
    "nothing": b"",
    "text": b"hello",
    "binary": bytes(range(256)),
    "list": b"[]",
    "deep": b"[" * 8000,
    "number": b"1" * 8000,
    "kind": b'{"kind": "grant", "log": [1, 2]}',
    "kind-list": b'{"kind": ["read"], "log": [1, 2]}',
    "no-log": b'{"kind": "read"}',
    "bool-log": b'{"kind": "read", "log": [true, 2]}',
    "no-question": b'{"kind": "read", "log": [1, 2], "command": "show", "truncated": false}',
    "words": b'{"kind": "read", "log": [1, 2], "command": "show", "truncated": false, "question": [1]}',
    "surrogate": rb'{"kind": "read", "log": [1, 2], "command": "\ud800", "truncated": false, "question": []}',
    "surrogate-word": rb'{"kind": "read", "log": [1, 2], "command": "a", "truncated": false, "question": ["\ud800"]}',
    "line-end": json.dumps(
        {"kind": "hold", "log": LOG, "session": f"{SESSION}\n", "held": True, "reason": "x"}
    ).encode(),
    "no-reason": json.dumps({"kind": "hold", "log": LOG, "session": SESSION, "held": True, "reason": ""}).encode(),
    "held": json.dumps({"kind": "hold", "log": LOG, "session": SESSION, "held": 1, "reason": "x"}).encode(),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_request_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        wire.parse_request(data)


@given(FIELDS)
def test_what_is_accepted_can_be_stored(message: dict[str, object]) -> None:
    try:
        asked = wire.parse_request(json.dumps(message).encode())
    except ValueError:
        return
    record = {"kind": asked.kind} | asked.fields
    assert decode(encode(record)) == record


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_value_error(data: bytes) -> None:
    for parse in (wire.parse_request, wire.parse_answer):
        with pytest.raises(ValueError, match=r"."):
            parse(data)


def test_answers_arrive() -> None:
    for answer in (wire.Answer(1834), wire.Answer(None, "why not"), wire.Answer(None, "another", other_log=True)):
        assert wire.parse_answer(wire.encode_answer(answer)) == answer
