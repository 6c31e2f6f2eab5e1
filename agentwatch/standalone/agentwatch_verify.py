#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Check a log of agentwatch, or an evidence bundle cut from one, without agentwatch.

In goes TARGET: a bundle (``SESSION.tlog.zip``) or a copy of a whole log folder. Out come a verdict with the first
record for which something fails, a list of what is *not* proved, and counts of the records. TARGET is only read.

Written from docs/log-format.md and the specifications named there; the sections below have its order and its names.
Needs Python 3.11 and the package ``cryptography`` (47 for ML-DSA-44); compressed segments need Python 3.14 or the
package ``zstandard``; the package ``crc32c`` makes a folder several times faster.

TARGET may be made by an attacker: each length is checked before it is used, each limit has a name, no name or link is
followed out of TARGET, and what cannot be understood ends as a finding and never as a traceback.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import io
import json
import os
import re
import struct
import sys
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
except ImportError:
    sys.stderr.write("CANNOT CHECK: the Python package cryptography is missing; install it and run this again\n")
    raise SystemExit(3) from None
try:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey
except ImportError:  # before cryptography 47
    MLDSA44PublicKey = None  # type: ignore[assignment,misc]

INTACT, BROKEN, CANNOT_CHECK = 0, 1, 3  # exit status; 2 is usage

MAX_PAYLOAD_BYTES = 64 << 20  # of a record: the format's own limit
MAX_SIZE = 1 << 64  # of a tree, and more than any time in nanoseconds
CHUNK = 1 << 16  # read at once
MAX_SEGMENT_BYTES = 256 << 20  # decompressed: what the format lets a reader refuse
MAX_NOTE_BYTES = 256 << 10  # a checkpoint: more than the 16 signatures of 5 kB that signed-note asks for
MAX_EPOCH_BYTES = 1 << 20  # an epoch record: two keys and two signatures, about 10 kB
MAX_FILES = 300_000  # in a bundle, or in anchors/: one an hour for thirty years
MAX_DEPTH, MAX_ITEMS = 64, 1_000_000  # of arrays and maps in a record; beyond, it counts as unreadable
MAX_KINDS = 1_000  # of records that are counted apart; beyond, together
MAX_SAID = 100  # findings kept, first by record number; remarks, and things not proved
MAX_SHOWN = 200  # characters of a foreign string
MAX_MEMORY_BYTES = 4 << 30  # what gets past all this ends as "cannot check", not as a machine without memory
MAX_TIME = (1 << 63) - 1  # in a signature, and of a record


class Malformed(ValueError):
    """Something in TARGET is not as the format has it; becomes a finding."""


class CannotCheck(Exception):
    """There is no answer here: this machine lacks something, or TARGET is no log."""


@dataclass
class Report:
    """What is found, in whatever order."""

    records: int = 0
    proved: int = 0
    completeness: str = "not known"
    findings: list[tuple[int, str]] = field(default_factory=list)
    cannot: list[str] = field(default_factory=list)
    not_proved: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    times_ns: tuple[int, int] | None = None  # of the earliest and the latest record

    def broken(self, record: int, how: str) -> None:
        """Note what breaks TARGET, and the first record that is not proved because of it."""
        self.findings.append((record, how))
        self.findings.sort(key=lambda finding: finding[0])
        del self.findings[MAX_SAID:]

    def count(self, fields: dict[str, Any] | None) -> None:
        """Count a record."""
        self.records += 1
        kind = "(unreadable)" if fields is None else plain(fields.get("kind"))
        self.kinds[kind if kind in self.kinds or len(self.kinds) < MAX_KINDS else "(others)"] += 1
        time_ns = (fields or {}).get("time")
        if type(time_ns) is int and 0 <= time_ns <= MAX_TIME:
            first, last = self.times_ns or (time_ns, time_ns)
            self.times_ns = min(first, time_ns), max(last, time_ns)

    def verdict(self) -> tuple[int, str]:
        """Return the exit status, and the same in words. What is broken is so, whatever could not be checked."""
        if self.findings:
            return BROKEN, "BROKEN at record {}: {}".format(*self.findings[0])
        if self.cannot:
            return CANNOT_CHECK, f"CANNOT CHECK: {self.cannot[0]}"
        return INTACT, f"intact: {self.records} records, proved up to checkpoint of size {self.proved}"


def plain(text: object) -> str:
    """Return foreign text so that a terminal shows it and obeys nothing in it."""
    shown = str(text)[:MAX_SHOWN]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


# ---- "The folder" --------------------------------------------------------------------------------------------------

SEGMENT_NAME = re.compile(r"([0-9]{20})\.segment(\.zst)?")
EPOCH_NAME = re.compile(r"[0-9]{20}")
ANCHOR_NAME = re.compile(r"([0-9]{1,20})\.[A-Za-z0-9._-]+")


def refuse_links(root: Path) -> None:
    """Raise if something in the folder is only a link: it could lead out of it."""
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            if Path(folder, name).is_symlink():
                raise CannotCheck(f"{plain(name)} is a symbolic link; copy the log itself")


def open_regular(root: Path, name: str) -> IO[bytes] | None:
    """Open a file of the folder, None if there is none. A pipe would wait."""
    path = root / name
    if not path.exists():
        return None
    if not path.is_file():
        raise Malformed(f"{plain(name)} is not a regular file")
    return path.open("rb")


def read_small(root: Path, name: str, limit: int) -> bytes | None:
    """Read a whole file of at most ``limit`` bytes, None if there is none."""
    file = open_regular(root, name)
    if file is None:
        return None
    with file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Malformed(f"{plain(name)} has more than {limit} bytes")
    return data


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none if it does not exist."""
    return sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []


# ---- "Segments" ----------------------------------------------------------------------------------------------------

MAGIC = b"\x89AWLOG\r\n"
VERSION = 1
HEADER = struct.Struct(">8sIQQ16s16sI")
FRAME = struct.Struct(">II")


CRC_TABLE = list(range(256))
for _ in range(8):
    CRC_TABLE = [value >> 1 ^ 0x82F63B78 * (value & 1) for value in CRC_TABLE]  # 0x1EDC6F41, reflected


def crc32c_plain(data: bytes) -> int:
    """Return the CRC-32C of RFC 3720."""
    value = 0xFFFFFFFF
    for byte in data:
        value = CRC_TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


try:
    from crc32c import crc32c
except ImportError:
    crc32c = crc32c_plain  # type: ignore[assignment]


def check_header(data: bytes, first: int, log_id: bytes) -> None:
    """Check a segment's header against its name and the log."""
    if len(data) < HEADER.size:
        raise Malformed(f"{len(data)} bytes, not even a header")
    magic, version, seq, _created, _boot, found, crc = HEADER.unpack(data)
    if magic != MAGIC or crc32c(data[:-4]) != crc:
        raise Malformed("the segment's header is damaged")
    if version != VERSION:
        raise CannotCheck(f"segment {first} is of version {version} of the format, this program knows {VERSION}")
    if seq != first:
        raise Malformed(f"the segment's header says that it begins with record {seq}")
    if found != log_id:
        raise Malformed(f"the segment is of another log, {found.hex()}")


def read_frame(file: IO[bytes], log_id: bytes, seq: int) -> bytes | None:
    """Return the payload of the next frame if its check is that of record ``seq`` of this log, None at the end."""
    head = file.read(FRAME.size)
    if not head:
        return None
    length, check = FRAME.unpack(head) if len(head) == FRAME.size else (0, 0)
    if not 1 <= length <= MAX_PAYLOAD_BYTES:
        raise Malformed("no frame")
    payload = file.read(length)
    if len(payload) < length:
        raise Malformed("a frame that is cut short")
    if (crc32c(log_id + head[:4] + payload) + seq) % (1 << 32) != check:
        raise Malformed("the check of the frame does not match")
    return payload


# ---- "Compressed segments" -----------------------------------------------------------------------------------------

NUMBERS_MAGIC, SEEK_TABLE_MAGIC, SEEKABLE_MAGIC = 0x184D2A5A, 0x184D2A5E, 0x8F92EAB1
TABLE_HEAD, FOOTER = struct.Struct("<II"), struct.Struct("<IBI")
CHECKSUM_FLAG = 0x04  # in the fifth byte of a zstd frame


def read_tables(file: IO[bytes]) -> list[tuple[int, int, int]]:
    """Return of each zstd frame the first record in it, its size, and the size of its contents."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - FOOTER.size))
    footer = file.read(FOOTER.size)
    count, descriptor, magic = FOOTER.unpack(footer) if len(footer) == FOOTER.size else (0, 0, 0)
    begin = end - FOOTER.size - 2 * (TABLE_HEAD.size + 8 * count)
    if magic != SEEKABLE_MAGIC or descriptor or begin < 0:
        raise Malformed("there is no seek table at its end")
    file.seek(begin)
    numbers, sizes = file.read(TABLE_HEAD.size + 8 * count), file.read(TABLE_HEAD.size + 8 * count)
    heads = TABLE_HEAD.pack(NUMBERS_MAGIC, 8 * count), TABLE_HEAD.pack(SEEK_TABLE_MAGIC, 8 * count + FOOTER.size)
    if not numbers.startswith(heads[0]) or not sizes.startswith(heads[1]):
        raise Malformed("there are not two tables at its end")
    tables = zip(struct.iter_unpack(">Q", numbers[8:]), struct.iter_unpack("<II", sizes[8:]), strict=True)
    frames = [(first, *pair) for (first,), pair in tables]
    if sum(size for _, size, _ in frames) != begin or sum(inflated for *_, inflated in frames) > MAX_SEGMENT_BYTES:
        raise Malformed("its tables do not go with its size, or it is too large")
    file.seek(0)
    return frames


def inflate(frame: bytes, size: int) -> IO[bytes]:
    """Decompress one zstd frame of ``size`` bytes."""
    try:
        try:
            from compression import zstd  # type: ignore[import-not-found,unused-ignore] # noqa: PLC0415 -- 3.14
        except ImportError:
            import zstandard  # noqa: PLC0415 -- may be missing

            data = zstandard.ZstdDecompressor().stream_reader(frame).read(size + 1)
        else:
            data = zstd.ZstdDecompressor().decompress(frame, size + 1)
    except ImportError:
        raise CannotCheck("compressed segments need Python 3.14 or the package zstandard; none is here") from None
    except MemoryError:
        raise
    except Exception as error:  # each of the two has a class of its own for damage
        raise Malformed(f"a zstd frame does not decompress ({plain(error)})") from error
    if len(data) != size or not frame[4] & CHECKSUM_FLAG:
        raise Malformed("a zstd frame has another size than in the table, or no checksum")
    return io.BytesIO(data)


# ---- "The tree" (RFC 6962, section 2.1) ----------------------------------------------------------------------------

HASH_BYTES = 32
TILE_HEIGHT, TILE_WIDTH = 8, 256
VOID_LEAF = hashlib.sha256(b"\x00").digest()
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(payload: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(b"\x00" + payload).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


Pair = tuple[bytes, bytes]


class Trees:
    """Two trees that leaves are added to; of each the roots of the full subtrees it consists of, widest first."""

    def __init__(self, tiled: Callable[[int, int, Pair], Pair]) -> None:
        """``tiled(level, index, hashes)`` sees the hashes of a tile above level 0, and returns those to go on with."""
        self.size = 0
        self.full: list[Pair] = []
        self.tiled = tiled

    def add(self, leaves: Pair) -> None:
        """Add a leaf to each."""
        pair, index, height = leaves, self.size, 0
        while index & 1:
            pair = nodes(self.full.pop(), pair)
            index, height = index >> 1, height + 1
            if height % TILE_HEIGHT == 0:
                pair = self.tiled(height // TILE_HEIGHT, index, pair)
        self.full.append(pair)
        self.size += 1

    def roots(self) -> Pair:
        """Return the roots at this size."""
        if not self.full:
            return EMPTY_ROOT, EMPTY_ROOT
        pair = self.full[-1]
        for left in reversed(self.full[:-1]):
            pair = nodes(left, pair)
        return pair


def nodes(left: Pair, right: Pair) -> Pair:
    """Return the inner node of each tree, which mostly is the same in both."""
    first = node_hash(left[0], right[0])
    return first, first if left[0] == left[1] and right[0] == right[1] else node_hash(left[1], right[1])


def inclusion_roots(index: int, size: int, leaf: bytes, proof: list[bytes]) -> tuple[bytes, bytes]:
    """Return the root of ``size`` that an inclusion proof leads to, and with it the root of the tree of size ``index``.

    From the top down, as section 2.1.1 defines the proof. The left siblings are the full subtrees of all leaves before
    this one: an inclusion proof of record n proves the root at size n, too.
    """
    if size == 1 or not proof:
        if size > 1 or proof:
            raise Malformed("the inclusion proof has too many hashes or too few")
        return leaf, EMPTY_ROOT
    *below, sibling = proof
    left = 1 << (size - 1).bit_length() - 1
    if index < left:
        node, before = inclusion_roots(index, left, leaf, below)
        return node_hash(node, sibling), before
    node, before = inclusion_roots(index - left, size - left, leaf, below)
    return node_hash(sibling, node), sibling if index == left else node_hash(sibling, before)


def consistency_roots(old_size: int, size: int, proof: list[bytes], old_root: bytes = b"") -> tuple[bytes, bytes]:
    """Return the roots of both sizes that a consistency proof leads to, from the top down as section 2.1.2 has it.

    ``old_root`` is given as long as the old tree is a subtree of its own, which the proof leaves out.
    """
    if old_size == size and old_root:
        proof = [*proof, old_root]
    if size in (old_size, 1) or not proof:
        if len(proof) != 1:
            raise Malformed("the consistency proof has too many hashes or too few")
        return proof[0], proof[0]
    *below, sibling = proof
    left = 1 << (size - 1).bit_length() - 1
    if old_size <= left:
        old, new = consistency_roots(old_size, left, below, old_root)
        return old, node_hash(new, sibling)
    old, new = consistency_roots(old_size - left, size - left, below)
    return node_hash(sibling, old), node_hash(sibling, new)


def hashes(data: bytes) -> list[bytes]:
    """Split concatenated hashes."""
    if len(data) % HASH_BYTES:
        raise Malformed(f"{len(data)} bytes are not a number of hashes")
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]


class Tiles:
    """The tiles of the folder, for the tree of one size."""

    def __init__(self, root: Path, size: int, report: Report) -> None:
        self.folder, self.size, self.report = root, size, report
        self.missing = 0
        self.newest: dict[int, tuple[int, bytes]] = {}  # by level; the tree is walked from left to right

    def hash(self, level: int, index: int) -> bytes | None:
        """Return a hash out of a tile, None where the tree of this size has none or the tile is missing."""
        if index >= self.size >> level * TILE_HEIGHT:
            return None
        number, at = divmod(index, TILE_WIDTH)
        if self.newest.get(level, (-1, b""))[0] != number:
            self.newest[level] = number, self._read(level, number)
        return self.newest[level][1][at * HASH_BYTES : (at + 1) * HASH_BYTES] or None

    def _read(self, level: int, number: int) -> bytes:
        width = min(TILE_WIDTH, (self.size >> level * TILE_HEIGHT) - number * TILE_WIDTH)
        name, rest = f"{number % 1000:03d}", number // 1000
        while rest:
            name, rest = f"x{rest % 1000:03d}/{name}", rest // 1000
        name = f"tile/{level}/{name}"
        for path, wide in ((f"{name}.p/{width}", width), (name, TILE_WIDTH)):  # the full tile is as good
            try:
                data = read_small(self.folder, path, wide * HASH_BYTES)
            except Malformed:
                data = b""
            if data is None:
                continue
            if len(data) < wide * HASH_BYTES:
                first = number * TILE_WIDTH + min(len(data) // HASH_BYTES, width - 1)
                self.report.broken(first << level * TILE_HEIGHT, f"{path} does not have {wide} hashes")
            return data[: width * HASH_BYTES]
        self.missing += 1
        return b""


# ---- "Checkpoints" (C2SP signed-note, tlog-checkpoint, tlog-cosignature) ------------------------------------------

ED25519, COSIGNATURE, ML_DSA_44 = 0x01, 0x04, 0x06
KEY_BYTES = {ED25519: 32, COSIGNATURE: 32, ML_DSA_44: 1312}
SIGNATURE_BYTES = {ED25519: 64, COSIGNATURE: 8 + 64, ML_DSA_44: 8 + 2420}
ALGORITHM = {ED25519: "Ed25519", COSIGNATURE: "Ed25519 cosignature", ML_DSA_44: "ML-DSA-44"}
ORIGIN = re.compile(r"[A-Za-z0-9.-]{1,211}/agentwatch/([0-9a-f]{32})")
CERTIFICATE_CONTEXT = b"agentwatch-epoch/v1"


class Key(NamedTuple):
    """A public key with its name: what a vkey holds."""

    name: str
    key_id: bytes
    algorithm: int
    public: bytes

    def __str__(self) -> str:
        return f"{plain(self.name)} ({ALGORITHM[self.algorithm]}, {self.key_id.hex()})"


class Note(NamedTuple):
    """A signed note: the text, and (name, key id, signature) of each signature line."""

    text: str
    signatures: list[tuple[str, bytes, bytes]]


class Checkpoint(NamedTuple):
    """The three lines of a checkpoint, the note that they are in, where it was, and whether that is ``anchors/``."""

    origin: str
    size: int
    root: bytes
    note: Note
    source: str
    is_anchor: bool = False


def unbase64(text: str) -> bytes:
    """Decode base64 of RFC 4648, section 4; only the one canonical way to write it is accepted."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Malformed("not base64") from error
    if base64.b64encode(data).decode() != text:
        raise Malformed("not base64 as it is written")
    return data


def decimal(text: str) -> int:
    """Read a number of at most twenty digits without leading zeros."""
    if not re.fullmatch(r"0|[1-9][0-9]{0,19}", text):
        raise Malformed(f"not a number: {plain(text)!r}")
    return int(text)


def parse_vkey(text: str) -> Key:
    """Read a vkey."""
    parts = text.split("+", 2)
    if len(parts) != 3 or not parts[0] or any(c.isspace() for c in text):  # noqa: PLR2004 -- name, key id, key data
        raise Malformed(f"not a vkey: {plain(text)!r}")
    data = unbase64(parts[2])
    algorithm = data[0] if data else 0
    if len(data) != 1 + KEY_BYTES.get(algorithm, -1):
        raise Malformed(f"the vkey of {plain(parts[0])} has an unknown type or a wrong length")
    key_id = hashlib.sha256(parts[0].encode("utf-8", "surrogatepass") + b"\n" + data).digest()[:4]
    if key_id.hex() != parts[1]:
        raise Malformed(f"the vkey of {plain(parts[0])} has a wrong key id")
    return Key(parts[0], key_id, algorithm, data[1:])


def parse_note(data: bytes) -> Note:
    """Read a signed note. Nothing is verified here."""
    if len(data) > MAX_NOTE_BYTES:
        raise Malformed(f"a signed note of more than {MAX_NOTE_BYTES} bytes")
    try:
        whole = data.decode()
    except UnicodeDecodeError as error:
        raise Malformed("a signed note that is not UTF-8") from error
    text, blank, lines = whole.rpartition("\n\n")
    if not blank or not lines.endswith("\n") or any(c < " " and c != "\n" for c in whole):
        raise Malformed("not a signed note")
    signatures = []
    for line in lines[:-1].split("\n"):
        match = re.fullmatch(r"\u2014 ([^\s+]+) ([^\s]+)", line)
        if match is None:
            raise Malformed("a signed note with a line that is not a signature")
        signature = unbase64(match[2])
        signatures.append((match[1], signature[:4], signature[4:]))
    return Note(text + "\n", signatures)


def parse_checkpoint(source: str, data: bytes) -> Checkpoint:
    """Read a checkpoint. Nothing is verified here."""
    try:
        note = parse_note(data)
        lines = note.text.split("\n")
        if len(lines) != 4 or not ORIGIN.fullmatch(lines[0]) or len(root := unbase64(lines[2])) != HASH_BYTES:  # noqa: PLR2004
            raise Malformed("not the three lines of a checkpoint")  # noqa: TRY301 -- as those of parse_note
        return Checkpoint(lines[0], decimal(lines[1]), root, note, source)
    except Malformed as error:
        raise Malformed(f"{source}: {error}") from error


def verify(key: Key, signature: bytes, text: str, about: Checkpoint | None) -> bool:
    """Verify one signature on a checkpoint, or (``about`` is None) on a certificate."""
    body, time, rest = text.encode(), signature[:8], signature[8:]
    if len(signature) != SIGNATURE_BYTES[key.algorithm]:
        return False
    if key.algorithm != ED25519 and int.from_bytes(time, "big") > (MAX_TIME if about else 0):
        return False
    try:
        if key.algorithm == ED25519:
            Ed25519PublicKey.from_public_bytes(key.public).verify(signature, body)
        elif key.algorithm == COSIGNATURE:
            message = b"cosignature/v1\ntime %d\n" % int.from_bytes(time, "big") + body
            Ed25519PublicKey.from_public_bytes(key.public).verify(rest, message)
        elif MLDSA44PublicKey is None:
            raise CannotCheck("ML-DSA-44 signatures need the package cryptography, 47 or newer")
        else:
            message, context = (subtree(key, time, about), b"") if about else (body, CERTIFICATE_CONTEXT)
            MLDSA44PublicKey.from_public_bytes(key.public).verify(rest, message, context)
    except UnsupportedAlgorithm as error:
        raise CannotCheck(f"{ALGORITHM[key.algorithm]} signatures: {plain(error)}") from error
    except (InvalidSignature, ValueError):
        return False
    return True


def subtree(key: Key, time: bytes, about: Checkpoint) -> bytes:
    """Return what ML-DSA-44 signs of a checkpoint: the ``cosigned_message`` of tlog-cosignature."""
    name, origin = key.name.encode(), about.origin.encode()
    named = bytes([len(name)]) + name + time + bytes([len(origin)]) + origin  # ValueError if one is too long
    return b"subtree/v1\n\0" + named + struct.pack(">QQ", 0, about.size) + about.root


# ---- "Epochs" ------------------------------------------------------------------------------------------------------


class Chain:
    """The keys of the newest epoch so far, certified by those before it, from the identity on."""

    def __init__(self, identity: Key) -> None:
        self.origin = identity.name.removesuffix("/identity")
        match = ORIGIN.fullmatch(self.origin)
        if match is None or identity.name == self.origin or identity.algorithm != ED25519:
            raise Malformed(f"{identity} is not the identity of a log")
        self.log_id = bytes.fromhex(match[1])
        self.epochs = 0
        self.keys = [identity]
        self.failed = False

    def extend(self, seq: int, fields: dict[str, Any]) -> bytes | None:
        """Take in an epoch record; return the root that its certificate states, None behind a broken link.

        Whoever calls compares that root with the tree's at size ``seq``.
        """
        if self.failed:
            return None
        number, certificate = fields.get("number"), fields.get("certificate")
        if type(number) is not int or not isinstance(certificate, str):
            raise Malformed("it has no number or no certificate")
        if number != self.epochs or (number == 0 and seq != 0):
            raise Malformed(f"it is of epoch {number}, and the record of epoch {self.epochs} is missing")
        note = parse_note(certificate.encode("utf-8", "surrogatepass"))
        title, *lines = note.text.split("\n")[:-1]
        if title != CERTIFICATE_CONTEXT.decode() or len(lines) not in (5, 6):
            raise Malformed("its certificate is not one of agentwatch-epoch/v1")
        if lines[0] != self.origin:
            raise Malformed(f"its certificate is of another log, {plain(lines[0])}")
        if decimal(lines[1]) != number or decimal(lines[2]) != seq:
            raise Malformed(f"its certificate is of epoch {plain(lines[1])} at record {plain(lines[2])}")
        keys = [parse_vkey(line) for line in lines[4:]]
        kinds = [(key.name, key.algorithm) for key in keys]
        if kinds != [(self.origin, ED25519), (self.origin, ML_DSA_44)][: len(keys)]:
            raise Malformed("its certificate has keys of a wrong type or name")
        for key in self.keys:
            require(key, note, None)
        self.epochs, self.keys = number + 1, keys
        return unbase64(lines[3])

    def require_signed(self, checkpoint: Checkpoint) -> None:
        """Raise unless all keys of the newest epoch signed a checkpoint."""
        if checkpoint.origin != self.origin:
            raise Malformed(f"it is of another log, {plain(checkpoint.origin)}")
        if self.failed or not self.epochs:
            raise Malformed("the epochs do not lead to a key for it")
        for key in self.keys:
            require(key, checkpoint.note, checkpoint)


def require(key: Key, note: Note, about: Checkpoint | None) -> None:
    """Raise unless a note has a signature of this key, and no wrong one."""
    found = [signature for name, key_id, signature in note.signatures if (name, key_id) == (key.name, key.key_id)]
    if not found:
        raise Malformed(f"it is not signed by {key}")
    if not all(verify(key, signature, note.text, about) for signature in found):
        raise Malformed(f"the signature of {key} does not verify")


# ---- "Pruning" -----------------------------------------------------------------------------------------------------


def pruned_ranges(named: Any, seq: int) -> list[tuple[int, int]]:
    """Return the ranges that the ``prune`` record ``seq`` names."""
    pairs: list[Any] = named if isinstance(named, list) else [None]
    if not all(isinstance(pair, list) and [type(end) for end in pair] == [int, int] for pair in pairs):
        raise Malformed("it has no list of ranges [first, next]")
    ends = [0, *(end for pair in pairs for end in pair), seq]
    if any(a > b for a, b in pairwise(ends)) or any(first == following for first, following in pairs):
        raise Malformed("its ranges are not ascending, or do not end before the record itself")
    return [(first, following) for first, following in pairs]


# ---- "Verifying" ---------------------------------------------------------------------------------------------------


class Options(NamedTuple):
    """What the auditor brings along, and who wants to see each record."""

    identity: Key | None
    against: list[Checkpoint]
    cosigners: list[Key]
    each: Callable[[int, dict[str, Any] | None], None]


class Verifier:
    """What a folder and a bundle have in common: the chain of epochs, and checkpoints that must go with the tree.

    Both are gone through in the order of record numbers, so that the keys for a checkpoint are those of the last epoch
    met, and ``good`` is the last size whose root is right and signed: where something cannot be proved from there on,
    TARGET is broken at that record.
    """

    def __init__(self, options: Options, report: Report) -> None:
        self.options, self.report = options, report
        self.good = 0
        self.end = MAX_SIZE  # the number behind the last record, once it is known
        self.cosigned: dict[Key, int] = {}
        self.unsigned: list[tuple[Checkpoint, str]] = []  # and what is wrong with the signatures

    def begin(self, checkpoint: bytes | None, identity: bytes | None, anchors: dict[str, bytes]) -> None:
        """Start the chain with the auditor's identity, or else with TARGET's own, which proves less."""
        if checkpoint is None or identity is None:
            raise Malformed("there is no identity" if checkpoint else "there is no checkpoint: nothing here is signed")
        self.own, given = parse_checkpoint("checkpoint", checkpoint), self.options.identity
        text = identity.decode(errors="replace")
        found = parse_vkey(text.removesuffix("\n"))
        if not text.endswith("\n"):
            raise Malformed("identity is not one line")
        if given not in (None, found):
            raise Malformed(f"the identity here is {found}, not the one given, {given}")
        if given is None:
            how = f"no identity was given, and it goes with its own, {found}; so does a log replaced as a whole"
            self.report.not_proved.append(f"whose log it is: {how}")
        self.chain = Chain(found)
        self.size = self.own.size
        # By size, the smallest last. Of the same size the own one is checked last: it must not pass for right when one
        # from elsewhere differs.
        self.waiting = [*self.options.against, *self.read_anchors(anchors), self.own]
        self.waiting.sort(key=lambda checkpoint: checkpoint.size)
        self.waiting.reverse()

    def read_anchors(self, anchors: dict[str, bytes]) -> Iterator[Checkpoint]:
        """Yield the checkpoints of ``anchors/``. What is no such file proves nothing, and breaks nothing."""
        stamps = [name for name in anchors if name.endswith(".tsr")]
        if stamps:
            self.report.not_proved.append(
                f"the time in {len(stamps)} anchors, {stamps[0]} and so on: see openssl-ts(1)"
            )
        for name in anchors.keys() - stamps:
            match = ANCHOR_NAME.fullmatch(name)
            if match and not name.endswith(".consistency"):
                try:
                    found = parse_checkpoint(f"anchors/{name}", anchors[name])
                except Malformed as error:
                    self.report.not_proved.append(f"anything by an anchor: {error}")
                else:
                    if found.size == int(match[1]):
                        yield found._replace(is_anchor=True)

    def reach(self, size: int) -> None:
        """Check the checkpoints up to this size: the epochs below are known now, and no others."""
        while self.waiting and self.waiting[-1].size <= size:
            self.judge(self.waiting.pop())

    def judge(self, checkpoint: Checkpoint) -> None:
        """Step 5, and the same for the checkpoint of TARGET itself."""
        source, size, unsigned = f"{checkpoint.source} (size {checkpoint.size})", checkpoint.size, ""
        try:
            self.chain.require_signed(checkpoint)
        except Malformed as error:
            unsigned = str(error)
        agrees = self.agrees(checkpoint)
        if checkpoint.is_anchor and unsigned:  # anyone may have made it
            self.report.not_proved.append(f"anything by {source}: {unsigned}")
        elif unsigned and size <= self.end:
            self.unsigned.append((checkpoint, unsigned))
            if checkpoint is self.own:
                self.report.broken(self.good, f"{source}: {unsigned}")
        elif agrees is None:
            self.report.not_proved.append(f"anything by {source}: there is no proof here for that size")
        elif size > self.end:
            self.report.broken(self.end, f"{source} was of more records than the {self.end} that are there: it was cut")
        elif not agrees:
            self.report.broken(self.good, f"{source} has another root: a record from {self.good} on was changed")
        else:
            self.good = self.report.proved = size
            for key in self.options.cosigners:
                with contextlib.suppress(Malformed):
                    require(key, checkpoint.note, checkpoint)
                    self.cosigned[key] = size

    def agrees(self, checkpoint: Checkpoint) -> bool | None:
        """Tell whether the tree had this root at this size, None if that cannot be known."""
        raise NotImplementedError

    def epoch(self, seq: int, fields: dict[str, Any], roots: tuple[bytes, ...]) -> None:
        """Step 4: take in the epoch record ``seq``; ``roots``: what the tree's root at that size can be, if known."""
        try:
            certified = self.chain.extend(seq, fields)
        except Malformed as error:
            wrong = str(error)
        else:
            wrong = "its certificate has another root: a record before it was changed"
            if certified is None or not roots:
                return
            if certified in roots:
                self.good = seq
                return
        self.chain.failed = True
        if seq < self.size:  # behind the checkpoint anyone can add one
            self.report.broken(self.good, f"the epoch record {seq}: {wrong}")

    def finish(self) -> None:
        """Add what can only be said at the end."""
        if all(checkpoint is not self.own for checkpoint, _ in self.unsigned):  # that would explain the others
            for checkpoint, how in self.unsigned:  # who kept an old key can make new ones: the logs may part anywhere
                self.report.broken(0, f"the keys of this log are not those of {checkpoint.source}: {how}")
        for key, size in self.cosigned.items():
            self.report.remarks.append(f"cosigned by {key} up to size {size}")
        for key in self.options.cosigners:
            if key not in self.cosigned:
                self.report.not_proved.append(f"anything by {key}: no checkpoint is cosigned by it")
        if not self.options.against and not self.cosigned:
            how = "that who had the newest key did not cut off or replace the newest records (--against, --cosigner)"
            self.report.not_proved.append(how)


class Folder(Verifier):
    """A copy of a whole log folder.

    Two trees grow side by side: one of the records, one of the hashes that the tiles have, where there are any. They
    differ from where something was altered; a signed root tells whether that was records or tiles.
    """

    def __init__(self, folder: Path, options: Options, report: Report) -> None:
        super().__init__(options, report)
        self.folder = folder
        self.trees = Trees(self.tiled)  # of the records, of the tiles
        self.known = True  # until the first number whose leaf is not
        self.absent: list[tuple[int, int]] = []  # numbers that have a leaf and no record
        self.prunes: list[tuple[int, Any, bool]] = []  # records, what they name, whether their tile is of them
        self.right = 0  # the last size whose root is right, and follows from the records
        self.void = 0

    def verify(self) -> None:
        """Take the steps, all in one pass over the records."""
        refuse_links(self.folder)
        read = partial(read_small, self.folder, limit=MAX_NOTE_BYTES)
        anchors = {}
        for name in names_in(self.folder / "anchors")[:MAX_FILES]:
            with contextlib.suppress(Malformed):
                anchors[name] = read(f"anchors/{name}") or b""
        self.begin(read("checkpoint"), read("identity"), anchors)
        self.tiles = Tiles(self.folder, self.size, self.report)
        self.copies = {int(name) for name in names_in(self.folder / "epochs") if EPOCH_NAME.fullmatch(name)}
        following = 0
        for seq, payload in self.records():
            self.missing(following, seq)
            self.record(seq, payload)
            following = seq + 1
        self.missing(following, self.size)
        self.end = max(following, self.size)
        self.reach(MAX_SIZE)
        self.settle(following)

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Yield the records of all segments; an earlier one ends where the next one begins by its name."""
        names: dict[int, str] = {}
        for name in names_in(self.folder):  # sorted: of two with the same number the one not compressed comes first
            if match := SEGMENT_NAME.fullmatch(name):
                names.setdefault(int(match[1]), name)
        for first, limit in pairwise([*sorted(names), None]):
            if first is not None:
                yield from self.segment(names[first], first, limit)

    def segment(self, name: str, first: int, limit: int | None) -> Iterator[tuple[int, bytes]]:
        """Step 1, framing: yield the records of one segment below ``limit``; the last segment has none."""
        seq, is_plain = first, not name.endswith(".zst")
        try:
            file = open_regular(self.folder, name)
            if file is None:
                raise CannotCheck(f"{name} vanished while it was read")
            with file:
                for number, size, inflated in [(first, 0, 0)] if is_plain else read_tables(file):
                    if number != seq:
                        raise Malformed(f"its tables have record {number} here")  # noqa: TRY301 -- as those of others
                    part = file if is_plain else inflate(file.read(size), inflated)
                    if seq == first:
                        check_header(part.read(HEADER.size), first, self.chain.log_id)
                    while seq != limit and (found := self.next_record(part, seq, limit)):
                        yield found
                        seq = found[0] + 1
                    if seq == limit:  # what follows is superseded, whatever it is
                        return
        except Malformed as error:
            how = f"{error}, in {name}"
            if seq >= self.size and limit is None and is_plain:
                self.report.remarks.append(f"behind record {seq - 1} there is what is no record: {how}")
                self.report.not_proved.append(f"whether a record {seq} was begun: the last segment ends with a part")
            else:
                self.report.broken(seq, how)

    def next_record(self, file: IO[bytes], seq: int, limit: int | None) -> tuple[int, bytes] | None:
        """Read the next record, or the one after it where it is damaged and the length in it is right."""
        try:
            payload = read_frame(file, self.chain.log_id, seq)
        except Malformed as error:
            with contextlib.suppress(Malformed):
                payload = read_frame(file, self.chain.log_id, seq + 1) if seq + 1 != limit else None
                if payload is not None:
                    self.report.broken(seq, str(error))
                    return seq + 1, payload
            raise
        return None if payload is None else (seq, payload)

    def record(self, seq: int, payload: bytes) -> None:
        """Step 2, leaves: compare one record with its tile, and add it to the trees."""
        self.reach(seq)
        leaf, fields = leaf_hash(payload), read_record(payload)
        self.options.each(seq, fields)
        tile = self.tiles.hash(0, seq) or leaf
        copied = self.copy(seq, leaf, tile)
        if tile != leaf:
            self.report.broken(seq, "the record does not have the hash that the level-0 tile has for it")
        if fields and fields.get("kind") == "prune":
            self.prunes.append((seq, fields.get("pruned"), tile == leaf))
        # Which was altered, record or tile, is not known yet; what the copy is of is in the tree.
        self.add(seq, leaf, tile, fields if tile == leaf else copied)

    def missing(self, first: int, following: int) -> None:
        """Step 2 for numbers that are in no segment: void, pruned or damaged."""
        for seq in range(first, min(following, self.size)):
            self.reach(seq)
            leaf = self.tiles.hash(0, seq) if self.known else None
            if leaf is None:
                if self.known:
                    self.report.broken(seq, "neither the record nor a tile with its hash is there")
                self.known = False
                return
            if leaf == VOID_LEAF:
                self.void += 1
            elif self.absent and self.absent[-1][1] == seq:
                self.absent[-1] = self.absent[-1][0], seq + 1
            else:
                self.absent.append((seq, seq + 1))
            self.add(seq, leaf, leaf, self.copy(seq, leaf))
        if following > max(first, self.size):
            self.reach(max(first, self.size))
            self.known = False
            self.report.not_proved.append(f"why there are no records {max(first, self.size)} to {following - 1}")

    def copy(self, seq: int, *leaves: bytes) -> dict[str, Any] | None:
        """Return what the copy of an epoch record has, if it is of a leaf that the tree may have at this number."""
        if seq not in self.copies or seq >= self.size:
            return None
        payload = None
        with contextlib.suppress(Malformed):
            payload = read_small(self.folder, f"epochs/{seq:020d}", MAX_EPOCH_BYTES)
        if payload is None or leaf_hash(payload) not in leaves:
            self.report.broken(seq, f"epochs/{seq:020d} is no copy of a record that is in the tree")
            return None
        return read_record(payload)

    def add(self, seq: int, leaf: bytes, tile: bytes, fields: dict[str, Any] | None) -> None:
        """Step 3, tree, and step 4, chain: add a leaf, and take in the record if it is one of an epoch."""
        if fields and fields.get("kind") == "epoch":
            self.epoch(seq, fields, self.roots())
        if self.known:
            self.trees.add((leaf, tile))

    def tiled(self, level: int, index: int, pair: Pair) -> Pair:
        """Compare a hash that follows from the records, or the tiles below, with that of its tile."""
        tile = self.tiles.hash(level, index) or pair[1]
        if tile not in pair:
            first, following = index << level * TILE_HEIGHT, (index + 1) << level * TILE_HEIGHT
            how = f"the level-{level} tile has another hash for records {first} to {following - 1}"
            self.report.broken(max(first, self.good), how)
        return pair[0], tile

    def roots(self) -> tuple[bytes, ...]:
        """Return what the root can be at the present size, nothing if it is not known."""
        return self.trees.roots() if self.known else ()

    def agrees(self, checkpoint: Checkpoint) -> bool | None:
        """Tell whether the tree had this root; ``reach`` asks when it has that size."""
        if not self.known or checkpoint.size != self.trees.size:
            return False
        if checkpoint.root == self.trees.roots()[0]:
            self.right = checkpoint.size
        return checkpoint.root in self.trees.roots()

    def settle(self, following: int) -> None:
        """Tell records that were pruned from those that are damaged, and say what is not proved (step 6)."""
        say, gone = self.report.not_proved.append, sum(end - first for first, end in self.absent)
        pruned: list[tuple[int, int]] = []
        signed = [(seq, named) for seq, named, tiled in self.prunes if seq < (self.good if tiled else self.right)]
        for seq, named in signed[-1:]:
            try:  # the segment of the newest is still there, as only a newer one could name it
                pruned = pruned_ranges(named, seq)
            except Malformed as error:
                self.report.remarks.append(f"the prune record {seq} names nothing: {error}")
        for first, end in self.absent:
            lost = first
            for pruned_first, pruned_next in pruned:  # they ascend
                lost = pruned_next if pruned_first <= lost < pruned_next else lost
            if lost < end:
                self.report.broken(lost, "it is in no segment, and no signed prune record names it")
        counts = f"{self.report.records} records are there, {gone} are not any more, {self.void} numbers were skipped"
        self.report.completeness = counts
        if following > self.report.proved:
            say(f"the {following - self.report.proved} records behind the checkpoint")
        if gone:
            say(f"what was in the {gone} records that are not there any more")
        if self.tiles.missing:
            self.report.remarks.append(f"{self.tiles.missing} tiles are not there; they were computed from the records")
        self.finish()


# ---- "Evidence bundles" --------------------------------------------------------------------------------------------

ENTRY = struct.Struct(">QI")
BUNDLE_FORMAT = "agentwatch-bundle/1"
MEMBER_NAME = re.compile(r"checkpoint|identity|epochs/[0-9]{20}|records\.bin|anchors/[^/]+|account\.txt|manifest\.json")
ZIP_TROUBLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error)


class Bundle(Verifier):
    """The records of one session, and what proves that they are in the log."""

    def __init__(self, archive: zipfile.ZipFile, options: Options, report: Report) -> None:
        super().__init__(options, report)
        self.archive = archive
        self.members: dict[str, zipfile.ZipInfo] = {}
        self.session: object = None
        self.next_number = 0  # session_seq
        self.last_record = -1
        self.missed = 0
        self.ended = False

    def verify(self) -> None:
        """Check all that is in the bundle."""
        self.list_members()
        names = [name for name in self.members if name.startswith("anchors/")]
        anchors = {name.removeprefix("anchors/"): self.read(name) or b"" for name in sorted(names)}
        self.begin(self.read("checkpoint"), self.read("identity"), anchors)
        self.end = self.size
        manifest = self.manifest()
        self.session = manifest.get("session")
        self.entries()
        self.reach(MAX_SIZE)
        self.whole()
        if manifest.get("records") != self.report.records:
            how = f"{self.report.records} records are there, manifest.json has another number"
            self.report.broken(self.last_record + 1, how)
        if manifest.get("size") != self.size:
            self.report.broken(0, f"the checkpoint is of size {self.size}, manifest.json has another size")
        self.report.not_proved.append("what account.txt and manifest.json say besides: they are not signed")
        self.finish()

    def list_members(self) -> None:
        """List the files. One that is there twice could be read one way by us and another way by others."""
        infos = self.archive.infolist()
        missing = {"records.bin", "manifest.json"} - {info.filename for info in infos}
        if len(infos) > MAX_FILES or len(missing) > 1:
            raise CannotCheck("the zip file is not an evidence bundle, or has too many files")
        if missing:
            raise Malformed(f"{missing.pop()} is missing")
        for info in infos:
            name = plain(info.filename)
            if info.filename in self.members:
                raise Malformed(f"two files in the bundle are named {name}")
            if not MEMBER_NAME.fullmatch(info.filename):
                raise Malformed(f"{name} is no part of a bundle")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                raise Malformed(f"{name} is encrypted, or neither stored nor deflated")
            self.members[info.filename] = info

    def read(self, name: str, limit: int = MAX_NOTE_BYTES) -> bytes | None:
        """Read a whole file of at most ``limit`` bytes, None if there is none."""
        if name not in self.members:
            return None
        with self.archive.open(self.members[name]) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise Malformed(f"{name} has more than {limit} bytes")
        return data

    def manifest(self) -> dict[str, Any]:
        """Read manifest.json. It is not signed, so it only has to go with the rest."""
        found = json.loads(self.read("manifest.json") or b"")
        if not isinstance(found, dict):
            raise Malformed("manifest.json is not an object")
        if found.get("format") != BUNDLE_FORMAT:
            form = plain(found.get("format"))
            raise CannotCheck(f"the bundle is of format {form}, this program knows {BUNDLE_FORMAT}")
        return found

    def entries(self) -> None:
        """Go through records.bin."""
        epochs = {int(name[7:]): name for name in self.members if name.startswith("epochs/")}
        newest = -1
        with self.archive.open(self.members["records.bin"]) as file:
            while head := file.read(ENTRY.size):
                try:
                    seq, payload, proof = self.entry(file, head)
                except Malformed as error:
                    self.report.broken(newest + 1, f"records.bin: {error}")
                    break
                if seq <= newest:
                    self.report.broken(seq, f"records.bin has it behind record {newest}")
                newest = max(seq, newest)
                self.reach(seq)
                fields, name = read_record(payload), epochs.pop(seq, "")
                if not name:
                    self.options.each(seq, fields)
                try:
                    before = self.included(seq, leaf_hash(payload), proof)
                    if not name:
                        self.session_record(seq, fields or {})
                    elif payload != self.read(name, MAX_EPOCH_BYTES) or (fields or {}).get("kind") != "epoch":
                        raise Malformed(f"it is not the record in {name}, or none of an epoch")  # noqa: TRY301 -- as above
                    else:
                        self.epoch(seq, fields or {}, (before,))
                except Malformed as error:
                    self.report.broken(seq, str(error))
        for seq in epochs:
            self.report.broken(seq, "the epoch record has no inclusion proof")

    def entry(self, file: IO[bytes], head: bytes) -> tuple[int, bytes, list[bytes]]:
        """Read one entry."""
        seq, length = ENTRY.unpack(head) if len(head) == ENTRY.size else (-1, 0)
        if not 1 <= length <= MAX_PAYLOAD_BYTES:
            raise Malformed("an entry of an impossible length")
        payload, count = file.read(length), file.read(1)
        proof = file.read(count[0] * HASH_BYTES) if count else b""
        if not count or len(proof) < count[0] * HASH_BYTES:
            raise Malformed(f"it ends within the entry of record {seq}")
        return seq, payload, hashes(proof)

    def included(self, seq: int, leaf: bytes, proof: list[bytes]) -> bytes:
        """Check an inclusion proof; return the root that follows from it for the records before this one."""
        if seq >= self.size:
            raise Malformed(f"it is not in the tree of size {self.size}")
        root, before = inclusion_roots(seq, self.size, leaf, proof)
        if root != self.own.root:
            raise Malformed("its inclusion proof does not lead to the checkpoint's root")
        return before

    def session_record(self, seq: int, fields: dict[str, Any]) -> None:
        """Check that a record is the next one of this session."""
        session, number = fields.get("session"), fields.get("session_seq")
        if not isinstance(session, str) or session != self.session:
            raise Malformed(f"it is not of session {plain(self.session)} but of {plain(session)}")
        if type(number) is not int or number < self.next_number:
            raise Malformed(f"its session_seq is {plain(number)} where {self.next_number} should come")
        expected, self.next_number, self.last_record = self.next_number, number + 1, seq
        self.ended = self.ended or fields.get("kind") == "session_end"
        self.missed += number - expected
        if number > expected:
            raise Malformed(f"before it session_seq {expected} to {number - 1} are missing")

    def whole(self) -> None:
        """Say whether all records of the session are there."""
        numbers = f"session_seq 0 to {self.next_number - 1}"
        if not self.next_number:
            self.report.broken(0, "there is no record of the session, not even its first")
        if self.missed or not self.next_number:
            self.report.completeness = f"NOT whole: {self.missed or 'all'} records of the session are missing"
        elif self.ended:
            self.report.completeness = f"whole: {numbers}, with its session_end"
        else:
            self.report.completeness = f"whole up to record {self.last_record}: {numbers}, no session_end"
            how = f"that nothing came after record {self.last_record}: without session_end it still ran, or was cut"
            self.report.not_proved.append(how)

    def agrees(self, checkpoint: Checkpoint) -> bool | None:
        """Tell whether the tree had this root: each anchor that is smaller has a consistency proof."""
        if checkpoint.size == self.size:
            return checkpoint.root == self.own.root
        names = [name for name in self.members if re.fullmatch(rf"anchors/{checkpoint.size}\..*\.consistency", name)]
        for name in names if checkpoint.size < self.size else []:
            with contextlib.suppress(Malformed):
                found = consistency_roots(checkpoint.size, self.size, hashes(self.read(name) or b""), checkpoint.root)
                if found == (checkpoint.root, self.own.root):
                    return True
        return False if names else None


# ---- "Reading msgpack" ---------------------------------------------------------------------------------------------

NUMBERS = {0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
SIZED = {  # what it is, and the bytes of its length
    0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4), 0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4),
    0xDC: ("array", 2), 0xDD: ("array", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
FIXED = {byte: byte for byte in range(0x80)} | {byte: byte - 0x100 for byte in range(0xE0, 0x100)}
CONSTANTS = {**FIXED, 0xC0: None, 0xC2: False, 0xC3: True}
FIXED_SIZED = {  # what it is, and its length
    **{0x80 + size: ("map", size) for size in range(16)},
    **{0x90 + size: ("array", size) for size in range(16)},
    **{0xA0 + size: ("str", size) for size in range(32)},
}


def unpack(data: bytes, at: int = 0, depth: int = 0) -> tuple[Any, int]:
    """Return the msgpack value at an offset, and the offset behind it. Raises ValueError, IndexError, struct.error."""
    byte, at = data[at], at + 1
    if byte in CONSTANTS:
        return CONSTANTS[byte], at
    if byte in NUMBERS:
        return struct.unpack_from(NUMBERS[byte], data, at)[0], at + struct.calcsize(NUMBERS[byte])
    what, size = FIXED_SIZED.get(byte) or SIZED.get(byte) or ("", 0)
    if byte in SIZED:
        at, size = at + size, int.from_bytes(data[at : at + size], "big")
    if what in ("bin", "str"):
        if at + size > len(data):
            raise Malformed("msgpack that ends too early")
        return data[at : at + size] if what == "bin" else data[at : at + size].decode(), at + size
    if not what or depth > MAX_DEPTH or size > MAX_ITEMS:
        raise Malformed("msgpack that the format does not have, or of too many values")
    values = []
    for _ in range(size if what == "array" else 2 * size):
        value, at = unpack(data, at, depth + 1)
        values.append(value)
    if what == "array":
        return values, at
    found = dict(zip(values[::2], values[1::2], strict=True)) if all(type(key) is str for key in values[::2]) else {}
    if len(found) < size:
        raise Malformed("msgpack with a key that is not text, or is there twice")
    return found, at


def read_record(payload: bytes) -> dict[str, Any] | None:
    """Return the map in a payload, None if there is not exactly one."""
    try:
        fields, end = unpack(payload)
    except (ValueError, IndexError, struct.error):
        return None
    return fields if isinstance(fields, dict) and end == len(payload) else None


# ---- The command ---------------------------------------------------------------------------------------------------


def examine(target: Path, options: Options, report: Report) -> None:
    """Check TARGET, whichever of the two it is; all that goes wrong ends in the report."""
    try:
        if target.is_dir():
            Folder(target, options, report).verify()
            return
        if not target.is_file():
            raise CannotCheck("it is neither a file nor a folder")  # noqa: TRY301 -- said in one place
        with target.open("rb") as file:
            try:
                archive = zipfile.ZipFile(file)
            except ZIP_TROUBLE as error:
                raise CannotCheck(f"it is neither a log folder nor a readable zip file: {plain(error)}") from error
            try:
                Bundle(archive, options, report).verify()
            except ZIP_TROUBLE as error:
                raise Malformed(plain(error)) from error
    except Malformed as error:  # nothing can be checked without what is not right here
        report.broken(0, str(error))
    except CannotCheck as error:
        report.cannot.append(str(error))
    except Exception as error:  # noqa: BLE001 -- an auditor gets a verdict, not a traceback
        report.cannot.append(f"{type(error).__name__}: {plain(error)}")


def kept_checkpoint(name: str) -> Checkpoint:
    """Read a checkpoint that was kept elsewhere."""
    try:
        return parse_checkpoint(plain(name), Path(name).read_bytes())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Check a log of agentwatch or an evidence bundle cut from one.",
        epilog="Exit status: 0 intact, 1 broken, 2 usage, 3 cannot check.",
    )
    add = parser.add_argument
    add("--identity", metavar="VKEY", type=parse_vkey, help="host identity key, from a source you trust")
    add("--against", metavar="FILE", type=kept_checkpoint, action="append", help="checkpoint kept elsewhere")
    add("--cosigner", metavar="VKEY", type=parse_vkey, action="append", help="key of a collector or witness")
    add("--json", action="store_true", help="the result as one JSON object")
    add("--list", action="store_true", help="each record before it, as one JSON object a line")
    add("target", metavar="TARGET", type=Path, help="SESSION.tlog.zip, or a copy of a log folder")
    parsed = parser.parse_args(arguments)
    if not os.path.lexists(parsed.target):
        parser.error(f"{plain(parsed.target)} does not exist")
    return parsed


def as_json(report: Report) -> str:
    """Return the result as one line."""
    status, words = report.verdict()
    verdict = {INTACT: "intact", BROKEN: "broken", CANNOT_CHECK: "cannot check"}[status]
    return json.dumps({"verdict": verdict, "integrity": words, **vars(report)})


def as_text(report: Report) -> str:
    """Return the result for people."""
    times = (datetime.fromtimestamp(time_ns // 10**9, UTC).isoformat() for time_ns in report.times_ns or ())
    sections = {
        "not proved": report.not_proved,
        "could not be checked": report.cannot,
        "more that is broken": [f"record {record}: {how}" for record, how in report.findings[1:]],
        "remarks": report.remarks,
        "records": [" to ".join(times), *(f"{count:9} {kind}" for kind, count in report.kinds.most_common())],
    }
    lines = [f"integrity:    {report.verdict()[1]}", f"completeness: {report.completeness}"]
    for title, said in sections.items():
        lines += [f"{title}:", *(f"  {line}" for line in said)] if any(said) else []
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parsed = parse_arguments(arguments)
    report = Report()

    def each(seq: int, fields: dict[str, Any] | None) -> None:
        report.count(fields)
        if parsed.list:
            sys.stdout.write(json.dumps({"seq": seq, "record": fields}, default=repr) + "\n")

    try:
        examine(parsed.target, Options(parsed.identity, parsed.against or [], parsed.cosigner or [], each), report)
        del report.not_proved[MAX_SAID:], report.remarks[MAX_SAID:]
        sys.stdout.write((as_json if parsed.json else as_text)(report) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # who reads this has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return CANNOT_CHECK
    return report.verdict()[0]


if __name__ == "__main__":
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
