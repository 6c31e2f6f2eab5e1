"""Invariant: any bytes, cut anywhere, with gaps and saves, never raise, and the pieces do not change the messages.

Run: ``python tests/fuzz/fuzz_postgres.py [-max_total_time=SECONDS] [CORPUS]``. An input is a row of operations: a
byte that says what happens to which direction, a length, and so many bytes. Some operations go on with a conversation
as a real client has it, so that the deeper states are reached.
"""

from __future__ import annotations

import itertools
import pickle
import struct
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["agentwatch.protocols"]):
    from agentwatch.protocols import detect
    from agentwatch.protocols.base import Direction, Message, Statement
    from agentwatch.protocols.postgres import PostgresDecoder

from tests.unit.protocols.fix_wire import conversation, pipelined

KINDS = b"QPBDECSHFdcfX" + b"RKSZTDCEI123nstNAGHWVv"
CONVERSATIONS = (conversation(), pipelined())
Operation = tuple[str, Direction, bytes]


def operations(data: bytes) -> list[Operation]:
    """Read an input as operations."""
    found: list[Operation] = []
    turns = iter(CONVERSATIONS[data[0] >> 3 & 1])
    pos = 1
    while pos + 2 <= len(data) and len(found) < 64:
        what, length = data[pos], data[pos + 1]
        body = data[pos + 2 : pos + 2 + length]
        pos += 2 + length
        direction = Direction(what & 1)
        choice = what >> 1 & 7
        if choice == 0:
            found.append(("gap", direction, bytes(length)))
        elif choice == 1:
            found.append(("save", direction, b""))
        elif choice in (2, 3):
            found += [("feed", turn, whole) for turn, whole in itertools.islice(turns, length % 8 + 1)]
            pos -= length
        elif choice in (4, 5):
            kind = KINDS[(what >> 4) + (16 if direction else 0) & 31 :][:1]
            found.append(("feed", direction, kind + struct.pack(">I", len(body) + 4) + body))
        else:
            found.append(("feed", direction, body))
    return found


def decode(found: list[Operation], step: int, *, joined: bool) -> list[Message]:
    """Run the operations, in pieces of ``step`` bytes (0: whole)."""
    decoder = PostgresDecoder(joined=joined)
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
    found = operations(data)
    joined = bool(data[0] & 1)
    whole = decode(found, 0, joined=joined)
    pieces = decode(found, 1 + (data[0] >> 1 & 3), joined=joined)
    assert whole == pieces, (whole, pieces)
    for message in whole:
        if isinstance(message, Statement):
            assert message.text is None or len(message.text) <= message.text_length
    detect.detect(data, data[1:], joined=joined)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
