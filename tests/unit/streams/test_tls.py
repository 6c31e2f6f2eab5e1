"""The ciphertext of real connections: OpenSSL on both sides in memory, cut, holed, and with writes nobody told of."""

from __future__ import annotations

import pickle
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.protocols.base import Direction
from agentwatch.streams import tls
from agentwatch.streams.tls import Record, TlsRecords, looks_like_record
from agentwatch.streams.tls_hello import Chosen, Hello
from tests.unit.streams.fix_tls import (
    IN,
    OUT,
    SUITES,
    Certificate,
    Event,
    Peers,
    Read,
    Wire,
    Wrote,
    both_versions,
    cut,
    every_suite,
    record,
    stream,
)
from tests.unit.streams.test_tls_hello import client, message, server, server_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentwatch.protocols.base import Instant

SIZES = (1, 2, 5, 6, 15, 16, 17, 100, 1000, 16383, 16384, 16385, 100_000)
pytestmark = pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1 is deprecated:DeprecationWarning")


class Told(NamedTuple):
    tls: TlsRecords
    records: list[Record]

    @property
    def surplus(self) -> tuple[int, int]:
        return self.tls.surplus(OUT), self.tls.surplus(IN)


def tell(events: Iterable[Event], connection: TlsRecords | None = None, *, step: int = 0) -> Told:
    """Tell of events, wire data in pieces of ``step`` bytes (0: whole)."""
    told = Told(TlsRecords() if connection is None else connection, [])
    for event in events:
        if isinstance(event, Wrote):
            told.tls.wrote(len(event.data), event.at)
        elif isinstance(event, Read):
            told.tls.read(len(event.data))
        else:
            direction, data, at = event
            for begin in range(0, len(data), step or len(data)):
                piece = data[begin : begin + step] if step else data
                told.records.extend(told.tls.feed(direction, piece, at))
    return told


def conversation(files: Certificate, suite: tuple[str, str] = SUITES[0]) -> list[Event]:
    peers = Peers(files, suite, name="db.example.org", protocols=("postgresql",)).handshake()
    for length in SIZES[:9]:
        peers.write(length).answer(length)
    return peers.close().events


@every_suite
def test_nothing_is_left_over_at_rest(certificate: Certificate, suite: tuple[str, str]) -> None:
    peers = Peers(certificate, suite).handshake()
    assert tell(peers.events).surplus == (0, 0)
    for length in SIZES:
        peers.write(length)
        assert tell(peers.events).surplus == (0, 0), length
        peers.answer(length)
        assert tell(peers.events).surplus == (0, 0), length
    assert tell(peers.close().events).surplus == (0, 0)


@every_suite
def test_version_and_suite_are_those_openssl_says(certificate: Certificate, suite: tuple[str, str]) -> None:
    peers = Peers(certificate, suite).handshake()
    chosen = tell(peers.events).tls.chosen
    assert chosen is not None
    assert chosen.version == suite[0]
    command = ["openssl", "ciphers", "-V", "-stdname", "ALL:@SECLEVEL=0"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    names = {line.split()[4]: line.split()[2] for line in lines}
    used = peers.client.cipher()
    assert used is not None
    assert chosen.cipher == names[used[0]]


@pytest.mark.parametrize("name", [None, "db.example.org"])
@pytest.mark.parametrize("protocols", [(), ("h2", "http/1.1")])
@both_versions
def test_hello_is_told(
    certificate: Certificate, suite: tuple[str, str], name: str | None, protocols: tuple[str, ...]
) -> None:
    hello = tell(Peers(certificate, suite, name=name, protocols=protocols).handshake().events, step=7).tls.hello
    assert hello == Hello(name, protocols, (0x0304 if suite[0] == "1.3" else 0x0303,))


def test_first_hello_and_last_choice_of_a_retried_handshake_count(certificate: Certificate) -> None:
    peers = Peers(certificate, name="db.example.org", retry=True).handshake().write(10).answer(10)
    hellos = [r for r in tell(peers.events).records if r.direction is OUT and r.type == 22]
    assert len(hellos) == 2
    told = tell(peers.events)
    assert told.tls.hello is not None
    assert told.tls.hello.server_name == "db.example.org"
    assert told.tls.chosen is not None
    assert told.tls.chosen.version == "1.3"
    assert told.surplus == (0, 0)
    retry = next(r for r in told.records if r.direction is IN)
    early = TlsRecords()
    early.feed(IN, stream(peers.events, IN)[: 5 + retry.length], 1)
    assert early.chosen is None


@every_suite
def test_what_was_written_and_not_told_is_left_over(certificate: Certificate, suite: tuple[str, str]) -> None:
    for hidden in (100, 1000, 50_000):
        peers = Peers(certificate, suite).handshake().write(300).answer(300)
        before = len(peers.events)
        peers.write(hidden, told=False).write(1000)
        records = sum(r.type == 23 for r in tell(peers.events[before:], TlsRecords()).records)
        padding = 15 * (records + 1) if "SHA" in suite[1] and "GCM" not in suite[1] else 0
        less, more = (padding, 0) if suite[0] == "1.0" else (0, padding)
        assert hidden - less <= tell(peers.events).tls.surplus(OUT) <= hidden + more


@every_suite
def test_not_one_byte_is_hidden_among_others(certificate: Certificate, suite: tuple[str, str]) -> None:
    peers = Peers(certificate, suite).handshake()
    for length in (*range(1, 40), 16384, 16399, 40_000):
        peers.write(length)
    assert tell(peers.events).tls.surplus(OUT) == 0
    assert (tell(peers.write(1, told=False).events).tls.surplus(OUT) > 0) == (suite[0] != "1.0")


@both_versions
def test_what_came_in_and_no_call_returned_is_left_over(certificate: Certificate, suite: tuple[str, str]) -> None:
    peers = Peers(certificate, suite).handshake().write(300).answer(300).answer(50_000, told=False).answer(10)
    first_is_excused_too = tls.TICKET_BYTES + 300 if suite[0] == "1.3" else 0
    assert tell(peers.events).surplus == (0, 50_000 - first_is_excused_too)


@both_versions
def test_call_told_after_its_records_explains_them(certificate: Certificate, suite: tuple[str, str]) -> None:
    peers = Peers(certificate, suite).handshake().write(100_000).answer(50).write(7)
    calls = [event for event in peers.events if not isinstance(event, Wire)]
    wire = [event for event in peers.events if isinstance(event, Wire)]
    assert tell([*wire, *calls]).surplus == (0, 0)
    assert tell([*calls, *wire]).surplus == (0, 0)
    hidden = peers.write(5000, told=False).events
    late = [event for event in hidden if isinstance(event, Wire)] + calls
    assert tell(late).tls.surplus(OUT) == 5000


@both_versions
def test_what_left_before_the_first_call_is_left_over(certificate: Certificate, suite: tuple[str, str]) -> None:
    for hidden in (1, 100, 2_000_000):
        peers = Peers(certificate, suite).handshake().write(hidden, told=False)
        assert tell(peers.events).tls.surplus(OUT) == hidden
        assert tell(peers.write(100).events).tls.surplus(OUT) == hidden


def test_a_flight_whose_end_is_not_known_excuses_no_more_than_a_finished(certificate: Certificate) -> None:
    peers = Peers(certificate, ("1.3", "ALL")).handshake()
    finished = max(i for i, event in enumerate(peers.events) if isinstance(event, Wire) and event.direction is OUT)
    data = stream(peers.events[finished : finished + 1], OUT)
    assert data[-69 - 5 :][:5] == record(23, bytes(69))[:5]
    padded = Wire(OUT, data[: -69 - 5] + record(23, bytes(512)), 2000)
    told = tell([*peers.events[:finished], padded]).tls
    assert told.surplus(OUT) == 512 - 69
    told.feed(OUT, record(23, bytes(100)), 2001)
    assert told.surplus(OUT) == 512 - 69 + 83


@pytest.mark.parametrize("lengths", [(6, 400, 80, 36), (6, 36), (6, 90, 400, 80, 36), (500, 10, 10, 10)])
def test_what_comes_in_is_needed_until_the_servers_flight_is_known(lengths: tuple[int, ...]) -> None:
    connection = TlsRecords()
    handshake_done(connection)
    for number, length in enumerate(lengths):
        assert connection.answered == (number == 4)
        connection.feed(IN, record(23, bytes(length + 17)), 3)
    assert connection.answered


def test_early_data_counts_and_its_calls_explain_nothing_else() -> None:
    connection = TlsRecords()
    connection.wrote(1000, 1)
    connection.feed(OUT, record(22, message(1, client(server_name(b"x")))) + record(23, bytes(1000 + 17)), 2)
    connection.feed(IN, record(22, message(2, server(0x1301, bytes.fromhex("002b00020304")))), 3)
    connection.feed(IN, b"".join(record(23, bytes(length + 17)) for length in (6, 400, 80, 36)), 3)
    connection.feed(OUT, record(23, bytes(36 + 17)), 4)
    assert connection.surplus(OUT) == 1000
    connection.wrote(10, 5)
    connection.feed(OUT, record(23, bytes(10 + 17)), 6)
    assert connection.surplus(OUT) == 1000
    connection.feed(OUT, record(23, bytes(10 + 17)), 7)
    assert connection.surplus(OUT) == 1010


def test_a_client_that_was_asked_for_a_certificate_is_believed_to_send_one(certificate: Certificate) -> None:
    peers = Peers(certificate, client_certificate=True).handshake()
    told = tell(peers.events).tls
    assert told.surplus(OUT) == 0
    told.feed(OUT, record(23, bytes(100)), 2000)
    assert told.surplus(OUT) == 100 - 17


def test_client_certificate_is_no_surplus(certificate: Certificate) -> None:
    for suite in SUITES[:2]:
        peers = Peers(certificate, suite, client_certificate=True).handshake()
        assert tell(peers.events).surplus == (0, 0)
        peers.write(100).answer(100)
        assert tell(peers.events).surplus == (0, 0)
        assert tell(peers.write(400, told=False).events).tls.surplus(OUT) == 400


@pytest.mark.parametrize("client_certificate", [False, True])
def test_handshake_within_the_first_write_is_no_surplus(certificate: Certificate, *, client_certificate: bool) -> None:
    peers = Peers(certificate, client_certificate=client_certificate)
    peers.events.append(Wrote(bytes(1000), peers.tick()))
    peers.until_done(lambda: peers.client.write(bytes(1000)), peers.server.do_handshake)
    assert tell(peers.events).surplus == (0, 0)
    peers.server.read(1000)
    assert tell(peers.write(30).answer(30).events).surplus == (0, 0)
    assert tell(peers.write(400, told=False).events).tls.surplus(OUT) == 400


def test_record_as_long_as_a_finished_is_excused_once() -> None:
    connection = TlsRecords()
    handshake_done(connection)
    connection.wrote(10, 50)
    finished = record(23, bytes(36 + 17))
    connection.feed(OUT, finished, 60)
    assert connection.surplus(OUT) == 0
    connection.feed(OUT, record(23, bytes(10 + 17)) + finished, 60)
    assert connection.surplus(OUT) == 36


def handshake_done(connection: TlsRecords) -> None:
    connection.feed(OUT, record(22, message(1, client(server_name(b"x")))), 1)
    connection.feed(IN, record(22, message(2, server(0x1301, bytes.fromhex("002b00020304")))), 2)
    assert connection.chosen == Chosen("1.3", "TLS_AES_128_GCM_SHA256")


def begun(at: Instant = 50) -> TlsRecords:
    """Return a TLS 1.3 connection after its handshake and first call."""
    connection = TlsRecords()
    handshake_done(connection)
    connection.feed(OUT, record(23, bytes(36 + 17)), 3)
    connection.wrote(0, at)
    connection.read(0)
    return connection


def test_an_alert_is_excused_as_the_last_record() -> None:
    connection = begun()
    alert = record(23, bytes(2 + 17))
    connection.feed(OUT, alert, 60)
    assert connection.surplus(OUT) == 0
    connection.feed(OUT, alert, 61)
    assert connection.surplus(OUT) == 2
    connection.feed(OUT, record(23, bytes(50 + 17)), 62)
    assert connection.surplus(OUT) == 54


def test_a_key_update_counts_and_excuses_nothing() -> None:
    connection = begun()
    connection.feed(OUT, record(23, bytes(5 + 17)), 60)
    assert connection.surplus(OUT) == 5


def test_padding_is_a_surplus() -> None:
    connection = begun()
    connection.wrote(10, 60)
    connection.feed(OUT, record(23, bytes(256 + 17)), 61)
    assert connection.surplus(OUT) == 246


def test_data_in_records_of_another_type_is_a_surplus_beyond_a_handshake() -> None:
    for kind in (20, 21, 22):
        connection = begun()
        connection.feed(OUT, record(kind, bytes(16_384)) * 10, 60)
        assert connection.surplus(OUT) > 163_840 - tls.FLIGHT_BYTES[OUT]


def test_record_that_has_not_come_whole_is_not_yet_unread() -> None:
    connection = begun()
    whole = record(23, bytes(16_384 + 17))
    connection.feed(IN, whole[:-1], 60)
    assert connection.surplus(IN) == 0
    connection.feed(IN, whole[-1:], 61)
    assert connection.surplus(IN) == 16_384 - tls.TICKET_BYTES


def test_record_that_has_not_left_whole_counts_as_far_as_it_has() -> None:
    connection = begun()
    whole = record(23, bytes(16_384 + 17))
    connection.feed(OUT, whole[:10_000], 60)
    assert connection.surplus(OUT) == 10_000 - 5 - 17
    connection.feed(OUT, whole[10_000:], 61)
    assert connection.surplus(OUT) == 16_384


def test_suite_that_is_told_late_corrects_the_account(certificate: Certificate) -> None:
    events = Peers(certificate).handshake().write(50).write(3000, told=False).events
    late = sorted(events, key=lambda event: isinstance(event, Wire) and event.direction is IN)
    assert tell(late).tls.surplus(OUT) == tell(events).tls.surplus(OUT) == 3000


def test_unknown_suite_is_believed_to_have_the_largest_overhead(certificate: Certificate) -> None:
    peers = Peers(certificate).handshake().write(3000).write(40)
    out = [event for event in peers.events if not isinstance(event, Wire) or event.direction is OUT]
    told = tell(out)
    assert told.tls.chosen is None
    assert told.tls.surplus(OUT) == 0


@both_versions
def test_incoming_bytes_that_are_only_counted_are_held_against_the_reads(
    certificate: Certificate, suite: tuple[str, str]
) -> None:
    def counted(events: list[Event]) -> Told:
        connection = TlsRecords()
        for event in events:
            if isinstance(event, Wire) and event.direction is IN and connection.chosen is not None:
                connection.missed(IN, len(event.data))
            elif isinstance(event, Wire) and event.direction is IN:
                shown = 5 + int.from_bytes(event.data[3:5], "big")
                connection.feed(IN, event.data[:shown], event.at)
                connection.missed(IN, len(event.data) - shown)
            else:
                tell([event], connection)
        assert connection.totals() == (len(stream(events, OUT)), len(stream(events, IN)))
        assert connection.framed == (True, False)
        assert not connection.broken
        return Told(connection, [])

    peers = Peers(certificate, suite).handshake()
    for length in SIZES:
        peers.write(length).answer(length).answer(length, at_once=1000)
    assert counted(peers.events).surplus == (0, 0)
    hidden = 200_000
    peers.answer(hidden, told=False).answer(1)
    reads = sum(isinstance(event, Read) for event in peers.events)
    assert hidden - tls.TICKET_BYTES - reads * 29 < counted(peers.events).tls.surplus(IN) <= hidden + hidden // 100


@both_versions
def test_outgoing_bytes_after_a_hole_are_held_against_the_writes(
    certificate: Certificate, suite: tuple[str, str]
) -> None:
    peers = Peers(certificate, suite).handshake().write(500).answer(10)
    connection = tell(peers.events).tls
    before = len(peers.events)
    for length in SIZES:
        peers.write(length)
    connection.missed(OUT, 1)
    tell(peers.events[before:], connection)
    assert connection.framed == (False, True)
    assert connection.surplus(OUT) == 0
    before = len(peers.events)
    peers.write(100_000, told=False)
    tell(peers.events[before:], connection)
    assert 80_000 < connection.surplus(OUT) < 101_000


@both_versions
def test_pieces_do_not_change_records_and_account(certificate: Certificate, suite: tuple[str, str]) -> None:
    events = conversation(certificate, suite)
    whole = tell(events)
    assert [r.prefix for r in whole.records if r.direction is OUT] == [
        stream(events, OUT)[begin:end][: tls.PREFIX_BYTES] for begin, end in cut(stream(events, OUT))
    ]
    assert all(r.prefix[0] == r.type and int.from_bytes(r.prefix[3:5], "big") == r.length for r in whole.records)
    for step in (1, 2, 3, 5, 31, 32, 33, 1000):
        pieces = tell(events, step=step)
        assert pieces.records == whole.records
        assert pickle.dumps(pieces.tls) == pickle.dumps(whole.tls)


@both_versions
def test_every_split_point_is_the_same(certificate: Certificate, suite: tuple[str, str]) -> None:
    events = Peers(certificate, suite, name="a").handshake().write(40).answer(40).close().events
    whole = tell(events)
    for number, event in enumerate(events):
        if isinstance(event, Wire):
            before = pickle.dumps(tell(events[:number]).tls)
            known = [r for r in whole.records if r.at >= event.at]
            for at in range(1, len(event.data)):
                parts = [event._replace(data=event.data[:at]), event._replace(data=event.data[at:])]
                split = tell(parts, pickle.loads(before))  # noqa: S301 -- our own bytes
                assert split.records == [r for r in known if r.at == event.at]
                assert split.surplus == tell(events[: number + 1]).surplus


def test_prefix_is_dated_by_the_byte_that_completes_it() -> None:
    connection = TlsRecords()
    data = record(22, bytes(100))
    assert connection.feed(OUT, data[:31], 5) == []
    assert connection.feed(OUT, data[31:32], 6) == [Record(OUT, 22, 100, data[:32], 6)]
    assert connection.feed(OUT, data[32:], 7) == []
    short = record(23, b"abc")
    assert connection.feed(OUT, short[:-1], 8) == []
    assert connection.feed(OUT, short[-1:], 9) == [Record(OUT, 23, 3, short, 9)]
    empty = record(23, b"")
    assert connection.feed(OUT, empty[:-1], 10) == []
    assert connection.feed(OUT, empty[-1:] + empty, 11) == [Record(OUT, 23, 0, empty, 11)] * 2


@both_versions
def test_truncated_at_every_byte_never_raises(certificate: Certificate, suite: tuple[str, str]) -> None:
    events = Peers(certificate, suite).handshake().write(40).answer(40).events
    whole = tell(events).records
    for direction in Direction:
        data = stream(events, direction)
        known = [r._replace(at=1) for r in whole if r.direction is direction]
        for end in range(len(data)):
            connection = TlsRecords()
            records = connection.feed(direction, data[:end], 1)
            assert records == known[: len(records)]
            assert connection.surplus(direction) == 0 or suite[0] == "1.2"
            assert not connection.broken


@both_versions
@pytest.mark.parametrize("length", [1, 20, 300])
def test_hole_at_every_byte_never_raises_and_framing_survives_within_a_payload(
    certificate: Certificate, suite: tuple[str, str], length: int
) -> None:
    events = Peers(certificate, suite, name="db.example.org").handshake().write(400).write(7).answer(400).events
    for direction in Direction:
        data = stream(events, direction)
        places = cut(data)
        for at in range(len(data) - length):
            connection = TlsRecords()
            records = connection.feed(direction, data[:at], 1)
            connection.missed(direction, length)
            records += connection.feed(direction, data[at + length :], 1)
            survives = any(begin + 5 <= at and at + length <= end for begin, end in places)
            assert connection.framed[direction] == survives
            assert connection.totals()[direction] == len(data)
            hidden = range(at, at + length)
            expected = [
                data[begin:end][: tls.PREFIX_BYTES]
                for begin, end in places
                if (survives or end <= at or begin + tls.PREFIX_BYTES <= at)
                and not any(byte in hidden for byte in range(begin, min(end, begin + tls.PREFIX_BYTES)))
            ]
            assert [r.prefix for r in records] == expected
            for asked in Direction:
                assert connection.surplus(asked) >= 0


def test_hole_within_a_payload_does_not_change_the_account() -> None:
    connection = begun()
    connection.wrote(5000, 60)
    data = record(23, bytes(5000 + 17))
    connection.feed(OUT, data[:10], 61)
    connection.missed(OUT, len(data) - 10)
    assert connection.framed[OUT]
    assert connection.surplus(OUT) == 0
    connection.feed(OUT, data, 62)
    assert connection.surplus(OUT) == 5000


def test_hole_in_a_hello_leaves_it_unknown() -> None:
    data = record(22, message(1, client(server_name(b"db.example.org"))))
    for at in range(5, len(data)):
        connection = TlsRecords()
        connection.feed(OUT, data[:at], 1)
        connection.missed(OUT, 1)
        connection.feed(OUT, data[at + 1 :] + data, 1)
        assert connection.framed[OUT]
        assert connection.hello is None


def test_hello_in_many_records_is_put_together() -> None:
    hello = message(1, client(server_name(b"db.example.org")))
    connection = TlsRecords()
    for byte in hello:
        connection.feed(OUT, record(22, bytes([byte])), 1)
    assert connection.hello == Hello("db.example.org", (), (0x0303,))


def test_hello_beyond_the_limit_is_unknown_and_its_bytes_are_not_kept() -> None:
    connection = TlsRecords()
    connection.feed(OUT, record(22, b"\1\xff\xff\xff" + bytes(16_000)), 1)
    for _ in range(100):
        connection.feed(OUT, record(22, bytes(16_000)), 1)
    assert connection.hello is None
    assert len(pickle.dumps(connection)) < 5000


def broken(connection: TlsRecords) -> bool:
    return connection.broken


@pytest.mark.parametrize(
    "header",
    [b"\x13\3\3\0\1", b"\x18\3\3\0\1", b"\x17\2\3\0\1", b"\x17\3\5\0\1", b"\x17\3\3\x48\1", b"GET /", b"\0\0\0\0\0"],
)
def test_what_is_no_record_breaks_that_direction_only(header: bytes) -> None:
    assert not looks_like_record(header)
    connection = begun()
    connection.feed(OUT, record(23, bytes(17)) + header[:2], 60)
    assert not connection.broken
    connection.feed(OUT, header[2:] + bytes(10_000), 60)
    assert broken(connection)
    assert connection.framed == (False, True)
    assert len(connection.feed(IN, record(23, bytes(17)), 61)) == 1
    assert connection.feed(OUT, record(23, bytes(17)), 61) == []
    assert connection.surplus(OUT) == 36 + 10_005 + 22
    assert connection.totals()[OUT] == len(record(22, message(1, client(server_name(b"x"))))) + 58 + 22 + 10_005 + 22


def test_header_of_the_longest_record_looks_like_one() -> None:
    for kind in range(20, 24):
        for minor in range(5):
            assert looks_like_record(bytes([kind, 3, minor, 0x48, 0]))
    for length in range(5):
        assert not looks_like_record(b"\x17\3\3\0\1"[:length])


def test_joined_connection_is_framed_from_a_piece_that_begins_with_a_record() -> None:
    connection = TlsRecords(joined=True)
    data = record(23, bytes(100))
    assert connection.feed(OUT, data[50:] + data, 1) == []
    connection.missed(OUT, 1000)
    assert connection.feed(OUT, data[:4], 1) == []
    assert not connection.framed[OUT]
    assert [r.prefix for r in connection.feed(OUT, data + data[:40], 2)] == [data[:32]] * 2
    assert connection.framed == (True, False)
    assert not connection.broken
    assert connection.totals() == (55 + 105 + 1000 + 4 + 105 + 40, 0)


@both_versions
def test_joined_connection_is_accounted_from_the_first_call(certificate: Certificate, suite: tuple[str, str]) -> None:
    peers = Peers(certificate, suite).handshake().write(100_000).answer(100_000)
    before = len(peers.events)
    peers.write(50_000, told=False).answer(50_000, told=False).write(100).answer(100)
    told = tell(peers.events[before:], TlsRecords(joined=True))
    assert told.tls.framed == (True, True)
    assert told.surplus == (0, 0)
    before = len(peers.events)
    hidden = peers.write(50_000, told=False).answer(50_000, told=False).events[before:]
    out, into = tell(hidden, told.tls).surplus
    assert 49_000 < out <= 50_000
    assert 45_000 < into <= 50_000


def test_joined_connection_loses_framing_like_any_other() -> None:
    connection = TlsRecords(joined=True)
    connection.wrote(0, 1)
    connection.feed(OUT, record(23, bytes(100)), 2)
    connection.missed(OUT, 1)
    connection.feed(OUT, record(23, bytes(10_000)), 3)
    assert connection.framed == (False, False)
    assert connection.surplus(OUT) > 8000


@both_versions
def test_saved_at_every_piece_is_the_same(certificate: Certificate, suite: tuple[str, str]) -> None:
    events = conversation(certificate, suite)
    whole = tell(events)
    connection = TlsRecords()
    records: list[Record] = []
    for event in events:
        cuts = (slice(9), slice(9, None))
        parts = [event._replace(data=event.data[part]) for part in cuts] if isinstance(event, Wire) else [event]
        for part in parts:
            connection = pickle.loads(pickle.dumps(connection))  # noqa: S301 -- our own bytes
            records += tell([part], connection).records
    assert records == whole.records
    assert pickle.dumps(connection) == pickle.dumps(whole.tls)


headers = st.builds(
    record, st.integers(18, 25), st.binary(max_size=40), st.sampled_from([0x0301, 0x0303, 0x0304, 0x0305])
)
hellos = st.sampled_from([record(22, message(1, client(server_name(b"x")))), record(22, message(2, server(0x1301)))])
pieces = st.one_of(st.binary(max_size=60), headers, hellos, st.lists(headers, max_size=4).map(b"".join))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.sampled_from(Direction), pieces, st.integers(0, 9)),
        st.tuples(st.just("missed"), st.sampled_from(Direction), st.integers(0, 50)),
        st.tuples(st.just("wrote"), st.integers(0, 200), st.integers(0, 9)),
        st.tuples(st.just("read"), st.integers(0, 200)),
    ),
    max_size=20,
)


def carry_out(steps: list[tuple[Any, ...]], *, joined: bool, step: int) -> tuple[TlsRecords, list[Record]]:
    connection = TlsRecords(joined=joined)
    records: list[Record] = []
    for name, *arguments in steps:
        if name == "feed":
            direction, data, at = arguments
            for begin in range(0, len(data), step):
                records += connection.feed(direction, data[begin : begin + step], at)
        else:
            getattr(connection, name)(*arguments)
        for direction in Direction:
            assert 0 <= connection.surplus(direction) <= connection.totals()[direction]
    return connection, records


@given(operations, st.integers(1, 7))
def test_garbage_never_raises_and_pieces_do_not_change_it(steps: list[tuple[Any, ...]], step: int) -> None:
    whole, records = carry_out(steps, joined=False, step=1 << 20)
    cut_up, same = carry_out(steps, joined=False, step=step)
    assert records == same
    assert pickle.dumps(whole) == pickle.dumps(cut_up)
    carry_out(steps, joined=True, step=step)
    for one in records:
        assert len(one.prefix) == min(tls.PREFIX_BYTES, 5 + one.length)
        assert looks_like_record(one.prefix)
