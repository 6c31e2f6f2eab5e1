"""Bound values; those that a real server printed are compared in tests/golden."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.protocols.postgres_params import bound, from_binary, from_text, names
from agentwatch.protocols.postgres_types import BINARY
from tests.unit.protocols.fix_wire import bind

if TYPE_CHECKING:
    from agentwatch.protocols.base import Param

DAY = 86_400_000_000


@pytest.mark.parametrize(
    ("oid", "raw", "expected"),
    [
        (16, b"\1", "t"),
        (16, b"\0", "f"),
        (21, b"\xff\xff", -1),
        (20, b"\x7f" + b"\xff" * 7, 2**63 - 1),
        (26, b"\xff\xff\xff\xff", 4294967295),
        (700, struct.pack(">f", 0.1), 0.1),
        (700, struct.pack(">f", 3.4028235e38), 3.4028235e38),
        (700, struct.pack(">f", -130473024.0), -130473024.0),  # -1.3047302e8 lies between two floats
        (700, bytes(4), 0.0),
        (700, b"\0\0\0\1", 1e-45),
        (701, struct.pack(">d", float("nan")), "NaN"),
        (701, struct.pack(">d", float("-inf")), "-Infinity"),
        (17, b"\0\xff", "\\x00ff"),
        (1700, struct.pack(">HhHH3H", 3, 1, 0, 2, 1, 2345, 6700), "12345.67"),
        (1700, struct.pack(">HhHH1H", 1, -2, 0x4000, 8, 1), "-0.00000001"),
        (1700, struct.pack(">HhHH", 0, 0, 0xC000, 0), "NaN"),
        (1700, struct.pack(">HhHH1H", 1, 1, 0, 0, 5), "50000"),
        (1082, struct.pack(">i", 0), "2000-01-01"),
        (1082, struct.pack(">i", -730119), "0001-01-01"),
        (1082, struct.pack(">i", -730120), "0001-12-31 BC"),
        (1082, struct.pack(">i", 2921940), "10000-01-01"),
        (1082, struct.pack(">i", 0x7FFFFFFF), "infinity"),
        (1114, struct.pack(">q", -1), "1999-12-31 23:59:59.999999"),
        (1184, struct.pack(">q", DAY + 1_500_000), "2000-01-02 00:00:01.5+00"),
        (1184, struct.pack(">q", -(2**63)), "-infinity"),
        (1083, struct.pack(">q", DAY), "24:00:00"),
        (1266, struct.pack(">qi", 0, -19800), "00:00:00+05:30"),
        (1186, struct.pack(">qii", -1_000_000, 1, -13), "-1 years -1 mons +1 day -00:00:01"),
        (1186, struct.pack(">qii", 0, 0, 0), "00:00:00"),
        (2950, bytes(range(16)), "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        (869, b"\2\x20\0\4\xc0\0\2\1", "192.0.2.1"),
        (869, b"\2\x18\0\4\xc0\0\2\1", "192.0.2.1/24"),
        (650, b"\2\x20\1\4\xc0\0\2\1", "192.0.2.1/32"),
        (869, b"\3\x80\0\x10" + bytes(10) + b"\xff\xff\xc0\0\2\1", "::ffff:192.0.2.1"),
        (829, b"\1\2\3\4\5\xff", "01:02:03:04:05:ff"),
        (1560, struct.pack(">I", 10) + b"\xaa\xc0", "1010101011"),
        (3220, struct.pack(">II", 1, 0xABC), "1/ABC"),
        (3802, b'\1{"bb":1.50,"a":[true,null],"a":"\\u00e4\\n"}', '{"a": "ä\\n", "bb": 1.50}'),
        (114, b'{"b" :1}', '{"b" :1}'),
        (600, struct.pack(">dd", 1.5, 1e20), "(1.5,1e+20)"),
        (1007, struct.pack(">iiIiiiiii", 1, 1, 23, 3, 1, 4, 7, -1, 4) + struct.pack(">i", 9), "{7,NULL,9}"),
        (1007, struct.pack(">iiI", 0, 0, 23), "{}"),
        (1009, struct.pack(">iiIiii", 1, 0, 25, 1, 1, 3) + b'a"b', '{"a\\"b"}'),
        (1007, struct.pack(">iiIiiii", 1, 0, 23, 1, 5, 4, 7), "[5:5]={7}"),
        (3904, b"\2" + struct.pack(">iiii", 4, 1, 4, 9), "[1,9)"),
        (3904, b"\1", "empty"),
        (3904, b"\x18", "(,)"),
    ],
)
def test_binary_values_are_what_the_server_prints(oid: int, raw: bytes, expected: Param) -> None:
    assert from_binary(raw, oid) == expected


@pytest.mark.parametrize(
    ("oid", "sent", "expected"),
    [
        (0, "5", "5"),
        (23, "5", 5),
        (23, "+5", "+5"),
        (23, "007", "007"),
        (701, "0.1", 0.1),
        (701, "0.10", "0.10"),
        (701, "inf", "Infinity"),
        (16, "true", "t"),
        (1700, "1E+3", "1000"),
        (1114, "2026-02-03T04:05:06.100", "2026-02-03 04:05:06.1"),
        (1184, "2026-02-03 04:05:06+02:00", "2026-02-03 02:05:06+00"),
        (1184, "2026-02-03 04:05:06", "2026-02-03 04:05:06"),
        (1184, "yesterday", "yesterday"),
        (1186, "1 day, 0:00:01.50", "1 day 00:00:01.5"),
        (25, "\n", "\n"),
    ],
)
def test_text_values_are_spelled_as_the_server_would(oid: int, sent: str, expected: Param) -> None:
    assert from_text(sent.encode(), oid) == expected


def test_text_in_another_encoding_and_unknown_types_stay_bytes() -> None:
    assert from_text(b"\xe4", 25) == b"\xe4"
    assert from_binary(b"\1\2", 123456) == b"\1\2"


@pytest.mark.parametrize(
    ("formats", "expected"),
    [((), ("1", "2")), ((0,), ("1", "2")), ((1,), (b"1", b"2")), ((0, 1), ("1", b"2")), ((1, 1, 1), (b"1", b"2"))],
)
def test_formats_are_none_one_for_all_or_one_for_each(formats: tuple[int, ...], expected: tuple[Param, ...]) -> None:
    body = bind(b"1", b"2", formats=formats)[5:]
    found = names(body)
    assert found is not None
    assert bound(body, found[2], ()) == expected


def test_fewer_formats_than_values_are_no_error() -> None:
    body = bind(b"1", b"2", b"3", formats=(1, 0))[5:]
    assert bound(body, 2, ()) == (b"1", "2", "3")


@given(st.binary(max_size=80), st.lists(st.sampled_from([0, *BINARY]), max_size=4))
def test_any_bind_gives_values_or_none(body: bytes, oids: list[int]) -> None:
    found = names(body)
    if found is not None:
        values = bound(body, found[2], oids)
        assert values is None or all(v is None or type(v) in (int, float, str, bytes) for v in values)


@given(st.sampled_from(sorted(BINARY)), st.binary(max_size=60))
def test_any_bytes_are_a_value_of_any_type_or_stay_bytes(oid: int, raw: bytes) -> None:
    assert type(from_binary(raw, oid)) in (int, float, str, bytes)


@given(st.sampled_from([16, 20, 23, 700, 701, 1083, 1114, 1184, 1186, 1266, 1700, 2950, 3802]), st.text(max_size=40))
def test_any_text_is_spelled_or_left(oid: int, text: str) -> None:
    assert type(from_text(text.encode("utf-8", "surrogatepass"), oid)) in (int, float, str, bytes)
