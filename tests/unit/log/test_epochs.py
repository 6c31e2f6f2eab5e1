"""Epochs: a chain of keys, each of which signs for its own records and for no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentwatch.log import checkpoint, epochs, merkle, note
from agentwatch.log.checkpoint import Checkpoint
from agentwatch.log.epochs import BrokenChainError, Certificate, Chain, Epoch
from agentwatch.log.note import Key, Note, NoteError

ORIGIN = checkpoint.make_origin("db-agents-1", bytes(range(16)))
OTHER_ORIGIN = checkpoint.make_origin("db-agents-2", bytes(range(16)))
STARTS = (0, 10, 11, 40)
END = 64
NOW_S = 1679315147


def identity(origin: str = ORIGIN) -> note.Ed25519Signer:
    return note.Ed25519Signer(epochs.identity_name(origin), b"identity".ljust(32))


def signers(number: int, *, post_quantum: bool = True, origin: str = ORIGIN) -> list[note.Signer]:
    seed = (b"epoch %d" % number).ljust(32)
    found: list[note.Signer] = [note.Ed25519Signer(origin, seed)]
    if post_quantum:
        found.append(note.MlDsaSigner(origin, seed))
    return found


def keys(number: int) -> tuple[Key, ...]:
    return tuple(signer.key for signer in signers(number))


def signed(text: str, by: list[note.Signer]) -> Note:
    made = Note(text, ())
    for signer in by:
        made = made.signed_by(signer, NOW_S)
    return made


def record(made: Note, number: int) -> bytes:
    payload: bytes = msgpack.packb({"kind": "epoch", "number": number, "certificate": str(made)})
    return payload


class Log(NamedTuple):
    """Records of which some begin epochs, and the tree over them."""

    records: list[bytes]
    epochs: list[Epoch]

    def root_of(self, size: int) -> bytes:
        return merkle.root(size, merkle.in_memory([merkle.leaf_hash(payload) for payload in self.records]))

    def chain(self) -> Chain:
        made = Chain(identity().key)
        made.extend(self.epochs, self.root_of)
        return made

    def checkpoint(self, size: int, by: list[note.Signer]) -> Note:
        return signed(Checkpoint(ORIGIN, size, self.root_of(size)).text, by)


Change = Callable[[Certificate], tuple[Certificate, list[note.Signer]]]


def honest(certificate: Certificate) -> tuple[Certificate, list[note.Signer]]:
    number = certificate.number
    return certificate, signers(number - 1) if number else [identity()]


def build(changed: int = -1, change: Change = honest) -> Log:
    """Return a log with epochs at STARTS; one may be changed before it is signed."""
    made = Log([], [])
    for seq in range(END):
        if seq not in STARTS:
            made.records.append(b"record %d" % seq)
            continue
        number = STARTS.index(seq)
        certificate = Certificate(ORIGIN, number, seq, made.root_of(seq), keys(number))
        certificate, by = (change if number == changed else honest)(certificate)
        made.records.append(record(signed(certificate.text, by), certificate.number))
        made.epochs.append(epochs.parse(seq, made.records[seq]))
    return made


@pytest.fixture(scope="module")
def log() -> Log:
    return build()


def test_a_whole_chain_is_valid(log: Log) -> None:
    chain = log.chain()
    assert chain.origin == ORIGIN
    assert [epoch.seq for epoch in chain.epochs] == list(STARTS)
    assert log.epochs[0].certificate.root == merkle.EMPTY_ROOT


def test_each_size_has_the_epoch_whose_record_is_the_last_in_it(log: Log) -> None:
    chain = log.chain()
    for size in range(1, END + 1):
        number = max(number for number, start in enumerate(STARTS) if start < size)
        assert chain.at(size).certificate.number == number
    with pytest.raises(NoteError, match="nothing signs"):
        chain.at(0)


def test_only_the_keys_of_its_epoch_sign_for_a_size(log: Log) -> None:
    # So an old key signs nothing beyond its epoch, and a later one nothing before.
    chain = log.chain()
    for size in (1, 5, 10, 11, 12, 40, 41, END):
        for number in range(len(STARTS)):
            made = log.checkpoint(size, signers(number))
            if chain.at(size).certificate.number == number:
                assert chain.verify(made) == Checkpoint(ORIGIN, size, log.root_of(size))
            else:
                with pytest.raises(NoteError, match="not signed by"):
                    chain.verify(made)


def test_all_keys_of_the_epoch_must_sign(log: Log) -> None:
    chain = log.chain()
    for by in signers(2):
        with pytest.raises(NoteError, match="not signed by"):
            chain.verify(log.checkpoint(20, [by]))
    with pytest.raises(NoteError, match="not signed by"):
        chain.verify(log.checkpoint(20, [identity()]))


def test_a_checkpoint_of_another_log_is_refused(log: Log) -> None:
    chain = log.chain()
    text = Checkpoint(OTHER_ORIGIN, 20, log.root_of(20)).text
    with pytest.raises(NoteError, match="another log"):
        chain.verify(signed(text, signers(2)))
    with pytest.raises(NoteError, match="another log"):
        Chain(identity().key).verify(log.checkpoint(20, signers(2)))


def test_nothing_is_signed_for_an_empty_tree(log: Log) -> None:
    with pytest.raises(NoteError, match="nothing signs"):
        log.chain().verify(log.checkpoint(0, signers(0)))


def test_an_epoch_may_have_no_post_quantum_key() -> None:
    def classical(certificate: Certificate) -> tuple[Certificate, list[note.Signer]]:
        return certificate._replace(keys=keys(3)[:1]), signers(2)

    made = build(3, classical)
    made.chain().verify(made.checkpoint(END, signers(3, post_quantum=False)))


# -- breaks: at epoch 2, whose record is 11; nothing is proved from the record behind epoch 1's on

SINCE = STARTS[1]


BREAKS: dict[str, Change] = {
    "signed by itself": lambda c: (c, signers(2)),
    "signed by an older epoch": lambda c: (c, signers(0)),
    "signed by the identity": lambda c: (c, [identity()]),
    "signed by a stranger": lambda c: (c, signers(9)),
    "signed by the Ed25519 key only": lambda c: (c, signers(1)[:1]),
    "signed by the ML-DSA key only": lambda c: (c, signers(1)[1:]),
    "number too high": lambda c: (c._replace(number=3), signers(1)),
    "number again": lambda c: (c._replace(number=1), signers(1)),
    "number 0": lambda c: (c._replace(number=0), signers(1)),
    "of an earlier record": lambda c: (c._replace(seq=c.seq - 1), signers(1)),
    "of a later record": lambda c: (c._replace(seq=c.seq + 1), signers(1)),
    "of another past": lambda c: (c._replace(root=bytes(32)), signers(1)),
    "of the empty past": lambda c: (c._replace(root=merkle.EMPTY_ROOT), signers(1)),
    "of another log": lambda c: (
        c._replace(origin=OTHER_ORIGIN, keys=tuple(k._replace(name=OTHER_ORIGIN) for k in c.keys)),
        signers(1),
    ),
}


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
def test_each_break_is_found_at_the_record_from_which_nothing_is_proved(change: Change) -> None:
    chain = Chain(identity().key)
    made = build(2, change)
    with pytest.raises(BrokenChainError) as caught:
        chain.extend(made.epochs, made.root_of)
    assert caught.value.seq == SINCE
    assert len(chain.epochs) == 2


FIRST: dict[str, Change] = {
    "signed by itself": lambda c: (c, signers(0)),
    "signed by another identity": lambda c: (c, [note.Ed25519Signer(epochs.identity_name(ORIGIN), bytes(32))]),
    "number 1": lambda c: (c._replace(number=1), [identity()]),
    "of a later record": lambda c: (c._replace(seq=1), [identity()]),
    "of another past": lambda c: (c._replace(root=bytes(32)), [identity()]),
}


@pytest.mark.parametrize("change", FIRST.values(), ids=FIRST)
def test_each_break_of_the_first_epoch_is_found_at_record_0(change: Change) -> None:
    made = build(0, change)
    with pytest.raises(BrokenChainError) as caught:
        made.chain()
    assert caught.value.seq == 0


def test_the_first_epoch_does_not_begin_behind_other_records() -> None:
    records = [b"record %d" % seq for seq in range(5)]
    made = Log(records, [])
    certificate = Certificate(ORIGIN, 0, 5, made.root_of(5), keys(0))
    late = epochs.parse(5, record(signed(certificate.text, [identity()]), 0))
    with pytest.raises(BrokenChainError, match="should begin epoch 0") as caught:
        Chain(identity().key).add(late, made.root_of)
    assert caught.value.seq == 0


def test_a_log_does_not_belong_to_another_identity(log: Log) -> None:
    cosigner = note.Cosigner(identity().key.name, b"identity".ljust(32))
    for key in (identity(OTHER_ORIGIN).key, identity().key._replace(name=ORIGIN), cosigner.key):
        with pytest.raises(BrokenChainError, match="is not that of") as caught:
            Chain(key).extend(log.epochs, log.root_of)
        assert caught.value.seq == 0


def test_a_record_changed_in_the_past_breaks_the_next_epoch(log: Log) -> None:
    for changed in range(END):
        if changed in STARTS:
            continue
        records = [*log.records[:changed], b"rewritten", *log.records[changed + 1 :]]
        chain = Chain(identity().key)
        after = [start for start in STARTS if start > changed]
        if not after:
            chain.extend(log.epochs, Log(records, log.epochs).root_of)
            continue
        with pytest.raises(BrokenChainError, match="are not those that") as caught:
            chain.extend(log.epochs, Log(records, log.epochs).root_of)
        assert caught.value.seq == max(start for start in STARTS if start < changed)
        assert len(chain.epochs) == STARTS.index(after[0])


def test_an_epoch_left_out_repeated_or_moved_is_found(log: Log) -> None:
    zero, one, two, three = log.epochs
    for order, since in (
        ([one, two, three], 0),
        ([zero, two, three], 0),
        ([zero, one, three], SINCE),
        ([zero, zero], 0),
        ([zero, one, one], SINCE),
        ([zero, one, zero], SINCE),
        ([zero, two, one], 0),
        ([zero, one._replace(seq=9)], 0),
        ([zero, one._replace(seq=0)], 0),
    ):
        with pytest.raises(BrokenChainError) as caught:
            Chain(identity().key).extend(order, log.root_of)
        assert caught.value.seq == since


def test_a_later_epoch_does_not_stand_before_an_earlier_one() -> None:
    # Everything in it is right, but who has the keys of epoch 1 would sign for records that epoch 0's keys signed.
    made = build()
    certificate = Certificate(ORIGIN, 2, 5, made.root_of(5), keys(2))
    early = epochs.parse(5, record(signed(certificate.text, signers(1)), 2))
    chain = Chain(identity().key)
    chain.extend(made.epochs[:2], made.root_of)
    with pytest.raises(BrokenChainError, match="is before epoch 1") as caught:
        chain.add(early, made.root_of)
    assert caught.value.seq == SINCE


def test_a_chain_goes_on_after_a_break_was_refused(log: Log) -> None:
    chain = Chain(identity().key)
    chain.add(log.epochs[0], log.root_of)
    with pytest.raises(BrokenChainError):
        chain.add(log.epochs[2], log.root_of)
    chain.extend(log.epochs[1:], log.root_of)
    assert chain.epochs == log.epochs


# -- certificates and records

CERTIFICATE = Certificate(ORIGIN, 17, 1834, bytes(range(32)), keys(17))


def test_a_certificate_has_the_lines_of_the_format() -> None:
    lines = CERTIFICATE.text.split("\n")
    assert lines[:4] == ["agentwatch-epoch/v1", ORIGIN, "17", "1834"]
    assert lines[4] == "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    assert [Key.parse(line).kind for line in lines[5:-1]] == [note.ED25519, note.ML_DSA_44]
    assert lines[-1] == ""
    assert Certificate.parse(CERTIFICATE.text) == CERTIFICATE


ED25519_LINE, ML_DSA_LINE = (str(key) for key in CERTIFICATE.keys)
COSIGNER_LINE = str(note.Cosigner(ORIGIN, bytes(32)).key)


@pytest.mark.parametrize(
    "text",
    [
        "",
        CERTIFICATE.text[:-1],
        f"{CERTIFICATE.text}\n",
        f"{CERTIFICATE.text}{ED25519_LINE}\n",
        f"{CERTIFICATE.text}more\n",
        CERTIFICATE.text.replace("epoch/v1", "epoch/v2"),
        CERTIFICATE.text.replace(f"\n{ORIGIN}\n", "\nexample.com\n"),
        CERTIFICATE.text.replace(f"\n{ORIGIN}\n", f"\n{OTHER_ORIGIN}\n"),
        CERTIFICATE.text.replace("\n17\n", "\n017\n"),
        CERTIFICATE.text.replace("\n17\n", "\n-17\n"),
        CERTIFICATE.text.replace("\n17\n", "\n\n"),
        CERTIFICATE.text.replace("\n1834\n", "\n1834 \n"),
        CERTIFICATE.text.replace("Hh8=", "Hh9="),
        CERTIFICATE.text.replace("Hh8=", ""),
        CERTIFICATE.text.replace(f"{ED25519_LINE}\n", ""),
        CERTIFICATE.text.replace(f"{ED25519_LINE}\n{ML_DSA_LINE}", f"{ML_DSA_LINE}\n{ED25519_LINE}"),
        CERTIFICATE.text.replace(f"{ED25519_LINE}\n{ML_DSA_LINE}\n", ""),
        CERTIFICATE.text.replace(ML_DSA_LINE, ED25519_LINE),
        CERTIFICATE.text.replace(ED25519_LINE, COSIGNER_LINE),
        CERTIFICATE.text.replace(ED25519_LINE, f" {ED25519_LINE}"),
        CERTIFICATE.text.replace(ED25519_LINE, f"{ED25519_LINE}\r"),
        CERTIFICATE.text.replace(ED25519_LINE, f"{ED25519_LINE}\n"),
        CERTIFICATE.text.replace(ED25519_LINE, ED25519_LINE[:-1]),
    ],
)
def test_anything_else_is_no_certificate(text: str) -> None:
    with pytest.raises(NoteError):
        Certificate.parse(text)


def test_the_number_in_a_record_is_that_of_its_certificate(log: Log) -> None:
    made = log.epochs[2].signed
    assert epochs.parse(STARTS[2], record(made, 2)) == log.epochs[2]
    for number in (3, 2.0, "2", None):
        payload = msgpack.packb({"kind": "epoch", "number": number, "certificate": str(made)})
        with pytest.raises(NoteError, match=f"the record says epoch {number!r}"):
            epochs.parse(STARTS[2], payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb("epoch"),
        msgpack.packb({}),
        msgpack.packb({"kind": "epoch"}),
        msgpack.packb({"kind": "epoch", "number": 0, "certificate": None}),
        msgpack.packb({"kind": "epoch", "number": 0, "certificate": b"bytes"}),
        msgpack.packb({"kind": "epoch", "number": 0, "certificate": "text\n"}),
        msgpack.packb({"kind": "statement", "number": 0, "certificate": str(signed(CERTIFICATE.text, [identity()]))}),
        msgpack.packb({"kind": "epoch", "certificate": str(signed(CERTIFICATE.text, [identity()]))}),
        b"\x81\x80\x00",  # a map as the key of a map
        b"\x81\x91\x00\x00",  # a list as the key of a map
        b"\x91" * 5000,
        b"\xc7\x0c\xff" + b"\xff" * 12,  # a time that msgpack has no place for
        record(signed(CERTIFICATE.text, [identity()]), 17) + b"\x00",
        record(signed(CERTIFICATE.text, [identity()]), 17)[:-1],
    ],
)
def test_what_is_no_record_of_an_epoch_is_refused(payload: bytes) -> None:
    with pytest.raises(NoteError):
        epochs.parse(0, payload)


def test_what_looks_like_an_epoch_is_told_by_its_kind() -> None:
    assert epochs.looks_like(build().records[STARTS[1]])
    for payload in (
        msgpack.packb({"kind": "statement", "text": note.CERTIFICATE}),
        msgpack.packb({"kind": "epoch"}),
        b"\x81\x80\xa0" + note.CERTIFICATE.encode(),
        note.CERTIFICATE.encode(),
    ):
        assert not epochs.looks_like(payload)


@settings(deadline=None)
@given(st.binary(max_size=200))
@example(b"\x81\xc0\x81\x80\x00")
def test_any_bytes_are_an_epoch_or_refused(payload: bytes) -> None:
    looks = epochs.looks_like(payload + note.CERTIFICATE.encode())
    assert looks in (True, False)
    with pytest.raises(NoteError):
        epochs.parse(0, payload)
