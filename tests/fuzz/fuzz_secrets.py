"""Invariant: any record comes back, unchanged around markers, the same at a second look, and it can be stored.

Run: ``python tests/fuzz/fuzz_secrets.py [-max_total_time=SECONDS] [CORPUS]``. The first byte of an input chooses the
kind of the record.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from agentwatch.config_tables import SecretsConfig
from agentwatch.records.secrets import Redactor

Record = dict[str, Any]
_MARKER = re.compile(rb"\[secret ([0-9]+) bytes hmac [0-9a-f]{16}\]")
_redactor = Redactor(SecretsConfig(), b"k" * 32)


def _bytes(value: object) -> bytes:
    return (
        value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value if isinstance(value, bytes) else b""
    )


def _same_around(before: object, after: object) -> None:
    """Hold that a text consists of the same pieces as before, with something else only where markers are."""
    if isinstance(before, list) and isinstance(after, list):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            _same_around(one, other)
        return
    old, position = _bytes(before), 0
    pieces = _MARKER.split(_bytes(after))[::2]
    assert old.startswith(pieces[0]), (before, after)
    for piece in pieces:
        found = old.find(piece, position)
        assert found >= 0, (before, after)
        position = found + len(piece)
    assert old.endswith(pieces[-1]), (before, after)


def check_record(record: Record) -> None:
    """Hold the invariant for one record."""
    result = _redactor.apply(record)
    if result is record:
        return
    assert result["secrets"]
    for key in record:
        assert type(record[key]) is type(result[key])
        _same_around(record[key], result[key])
    again = {key: value for key, value in result.items() if key != "secrets"}
    markers = sum(len(_MARKER.findall(_bytes(text))) for text in _texts(result))
    assert markers >= sum("hmac" in told for told in result["secrets"])
    twice = _redactor.apply(again)
    assert twice is again or markers <= sum(len(_MARKER.findall(_bytes(text))) for text in _texts(twice))


def _texts(record: Record) -> list[object]:
    return [item for value in record.values() for item in (value if isinstance(value, list) else [value])]


def one_input(data: bytes) -> None:
    """Make a record of fuzzer bytes and hold the invariant for it."""
    if not data:
        return
    body: str | bytes = data[1:]
    try:
        body = data[1:].decode()
    except UnicodeDecodeError:
        body = data[1:]
    choice = data[0] % 5
    if choice <= 1:
        check_record({"kind": "statement", "db.system.name": ("postgresql", "mysql")[choice], "db.query.text": body})
    elif choice == 2:
        check_record({"kind": "command_input", "text": body})
    elif choice == 3:
        check_record({"kind": "statement", "db.query.text": None, "error": body})
    else:
        check_record({"kind": "exec", "argv": [word.decode("latin-1") for word in data[1:].split(b"\0")]})


def main() -> None:
    """Run atheris."""
    import atheris  # noqa: PLC0415 - only here: the short form of this test runs without it

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
