"""The ciphertext side of one TLS connection: bytes as they are on the wire in, records and accounts out.

In: the bytes of both directions in order, some of which were not seen, and the plaintext length of each call to the TLS
library. Out: what the hellos say, where each record begins and its first bytes, and for each direction the ``surplus``:
payload that no call explains. The watched process is the client. Sans-IO and without keys. Four rules hold:

* nothing raises, whatever the bytes are: they come from the process that is being watched;
* memory is bounded by the limits named here and in ``tls_hello``;
* records and accounts do not depend on how the input was split (where a piece begins matters to joined connections
  alone, see ``TlsRecords``);
* what goes out is accounted to the byte, because a statement fits into every excuse; what comes in is believed to have
  the larger overhead and the larger excuse where either may be true.

The account of a direction is payload against plaintext. A record of application data (type 23) counts with its payload
less the cipher's overhead. What TLS says for itself is excused:

* records of other types, up to a limit: a peer takes no data from them;
* in TLS 1.3, where the handshake wears type 23 too, what goes out up to the client's Finished: that alone, if the
  server's flight shows that it asked for no certificate (early data, which a server may drop, counts), else up to a
  limit; and what comes in before the first call;
* in TLS 1.3 an alert as the last record that goes out, but no KeyUpdate (five bytes in some hundred GB, if any), and
  tickets that come in, up to a limit.

CBC pads what goes out as its length demands: a call is believed to make as few records as can be, further ones count
with their padding. Once framing is lost because bytes were not seen, every byte counts, and the calls explain as much
overhead as they may have caused; where what stands is no record nothing is excused any more.

Specification: RFC 8446 (sections 4.4, 4.6, 5.1 to 5.4) and RFC 5246 (sections 6.2 and 7.4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agentwatch.protocols.base import Direction
from agentwatch.streams import tls_hello
from agentwatch.streams.tls_hello import (
    CBC_BLOCK_BYTES,
    CLIENT_HELLO,
    LARGEST_OVERHEAD,
    SERVER_HELLO,
    TLS_1_3,
    HelloSearch,
)

if TYPE_CHECKING:
    from agentwatch.protocols.base import Instant
    from agentwatch.streams.tls_hello import Chosen, Hello

HEADER_BYTES = 5
PREFIX_BYTES = 32
"""First bytes of a record that are returned: its header, and enough ciphertext to be like no other record's."""
MAX_PAYLOAD_BYTES = (1 << 14) + 2048
"""RFC 5246, section 6.2.3. TLS 1.3 allows 2^14 + 256, but the version may be known later than a record."""

FLIGHT_BYTES = {Direction.OUT: 32 * 1024, Direction.IN: 112 * 1024}
"""What is excused as handshake, certificates above all: OpenSSL takes a chain of at most 100 KiB from its peer. That of
a client has a few KiB; what leaves under this name, to a server that may have asked for one, is not seen."""
FLIGHT_RECORDS = 64
"""Records that are remembered with their time until the first call is told; older ones count as handshake."""
TICKET_BYTES = 4 * 1024
"""NewSessionTickets, alerts and KeyUpdates of a server, which no call returns: OpenSSL sends two tickets of some 250
bytes, and of some KiB in all where they hold the client's certificate."""
ALERT_BYTES = 2
MAX_FRAGMENT_BYTES = 1 << 14
"""Plaintext of one record."""
MIN_FRAGMENT_BYTES = 512
"""No library cuts a long write into smaller records (RFC 6066, section 4)."""

CHANGE_CIPHER_SPEC, HANDSHAKE, APPLICATION_DATA = 20, 22, 23
_VERSION_MAJOR, _MAX_VERSION_MINOR = 3, 4
_FINISHED = frozenset({36 + 9, 36 + 17, 52 + 17})
"""Payload of a Finished in TLS 1.3: four bytes and a SHA-256 or SHA-384, and the overhead (9: a tag of 8 bytes)."""
_FLIGHT = slice(1, 4, 2)
"""Where the Finished of a server is that asks for nothing and makes a record of each message: behind
EncryptedExtensions, or behind Certificate and CertificateVerify too. A CertificateRequest would move it."""
_EXACT_BYTES = LARGEST_OVERHEAD + 1
"""Shorter payloads are told apart, as they may hold less than an overhead."""


class Record(NamedTuple):
    """One TLS record. ``type``: 20 to 23, as on the outside; ``length``: of the payload, which is behind the header.

    ``prefix`` is the header and the first bytes of the payload, ``at`` the time of its last byte.
    """

    direction: Direction
    type: int
    length: int
    prefix: bytes
    at: Instant


def looks_like_record(data: bytes | bytearray) -> bool:
    """Tell whether ``data`` begins with the header of a record: types 20 to 23, SSL 3.0 to TLS 1.3, a possible length.

    Fewer bytes than a header do not. Of random bytes one in some three million does.
    """
    if len(data) < HEADER_BYTES:
        return False
    kind, major, minor = data[:3]
    length = int.from_bytes(data[3:HEADER_BYTES], "big")
    known = CHANGE_CIPHER_SPEC <= kind <= APPLICATION_DATA
    return known and major == _VERSION_MAJOR and minor <= _MAX_VERSION_MINOR and length <= MAX_PAYLOAD_BYTES


class TlsRecords:
    """One connection. ``joined``: capture began in its middle.

    A direction of a joined connection is framed from the first piece on that begins with what looks like a record, and
    its account begins with the first record from there on that is behind the first call.
    """

    __slots__ = ("_sides", "chosen", "hello")

    def __init__(self, *, joined: bool = False) -> None:
        self.hello: Hello | None = None
        """What the client asked for, once its first hello is complete."""
        self.chosen: Chosen | None = None
        """What the server chose; a HelloRetryRequest does not choose."""
        self._sides = tuple(_Side(direction, joined=joined) for direction in Direction)

    @property
    def framed(self) -> tuple[bool, bool]:
        """Whether it is known where the records of a direction begin."""
        return self._sides[0].framed, self._sides[1].framed

    @property
    def broken(self) -> bool:
        """Whether something stood where a record must begin that begins none: this is not TLS."""
        return any(side.broken for side in self._sides)

    @property
    def answered(self) -> bool:
        """Whether of what comes in the length is enough from here on: the server's side of the handshake is known."""
        if self.chosen is None or self.chosen.version != TLS_1_3:
            return self.chosen is not None
        return not self.framed[Direction.IN] or self._finished() is not None or self._sides[1].account.has_begun

    def feed(self, direction: Direction, data: bytes, at: Instant) -> list[Record]:
        """Take the next bytes of one direction; return the records whose prefix is complete by them."""
        side = self._sides[direction]
        records = side.feed(data, at)
        if side.message is not None:
            message, side.message = side.message, None
            if direction is Direction.OUT:
                self.hello = tls_hello.client_hello(message)
            else:
                self.chosen = tls_hello.server_hello(message)
        return records

    def missed(self, direction: Direction, length: int) -> None:
        """Take note of bytes that were not seen; framing survives them within the payload of a record.

        A record whose prefix they are part of is accounted and never returned.
        """
        self._sides[direction].missed(length)

    def wrote(self, length: int, at: Instant) -> None:
        """Take note of a call that wrote ``length`` bytes of plaintext and was entered at ``at``."""
        self._told(Direction.OUT, length, at)

    def read(self, length: int) -> None:
        """Take note of a call that returned ``length`` bytes of plaintext."""
        self._told(Direction.IN, length, 0)

    def _told(self, direction: Direction, length: int, at: Instant) -> None:
        for side in self._sides:
            side.told = True
        self._sides[direction].account.call(length, at)

    def surplus(self, direction: Direction) -> int:
        """Return how many bytes of payload no call explains, 0 when all agree.

        Ask when the connection is quiet: a record and the call it belongs to may be told of in either order.
        """
        return self._sides[direction].surplus(self.chosen, self._finished() if direction is Direction.OUT else None)

    def _finished(self) -> int | None:
        """Return how long the client's Finished is if that is its whole flight, None if it may be more."""
        if self.chosen is None or self.chosen.version != TLS_1_3:
            return None
        length = 4 + (48 if "SHA384" in self.chosen.cipher else 32)
        payload = length + tls_hello.overhead(self.chosen).most
        return length if self._sides[Direction.IN].account.ends_flight(payload) else None

    def totals(self) -> tuple[int, int]:
        """Return the bytes of ciphertext out and in, handshake and missed ones included."""
        return self._sides[0].total, self._sides[1].total


class _Side:
    """One direction: cut into records, and its account."""

    __slots__ = (
        "_head",
        "_left",
        "_search",
        "_seeking",
        "_wanted",
        "account",
        "broken",
        "direction",
        "framed",
        "message",
        "told",
        "total",
    )

    def __init__(self, direction: Direction, *, joined: bool) -> None:
        self.direction = direction
        self.framed = not joined
        self.broken = False
        self.told = False
        """Whether there was a call: what a joined connection carries from then on has to be explained."""
        self.total = 0
        self.message: bytes | None = None
        """A hello, from when it is complete until it is taken."""
        self.account = _Account(direction, joined=joined)
        self._search = HelloSearch(CLIENT_HELLO if direction is Direction.OUT else SERVER_HELLO)
        self._seeking = joined
        self._head = bytearray()  # of the current record, at most its prefix
        self._left = 0  # bytes of its payload that are still to come
        self._wanted = 0  # bytes of its prefix that are still to come

    def feed(self, data: bytes, at: Instant) -> list[Record]:
        self.total += len(data)
        if self._seeking and looks_like_record(data):
            self.framed, self._seeking = True, False
        records: list[Record] = []
        position = 0
        while self.framed and position < len(data):
            step = self._payload if self._left else self._header
            position = step(data, position, at, records)
        if not self.framed and (self.told or not self._seeking):
            self.account.lost(len(data) - position, at)
        return records

    def missed(self, length: int) -> None:
        if length <= 0:
            return
        self.total += length
        within = min(self._left, length)
        if within:
            self._wanted = 0
            if self._head[0] == HANDSHAKE:
                self._search.stop()
            self._passed(within)
        if length > within and (self.told or not self._seeking):
            self._lose(length - within, None)

    def surplus(self, chosen: Chosen | None, finished: int | None) -> int:
        if not self._left or self._head[0] != APPLICATION_DATA:
            return self.account.surplus(chosen, finished, 0, 0)
        # What has come in of a record cannot be read before the rest has.
        to_come = self._left if self.direction is Direction.OUT else self._length()
        return self.account.surplus(chosen, finished, self._length(), to_come)

    def _header(self, data: bytes, position: int, at: Instant, records: list[Record]) -> int:
        end = position + HEADER_BYTES - len(self._head)
        self._head += data[position:end]
        if len(self._head) < HEADER_BYTES:
            return len(data)
        if not looks_like_record(self._head):
            self.broken = True
            self.account.broken = True
            self._lose(0, at)
            return end
        self._left = self._length()
        self._wanted = min(self._left, PREFIX_BYTES - HEADER_BYTES)
        self.account.record(self._head[0], self._left, at)
        if not self._left:
            records.append(self._record(at))
            self._head.clear()
        return end

    def _payload(self, data: bytes, position: int, at: Instant, records: list[Record]) -> int:
        end = min(position + self._left, len(data))
        if self._wanted:
            new = data[position : min(position + self._wanted, end)]
            self._head += new
            self._wanted -= len(new)
            if not self._wanted:
                records.append(self._record(at))
        if self._head[0] == HANDSHAKE and not self._search.over:
            self.message = self._search.take(data[position:end])
        self._passed(end - position)
        return end

    def _length(self) -> int:
        return int.from_bytes(self._head[3:HEADER_BYTES], "big")

    def _record(self, at: Instant) -> Record:
        return Record(self.direction, self._head[0], self._length(), bytes(self._head), at)

    def _passed(self, length: int) -> None:
        self._left -= length
        if not self._left:
            self._head.clear()

    def _lose(self, length: int, at: Instant | None) -> None:
        """Give up framing; what was the beginning of a header is among the bytes that are only counted."""
        self.framed = False
        self._search.stop()
        self.account.lost(len(self._head) + length, at)
        self._head.clear()


class _Account:
    """Payload of one direction against the plaintext of its calls.

    It is drawn up when it is asked for: the cipher, and with it the overhead, may be known late.
    """

    __slots__ = (
        "_calls",
        "_calls_framed",
        "_direction",
        "_early",
        "_exact",
        "_first",
        "_fragments",
        "_handshaking",
        "_joined",
        "_last",
        "_late",
        "_lost",
        "_lost_early",
        "_others",
        "_pending",
        "_plain",
        "_since",
        "broken",
    )

    def __init__(self, direction: Direction, *, joined: bool) -> None:
        self._direction = direction
        self._joined = joined
        self._exact = direction is Direction.OUT and not joined
        self._since: Instant | None = None  # when the first call was entered
        self._plain = 0
        self._calls = 0
        self._calls_framed: int | None = None  # calls until framing was lost, if it was
        self._others = 0  # payload of records that are not application data
        self._early = _Tally()  # records of the handshake
        self._late = _Tally()
        self._first: list[int] = []  # payload of the first records of application data
        self._last = 0  # of the last one
        self._fragments = [0] * CBC_BLOCK_BYTES  # records that the calls need, by the length of their plaintext
        self._lost = 0  # bytes that are not framed
        self._lost_early = 0
        self._pending: list[tuple[Instant, int]] = []  # records until the first call is told
        self._handshaking = self._exact  # up to the Finished, also within the first call
        self.broken = False

    def record(self, kind: int, length: int, at: Instant) -> None:
        if kind != APPLICATION_DATA:
            self._others += length
            return
        self._last = length
        if len(self._first) < _FLIGHT.stop:
            self._first.append(length)
        self._put(length, at)

    def _put(self, length: int, at: Instant) -> None:
        if self._exact:
            (self._early if self._handshaking else self._late).add(length)
            self._handshaking = self._handshaking and length not in _FINISHED
        elif self._since is None:
            self._wait(length, at)
        else:
            (self._early if at < self._since else self._late).add(length)

    def ends_flight(self, finished: int) -> bool:
        """Tell whether what came in first is a server's flight that asks for no certificate."""
        return finished in self._first[_FLIGHT]

    @property
    def has_begun(self) -> bool:
        """Whether as many records have come as a flight has that asks for no certificate."""
        return len(self._first) == _FLIGHT.stop

    def call(self, length: int, at: Instant) -> None:
        self._plain += length
        self._calls += 1
        whole, rest = divmod(length, MAX_FRAGMENT_BYTES)
        self._fragments[0] += whole
        self._fragments[rest % CBC_BLOCK_BYTES] += rest > 0
        self._since = at if self._since is None else min(at, self._since)
        pending, self._pending = self._pending, []
        for when, size in pending:
            self._put(size, when)

    def lost(self, length: int, at: Instant | None) -> None:
        if self._calls_framed is None:
            self._calls_framed = self._calls
        early = self._since is None and not self._joined
        if early or (at is not None and self._since is not None and at < self._since):
            self._lost_early += length
        else:
            self._lost += length

    def surplus(self, chosen: Chosen | None, finished: int | None, length: int, to_come: int) -> int:
        """Return what no call explains; ``to_come`` bytes of the last record of ``length`` do not count yet.

        ``finished``: length of the one message that the handshake ended with, None: they were more, or are not known.
        """
        overhead = tls_hello.overhead(chosen).most
        veiled = chosen is None or chosen.version == TLS_1_3
        framed = self._framed(chosen, length, to_come, veiled=veiled)
        early = self._early.inner(overhead) + sum(max(0, length - overhead) for _, length in self._pending)
        early = early if veiled and not self._joined else 0
        lost_early = 0 if self._joined else self._lost_early
        if self.broken:
            return max(0, framed + early + lost_early + self._lost - self._plain)
        handshake = self._others + lost_early + (early if finished is None else 0)
        # A server may drop what came before the handshake's end, so the calls that said it explain nothing.
        dropped = 0 if finished is None else max(0, early - finished)
        plain = max(0, self._plain - dropped)
        counted = framed + self._lost + max(0, handshake - FLIGHT_BYTES[self._direction])
        excused = self._asides(overhead, veiled=veiled)
        if self._calls_framed is not None:
            excused += self._records(max(0, plain - framed)) * (HEADER_BYTES + overhead)
        return dropped + max(0, counted - plain - excused)

    def _framed(self, chosen: Chosen | None, length: int, to_come: int, *, veiled: bool) -> int:
        """Return how much plaintext the records have that are not a handshake's."""
        least, most = tls_hello.overhead(chosen)
        tallies = (self._late,) if veiled else (self._late, self._early)
        padding = tls_hello.padding(chosen) if self._exact else None
        if padding is None:
            return sum(tally.inner(most) for tally in tallies) - min(max(0, length - most), to_come)
        needed = sum(self._fragments)
        further = max(0, sum(tally.records for tally in tallies) - needed)
        padded = sum(number * length for number, length in zip(self._fragments, padding, strict=True))
        explained = needed * (least - 1) + padded + further * least
        return max(0, sum(tally.bytes for tally in tallies) - to_come - explained)

    def _wait(self, length: int, at: Instant) -> None:
        # What comes in was there before the call that returns it, which tells no time: it is early until one is told.
        self._pending.append((at, length))
        if self._direction is Direction.IN or len(self._pending) > FLIGHT_RECORDS:
            self._early.add(self._pending.pop(0)[1])

    def _asides(self, overhead: int, *, veiled: bool) -> int:
        """Return how many bytes may be what TLS says for itself, behind the handshake."""
        lost = self._calls_framed is not None
        if self._direction is Direction.IN:
            return TICKET_BYTES if veiled or lost else 0
        return ALERT_BYTES if veiled and self._last - overhead == ALERT_BYTES else 0

    def _records(self, plain: int) -> int:
        """Return how many records may have held plaintext since framing was lost: a read returns of one at most.

        A write makes as many as it likes, and TLS 1.0 puts an empty one before.
        """
        calls = self._calls - (self._calls_framed or 0) + 1
        return calls if self._direction is Direction.IN else 2 * calls + plain // MIN_FRAGMENT_BYTES


class _Tally:
    """Payload of records of application data."""

    __slots__ = ("_bytes", "_records", "_short")

    def __init__(self) -> None:
        self._bytes = 0
        self._records = 0
        self._short: dict[int, int] = {}  # how many of each length below _EXACT_BYTES

    def add(self, length: int) -> None:
        if length < _EXACT_BYTES:
            self._short[length] = self._short.get(length, 0) + 1
        else:
            self._records += 1
            self._bytes += length

    @property
    def bytes(self) -> int:
        return self._bytes + sum(length * number for length, number in self._short.items())

    @property
    def records(self) -> int:
        return self._records + sum(self._short.values())

    def inner(self, overhead: int) -> int:
        short = sum(max(0, length - overhead) * number for length, number in self._short.items())
        return self._bytes - self._records * overhead + short
