"""Fields of a record as the index stores them; a value of another type than docs/records.md says counts as absent.

The log is written by the recorder, but what it holds began in a watched process: nothing in a record may stop
the indexer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentwatch.records.encoding import Record

MAX_INTEGER = 2**63 - 1
"""The largest integer that SQLite stores; larger ones (a 64-bit inode, a cookie) are absent from the index."""


def integer(record: Record, key: str) -> int | None:
    """Return a whole number that SQLite can store, else None."""
    value = record.get(key)
    if type(value) is int and -MAX_INTEGER <= value <= MAX_INTEGER:
        return value
    return None


def text(record: Record, key: str) -> str | None:
    r"""Return a text; bytes that are not UTF-8 as ``\xff``; else None."""
    value = record.get(key)
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value if isinstance(value, str) else None


def realtime_of(record: Record, boottime_key: str, time: int) -> int:
    """Return an earlier CLOCK_BOOTTIME of a record as CLOCK_REALTIME, by the record's own pair of clocks."""
    earlier, boottime = integer(record, boottime_key), integer(record, "boottime")
    if earlier is None or boottime is None or not 0 <= earlier <= boottime:
        return time
    return time - (boottime - earlier)
