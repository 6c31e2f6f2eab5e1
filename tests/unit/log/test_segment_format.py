"""The format, read by a second reader that was written from README.md alone."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.log import segment

if TYPE_CHECKING:
    from collections.abc import Callable

LOG_ID = bytes(range(16))
SEED = segment.seed(LOG_ID)


def crc32c_bit_by_bit(data: bytes) -> int:
    """CRC-32C of RFC 3720, from its polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def read_as_documented(data: bytes) -> tuple[int, list[bytes]]:
    assert data[:8] == b"\x89AWLOG\r\n"
    assert int.from_bytes(data[8:12]) == 1
    first_seq = int.from_bytes(data[12:20])
    log_id = data[44:60]
    assert int.from_bytes(data[60:64]) == crc32c_bit_by_bit(data[:60])
    payloads: list[bytes] = []
    at = 64
    while at < len(data):
        length, check = struct.unpack_from(">II", data, at)
        payload = data[at + 8 : at + 8 + length]
        assert len(payload) == length
        seq = first_seq + len(payloads)
        assert check == (crc32c_bit_by_bit(log_id + data[at : at + 4] + payload) + seq) % 2**32
        payloads.append(payload)
        at += 8 + length
    return first_seq, payloads


def test_checksum_is_crc32c() -> None:
    assert crc32c_bit_by_bit(b"123456789") == 0xE3069283


def test_written_segments_read_back_by_the_documented_format(build_log: Callable[..., Path]) -> None:
    payloads = [bytes([65 + n]) * (n + 1) for n in range(20)]
    log_dir = build_log(payloads[:7], payloads[7:], segment_bytes=200)
    found = [read_as_documented(path.read_bytes()) for path in sorted(log_dir.glob("*.segment"))]
    assert len(found) > 2
    assert [payload for _, some in found for payload in some] == payloads
    assert [first for first, _ in found] == [int(path.name[:20]) for path in sorted(log_dir.glob("*.segment"))]


def test_header_tells_boot_and_time(build_log: Callable[..., Path]) -> None:
    log_dir = build_log([b"x"])
    data = next(log_dir.glob("*.segment")).read_bytes()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert data[28:44].hex() == boot_id.replace("-", "")
    assert 0 < segment.Header.parse(data).created_ns < 2**63


@given(st.binary(min_size=1, max_size=200), st.integers(0, 2**40))
def test_frame_survives_the_way_there_and_back(payload: bytes, seq: int) -> None:
    data = segment.frame(payload, seq, SEED)
    assert segment.take_frames(data, seq, SEED, 10).payloads == [payload]


@given(st.binary(min_size=1, max_size=50), st.integers(0, 2**40), st.integers(1, 2**31))
def test_frame_is_refused_under_another_sequence_number(payload: bytes, seq: int, off: int) -> None:
    taken = segment.take_frames(segment.frame(payload, seq, SEED), seq + off, SEED, 10)
    assert taken.payloads == []
    assert taken.bad


def test_frame_of_another_log_is_refused() -> None:
    other = segment.seed(bytes(16))
    assert segment.take_frames(segment.frame(b"payload", 0, other), 0, SEED, 1).bad


def test_every_cut_of_a_frame_is_cut_short_and_not_bad() -> None:
    data = segment.frame(b"payload", 3, SEED)
    for size in range(len(data)):
        taken = segment.take_frames(data[:size], 3, SEED, 1)
        assert (taken.payloads, taken.bad) == ([], False)


def test_every_flipped_bit_of_a_frame_is_noticed() -> None:
    data = segment.frame(b"payload", 3, SEED)
    for bit in range(len(data) * 8):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        assert segment.take_frames(bytes(broken), 3, SEED, 1).payloads == []


def test_zeros_are_never_a_frame() -> None:
    assert segment.take_frames(bytes(100), 0, SEED, 1).bad


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    data = segment.Header(5, 6, bytes(16), LOG_ID).pack()
    assert segment.Header.parse(data) == (5, 6, bytes(16), LOG_ID)
    for bit in range(len(data) * 8):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"segment|checksum"):
            segment.Header.parse(bytes(broken))


def test_later_version_is_told_apart_from_damage() -> None:
    body = bytearray(segment.Header(5, 6, bytes(16), LOG_ID).pack()[:60])
    body[11] = 2
    with pytest.raises(segment.UnsupportedVersionError, match="version 2"):
        segment.Header.parse(bytes(body) + crc32c_bit_by_bit(bytes(body)).to_bytes(4))


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("00000000000000000000.segment", 0),
        ("00000000000000000123.segment", 123),
        ("123.segment", None),
        ("00000000000000000123.segment.torn", None),
        ("00000000000000000123.segment\n", None),
        ("writer.lock", None),
    ],
)
def test_only_exact_names_are_segments(name: str, first: int | None) -> None:
    assert segment.parse_name(name) == first
    if first is not None:
        assert segment.segment_name(first) == name
