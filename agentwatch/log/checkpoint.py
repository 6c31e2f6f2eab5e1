"""Checkpoints (https://c2sp.org/tlog-checkpoint): what a tree was at some moment, and whose tree it is.

Text in, text out. The signatures are the note's (note.py); which keys must have signed, the epochs tell (epochs.py).
"""

from __future__ import annotations

import base64
import re
from typing import NamedTuple

from agentwatch.log.merkle import HASH_BYTES
from agentwatch.log.note import MAX_SHORT_BYTES, SIZE, NoteError, decode_base64

FILE = "checkpoint"
MAX_HOST = MAX_SHORT_BYTES - len("/agentwatch/") - 32
"""The longest host name in an origin: a longer one could not be signed with ML-DSA-44. What is over it is cut off."""
_ORIGIN = re.compile(rf"[A-Za-z0-9.-]{{1,{MAX_HOST}}}/agentwatch/[0-9a-f]{{32}}\Z")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9.-]")
_LINES = 3


class Checkpoint(NamedTuple):
    """A log's tree: ``origin`` names the log, ``size`` is its number of records, ``root`` 32 bytes."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text of the note."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Return what a note's text says. Raises NoteError. Lines behind the third are not ours and are refused."""
        lines = text.split("\n")
        if len(lines) != _LINES + 1 or lines[-1]:
            raise NoteError("a checkpoint has three lines: the log's origin, its size and its root")
        return cls(parse_origin(lines[0]), parse_size(lines[1]), parse_root(lines[2]))


def make_origin(host: str, log_id: bytes) -> str:
    """Return the origin of a log that begins on this host."""
    return f"{_NOT_IN_A_NAME.sub('-', host)[:MAX_HOST] or '-'}/agentwatch/{log_id.hex()}"


def parse_origin(line: str) -> str:
    """Return the origin if it is one. Raises NoteError."""
    if not _ORIGIN.match(line):
        raise NoteError(f"{line[:80]!r} is not the origin of an agentwatch log")
    return line


def log_id_of(origin: str) -> bytes:
    """Return the log id that an origin ends with."""
    return bytes.fromhex(origin.rpartition("/")[2])


def parse_size(line: str) -> int:
    """Return a tree's size. Raises NoteError."""
    if not SIZE.match(line):
        raise NoteError(f"{line[:80]!r} is not the size of a tree")
    return int(line)


def parse_root(line: str) -> bytes:
    """Return a root. Raises NoteError."""
    root = decode_base64(line, "the root")
    if len(root) != HASH_BYTES:
        raise NoteError(f"the root has {len(root)} bytes, not {HASH_BYTES}")
    return root
