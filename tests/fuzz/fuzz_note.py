"""Invariant: any bytes are a note, checkpoint, certificate, vkey or epoch record in one spelling, or raise NoteError.

What was parsed gives back the same bytes, and nothing that was parsed is signed by a key that never signed it.

Run: python tests/fuzz/fuzz_note.py -max_total_time=300
"""

from __future__ import annotations

import contextlib
import sys

import msgpack

from agentwatch.log import epochs, merkle, note
from agentwatch.log.checkpoint import Checkpoint, make_origin
from agentwatch.log.epochs import Certificate, Chain
from agentwatch.log.note import Key, Note, NoteError

ORIGIN = make_origin("db-agents-1", bytes(range(16)))
IDENTITY = note.Ed25519Signer(epochs.identity_name(ORIGIN), bytes(32))
SIGNERS: tuple[note.Signer, ...] = (note.Ed25519Signer(ORIGIN, bytes(32)), note.MlDsaSigner(ORIGIN, bytes(32)))
KEYS = tuple(signer.key for signer in SIGNERS)
COSIGNER = note.Cosigner("collector", bytes(32))
CHECKPOINT = Checkpoint(ORIGIN, 1, bytes(32)).text
CERTIFICATE = Certificate(ORIGIN, 0, 0, merkle.EMPTY_ROOT, KEYS).text
SIGNED = (*((signer, CHECKPOINT) for signer in (*SIGNERS, COSIGNER)), (IDENTITY, CERTIFICATE))
"""Who signed what, here and nowhere else."""
EDIT_BYTES = 4


def signed(text: str, *signers: note.Signer) -> Note:
    """Return the text as a note that they signed."""
    made = Note(text, ())
    for signer in signers:
        made = made.signed_by(signer, 1679315147)
    return made


def record(certificate: str) -> bytes:
    """Return the payload of an epoch's record."""
    payload: bytes = msgpack.packb({"kind": "epoch", "number": 0, "certificate": certificate})
    return payload


BASES = (
    b"",
    str(signed(CHECKPOINT, *SIGNERS, COSIGNER)).encode(),
    str(signed(CERTIFICATE, IDENTITY)).encode(),
    CHECKPOINT.encode(),
    CERTIFICATE.encode(),
    str(KEYS[0]).encode(),
    record(str(signed(CERTIFICATE, IDENTITY))),
    record(CERTIFICATE),
)
"""What inputs begin with: a fuzzer does not find a signature."""


def build(data: bytes) -> bytes:
    """Return one of BASES with edits: each is a place, how many bytes go there, and how many come from what follows."""
    if not data:
        return b""
    made = bytearray(BASES[data[0] % len(BASES)])
    at = 1
    while at + EDIT_BYTES <= len(data):
        high, low, out, size = data[at : at + EDIT_BYTES]
        at += EDIT_BYTES
        place = (high << 8 | low) % (len(made) + 1)
        made[place : place + out % 8] = data[at : at + size % 64]
        at += size % 64
    return bytes(made)


def check_note(stored: bytes | str) -> None:
    """Check a note: one spelling, and signed by nobody but who signed it."""
    try:
        found = note.parse(stored)
    except NoteError:
        return
    assert str(found) == (stored if isinstance(stored, str) else stored.decode())
    for signature in found.signatures:
        with contextlib.suppress(NoteError):
            assert 0 <= note.moment_of(signature) <= note.MAX_MOMENT_S
    for signer, text in SIGNED:
        with contextlib.suppress(NoteError):
            note.verify(found, [signer.key])
            assert found.text == text


def check_text(text: str) -> None:
    """Check what stands in notes: each is refused or has one spelling."""
    with contextlib.suppress(NoteError):
        assert Checkpoint.parse(text).text == text
    with contextlib.suppress(NoteError):
        assert Certificate.parse(text).text == text
    with contextlib.suppress(NoteError):
        assert str(Key.parse(text)) == text.strip()


def check_epoch(payload: bytes) -> None:
    """Check a record: it is no epoch, or an epoch that breaks the chain, or the one that was signed."""
    looks = epochs.looks_like(payload)
    try:
        found = epochs.parse(0, payload)
    except NoteError:
        return
    assert looks
    with contextlib.suppress(NoteError):
        Chain(IDENTITY.key).add(found, lambda _: merkle.EMPTY_ROOT)
        assert found.certificate.text == CERTIFICATE


def check(data: bytes) -> None:
    """Check the invariant for one input."""
    made = build(data)
    text = made.decode(errors="surrogateescape")
    check_note(made)
    check_note(text)
    check_text(text)
    check_text(text.partition("\n\n")[0] + "\n")
    check_epoch(made)


def main() -> None:
    """Run atheris."""
    import atheris  # noqa: PLC0415 - only here: the short form of this test runs without it

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
