"""One direction of one TCP connection: segments in any order in, ordered bytes with declared gaps out.

In: the segments as they crossed the socket (sequence number, captured payload, length on the wire) and the
acknowledgements of the other side. Out: ``Data`` and ``Gap`` values whose offsets follow each other without
a hole or an overlap, so their lengths always add up to the bytes that TCP counted (RFC 9293 section 3.4;
SYN and FIN take a sequence number and are not bytes). Sans-IO, plain attributes: ``pickle`` at any time.

The rules that everything here follows:

* The first copy of a byte wins; retransmissions, keep-alives and window probes repeat what is known.
* A hole is a gap only when it is proven: the peer acknowledged it, the connection ended, or the bytes that
  wait behind it reached a named limit. Then it is declared once, with its exact length, and never filled.
* A segment that no receiver could accept (farther ahead than the largest window) cannot move the stream.
* Data after a FIN or after ``finish`` is still delivered: a forged FIN or RST must not hide what follows.
  A socket that connects again has new numbers and needs new reassemblers.

A FIN that was never seen cannot be told from a byte: its acknowledgement adds one byte to the last gap.
The caller passes each acknowledgement (only of segments with the ACK flag) to the *other* direction's
``acked`` before it uses what the segment itself carried, and answers a RST with ``finish``.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from agentwatch.protocols.base import Skipped

MAX_HELD_BYTES = 8 * 1024 * 1024
"""Out-of-order bytes kept for one direction; above it the first hole becomes a gap. A receiver with Linux'
default tcp_rmem (6 MiB) cannot hold more itself."""
MAX_HELD_PIECES = 8192
"""Out-of-order pieces kept; 6 MiB in segments of 1448 bytes are 4345. Bounds the cost of one-byte segments."""
MAX_JOINED_BYTES = 64 * 1024
"""Fragments that a retransmission filled up are joined to pieces of at most this size: a larger one would be
copied again and again."""
MAX_WINDOW = 1 << 30
"""No window is larger (RFC 7323 section 2.3): what lies farther ahead was not accepted, farther behind is new."""

_MASK = 0xFFFF_FFFF
_UNKNOWN = -1


class Data(NamedTuple):
    """Bytes of the stream; ``offset`` is the position of the first one."""

    data: bytes
    offset: int


class Gap(NamedTuple):
    """``length`` bytes of the stream, from ``offset``, that were not captured."""

    length: int
    offset: int


class Run(NamedTuple):
    """``length`` bytes of the stream, from ``offset``, of which ``what`` tells; they were not captured on purpose."""

    length: int
    offset: int
    what: Skipped


class _Piece(NamedTuple):
    """What is known of the stream from ``start`` to ``end``; ``data`` is None where capture was cut."""

    start: int
    end: int
    data: bytes | None


class Reassembler:
    """Put one direction of one TCP connection in order.

    ``offset``: bytes delivered and declared so far. ``joined``: the beginning was not seen, so offsets count from the
    first byte that was. ``closed``: the end of the stream was reached (FIN) or ``finish`` was called.
    """

    __slots__ = ("_fin", "_held", "_held_bytes", "_runs", "_seq", "closed", "joined", "offset")

    def __init__(self) -> None:
        self.offset = 0
        self.joined = True
        self.closed = False
        self._seq = _UNKNOWN  # sequence number of the byte at ``offset``
        self._fin: int | None = None  # offset at which the stream ends
        self._held: list[_Piece] = []  # sorted, disjoint, all beyond ``offset``
        self._held_bytes = 0
        self._runs: dict[int, Skipped] = {}
        """Runs among the held pieces, by their beginning."""

    def segment(
        self, seq: int, data: bytes, length: int, *, syn: bool = False, fin: bool = False
    ) -> list[Data | Gap | Run]:
        """Take one segment; return what became deliverable.

        ``length`` is the payload's length on the wire; where ``data`` is shorter the rest becomes a gap.
        """
        if seq == self._seq and len(data) == length and not (syn or fin or self._held) and self._fin is None and length:
            offset = self.offset
            self.offset = offset + length
            self._seq = (seq + length) & _MASK
            return [Data(data, offset)]
        if not (length or syn or fin):
            return []  # not even a beginning: a bare ACK may be a keep-alive, one below the next byte
        if syn:
            if not self._begin(seq):
                return []
            seq += 1
        elif self._seq == _UNKNOWN:
            self._seq = seq
        ahead = self._ahead(seq)
        start = self.offset + ahead
        if ahead > MAX_WINDOW or (length == 1 and self.closed and start == self._fin):
            return []  # the second: a keep-alive with a byte of garbage has the FIN's own number
        return self._place(start, start + length, data[:length], fin=fin)

    def skipped(self, seq: int, what: Skipped) -> list[Data | Gap | Run]:
        """Take a run of bytes that was stepped over.

        It tells more than captured bytes within it that wait for what is before them, and replaces these. If it is
        known in part in any other way, the rest is a gap.
        """
        if not what.length:
            return []
        if self._seq != _UNKNOWN and len(self._runs) < MAX_HELD_PIECES:
            start = self.offset + self._ahead(seq)
            self._runs[start] = what
            outside = [p for p in self._held if p.start < start or p.end > start + what.length]
            if len(outside) < len(self._held):
                self._held = outside
                self._held_bytes = _size(outside)
        pieces = self.segment(seq, b"", what.length)
        if not self._held:
            self._runs.clear()
        return pieces

    def is_behind(self, ack: int) -> bool:
        """Whether the peer acknowledged more than is known here."""
        return self._seq != _UNKNOWN and self._ahead(ack) > 0

    def acked(self, ack: int, *, syn: bool = False) -> list[Data | Gap | Run]:
        """Take note that the peer has everything below ``ack``; what was not seen of it is a gap.

        ``syn``: the segment with this acknowledgement was itself a SYN, so the stream begins at ``ack``.
        """
        if self._seq == _UNKNOWN:
            self._seq = ack & _MASK
            self.joined = not syn
            return []
        ahead = self._ahead(ack)
        if ahead <= 0:
            return []
        below = self.offset + ahead
        if self._fin is not None:
            if below > self._fin + 1:
                self._reopen()
            else:
                below = min(below, self._fin)
        return self._advance(below)

    def finish(self) -> list[Data | Gap | Run]:
        """Take note that the connection ended; return what is still held, the holes before it as gaps."""
        end = max(self._held[-1].end if self._held else 0, self._fin or 0)
        result = self._advance(end)
        self.closed = True
        return result

    def _ahead(self, seq: int) -> int:
        # Repetitions lie at most a window back. Everything else is ahead: after a long loss up to 3 GiB.
        ahead = (seq - self._seq) & _MASK
        return ahead if ahead < (1 << 32) - MAX_WINDOW else ahead - (1 << 32)

    def _begin(self, seq: int) -> bool:
        # Only a stream without bytes begins (anew: a socket may connect again after a refusal, with another
        # number). In the middle of a stream TCP does not believe a SYN, and a believed one would hide data.
        if self._seq != _UNKNOWN and (self.offset or self._held):
            return False
        self._seq = (seq + 1) & _MASK
        self.joined = self.closed = False
        self._fin = None
        return True

    def _reopen(self) -> None:
        # The FIN was not the end: forged, since TCP sends nothing after it.
        self._fin = None
        self.closed = False

    def _place(self, start: int, end: int, data: bytes, *, fin: bool) -> list[Data | Gap | Run]:
        if self._fin is not None and end > self._fin:
            self._reopen()
        if fin and end >= max(self.offset, self._held[-1].end if self._held else 0):
            self._fin = end
        captured = start + len(data)
        self._hold(start, captured, data)
        self._hold(captured, end, None)
        result = self._advance(self.offset)
        while self._held and (self._held_bytes > MAX_HELD_BYTES or len(self._held) > MAX_HELD_PIECES):
            result += self._advance(self._held[0].start)
        return result

    def _hold(self, start: int, end: int, data: bytes | None) -> None:
        """Keep the parts of a piece that are not known yet; data replaces a cut part."""
        start_kept = max(start, self.offset)
        if start_kept >= end:
            return
        held = self._held
        low = bisect_left(held, start_kept, key=_end_of) if held else 0
        while low < len(held) and held[low].end <= start_kept:
            low += 1
        high = low
        while high < len(held) and held[high].start < end:
            high += 1
        if low == high:
            pieces = [_cut(_Piece(start, end, data), start_kept, end)]
        else:
            pieces = _joined(_merge(held[low:high], _Piece(start, end, data), start_kept))
        self._held_bytes += _size(pieces) - _size(held[low:high])
        held[low:high] = pieces

    def _advance(self, proven: int) -> list[Data | Gap | Run]:
        """Deliver what is in order; holes below ``proven`` become gaps."""
        result: list[Data | Gap | Run] = []
        held = self._held
        before = offset = self.offset
        taken = 0
        for start, end, data in held:
            if start > offset:
                if start > proven:
                    break
                _append_gap(result, start - offset, offset)
            if data is None:
                run = self._runs.pop(start, None)
                if run is not None and run.length == end - start:
                    result.append(Run(run.length, start, run))
                else:
                    _append_gap(result, end - start, start)
            else:
                result.append(Data(data, start))
                self._held_bytes -= end - start
            offset = end
            taken += 1
        del held[:taken]
        if offset < proven:
            _append_gap(result, proven - offset, offset)
            offset = proven
        if self._seq != _UNKNOWN:
            self._seq = (self._seq + offset - before) & _MASK
        self.offset = offset
        if self._fin is not None and offset >= self._fin:
            self.closed = True
        return result


def _end_of(piece: _Piece) -> int:
    return piece.end


def _size(pieces: list[_Piece]) -> int:
    return sum(len(piece.data) for piece in pieces if piece.data is not None)


def _cut(piece: _Piece, start: int, end: int) -> _Piece:
    if piece.data is None or (start == piece.start and end == piece.end):
        return _Piece(start, end, piece.data)
    return _Piece(start, end, piece.data[start - piece.start : end - piece.start])


def _append_gap(result: list[Data | Gap | Run], length: int, offset: int) -> None:
    last = result[-1] if result else None
    if isinstance(last, Gap):
        result[-1] = Gap(last.length + length, last.offset)
    else:
        result.append(Gap(length, offset))


def _merge(known: list[_Piece], new: _Piece, start: int) -> list[_Piece]:
    """Add ``new`` (from ``start`` on) to the pieces it touches: the first data wins, any data wins over a cut."""
    if new.data is None:
        return sorted(known + _outside(known, new, start))
    firm = [piece for piece in known if piece.data is not None]
    pieces = firm + _outside(firm, new, start)
    for cut in known:
        if cut.data is None:
            pieces += _outside([_Piece(start, new.end, None)], cut, cut.start)
    return sorted(pieces)


def _joined(pieces: list[_Piece]) -> list[_Piece]:
    groups: list[list[_Piece]] = []
    for piece in pieces:
        last = groups[-1] if groups else []
        joins = last and last[-1].end == piece.start and piece.end - last[0].start <= MAX_JOINED_BYTES
        if joins and piece.data is not None and last[-1].data is not None:
            last.append(piece)
        else:
            groups.append([piece])
    return [_Piece(g[0].start, g[-1].end, b"".join(p.data or b"" for p in g)) if g[1:] else g[0] for g in groups]


def _outside(known: list[_Piece], new: _Piece, start: int) -> list[_Piece]:
    """Return the parts of ``new`` from ``start`` on that none of the sorted ``known`` pieces covers."""
    parts: list[_Piece] = []
    for piece in known:
        if piece.start > start:
            parts.append(_cut(new, start, min(piece.start, new.end)))
        start = max(start, piece.end)
    if start < new.end:
        parts.append(_cut(new, start, new.end))
    return parts
