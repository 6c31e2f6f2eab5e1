"""The reassembler against a model: a stream whose bytes are known, cut, repeated, reordered, dropped."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.protocols.base import Skipped
from agentwatch.streams import tcp
from agentwatch.streams.tcp import Data, Gap, Reassembler, Run

ISN = 1000


def begun(isn: int = ISN) -> Reassembler:
    stream = Reassembler()
    assert stream.segment(isn, b"", 0, syn=True) == []
    return stream


def send(stream: Reassembler, position: int, data: bytes, isn: int = ISN, **flags: bool) -> list[Data | Gap | Run]:
    return stream.segment((isn + 1 + position) & 0xFFFFFFFF, data, len(data), **flags)


def test_bytes_in_order_come_out_as_they_are() -> None:
    stream = begun()
    assert send(stream, 0, b"abc") == [Data(b"abc", 0)]
    assert send(stream, 3, b"de") == [Data(b"de", 3)]
    assert (stream.offset, stream.joined, stream.closed) == (5, False, False)


def test_in_order_bytes_are_not_copied() -> None:
    stream = begun()
    data = bytes(100)
    (piece,) = send(stream, 0, data)
    assert isinstance(piece, Data)
    assert piece.data is data


def test_retransmission_is_delivered_once() -> None:
    stream = begun()
    send(stream, 0, b"abc")
    assert send(stream, 0, b"abc") == []
    assert send(stream, 0, b"abcdef") == [Data(b"def", 3)]


def test_reordered_segments_wait_for_the_hole_to_fill() -> None:
    stream = begun()
    assert send(stream, 3, b"def") == []
    assert send(stream, 6, b"g") == []
    assert send(stream, 0, b"abc") == [Data(b"abc", 0), Data(b"def", 3), Data(b"g", 6)]


def test_first_copy_of_overlapping_bytes_wins() -> None:
    stream = begun()
    send(stream, 2, b"CD")
    assert send(stream, 0, b"abcdef") == [Data(b"abCDef", 0)]


def test_sequence_numbers_wrap() -> None:
    isn = 0xFFFFFFFC
    stream = begun(isn)
    assert send(stream, 4, b"ef", isn) == []
    assert send(stream, 0, b"abcd", isn) == [Data(b"abcd", 0), Data(b"ef", 4)]
    assert send(stream, 6, b"g", isn) == [Data(b"g", 6)]


def test_stream_longer_than_the_sequence_space_keeps_counting() -> None:
    stream = begun()
    big = bytes(1 << 20)
    seq = ISN + 1
    for _ in range(4100):
        stream.segment(seq, big, len(big))
        seq = (seq + len(big)) & 0xFFFFFFFF
    assert stream.offset == 4100 << 20


def test_segment_larger_than_64_kib_passes() -> None:
    stream = begun()
    data = bytes(200_000)
    assert send(stream, 0, data) == [Data(data, 0)]


def test_fin_with_data_closes_after_the_data() -> None:
    stream = begun()
    assert send(stream, 0, b"bye", fin=True) == [Data(b"bye", 0)]
    assert stream.closed
    assert send(stream, 0, b"bye", fin=True) == []
    assert stream.acked(ISN + 1 + 4) == []
    assert stream.offset == 3


def test_fin_before_its_data_closes_when_the_hole_fills() -> None:
    stream = begun()
    assert send(stream, 3, b"", fin=True) == []
    assert not stream.closed
    assert send(stream, 0, b"bye") == [Data(b"bye", 0)]
    assert stream.closed


def test_acknowledged_fin_leaves_a_gap_of_the_lost_bytes_only() -> None:
    stream = begun()
    send(stream, 3, b"", fin=True)
    assert stream.acked(ISN + 1 + 4) == [Gap(3, 0)]
    assert stream.closed


def test_forged_fin_does_not_hide_the_data_after_it() -> None:
    stream = begun()
    send(stream, 0, b"abc", fin=True)
    assert send(stream, 3, b"def") == [Data(b"def", 3)]
    assert not stream.closed


def test_acknowledgement_beyond_a_forged_fin_is_a_gap() -> None:
    stream = begun()
    send(stream, 0, b"abc", fin=True)
    assert stream.acked(ISN + 1 + 10) == [Gap(7, 3)]
    assert not stream.closed


def test_data_after_finish_is_still_delivered() -> None:
    stream = begun()
    send(stream, 0, b"abc")
    assert stream.finish() == []
    assert send(stream, 3, b"def") == [Data(b"def", 3)]


@pytest.mark.parametrize("garbage", [b"", b"\0"])
def test_keep_alive_probe_with_an_old_number_changes_nothing(garbage: bytes) -> None:
    stream = begun()
    send(stream, 0, b"abc")
    assert send(stream, 2, garbage) == []
    assert send(stream, 3, b"def", fin=True) == [Data(b"def", 3)]
    assert send(stream, 6, garbage) == []
    assert (stream.offset, stream.closed) == (6, True)


def test_keep_alive_does_not_begin_a_joined_stream() -> None:
    stream = Reassembler()
    assert send(stream, 9, b"") == []
    assert send(stream, 10, b"abc") == [Data(b"abc", 0)]
    assert stream.joined


def test_window_probe_byte_is_delivered_once() -> None:
    stream = begun()
    send(stream, 0, b"abc")
    assert send(stream, 3, b"d") == [Data(b"d", 3)]
    assert send(stream, 3, b"d") == []
    assert send(stream, 3, b"def") == [Data(b"ef", 4)]


def test_simultaneous_open_repeats_the_syn() -> None:
    stream = begun()
    assert stream.acked(ISN + 1) == []
    assert stream.segment(ISN, b"", 0, syn=True) == []
    assert send(stream, 0, b"abc") == [Data(b"abc", 0)]


def test_syn_with_data_is_delivered() -> None:
    stream = Reassembler()
    assert stream.segment(ISN, b"early", 5, syn=True) == [Data(b"early", 0)]
    assert send(stream, 0, b"early") == []


def test_new_syn_after_a_refused_connection_begins_anew() -> None:
    stream = begun(5)
    assert stream.finish() == []
    assert stream.segment(ISN, b"", 0, syn=True) == []
    assert send(stream, 0, b"abc") == [Data(b"abc", 0)]
    assert not stream.closed


def test_syn_in_the_middle_of_a_stream_is_not_believed() -> None:
    stream = begun()
    send(stream, 0, b"abc")
    assert stream.segment(77, b"", 0, syn=True) == []
    assert send(stream, 3, b"def") == [Data(b"def", 3)]


def test_acknowledged_hole_is_a_gap_of_exactly_its_length() -> None:
    stream = begun()
    send(stream, 0, b"abc")
    send(stream, 7, b"hi")
    assert stream.acked(ISN + 1 + 3) == []
    assert stream.acked(ISN + 1 + 5) == [Gap(2, 3)]
    assert stream.acked(ISN + 1 + 9) == [Gap(2, 5), Data(b"hi", 7)]
    assert stream.acked(ISN + 1 + 9) == []


def test_data_that_comes_after_its_gap_was_declared_is_not_delivered_twice() -> None:
    stream = begun()
    assert stream.acked(ISN + 1 + 3) == [Gap(3, 0)]
    assert send(stream, 0, b"abcde") == [Data(b"de", 3)]


def test_joined_stream_counts_from_the_first_acknowledged_byte() -> None:
    stream = Reassembler()
    assert stream.acked(ISN) == []
    assert stream.segment(ISN + 4, b"ef", 2) == []
    assert stream.acked(ISN + 6) == [Gap(4, 0), Data(b"ef", 4)]
    assert stream.joined


def test_acknowledgement_of_a_lost_syn_begins_the_stream() -> None:
    stream = Reassembler()
    stream.acked(ISN + 1, syn=True)
    assert not stream.joined
    assert send(stream, 0, b"abc") == [Data(b"abc", 0)]


def test_rest_of_a_cut_segment_is_a_gap() -> None:
    stream = begun()
    assert stream.segment(ISN + 1, b"abc", 10) == [Data(b"abc", 0), Gap(7, 3)]
    assert send(stream, 10, b"k") == [Data(b"k", 10)]


def test_rest_of_a_cut_segment_that_waits_is_filled_by_another_copy() -> None:
    stream = begun()
    assert stream.segment(ISN + 1 + 2, b"c", 4) == []
    assert send(stream, 4, b"ef") == []
    assert send(stream, 0, b"ab") == [Data(b"ab", 0), Data(b"c", 2), Gap(1, 3), Data(b"ef", 4)]


def test_finish_delivers_what_waits_with_the_holes_as_gaps() -> None:
    stream = begun()
    send(stream, 2, b"c")
    send(stream, 5, b"f")
    send(stream, 9, b"", fin=True)
    assert stream.finish() == [Gap(2, 0), Data(b"c", 2), Gap(2, 3), Data(b"f", 5), Gap(3, 6)]
    assert stream.closed
    assert Reassembler().finish() == []


def test_segment_beyond_any_window_cannot_move_the_stream() -> None:
    stream = begun()
    assert send(stream, tcp.MAX_WINDOW + 1, b"forged") == []
    assert send(stream, 0, b"abc") == [Data(b"abc", 0)]
    assert stream.finish() == []


def test_loss_of_more_than_two_gib_is_counted_exactly() -> None:
    stream = begun()
    lost = 2_500_000_000
    assert stream.acked((ISN + 1 + lost) & 0xFFFFFFFF) == [Gap(lost, 0)]
    assert send(stream, lost, b"abc") == [Data(b"abc", lost)]


def test_hole_is_declared_when_the_bytes_behind_it_reach_the_limit() -> None:
    stream = begun()
    size = 1 << 20
    chunk = bytes(size)
    count = tcp.MAX_HELD_BYTES // size
    for number in range(count):
        assert send(stream, 10 + number * size, chunk) == []
    result = send(stream, 10 + count * size, chunk)
    assert result[0] == Gap(10, 0)
    assert len(result) == count + 2
    assert stream._held_bytes == 0


def test_number_of_waiting_pieces_is_bounded() -> None:
    stream = begun()
    for number in range(3 * tcp.MAX_HELD_PIECES):
        send(stream, 1 + 2 * number, b"x")
        assert len(stream._held) <= tcp.MAX_HELD_PIECES
    assert stream.offset > 0


def test_retransmission_over_many_fragments_does_not_reach_the_limit() -> None:
    stream = begun()
    count = tcp.MAX_HELD_PIECES - 1
    for number in range(count):
        send(stream, 1 + 2 * number, b"x")
    assert send(stream, 1, b"-" * 2 * count) == []
    result = send(stream, 0, b"0")
    data = b"".join(piece.data for piece in result if isinstance(piece, Data))
    assert data == b"0" + b"x-" * count


# --- the model -------------------------------------------------------------------------------------------

STREAM = bytes(range(256)) * 2


def check(result: list[Data | Gap | Run], expected_offset: int, seen: set[int]) -> int:
    """Hold the invariant: contiguous offsets, true bytes, and gaps only over bytes that were not seen."""
    for piece in result:
        assert piece.offset == expected_offset
        if isinstance(piece, Data):
            assert piece.data
            assert STREAM[piece.offset : piece.offset + len(piece.data)] == piece.data
            expected_offset += len(piece.data)
        else:
            assert piece.length > 0
            assert not seen & set(range(piece.offset, piece.offset + piece.length))
            expected_offset += piece.length
    return expected_offset


@st.composite
def transmissions(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int, int]], set[int]]:
    """Return (isn, stream length, segments as (start, length, captured) in order of arrival, bytes seen)."""
    total = draw(st.integers(1, len(STREAM)))
    cuts = sorted(draw(st.sets(st.integers(0, total), max_size=20)) | {0, total})
    segments = [(a, b - a, b - a) for a, b in pairwise(cuts)]
    for _ in range(draw(st.integers(0, 8))):  # retransmissions with other boundaries
        start = draw(st.integers(0, total - 1))
        segments.append((start, draw(st.integers(1, total - start)), total))
    segments = [(start, length, min(length, kept)) for start, length, kept in segments]
    if draw(st.booleans()):
        segments = draw(st.permutations(segments))
    kept = [segment for segment in segments if draw(st.integers(0, 3))]
    seen = {position for start, _, captured in kept for position in range(start, start + captured)}
    return draw(st.integers(0, 0xFFFFFFFF)), total, kept, seen


@given(transmissions(), st.booleans(), st.booleans())
def test_output_is_the_stream_with_exactly_the_lost_ranges_as_gaps(
    transmission: tuple[int, int, list[tuple[int, int, int]], set[int]],
    fin_seen: bool,  # noqa: FBT001 (drawn by hypothesis)
    restart: bool,  # noqa: FBT001
) -> None:
    isn, total, segments, seen = transmission
    stream = begun(isn)
    offset = 0
    delivered: set[int] = set()
    results: list[list[Data | Gap | Run]] = []
    for start, length, _ in segments:
        data = STREAM[start : start + length]
        results.append(send(stream, start, data, isn))
        if restart:
            stream = pickle.loads(pickle.dumps(stream))  # noqa: S301 (our own bytes)
    if fin_seen:
        results.append(send(stream, total, b"", isn, fin=True))
    results.append(stream.acked((isn + 1 + total + fin_seen) & 0xFFFFFFFF))
    results.append(stream.finish())
    for result in results:
        offset = check(result, offset, seen)
        for piece in result:
            if isinstance(piece, Data):
                delivered |= set(range(piece.offset, piece.offset + len(piece.data)))
    assert offset == stream.offset == total
    assert delivered == seen


@given(
    st.integers(0, 0xFFFFFFFF),
    st.lists(
        st.tuples(
            st.sampled_from(["segment", "ack", "finish"]),
            st.integers(0, 300),
            st.integers(0, 100),
            st.integers(0, 100),
            st.booleans(),
            st.booleans(),
        ),
        max_size=40,
    ),
)
def test_any_events_give_contiguous_true_bytes(isn: int, events: list[Any]) -> None:
    """Whatever arrives, cut, contradictory or forged: offsets follow each other and held bytes are counted."""
    stream = Reassembler()
    offset = 0
    for what, position, length, captured, syn, fin in events:
        seq = (isn + position) & 0xFFFFFFFF
        if what == "segment":
            data = bytes(length)[: min(length, captured)]
            result = stream.segment(seq, data, length, syn=syn, fin=fin)
        elif what == "ack":
            result = stream.acked(seq)
        else:
            result = stream.finish()
        for piece in result:
            assert piece.offset == offset
            offset += len(piece.data) if isinstance(piece, Data) else piece.length
        assert stream.offset == offset
        assert stream._held_bytes == sum(len(p.data) for p in stream._held if p.data is not None)
        assert all(a.end <= b.start for a, b in pairwise(stream._held))
        assert all(p.start > offset for p in stream._held)


@given(transmissions(), st.data())
def test_cut_captures_lose_exactly_the_bytes_that_no_copy_held(
    transmission: tuple[int, int, list[tuple[int, int, int]], set[int]], data: st.DataObject
) -> None:
    isn, total, segments, _ = transmission
    stream = begun(isn)
    offset = 0
    declared: set[int] = set()
    delivered: set[int] = set()
    seen: set[int] = set()
    for start, length, _ in segments:
        captured = data.draw(st.integers(0, length))
        seen |= set(range(start, start + captured)) - declared
        result = stream.segment((isn + 1 + start) & 0xFFFFFFFF, STREAM[start : start + captured], length)
        for piece in result:
            size = len(piece.data) if isinstance(piece, Data) else piece.length
            (delivered if isinstance(piece, Data) else declared).update(range(piece.offset, piece.offset + size))
        offset = check(result, offset, seen)
    result = stream.acked((isn + 1 + total) & 0xFFFFFFFF)
    offset = check(result, offset, seen)
    for piece in result:
        if isinstance(piece, Data):
            delivered |= set(range(piece.offset, piece.offset + len(piece.data)))
    assert offset == total
    assert delivered == seen


def test_a_run_that_is_next_is_told_as_it_is() -> None:
    stream = begun()
    send(stream, 0, b"abc")
    what = Skipped(100, 0, 0, 5, ord("D"))
    assert stream.skipped(ISN + 4, what) == [Run(100, 3, what)]
    assert send(stream, 103, b"d") == [Data(b"d", 103)]


def test_a_run_fills_the_hole_before_what_came_earlier() -> None:
    stream = begun()
    what = Skipped(100, 0, 0, 5, ord("D"))
    assert send(stream, 100, b"later") == []
    assert stream.skipped(ISN + 1, what) == [Run(100, 0, what), Data(b"later", 100)]


def test_a_run_that_overlaps_is_a_gap_as_far_as_it_is_new() -> None:
    what = Skipped(100, 0, 0, 5, ord("D"))
    ahead = begun()
    assert ahead.skipped(ISN + 11, what) == []
    assert ahead.acked(ISN + 111) == [Gap(10, 0), Run(100, 10, what)]
    overlapping = begun()
    assert send(overlapping, 90, b"over the end") == []
    assert overlapping.skipped(ISN + 1, what) == [Gap(90, 0), Data(b"over the end", 90)]
    again = begun()
    send(again, 0, bytes(200))
    assert again.skipped(ISN + 1, what) == []


def test_is_behind_tells_whether_an_acknowledgement_proves_anything() -> None:
    stream = Reassembler()
    assert not stream.is_behind(5)
    stream = begun()
    send(stream, 0, b"abc")
    assert not stream.is_behind(ISN + 4)
    assert stream.is_behind(ISN + 5)


def test_a_run_that_is_ahead_waits_for_what_is_before_it() -> None:
    stream = begun()
    what = Skipped(100, 0, 0, 5, ord("D"))
    assert stream.skipped(ISN + 4, what) == []
    assert send(stream, 103, b"d") == []
    assert send(stream, 0, b"abc") == [Data(b"abc", 0), Run(100, 3, what), Data(b"d", 103)]


def test_a_run_replaces_what_is_held_of_it() -> None:
    stream = begun()
    what = Skipped(100, 0, 0, 5, ord("D"))
    assert send(stream, 40, bytes(20)) == []
    assert stream.skipped(ISN + 1, what) == [Run(100, 0, what)]
    assert send(stream, 100, b"d") == [Data(b"d", 100)]
