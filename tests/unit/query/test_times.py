from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.query import times

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1_700_000_000_000_000_000
S = times.SECOND_NS


@pytest.fixture(autouse=True, params=["UTC", "Europe/Berlin", "America/St_Johns"])
def _local_zone(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("typed", "ago_s"),
    [
        ("30s", 30),
        ("10m", 600),
        ("1h", 3600),
        ("2d", 172_800),
        ("1w", 604_800),
        ("1h30m", 5400),
        ("0s", 0),
        (" 5m ", 300),
    ],
)
def test_duration_is_before_now(typed: str, ago_s: int) -> None:
    assert times.parse(typed, NOW) == NOW - ago_s * S


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-14 22:13:20Z", NOW),
        ("2023-11-14T23:13:20+01:00", NOW),
        ("2023-11-14T22:13:20.5Z", NOW + S // 2),
        ("2023-11-14T22:13:20,000000001Z", NOW + 1),
        ("2023-11-14T22:13:20.123456789+00:00", NOW + 123_456_789),
        ("1969-12-31T23:59:59.999999999Z", -1),
        ("now", NOW),
    ],
)
def test_iso_is_exact_to_the_nanosecond(typed: str, expected: int) -> None:
    assert times.parse(typed, NOW) == expected


def test_time_without_zone_is_local() -> None:
    naive = datetime.fromtimestamp(NOW // S).isoformat()  # noqa: DTZ006 - local time is what is tested
    assert times.parse(naive, NOW) == NOW


def test_day_words_are_local_midnights() -> None:
    today = times.parse("today", NOW)
    assert datetime.fromtimestamp(today // S).time().isoformat() == "00:00:00"  # noqa: DTZ006 - as above
    assert 0 <= NOW - today < 25 * 3600 * S
    assert today == times.parse(datetime.fromtimestamp(NOW // S).date().isoformat(), NOW)  # noqa: DTZ006 - as above
    assert 23 * 3600 * S <= today - times.parse("Yesterday", NOW) <= 25 * 3600 * S


@pytest.mark.parametrize(
    "typed",
    ["", "1", "1y", "h", "-1h", "1.5h", "2023-13-01", "tomorrow", "12:00", "9" * 30, "999999999w", "9999-01-01"],
)
def test_what_is_no_time_is_refused_with_a_message(typed: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(typed))):
        times.parse(typed, NOW)


@given(st.integers(-(2**62), 2**63 - 1))
def test_written_time_reads_back(time_ns: int) -> None:
    written = times.iso(time_ns)
    assert times.parse(written, NOW) == time_ns
    assert len(written) == len("2023-11-14T22:13:20.000000000Z")


@given(st.integers(-(2**62), 2**63 - 1), st.integers(-(2**62), 2**63 - 1))
def test_written_times_sort_as_text(one: int, other: int) -> None:
    assert (times.iso(one) < times.iso(other)) == (one < other)


@given(st.datetimes(min_value=datetime(1700, 1, 1), max_value=datetime(2250, 1, 1)))  # noqa: DTZ001 - hypothesis wants naive
def test_iso_agrees_with_datetime(moment: datetime) -> None:
    aware = moment.replace(tzinfo=UTC)
    whole = (aware - datetime(1970, 1, 1, tzinfo=UTC)) // (datetime.resolution)
    assert times.parse(aware.isoformat(), NOW) == whole * 1000


@given(st.text(max_size=40))
def test_any_text_gives_a_time_or_a_value_error(typed: str) -> None:
    try:
        result = times.parse(typed, NOW)
    except ValueError:
        return
    assert abs(result) < 2**63


@given(st.integers(0, 2**62))
def test_local_time_can_be_typed_again(time_ns: int) -> None:
    assert times.parse(times.local(time_ns), NOW) == time_ns // 1_000_000 * 1_000_000


@pytest.mark.parametrize(
    ("duration_ns", "expected"),
    [
        (None, ""),
        (0, "0 µs"),
        (42_000, "42 µs"),
        (1_500_000, "1.5 ms"),
        (2_500_000_000, "2.50 s"),
        (3 * 60 * S + 5 * S, "3 min 05 s"),
        (2 * 3600 * S + 3 * 60 * S, "2 h 03 min"),
    ],
)
def test_span_is_short(duration_ns: int | None, expected: str) -> None:
    assert times.span(duration_ns) == expected
