"""Invariant: any bytes, cut anywhere, with holes, calls and saves, never raise, and pieces change no record or account.

Run: ``python tests/fuzz/fuzz_tls.py [-max_total_time=SECONDS] [CORPUS]``. An input is a row of operations: a byte that
says what happens to which direction, a length, and so many bytes. Some operations make a record or a hello of them, so
that the deeper states are reached.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["agentwatch.streams"]):
    from agentwatch.protocols.base import Direction
    from agentwatch.streams import tls, tls_hello
    from agentwatch.streams.tls import Record, TlsRecords

CALLS = ("call", "call", "save", "hole")
SHORT, LONG, HANDSHAKE = 4, 5, 6
Operation = tuple[str, Direction, bytes]


def operations(data: bytes) -> list[Operation]:
    """Read an input as operations."""
    found: list[Operation] = []
    position = 1
    while position + 2 <= len(data) and len(found) < 64:
        what, length = data[position], data[position + 1]
        body = data[position + 2 : position + 2 + length]
        position += 2 + length
        direction = Direction(what & 1)
        choice = what >> 1 & 7
        if choice < len(CALLS):
            found.append((CALLS[choice], direction, body if choice else bytes(length)))
        elif choice == SHORT:
            found.append(("feed", direction, bytes([20 + (what >> 4 & 3), 3, 3, 0, length]) + body))
        elif choice == LONG:
            found.append(("feed", direction, b"\x17\3\3\3\xe8" + bytes(1000)))
        elif choice == HANDSHAKE:
            message = bytes([1 + direction, 0, 0, length]) + body
            found.append(("feed", direction, b"\x16\3\1\0" + bytes([len(message) & 0xFF]) + message))
        else:
            found.append(("feed", direction, body))
    return found


def tell(found: list[Operation], step: int, *, joined: bool) -> tuple[TlsRecords, list[Record]]:
    """Carry out the operations, in pieces of ``step`` bytes (0: whole)."""
    connection = TlsRecords(joined=joined)
    records: list[Record] = []
    for at, (name, direction, data) in enumerate(found):
        if name == "hole":
            connection.missed(direction, len(data))
        elif name == "save":
            connection = pickle.loads(pickle.dumps(connection))  # noqa: S301 -- our own bytes
        elif name == "call" and direction is Direction.OUT:
            connection.wrote(len(data), max(0, at - len(data) % 4))
        elif name == "call":
            connection.read(len(data))
        else:
            for i in range(0, len(data), step or len(data) or 1):
                records += connection.feed(direction, data[i : i + step] if step else data, at)
        for side, total in zip(Direction, connection.totals(), strict=True):
            assert 0 <= connection.surplus(side) <= total
    return connection, records


def told(connection: TlsRecords) -> tuple[object, ...]:
    """Return everything that a connection says."""
    surplus = [connection.surplus(direction) for direction in Direction]
    return connection.hello, connection.chosen, connection.framed, connection.broken, connection.totals(), surplus


def one_input(data: bytes) -> None:
    """Hold the invariant for one input."""
    if not data:
        return
    found = operations(data)
    step = 1 + (data[0] >> 1 & 63)
    whole, records = tell(found, 0, joined=False)
    pieces, same = tell(found, step, joined=False)
    assert records == same, (records, same)
    assert told(whole) == told(pieces), (told(whole), told(pieces))
    for record in records:
        assert len(record.prefix) == min(tls.PREFIX_BYTES, tls.HEADER_BYTES + record.length)
        assert tls.looks_like_record(record.prefix)
    tell(found, step if data[0] & 1 else 0, joined=True)
    tls_hello.client_hello(data)
    tls_hello.server_hello(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
