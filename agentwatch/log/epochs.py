"""Epochs: which key may sign for which records, from the identity of the host on. Format: docs/log-format.md.

In: the payloads of ``epoch`` records with their sequence numbers, from files or from segments. Out: a chain, or what
breaks it. Nothing here opens a file.
"""

from __future__ import annotations

import base64
import re
from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from agentwatch.log import checkpoint, note
from agentwatch.log.note import CERTIFICATE, Key, NoteError

if TYPE_CHECKING:
    from collections.abc import Iterable

KIND = "epoch"
FOLDER = "epochs"
IDENTITY_FILE = "identity"
_FILE_NAME = re.compile(r"[0-9]{20}\Z")
FIXED_LINES = 5
"""Lines of a certificate before the keys."""
RootOf = Callable[[int], bytes]
"""Gives the root of the tree of some size."""


class Certificate(NamedTuple):
    """What the keys of one epoch say of those of the next: valid for records after ``seq``.

    ``root`` is of the tree of size ``seq``: of all records before the one that holds this.
    """

    origin: str
    number: int
    seq: int
    root: bytes
    keys: tuple[Key, ...]

    @property
    def text(self) -> str:
        """The text of the note."""
        lines = (CERTIFICATE, self.origin, str(self.number), str(self.seq), base64.b64encode(self.root).decode())
        return "".join(f"{line}\n" for line in (*lines, *self.keys))

    @classmethod
    def parse(cls, text: str) -> Certificate:
        """Return what a note's text says. Raises NoteError."""
        lines = text.split("\n")
        if len(lines) < FIXED_LINES + 2 or lines[0] != CERTIFICATE or lines[-1]:
            raise NoteError("it is not the certificate of an epoch")
        origin, number, seq, root = lines[1:FIXED_LINES]
        keys = tuple(Key.parse(line) for line in lines[FIXED_LINES:-1])
        parsed = cls(
            checkpoint.parse_origin(origin),
            checkpoint.parse_size(number),
            checkpoint.parse_size(seq),
            checkpoint.parse_root(root),
            keys,
        )
        kinds = [key.kind for key in keys]
        if kinds not in ([note.ED25519], [note.ED25519, note.ML_DSA_44]) or any(k.name != origin for k in keys):
            raise NoteError("the keys of an epoch are one of Ed25519, then perhaps one of ML-DSA-44, named as the log")
        if parsed.text != text:
            raise NoteError("a certificate has nothing but its lines in it")
        return parsed


class Epoch(NamedTuple):
    """An ``epoch`` record: its number in the log, its exact payload, and the certificate in it, not checked yet."""

    seq: int
    payload: bytes
    certificate: Certificate
    signed: note.Note


def identity_name(origin: str) -> str:
    """Return the name that the host identity key signs under."""
    return f"{origin}/identity"


def file_name(seq: int) -> str:
    """Return the name of the copy of an epoch's record."""
    return f"{seq:020d}"


def parse_file_name(name: str) -> int | None:
    """Return the sequence number that a copy's name tells; None if it is no copy's name."""
    return int(name) if _FILE_NAME.match(name) else None


def parse(seq: int, payload: bytes) -> Epoch:
    """Return the epoch of a stored record. Raises NoteError if it is not an ``epoch`` record as it should be."""
    record = _unpack(payload)
    if record.get("kind") != KIND or not isinstance(record.get("certificate"), str):
        raise NoteError("an epoch's record has no certificate")
    signed = note.parse(record["certificate"])
    certificate = Certificate.parse(signed.text)
    number = record.get("number")
    if type(number) is not int or number != certificate.number:
        raise NoteError(f"the record says epoch {number!r}, its certificate epoch {certificate.number}")
    return Epoch(seq, payload, certificate, signed)


def looks_like(payload: bytes) -> bool:
    """Tell cheaply whether a record can be an ``epoch`` record. What an agent wrote into a record may look so too."""
    if CERTIFICATE.encode() not in payload:
        return False
    try:
        return bool(_unpack(payload).get("kind") == KIND)
    except NoteError:
        return False


def _unpack(payload: bytes) -> dict[Any, Any]:
    try:
        # As docs/log-format.md reads it: what is no record for one verifier must not be one for another.
        record = msgpack.unpackb(
            payload, raw=False, strict_map_key=True, object_pairs_hook=_no_key_twice, ext_hook=_no_extension
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as e:  # TypeError: a map as a key of a map
        raise NoteError("an epoch's record is not msgpack") from e
    if not isinstance(record, dict):
        raise NoteError("an epoch's record is not a map")
    return record


def _no_key_twice(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _no_extension(code: int, _data: bytes) -> Any:
    raise ValueError(f"there is an extension type, {code}")


class BrokenChainError(NoteError):
    """The epochs do not follow from each other; ``seq`` is the record from which on nothing is proved."""

    def __init__(self, seq: int, message: str) -> None:
        super().__init__(message)
        self.seq = seq


class Chain:
    """The epochs of one log, checked one after the other from its identity on."""

    def __init__(self, identity: Key) -> None:
        """``identity`` is the vkey of the host identity key."""
        self.identity = identity
        self.epochs: list[Epoch] = []

    @property
    def origin(self) -> str:
        """The log's origin. Empty before the first epoch."""
        return self.epochs[0].certificate.origin if self.epochs else ""

    def add(self, epoch: Epoch, root_of: RootOf) -> None:
        """Take the next epoch. Raises BrokenChainError if it does not follow from the last one."""
        certificate = epoch.certificate
        number = len(self.epochs)
        keys = self.epochs[-1].certificate.keys if self.epochs else (self.identity,)
        since = self.epochs[-1].seq if self.epochs else 0
        if certificate.number != number or certificate.seq != epoch.seq or (epoch.seq == 0) != (number == 0):
            raise BrokenChainError(
                since, f"record {epoch.seq} should begin epoch {number}, and its certificate is for something else"
            )
        if self.epochs and epoch.seq <= since:
            raise BrokenChainError(since, f"record {epoch.seq} begins epoch {number}, and is before epoch {number - 1}")
        if self.epochs and certificate.origin != self.origin:
            raise BrokenChainError(since, f"the certificate in record {epoch.seq} is of the log {certificate.origin}")
        if not self.epochs and self.identity[:2] != (identity_name(certificate.origin), note.ED25519):
            raise BrokenChainError(since, f"the log {certificate.origin} is not that of {self.identity.name}")
        try:
            note.verify(epoch.signed, keys)
        except NoteError as e:
            raise BrokenChainError(since, f"the certificate in record {epoch.seq} (epoch {number}): {e}") from e
        if certificate.root != root_of(epoch.seq):
            raise BrokenChainError(
                since, f"the records before {epoch.seq} are not those that the keys of epoch {number - 1} signed"
            )
        self.epochs.append(epoch)

    def extend(self, epochs: Iterable[Epoch], root_of: RootOf) -> None:
        """Take epochs in order. Raises as ``add`` does."""
        for epoch in epochs:
            self.add(epoch, root_of)

    def at(self, size: int) -> Epoch:
        """Return the epoch whose keys sign for a tree of this size. Raises NoteError for the empty tree."""
        index = bisect_left(self.epochs, size, key=lambda epoch: epoch.seq) - 1
        if index < 0:
            raise NoteError("nothing signs for a tree without an epoch's record in it")
        return self.epochs[index]

    def verify(self, signed: note.Note) -> checkpoint.Checkpoint:
        """Return the checkpoint if the keys of its epoch signed it. Raises NoteError."""
        found = checkpoint.Checkpoint.parse(signed.text)
        if found.origin != self.origin:
            raise NoteError(f"it is of another log, {found.origin}")
        note.verify(signed, self.at(found.size).certificate.keys)
        return found
