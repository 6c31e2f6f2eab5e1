"""Points in time as a responder types and reads them, and as nanoseconds of CLOCK_REALTIME.

Read: a duration before now (``30s 10m 1h 2d 1w``, also joined: ``1h30m``), ``now``, ``today``, ``yesterday``, and
ISO 8601 dates and times to the nanosecond, with a zone or in local time. Written: RFC 3339 in UTC with nine decimals,
which sorts as text.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SECOND_NS = 1_000_000_000
MILLISECOND_NS = 1_000_000
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(?:[0-9]{1,9}[smhdw])+\Z", re.ASCII)
_PART = re.compile(r"([0-9]+)([smhdw])", re.ASCII)
_FRACTION = re.compile(r"([T ][0-9]{2}:[0-9]{2}:[0-9]{2})[.,]([0-9]{1,9})(?![0-9])", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_NS = 2**63 - 1
"""What the index can compare with: the year 2262."""

FORMS = "30s, 10m, 1h, 2d (before now), today, yesterday, 2026-05-01, 2026-05-01T12:30:00.5Z, 2026-05-01T12:30+02:00"


def parse(typed: str, now_ns: int) -> int:
    """Return the point in time in nanoseconds. Raises ValueError with a message for the one who typed it."""
    word = typed.strip()
    if _DURATION.match(word):
        return _in_range(typed, now_ns - sum(int(n) * _UNIT_S[unit] for n, unit in _PART.findall(word)) * SECOND_NS)
    if (day := _WORDS.get(word.lower())) is not None:
        return day(now_ns)
    return _in_range(typed, _parse_iso(typed, word))


def iso(time_ns: int) -> str:
    """Return a time as ``2026-05-01T12:30:00.000000000Z``."""
    seconds, fraction = divmod(time_ns, SECOND_NS)
    # Adding to the epoch is exact and works before it; fromtimestamp() with a float is neither.
    moment = _EPOCH + timedelta(seconds=seconds)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def local(time_ns: int) -> str:
    """Return a time for people: the host's zone, to the millisecond; it can be typed again as it stands."""
    seconds, fraction = divmod(time_ns, SECOND_NS)
    moment = (_EPOCH + timedelta(seconds=seconds)).astimezone()
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction // 1_000_000:03d}{_zone(moment)}"


def span(duration_ns: int | None) -> str:
    """Return a duration for people: ``1.234 ms``, ``2.5 s``, ``1 h 02 min``."""
    if duration_ns is None:
        return ""
    if duration_ns < MILLISECOND_NS:
        return f"{duration_ns / 1000:.0f} µs"
    if duration_ns < SECOND_NS:
        return f"{duration_ns / 1e6:.1f} ms"
    seconds = duration_ns / 1e9
    if seconds < 120:  # noqa: PLR2004 - up to two minutes seconds say more
        return f"{seconds:.2f} s"
    minutes, hours = divmod(int(seconds // 60), 60)[::-1]
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {int(seconds) % 60:02d} s"


def _zone(moment: datetime) -> str:
    offset = moment.strftime("%z")
    return "Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:5]}"


def _parse_iso(typed: str, word: str) -> int:
    fraction = _FRACTION.search(word)
    whole = _FRACTION.sub(r"\1", word) if fraction else word
    try:
        moment = datetime.fromisoformat(whole)
        if moment.tzinfo is None:
            moment = moment.astimezone()
        since_epoch = moment - _EPOCH
    except (ValueError, OverflowError, OSError) as e:
        raise ValueError(f"{typed!r} is not a time; write it like one of: {FORMS}") from e
    seconds = since_epoch // timedelta(seconds=1)
    rest_ns = since_epoch % timedelta(seconds=1) // timedelta(microseconds=1) * 1000
    return seconds * SECOND_NS + rest_ns + (int(fraction[2].ljust(9, "0")) if fraction else 0)


def _in_range(typed: str, time_ns: int) -> int:
    if not -_MAX_NS <= time_ns <= _MAX_NS:
        raise ValueError(f"{typed!r} is too far away; times reach from 1678 to 2262")
    return time_ns


def _midnight(now_ns: int, days_ago: int) -> int:
    today = (_EPOCH + timedelta(seconds=now_ns // SECOND_NS)).astimezone().date() - timedelta(days=days_ago)
    midnight = datetime(today.year, today.month, today.day).astimezone()
    return (midnight - _EPOCH) // timedelta(seconds=1) * SECOND_NS


_WORDS: dict[str, Callable[[int], int]] = {
    "now": lambda now_ns: now_ns,
    "today": lambda now_ns: _midnight(now_ns, 0),
    "yesterday": lambda now_ns: _midnight(now_ns, 1),
}
