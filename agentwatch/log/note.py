"""Signed notes (https://c2sp.org/signed-note): a text and who signed it. Ed25519, and ML-DSA-44 beside it.

Text in, text out; no files. What always holds:

* a note means nothing before ``verify`` returned;
* a note, a key and a signature have one spelling: what was parsed gives back the same bytes, and no bit of a note whose
  signers were all asked for can be changed without its being refused.

What is signed differs by what the note is: a checkpoint's line of ML-DSA-44 or of a cosigner is over the structures of
https://c2sp.org/tlog-cosignature, which name the tree; everything else is over the text itself.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from agentwatch.log.merkle import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ED25519 = 0x01
COSIGNATURE = 0x04
ML_DSA_44 = 0x06
KEY_BYTES = {ED25519: 32, COSIGNATURE: 32, ML_DSA_44: 1312}
SIGNATURE_BYTES = {ED25519: 64, COSIGNATURE: 8 + 64, ML_DSA_44: 8 + 2420}
MAX_NOTE_BYTES = 64 * 1024
"""Sixteen signatures, which everybody must take, are 53 KiB if all are ML-DSA-44."""
KEY_ID_BYTES = 4

MAX_SHORT_BYTES = 255
"""The longest name of a key, and origin of a log, that ML-DSA-44 signs: tlog-cosignature has a byte for the length."""
MAX_MOMENT_S = 2**63 - 1
"""The latest time that tlog-cosignature allows."""

SIZE = re.compile(r"(0|[1-9][0-9]{0,18})\Z")
"""The size of a tree as a line."""

_NAME = re.compile(r"[^\s+\x00-\x1f]+\Z")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_SIGNATURE_LINE = re.compile("\N{EM DASH} ([^\\s+]+) ([A-Za-z0-9+/]+={0,2})\\Z")
_TIME = struct.Struct(">Q")
_SUBTREE = b"subtree/v1\n\0"
_CHECKPOINT_LINES = 3


class NoteError(ValueError):
    """A text is no signed note, or it is not signed by who should have signed it."""


class Signature(NamedTuple):
    """One signature line; ``data`` is what stands behind the key id."""

    name: str
    key_id: bytes
    data: bytes

    def __str__(self) -> str:
        """Return the line, without its end."""
        return f"\N{EM DASH} {self.name} {base64.b64encode(self.key_id + self.data).decode()}"


class Note(NamedTuple):
    """A text, which ends with a newline, and its signatures, none of them checked."""

    text: str
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        """Return the note as it is stored."""
        return f"{self.text}\n{''.join(f'{signature}{chr(10)}' for signature in self.signatures)}"

    def signed_by(self, signer: Signer, moment_s: int) -> Note:
        """Return the note with one signature more."""
        return self._replace(signatures=(*self.signatures, signer.sign(self.text, moment_s)))


class Key(NamedTuple):
    """A public key with the name that it signs under: a *vkey*."""

    name: str
    kind: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        """The first four bytes of the hash over name, kind and key."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:KEY_ID_BYTES]

    def __str__(self) -> str:
        """Return the vkey."""
        data = base64.b64encode(bytes([self.kind]) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{data}"

    @classmethod
    def parse(cls, vkey: str) -> Key:
        """Return the key that a vkey names; white space around it is a file's. Raises NoteError."""
        name, _, rest = vkey.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        data = decode_base64(encoded, "a key")
        if not data or len(data) - 1 != KEY_BYTES.get(data[0]):
            raise NoteError(f"{vkey[:80]!r} is not a vkey of Ed25519 or ML-DSA-44")
        key = cls(check_name(name), data[0], data[1:])
        if key.key_id.hex() != key_id:
            raise NoteError(f"the key id in the vkey of {name} is not that of its key: it was altered")
        return key


class Signer(Protocol):
    """Who can sign: Ed25519Signer, MlDsaSigner, Cosigner."""

    @property
    def key(self) -> Key:
        """The public side."""

    def sign(self, text: str, moment_s: int) -> Signature:
        """Return the signature line for a text; the moment is in seconds since 1970."""


class Ed25519Signer:
    """Signs texts with Ed25519."""

    def __init__(self, name: str, private: bytes) -> None:
        """``private``: the 32 bytes of the seed."""
        self._private = Ed25519PrivateKey.from_private_bytes(private)
        self.key = Key(check_name(name), ED25519, self._private.public_key().public_bytes_raw())

    def sign(self, text: str, moment_s: int) -> Signature:
        """Return the signature line for a text."""
        del moment_s
        return Signature(self.key.name, self.key.key_id, self._private.sign(text.encode()))


class Cosigner:
    """Signs checkpoints of others, with the time at which it saw them."""

    def __init__(self, name: str, private: bytes) -> None:
        """``private``: the 32 bytes of the seed."""
        self._private = Ed25519PrivateKey.from_private_bytes(private)
        self.key = Key(check_name(name), COSIGNATURE, self._private.public_key().public_bytes_raw())

    def sign(self, text: str, moment_s: int) -> Signature:
        """Return the signature line for a checkpoint's text."""
        data = _TIME.pack(moment_s) + self._private.sign(_cosigned(text, moment_s))
        return Signature(self.key.name, self.key.key_id, data)


class MlDsaSigner:
    """Signs checkpoints and certificates with ML-DSA-44 (FIPS 204)."""

    def __init__(self, name: str, private: bytes) -> None:
        """``private``: the 32 bytes of the seed."""
        self._private = MLDSA44PrivateKey.from_seed_bytes(private)
        self.key = Key(check_name(name), ML_DSA_44, self._private.public_key().public_bytes_raw())

    def sign(self, text: str, moment_s: int) -> Signature:
        """Return the signature line for a text; the moment is left out where the signature does not cover it."""
        if _is_certificate(text):
            moment_s = 0
        message, context = _ml_dsa_message(self.key.name, text, moment_s)
        data = _TIME.pack(moment_s) + self._private.sign(message, context)
        return Signature(self.key.name, self.key.key_id, data)


def parse(stored: bytes | str) -> Note:
    """Return the note. Raises NoteError where it is none; says nothing of its signatures."""
    # Halves of surrogate pairs, which a str can hold, fail at decoding.
    data = stored if isinstance(stored, bytes) else stored.encode(errors="surrogatepass")
    if len(data) > MAX_NOTE_BYTES:
        raise NoteError(f"a note of {len(data)} bytes is longer than any that is signed by keys we know")
    try:
        whole = data.decode()
    except UnicodeDecodeError as e:
        raise NoteError("it is not UTF-8") from e
    if _CONTROL.search(whole):
        raise NoteError("it has control characters in it")
    text, separator, lines = whole.rpartition("\n\n")
    if not separator or not lines.endswith("\n"):
        raise NoteError("it has no signatures")
    return Note(f"{text}\n", tuple(_signature(line) for line in lines[:-1].split("\n")))


def verify(note: Note, keys: Iterable[Key]) -> None:
    """Raise NoteError unless every one of ``keys`` has signed the note. Signatures by others count for nothing.

    No keys at all have signed nothing.
    """
    asked = tuple(keys)
    if not asked:
        raise NoteError("there is no key that should have signed it")
    for key in asked:
        found = [s for s in note.signatures if s.name == key.name and s.key_id == key.key_id]
        if not found:
            raise NoteError(f"it is not signed by {key.name} with the key {key.key_id.hex()}")
        for signature in found:
            _verify_one(key, note.text, signature)


def moment_of(signature: Signature) -> int:
    """Return when a cosigner or an ML-DSA-44 key says that it signed, in seconds since 1970. Raises NoteError."""
    if len(signature.data) < _TIME.size:
        raise NoteError(f"the signature by {signature.name} has no time in it")
    moment: int = _TIME.unpack_from(signature.data)[0]
    if moment > MAX_MOMENT_S:
        raise NoteError(f"the signature by {signature.name} is of a time that cannot be")
    return moment


def check_name(name: str) -> str:
    """Return the name if a key can sign under it. Raises NoteError."""
    if not _NAME.match(name) or not _is_utf8(name):
        raise NoteError(f"a key cannot sign under the name {name[:80]!r}: no spaces, no '+', no control characters")
    return name


def decode_base64(encoded: str, what: str) -> bytes:
    """Return the bytes. Raises NoteError, also for any spelling but the canonical one (RFC 4648, section 3.5)."""
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as e:
        raise NoteError(f"{what} is not base64") from e
    if base64.b64encode(data).decode() != encoded:
        raise NoteError(f"{what} has bits behind the end of its base64")
    return data


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _verify_one(key: Key, text: str, signature: Signature) -> None:
    if len(signature.data) != SIGNATURE_BYTES[key.kind]:
        raise NoteError(f"the signature by {key.name} has {len(signature.data)} bytes, not {SIGNATURE_BYTES[key.kind]}")
    if key.kind != ED25519:
        moment_of(signature)
    try:
        _CHECKS[key.kind](key, text, signature.data)
    except InvalidSignature as e:
        raise NoteError(f"the signature by {key.name} ({key.key_id.hex()}) is false") from e


def _check_ed25519(key: Key, text: str, data: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(key.public).verify(data, text.encode())


def _check_cosignature(key: Key, text: str, data: bytes) -> None:
    message = _cosigned(text, _TIME.unpack_from(data)[0])
    Ed25519PublicKey.from_public_bytes(key.public).verify(data[_TIME.size :], message)


def _check_ml_dsa(key: Key, text: str, data: bytes) -> None:
    moment_s: int = _TIME.unpack_from(data)[0]
    if moment_s and _is_certificate(text):
        raise NoteError(f"the signature by {key.name} has a time, which nothing in a certificate's signature covers")
    message, context = _ml_dsa_message(key.name, text, moment_s)
    MLDSA44PublicKey.from_public_bytes(key.public).verify(data[_TIME.size :], message, context)


_CHECKS: dict[int, Callable[[Key, str, bytes], None]] = {
    ED25519: _check_ed25519,
    COSIGNATURE: _check_cosignature,
    ML_DSA_44: _check_ml_dsa,
}

CERTIFICATE = "agentwatch-epoch/v1"
"""The first line of a certificate of a key; no origin is like that. Also the context of its ML-DSA-44 signature."""


def _cosigned(text: str, moment_s: int) -> bytes:
    return f"cosignature/v1\ntime {moment_s}\n{text}".encode()


def _is_certificate(text: str) -> bool:
    return text.startswith(f"{CERTIFICATE}\n")


def _ml_dsa_message(name: str, text: str, moment_s: int) -> tuple[bytes, bytes | None]:
    # A certificate is no checkpoint: there is no structure of others for it, so it is signed as a text.
    if _is_certificate(text):
        return text.encode(), CERTIFICATE.encode()
    # Only what the structure holds is signed: a text that says more, or the same in other words, is not.
    lines = text.split("\n")
    if len(lines) != _CHECKPOINT_LINES + 1 or lines[-1] or not SIZE.match(lines[1]):
        raise NoteError("ML-DSA-44 signs checkpoints of three lines and certificates; this is neither")
    origin, size, encoded = lines[:_CHECKPOINT_LINES]
    root = decode_base64(encoded, "the root")
    if len(root) != HASH_BYTES:
        raise NoteError(f"the root has {len(root)} bytes, not {HASH_BYTES}")
    who = _short(name)
    log = _short(origin)
    return b"".join((_SUBTREE, who, _TIME.pack(moment_s), log, _TIME.pack(0), _TIME.pack(int(size)), root)), None


def _short(text: str) -> bytes:
    data = text.encode()
    if not 0 < len(data) <= MAX_SHORT_BYTES:
        raise NoteError(f"ML-DSA-44 signs names of 1 to {MAX_SHORT_BYTES} bytes, not {text[:80]!r}")
    return bytes([len(data)]) + data


def _signature(line: str) -> Signature:
    match = _SIGNATURE_LINE.match(line)
    if match is None:
        raise NoteError(f"{line[:80]!r} is not a signature line")
    data = decode_base64(match[2], "a signature")
    if len(data) <= KEY_ID_BYTES:
        raise NoteError("a signature is cut short")
    return Signature(match[1], data[:KEY_ID_BYTES], data[KEY_ID_BYTES:])
