"""Values sent as text, in the server's spelling where their type is known: the client's text in, text out.

A client may write ``2026-02-03T04:05:06.100Z``, ``inf`` or ``true``; the server prints ``2026-02-03 04:05:06.1+00``,
``Infinity`` and ``t``. The common spellings are turned into that one; any other text is given back as it was sent.

Specification: the output functions in src/backend/utils/adt; DateStyle ISO, TimeZone UTC, IntervalStyle postgres.
"""

from __future__ import annotations

import datetime as dt
import re
import struct
import uuid
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from agentwatch.protocols.postgres_jsonb import jsonb_text
from agentwatch.protocols.postgres_types import BINARY, BadValue

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_SPELLED_CHARACTERS = 1000
"""Longer texts are no date or number that anyone writes in another way."""
_MAX_NUMERIC_EXPONENT = 1000

_CLOCK = r"(?P<hour>\d{1,2}):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<fraction>\d{1,6}))?"
_ZONE = r"(?:(?P<utc>Z)|(?P<sign>[+-])(?P<zone_hour>\d\d)(?::?(?P<zone_minute>\d\d))?)?"
_MOMENT = re.compile(rf"(?P<date>\d{{4}}-\d\d-\d\d)[ T]{_CLOCK}{_ZONE}\Z", re.ASCII)
_TIME = re.compile(rf"{_CLOCK}{_ZONE}\Z", re.ASCII)
_INTERVAL = re.compile(rf"(?:(?P<days>[+-]?\d{{1,9}}) days?,? )?(?P<negative>-?){_CLOCK}\Z", re.ASCII)
_EPOCH = dt.date(2000, 1, 1)
_BOOLEANS = {"true": "t", "t": "t", "1": "t", "on": "t", "yes": "t"} | {
    "false": "f",
    "f": "f",
    "0": "f",
    "off": "f",
    "no": "f",
}


def spelled(text: str, oid: int) -> str:
    """Return ``text`` as the server would print it, as far as that is known."""
    speller = _SPELLERS.get(oid)
    if speller is None or len(text) > MAX_SPELLED_CHARACTERS:
        return text
    try:
        return speller(text)
    except (ValueError, KeyError, InvalidOperation, OverflowError, BadValue, struct.error, RecursionError):
        return text


def _bool(text: str) -> str:
    return _BOOLEANS[text.strip().lower()]


def _numeric(text: str) -> str:
    number = Decimal(text)
    if not number.is_finite():
        return "NaN" if number.is_nan() else "-Infinity" if number < 0 else "Infinity"
    if abs(number.adjusted()) > _MAX_NUMERIC_EXPONENT or abs(int(number.as_tuple().exponent)) > _MAX_NUMERIC_EXPONENT:
        return text
    return f"{abs(number) if number.is_zero() else number:f}"


def _float(text: str) -> str:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return "NaN" if value != value else text  # noqa: PLR0124 - what only a NaN is


def _clock(match: re.Match[str]) -> int:
    seconds = int(match["hour"]) * 3600 + int(match["minute"]) * 60 + int(match["second"])
    return seconds * 1_000_000 + int((match["fraction"] or "").ljust(6, "0"))


def _zone_seconds(match: re.Match[str]) -> int:
    if not match["sign"]:
        return 0
    east = int(match["zone_hour"]) * 3600 + int(match["zone_minute"] or 0) * 60
    return -east if match["sign"] == "-" else east


def _moment(text: str, oid: int) -> str:
    match = _MOMENT.match(text)
    if match is None or (oid == _TIMESTAMPTZ and not (match["utc"] or match["sign"])):
        return text  # without a zone it is a time in the session's zone
    days = (dt.date.fromisoformat(match["date"]) - _EPOCH).days
    usecs = days * 86_400_000_000 + _clock(match)
    if oid == _TIMESTAMPTZ:
        usecs -= _zone_seconds(match) * 1_000_000
    return str(BINARY[oid](struct.pack(">q", usecs)))


def _timestamp(text: str) -> str:
    return _moment(text, _TIMESTAMP)


def _timestamptz(text: str) -> str:
    return _moment(text, _TIMESTAMPTZ)


def _time(text: str) -> str:
    match = _TIME.match(text)
    return str(BINARY[_TIME_OID](struct.pack(">q", _clock(match)))) if match else text


def _timetz(text: str) -> str:
    match = _TIME.match(text)
    if match is None or not (match["utc"] or match["sign"]):
        return text
    return str(BINARY[_TIMETZ](struct.pack(">qi", _clock(match), -_zone_seconds(match))))


def _interval(text: str) -> str:
    match = _INTERVAL.match(text)
    if match is None:
        return text
    usecs = -_clock(match) if match["negative"] else _clock(match)
    return str(BINARY[_INTERVAL_OID](struct.pack(">qii", usecs, int(match["days"] or 0), 0)))


def _uuid(text: str) -> str:
    return str(uuid.UUID(text))


_TIME_OID, _TIMESTAMP, _TIMESTAMPTZ, _INTERVAL_OID, _TIMETZ = 1083, 1114, 1184, 1186, 1266
_SPELLERS: dict[int, Callable[[str], str]] = {
    16: _bool,
    700: _float,
    701: _float,
    1700: _numeric,
    _TIME_OID: _time,
    _TIMESTAMP: _timestamp,
    _TIMESTAMPTZ: _timestamptz,
    _INTERVAL_OID: _interval,
    _TIMETZ: _timetz,
    2950: _uuid,
    3802: jsonb_text,
}
