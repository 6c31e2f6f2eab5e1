"""Invariant: any bytes, cut anywhere, with gaps and saves, never raise, and the pieces do not change what is delegated.

Run: ``python tests/fuzz/fuzz_dbus.py [-max_total_time=SECONDS] [CORPUS]``. An input is a row of operations: a byte that
says what happens to which direction, a length, and so many bytes. Some operations go on with a conversation as a real
client has it, some change bytes of a message in it. The API of Docker, whose decoder has the same task, is fed by
the same operations.
"""

from __future__ import annotations

import itertools
import pickle
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["agentwatch.protocols"]):
    from agentwatch.protocols import detect
    from agentwatch.protocols.base import Delegated, Direction, Message, Opaque
    from agentwatch.protocols.dbus import DbusDecoder
    from agentwatch.protocols.dbus_frames import MAX_BODY_BYTES
    from agentwatch.protocols.docker import DockerDecoder

from tests.unit.protocols.fix_delegation import bus_conversation, docker_conversation

Operation = tuple[str, Direction, bytes]
CONVERSATIONS = (bus_conversation("<"), bus_conversation(">"), docker_conversation())
DECODERS = (DbusDecoder, DbusDecoder, DockerDecoder)


def operations(data: bytes, choice: int) -> list[Operation]:
    """Read an input as operations."""
    found: list[Operation] = []
    turns = iter(CONVERSATIONS[choice])
    pos = 1
    while pos + 2 <= len(data) and len(found) < 64:
        what, length = data[pos], data[pos + 1]
        body = data[pos + 2 : pos + 2 + length]
        pos += 2 + length
        direction = Direction(what & 1)
        kind = what >> 1 & 7
        if kind == 0:
            found.append(("gap", direction, bytes(length)))
        elif kind == 1:
            found.append(("save", direction, b""))
        elif kind in (2, 3):
            found += [("feed", turn, whole) for turn, whole in itertools.islice(turns, length % 8 + 1)]
            pos -= length
        elif kind in (4, 5):
            for turn, whole in itertools.islice(turns, 1):
                found.append(("feed", turn, changed(whole, body)))
        else:
            found.append(("feed", direction, body))
    return found


def changed(whole: bytes, by: bytes) -> bytes:
    """Change bytes of a message: each pair is a place and a value."""
    message = bytearray(whole)
    for place, value in zip(by[::2], by[1::2], strict=False):
        message[place * 3 % len(message)] = value
    return bytes(message)


def decode(found: list[Operation], choice: int, step: int, *, joined: bool) -> list[Message]:
    """Run the operations, in pieces of ``step`` bytes (0: whole)."""
    decoder = DECODERS[choice](joined=joined)
    messages: list[Message] = []
    for name, direction, data in found:
        if name == "gap":
            messages += decoder.gap(direction, len(data), 1)
        elif name == "save":
            decoder = pickle.loads(pickle.dumps(decoder))  # noqa: S301 - our own bytes
        else:
            for i in range(0, len(data), step or len(data) or 1):
                messages += decoder.feed(direction, data[i : i + step] if step else data, 1)
    return messages + decoder.close(1)


def one_input(data: bytes) -> None:
    """Hold the invariant for one input."""
    if not data:
        return
    choice = (data[0] >> 3) % len(CONVERSATIONS)
    found = operations(data, choice)
    joined = bool(data[0] & 1)
    whole = decode(found, choice, 0, joined=joined)
    pieces = decode(found, choice, 1 + (data[0] >> 1 & 3), joined=joined)
    assert told(whole) == told(pieces), (whole, pieces)
    for message in whole:
        if isinstance(message, Delegated):
            assert sum(map(len, message.command or ())) <= max(MAX_BODY_BYTES, 1 << 20)
            repr(message.detail).encode()  # what a record cannot hold would raise here
    for docker in (False, True):
        detect.detect(data, data[1:], joined=joined, docker=docker)


def told(messages: list[Message]) -> list[Message]:
    """Leave out how much of what came in one piece was not read any more."""
    return [m._replace(undecoded=(0, 0)) if isinstance(m, Opaque) else m for m in messages]


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
