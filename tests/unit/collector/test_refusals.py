from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from agentwatch.collector.connection import Connection, LinkError, context
from agentwatch.collector.frames import Commit, Head, Hello, Message, Records, Refused
from agentwatch.collector.link import Link, RefusedError
from agentwatch.collector.source import Source
from agentwatch.log import note
from agentwatch.log.checkpoint import Checkpoint
from tests.unit.collector.fix_collector import (
    Authority,
    Client,
    Collector,
    Credentials,
    assert_mirrored,
    client,
    wait_for,
)
from tests.unit.collector.log_maker import HostLog

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def credentials(authority: Authority) -> Credentials:
    return authority.issue("host-a")


@pytest.fixture
def pushing(host: HostLog, credentials: Credentials, collector: Collector) -> Client:
    made = client(host, credentials, collector.port)
    host.write(20)
    made.push()
    return made


def refusals(collector: Collector) -> list[tuple[str, str]]:
    return [(record["name"], record["reason"]) for record in collector.records("host_refused")]


def connect(credentials: Credentials, port: int) -> Connection:
    tls = context(ssl.PROTOCOL_TLS_CLIENT, *credentials)
    raw = socket.create_connection(("127.0.0.1", port), 30)
    return Connection(tls.wrap_socket(raw, server_hostname="127.0.0.1"))


class Liar:
    """Speaks the protocol, and says what it likes."""

    def __init__(self, pushing: Client, credentials: Credentials, collector: Collector) -> None:
        self.source = Source(pushing.log.log_dir)
        self._connection = connect(credentials, collector.port)
        self.commit = self.say(self.source.hello())

    def say(self, message: Message) -> Commit:
        self._connection.send(message)
        answer = self._connection.receive(60)
        if isinstance(answer, Refused):
            self._connection.close()
            raise RefusedError(answer.reason)
        assert isinstance(answer, Commit)
        return answer

    def say_trees(self) -> None:
        for message in self.source.trees(self.commit, self.source.signed()):
            self.commit = self.say(message)

    def records(self) -> Records:
        assert self.commit.next_seq is not None
        head = self.source.signed().checkpoint
        return self.source.records(self.commit.next_seq, self.commit.size, head)

    def close(self) -> None:
        self._connection.close()


def test_rollback_is_refused_and_recorded(
    tmp_path: Path, pushing: Client, credentials: Credentials, collector: Collector
) -> None:
    older = pushing.log.copy(tmp_path / "older")
    pushing.log.write(5)
    pushing.push()
    for _ in range(2):
        with pytest.raises(RefusedError, match="rollback"):
            client(older, credentials, collector.port).push()
    (record,) = collector.records("host_refused")
    assert (record["name"], record["reason"]) == ("host-a", "rollback")
    # The refused checkpoint itself, with its signatures: it is the proof.
    assert record["checkpoint"] == older.stored()
    assert_mirrored(collector, "host-a", pushing.log)


@pytest.mark.parametrize(("ours", "theirs"), [(5, 5), (1, 9), (9, 1), (300, 2)])
def test_fork_is_refused_and_recorded(
    pushing: Client, credentials: Credentials, collector: Collector, *, ours: int, theirs: int
) -> None:
    twin = pushing.log.copy(pushing.log.root.with_name("twin"))
    pushing.log.write(ours)
    pushing.push()
    for count in (theirs, 1):
        twin.write(count, word="y")
        with pytest.raises(RefusedError, match="fork"):
            client(twin, credentials, collector.port).push()
    assert refusals(collector) == [("host-a", "fork")]
    assert_mirrored(collector, "host-a", pushing.log)
    pushing.log.write()
    pushing.push()
    assert_mirrored(collector, "host-a", pushing.log)


def test_fork_within_an_epoch_is_refused(pushing: Client, credentials: Credentials, collector: Collector) -> None:
    # The live key of the epoch signs two trees of one size: nobody but root has it, and that is who is suspected.
    liar = Liar(pushing, credentials, collector)
    found = pushing.log.signed()
    forked = found._replace(root=bytes(32))
    key = pushing.log.epoch_key()
    signed = note.Note(forked.text, ()).signed_by(note.Ed25519Signer(found.origin, key), 0)
    with pytest.raises(RefusedError, match="fork"):
        liar.say(Head(str(signed), (), ()))
    assert collector.records("host_refused")[0]["checkpoint"] == str(signed)


def test_log_of_another_host_is_refused(
    tmp_path: Path, pushing: Client, authority: Authority, collector: Collector
) -> None:
    # A known host with the log of another one, and an unknown host with a log that is known to be another's.
    other = HostLog(tmp_path / "other", "host-b")
    other.write()
    with pytest.raises(RefusedError, match="identity"):
        client(other, authority.issue("host-a"), collector.port).push()
    with pytest.raises(RefusedError, match="identity"):
        client(pushing.log, authority.issue("host-c"), collector.port).push()
    assert refusals(collector) == [("host-a", "identity"), ("host-c", "identity")]
    assert not (collector.hosts_dir / "host-c").exists()
    assert_mirrored(collector, "host-a", pushing.log)


def test_records_of_another_log_under_a_known_identity_are_refused(
    tmp_path: Path, pushing: Client, credentials: Credentials, collector: Collector
) -> None:
    other = HostLog(tmp_path / "other", "host-a")
    other.write(100)
    known = pushing.log.identity()
    (other.log_dir / "identity").write_text(known)
    with pytest.raises(RefusedError, match="identity"):
        client(other, credentials, collector.port).push()
    # The same with a checkpoint that names the known log as well.
    liar = Liar(pushing, credentials, collector)
    origin = pushing.log.signed().origin
    text = other.signed()._replace(origin=origin).text
    signed = note.Note(text, ()).signed_by(note.Ed25519Signer(origin, other.epoch_key()), 0)
    with pytest.raises(RefusedError, match="forged"):
        liar.say(Head(str(signed), (), ()))
    assert refusals(collector) == [("host-a", "identity"), ("host-a", "forged")]


def test_checkpoint_signed_with_another_key_is_refused(
    pushing: Client, credentials: Credentials, collector: Collector
) -> None:
    liar = Liar(pushing, credentials, collector)
    found = pushing.log.signed()
    signed = note.Note(found.text, ()).signed_by(note.Ed25519Signer(found.origin, bytes(32)), 0)
    with pytest.raises(RefusedError, match="forged"):
        liar.say(Head(str(signed), (), ()))
    assert refusals(collector) == [("host-a", "forged")]


@pytest.mark.parametrize("how", ["altered", "swapped", "repeated", "removed", "from elsewhere"])
def test_records_that_are_altered_on_the_way_are_refused(
    pushing: Client, credentials: Credentials, collector: Collector, how: str
) -> None:
    pushing.log.write(10)
    liar = Liar(pushing, credentials, collector)
    liar.say_trees()
    batch = liar.records()
    items = list(batch.items)
    if how == "altered":
        first = items[1]
        assert isinstance(first, bytes)
        items[1] = first[:-1] + bytes([first[-1] ^ 1])
    elif how == "swapped":
        items[1], items[2] = items[2], items[1]
    elif how == "repeated":
        items[2] = items[1]
    elif how == "removed":
        del items[1]
    else:
        batch = batch._replace(first=batch.first - 1)
    with pytest.raises(RefusedError, match="forged"):
        liar.say(batch._replace(items=tuple(items)))
    assert refusals(collector) == [("host-a", "forged")]
    # The checkpoint stands, nothing false was kept, and the true records are taken.
    assert collector.size("host-a") < pushing.log.signed().size
    pushing.push()
    assert_mirrored(collector, "host-a", pushing.log)


def test_epoch_without_its_record_in_the_tree_is_refused(
    pushing: Client, credentials: Credentials, collector: Collector
) -> None:
    pushing.log.write()
    liar = Liar(pushing, credentials, collector)
    for message in liar.source.trees(liar.commit, liar.source.signed()):
        if isinstance(message, Head):
            with pytest.raises(RefusedError, match="forged"):
                liar.say(message._replace(inclusion=()))
        else:
            liar.say(message)
    # The epoch is known now, its record is still owed, also by a collector that was started again.
    collector.stop()
    collector.start()
    pushing.push()
    assert_mirrored(collector, "host-a", pushing.log)


def test_log_that_begins_anew_is_refused(pushing: Client, credentials: Credentials, collector: Collector) -> None:
    again = HostLog(pushing.log.root.with_name("again"))
    again.write()
    with pytest.raises(RefusedError, match="identity"):
        client(again, credentials, collector.port).push()
    assert refusals(collector) == [("host-a", "identity")]


def test_identity_that_is_no_key_of_the_log_is_refused(
    host: HostLog, authority: Authority, collector: Collector
) -> None:
    host.write()
    connection = connect(authority.issue("host-a"), collector.port)
    connection.send(Hello(1, host.signed().origin, str(note.Ed25519Signer("another/identity", bytes(32)).key)))
    answer = connection.receive(60)
    assert isinstance(answer, Refused)
    assert answer.reason == "identity"
    connection.close()


def test_certificate_of_another_authority_gets_nowhere(
    tmp_path: Path, pushing: Client, authority: Authority, collector: Collector
) -> None:
    theirs = Authority(tmp_path / "theirs").issue("host-a")
    # It believes in our collector, and shows what it has.
    forged = Credentials(authority.certificate, theirs.cert, theirs.key)
    pushing.log.write()
    with pytest.raises(LinkError):
        client(pushing.log, forged, collector.port).push()
    wait_for(lambda: refusals(collector) == [("", "certificate")], "the record of the refusal")
    assert collector.size("host-a") < pushing.log.signed().size


def test_no_certificate_gets_nowhere(authority: Authority, collector: Collector) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.load_verify_locations(authority.certificate)
    raw = socket.create_connection(("127.0.0.1", collector.port), 30)
    with tls.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped, pytest.raises(ssl.SSLError, match="CERTIFICATE"):
        wrapped.recv(1)
    wait_for(lambda: refusals(collector) == [("", "certificate")], "the record of the refusal")


@pytest.mark.parametrize("name", ["../../etc", "a/b", ".", "host a", "ä", None])
def test_certificate_that_names_no_file_gets_nowhere(
    host: HostLog, authority: Authority, collector: Collector, name: str | None
) -> None:
    host.write()
    with pytest.raises(LinkError):
        client(host, authority.issue(name), collector.port).push()
    wait_for(lambda: refusals(collector) == [("", "certificate")], "the record of the refusal")
    assert list(collector.hosts_dir.iterdir()) == []


def test_host_may_be_named_by_a_dns_name(host: HostLog, authority: Authority, collector: Collector) -> None:
    host.write()
    client(host, authority.issue(None, dns="Host-D.example"), collector.port).push()
    assert_mirrored(collector, "host-d.example", host)


def test_collector_of_another_authority_is_not_told_anything(
    tmp_path: Path, pushing: Client, authority: Authority, collector: Collector
) -> None:
    ours = authority.issue("host-a")
    wrong = Credentials(Authority(tmp_path / "theirs").certificate, ours.cert, ours.key)
    with pytest.raises(LinkError, match="certificate"):
        client(pushing.log, wrong, collector.port).push()


def test_link_names_the_reason(pushing: Client, credentials: Credentials, collector: Collector) -> None:
    connection = connect(credentials, collector.port)
    link = Link(connection, pushing.log.log_dir, records=True, keep=lambda _, __: None)
    signed = link.source.signed()
    elsewhere = signed._replace(checkpoint=Checkpoint("x/agentwatch/" + "0" * 32, 1, bytes(32)))
    with pytest.raises(LinkError, match="has ended"):
        link.send_trees(elsewhere)
    connection.close()


def test_damaged_folder_of_one_host_leaves_the_others_alone(
    pushing: Client, authority: Authority, collector: Collector
) -> None:
    other = client(HostLog(pushing.log.root.with_name("other"), "host-b"), authority.issue("host-b"), collector.port)
    other.log.write()
    other.push()
    collector.stop()
    (collector.hosts_dir / "host-a" / "checkpoint").write_text("damaged")
    collector.start()
    other.log.write()
    other.push()
    assert_mirrored(collector, "host-b", other.log)
    # It is not taken for a new host, whatever its log is.
    with pytest.raises(LinkError):
        pushing.push()
    assert len(collector.records("host_enrolled")) == 2
