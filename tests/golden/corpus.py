"""Recorded connections on disk: what a proxy saw of each, piece by piece, and what the server logged.

``NAME.capture.gz`` is a row of events ``(connection, kind, data)``: kind 0 bytes of the client, 1 bytes of the
server, 2 opened (data: the address that the server knows it by), 3 closed. ``NAME.csv.gz`` is the server's csvlog of
these connections.
"""

from __future__ import annotations

import gzip
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

OPENED, CLOSED = 2, 3
_HEADER = struct.Struct(">HBI")


class Event(NamedTuple):
    """One thing that happened on one connection."""

    connection: int
    kind: int
    data: bytes


def write(path: Path, events: Iterable[Event]) -> None:
    """Store events; the same events give the same file."""
    packed = b"".join(_HEADER.pack(e.connection, e.kind, len(e.data)) + e.data for e in events)
    path.write_bytes(gzip.compress(packed, mtime=0))


def read(path: Path) -> Iterator[Event]:
    """Return the events of a file in order."""
    packed = gzip.decompress(path.read_bytes())
    pos = 0
    while pos < len(packed):
        connection, kind, length = _HEADER.unpack_from(packed, pos)
        pos += _HEADER.size
        yield Event(connection, kind, packed[pos : pos + length])
        pos += length


class Recorded(NamedTuple):
    """One connection: the address that the server's log names, and its pieces in order."""

    address: str
    pieces: list[tuple[int, bytes]]


def connections(path: Path) -> list[Recorded]:
    """Return the connections of a file; adjacent pieces of one direction stay as they were seen."""
    found: dict[int, Recorded] = {}
    for event in read(path):
        if event.kind == OPENED:
            found[event.connection] = Recorded(event.data.decode(), [])
        elif event.kind != CLOSED:
            found[event.connection].pieces.append((event.kind, event.data))
    return list(found.values())
