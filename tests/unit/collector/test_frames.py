from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.collector import frames
from agentwatch.collector.frames import (
    Alive,
    Commit,
    Decoder,
    Epochs,
    FrameError,
    Head,
    Hello,
    Leaf,
    Message,
    Records,
    Refused,
    Step,
    encode,
)

HASHES = (bytes(32), b"h" * 32)
MESSAGES: list[Message] = [
    Hello(1, "host/agentwatch/" + "0" * 32, "a key"),
    Epochs(()),
    Epochs((Step(0, b"payload", (), ()), Step(2**62, b"", HASHES, HASHES))),
    Head("a note\n", HASHES, ()),
    Records(7, HASHES, (b"a", Leaf(b"l" * 32), b"\0" * 300)),
    Records(0, (), ()),
    Alive(),
    Commit(5, bytes(32), 1, bytes(32), None, ""),
    Commit(5, bytes(32), 1, bytes(32), 3, "a line"),
    Refused("fork", "why"),
]
HEAD = 8


def frame(head: bytes, body: bytes = b"") -> bytes:
    return len(head).to_bytes(4, "big") + len(body).to_bytes(4, "big") + head + body


def decode(data: bytes) -> list[Message]:
    decoder = Decoder()
    decoder.feed(data)
    found = []
    while (message := decoder.take()) is not None:
        found.append(message)
    return found


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_message_comes_back_whole_byte_by_byte_and_with_what_follows(message: Message) -> None:
    data = encode(message)
    assert decode(data) == [message]
    assert decode(data + encode(Alive()) + data[:-1]) == [message, Alive()]
    decoder = Decoder()
    for byte in data[:-1]:
        decoder.feed(bytes([byte]))
        assert decoder.take() is None
    decoder.feed(data[-1:])
    assert decoder.take() == message
    assert not decoder.begun


def test_all_messages_in_a_row_at_every_split() -> None:
    data = b"".join(map(encode, MESSAGES))
    for at in range(0, len(data), 7):
        decoder = Decoder()
        found = []
        for part in (data[:at], data[at:]):
            decoder.feed(part)
            while (message := decoder.take()) is not None:
                found.append(message)
        assert found == MESSAGES


@pytest.mark.parametrize(
    ("head", "body"),
    [(0, 0), (frames.HEAD_BYTES + 1, 0), (1, frames.MAX_BODY_BYTES + 1), (2**32 - 1, 2**32 - 1)],
)
def test_frame_that_is_too_large_is_refused_by_its_first_bytes(head: int, body: int) -> None:
    decoder = Decoder()
    decoder.feed(head.to_bytes(4, "big") + body.to_bytes(4, "big"))
    with pytest.raises(FrameError):
        decoder.take()


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        {},
        {"type": []},
        {"type": "other"},
        {"type": "head"},
        {"type": "head", "note": b"bytes", "consistency": [], "inclusion": []},
        {"type": "head", "note": "x" * 70_000, "consistency": [], "inclusion": []},
        {"type": "head", "note": "n", "consistency": [bytes(31)], "inclusion": []},
        {"type": "head", "note": "n", "consistency": [bytes(32)] * 100, "inclusion": []},
        {"type": "head", "note": "n", "consistency": {}, "inclusion": []},
        {"type": "epochs", "steps": [[0, b"", []]]},
        {"type": "epochs", "steps": [[-1, b"", [], []]]},
        {"type": "epochs", "steps": [[True, b"", [], []]]},
        {"type": "records", "first": 2**63, "consistency": []},
        {"type": "records", "first": "0", "consistency": []},
        {"type": "commit", "size": 1, "root": bytes(32), "epochs": 1, "epoch_leaf": bytes(32), "cosignature": ""},
    ],
)
def test_fields_that_are_not_as_they_should_be(fields: object) -> None:
    with pytest.raises(FrameError):
        decode(frame(msgpack.packb(fields)))


@pytest.mark.parametrize(
    "body",
    [
        b"\0",
        b"\0\0\0\5four",
        b"\0\0\0\0" + bytes(31),
        b"\xff\xff\xff\xff",
        b"\0\0\0\1a" * (frames.BATCH_RECORDS + 1),
    ],
)
def test_bodies_that_are_not_as_they_should_be(body: bytes) -> None:
    with pytest.raises(FrameError):
        decode(frame(msgpack.packb({"type": "records", "first": 0, "consistency": []}), body))


def test_body_behind_another_message() -> None:
    with pytest.raises(FrameError):
        decode(frame(msgpack.packb({"type": "alive"}), b"\0"))


def test_nesting_without_end() -> None:
    with pytest.raises(FrameError):
        decode(frame(b"\x91" * frames.HEAD_BYTES))


@given(st.binary(max_size=300), st.binary(max_size=50))
def test_garbage_is_refused_or_waited_for(head: bytes, body: bytes) -> None:
    for data in (head + body, frame(head, body)):
        try:
            found = decode(data)
        except FrameError:
            continue
        assert all(isinstance(message, Message) for message in found)


@given(st.sampled_from(MESSAGES), st.data())
def test_flipped_bit_is_refused_or_is_another_message(message: Message, data: st.DataObject) -> None:
    sent = bytearray(encode(message))
    at = data.draw(st.integers(HEAD * 8, len(sent) * 8 - 1))
    sent[at // 8] ^= 1 << at % 8
    try:
        found = decode(bytes(sent))
    except FrameError:
        return
    assert len(found) == 1
