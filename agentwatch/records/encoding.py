"""Records as bytes: one msgpack map per record, in both directions.

Text is msgpack ``str`` when it is UTF-8 and ``bin`` when it is not, so that every byte of a statement survives.
"""

from __future__ import annotations

from typing import Any

import msgpack

from agentwatch.errors import LogError

Record = dict[str, Any]
"""A record: keys as in docs/records.md, values None, bool, int, float, str, bytes, lists and maps of them."""

_packer = msgpack.Packer(use_bin_type=True)


def encode(record: Record) -> bytes:
    """Return the stored form of a record."""
    packed: bytes = _packer.pack(record)
    return packed


def decode(payload: bytes) -> Record:
    """Return the record of a stored payload. Raises LogError if it is not one."""
    try:
        record = msgpack.unpackb(payload, raw=False, strict_map_key=False)
    except (ValueError, msgpack.UnpackException, RecursionError) as e:
        raise LogError(f"a record of {len(payload)} bytes is not msgpack: {e}") from e
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise LogError(f"a record of {len(payload)} bytes is not a map with a 'kind'")
    return record


def text(value: bytes) -> str | bytes:
    """Return bytes as ``str`` if they are UTF-8, else as they are."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
