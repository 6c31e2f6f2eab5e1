#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Check a log of agentwatch, or an evidence bundle cut from one, without agentwatch.

In goes TARGET: a bundle (``SESSION.tlog.zip``) or a copy of a whole log folder. Out come a verdict with the first
record for which something fails, a list of what is *not* proved, and an account of the records. TARGET is only read.

Written from docs/log-format.md and the specifications named there; the sections below have its order and its names.
Needs Python 3.11 and the package ``cryptography``. Uses, where they are there, ``cryptography`` 47 for ML-DSA-44,
``crc32c`` for speed, and for compressed segments Python 3.14, the package ``zstandard`` or the program zstd(1).

TARGET may be made by an attacker: each length is checked before it is used, each limit has a name, no name or link is
followed out of TARGET, and what cannot be understood ends as a finding and never as a traceback.
"""

from __future__ import annotations

import argparse
import base64
import bisect
import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
except ImportError:
    sys.stderr.write("CANNOT CHECK: the Python package cryptography is missing; install it and run this again\n")
    raise SystemExit(3) from None
ML_DSA_HERE = False
with contextlib.suppress(ImportError):  # before cryptography 47
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

    ML_DSA_HERE = True

INTACT, BROKEN, CANNOT_CHECK = 0, 1, 3  # exit status; 2 is usage

MAX_PAYLOAD_BYTES = 64 << 20  # of a record: the format's own limit
MAX_SEGMENT_BYTES = 1 << 30  # decompressed. The format names no limit; a segment is far smaller, a zstd bomb is not
MAX_NOTE_BYTES = 256 << 10  # a checkpoint: more than the 16 signatures of 5 kB that signed-note asks for
MAX_EPOCH_BYTES = 1 << 20  # an epoch record: two keys and two signatures, about 10 kB
MAX_FILES = 300_000  # in a bundle, or in anchors/: one an hour for thirty years
MAX_DEPTH, MAX_ITEMS = 64, 1_000_000  # nesting and values in the msgpack of one record; beyond, it counts as unreadable
MAX_NAMES = 10_000  # kinds and causes that the account tells apart; beyond, they are counted together
MAX_SAID = 100  # findings kept, first by record number; and remarks
MAX_SHOWN = 200  # characters of a foreign string
MAX_MEMORY_BYTES = 4 << 30  # what gets past all this ends as "cannot check", not as a machine without memory


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
    findings: list[tuple[int | None, str]] = field(default_factory=list)  # by record; None: no record in particular
    cannot: list[str] = field(default_factory=list)
    not_proved: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def broken(self, record: int | None, how: str) -> None:
        """Note a finding."""
        self.findings.append((record, how))
        self.findings.sort(key=lambda finding: (finding[0] is None, finding[0] or 0))
        del self.findings[MAX_SAID:]

    def broken_within(self, first: int, following: int) -> bool:
        """Tell whether one of the records first to following - 1 is known to be broken."""
        return any(record is not None and first <= record < following for record, _ in self.findings)

    @property
    def status(self) -> int:
        """Return the exit status. What is broken is broken, whatever else could not be checked."""
        return BROKEN if self.findings else CANNOT_CHECK if self.cannot else INTACT

    def verdict(self) -> str:
        """Return the verdict in words."""
        if self.findings:
            record, how = self.findings[0]
            return f"BROKEN{'' if record is None else f' at record {record}'}: {how}"
        if self.cannot:
            return f"CANNOT CHECK: {self.cannot[0]}"
        return f"intact: {self.records} records, proved up to checkpoint of size {self.proved}"


def plain(text: object) -> str:
    """Return foreign text so that a terminal shows it and obeys nothing in it."""
    shown = str(text)[:MAX_SHOWN]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


# ---- "The folder" --------------------------------------------------------------------------------------------------

SEGMENT_NAME = re.compile(r"([0-9]{20})\.segment(\.zst)?")
EPOCH_NAME = re.compile(r"[0-9]{20}")
ANCHOR_NAME = re.compile(r"([0-9]{1,20})\.([^/]+)")


def open_regular(root: Path, name: str) -> IO[bytes] | None:
    """Open a file of the folder, None if there is none. A link could lead out, a pipe would wait."""
    path = root
    for part in ("", *name.split("/")):
        path = path / part
        try:
            mode = path.lstat().st_mode if part else path.stat().st_mode  # TARGET itself may be a link
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(mode):
            raise CannotCheck(f"{plain(name)} is a symbolic link or below one; copy the log itself")
    if not stat.S_ISREG(mode):
        raise CannotCheck(f"{plain(name)} is not a regular file")
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


def names_in(root: Path, name: str) -> list[str]:
    """Return the names in a folder of the log, sorted; none if it does not exist."""
    path = root / name
    if path.is_symlink():
        raise CannotCheck(f"{name} is a symbolic link; copy the log itself")
    return sorted(child.name for child in path.iterdir()) if path.is_dir() else []


# ---- "Segments" ----------------------------------------------------------------------------------------------------

MAGIC = b"\x89AWLOG\r\n"
VERSION = 1
HEADER = struct.Struct(">8sIQQ16s16sI")
FRAME = struct.Struct(">II")


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # 0x1EDC6F41, reflected
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def crc32c_plain(data: bytes) -> int:
    """Return the CRC-32C of RFC 3720."""
    value = 0xFFFFFFFF
    table = _CRC_TABLE
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


try:
    from crc32c import crc32c
except ImportError:
    crc32c = crc32c_plain  # type: ignore[assignment]


def check_header(data: bytes, first: int, log_id: bytes | None) -> bytes:
    """Check a segment's header against its name and the log, and return the log id in it."""
    if len(data) < HEADER.size:
        raise Malformed(f"the segment has {len(data)} bytes, not even a header")
    magic, version, seq, _created, _boot, found, crc = HEADER.unpack(data)
    if magic != MAGIC or crc32c(data[:-4]) != crc:
        raise Malformed("the segment's header is damaged")
    if version != VERSION:
        raise CannotCheck(f"segment {first} is of version {version} of the format, this program knows {VERSION}")
    if seq != first:
        raise Malformed(f"the segment's header says that it begins with record {seq}")
    if log_id is not None and found != log_id:
        raise Malformed(f"the segment is of another log, {found.hex()}")
    return bytes(found)


def read_frame(file: IO[bytes], offset: int, end: int, log_id: bytes, seq: int) -> bytes:
    """Return the payload of the frame at ``offset`` if its check is that of record ``seq`` of this log."""
    file.seek(offset)
    head = file.read(FRAME.size)
    if len(head) < FRAME.size:
        raise Malformed("not even the head of a frame")
    length, check = FRAME.unpack(head)
    if not 1 <= length <= min(MAX_PAYLOAD_BYTES, end - offset - FRAME.size):
        raise Malformed(f"a frame with an impossible length, {length}")
    payload = file.read(length)
    if (crc32c(log_id + head[:4] + payload) + seq) % (1 << 32) != check:
        raise Malformed("the check of the frame does not match")
    return payload


# ---- "Compressed segments" -----------------------------------------------------------------------------------------
# All frames are decompressed one after another, as any zstd does. The two tables at the end are not used, so nothing is
# believed of them.

CHUNK = 1 << 16


def inflate_python(file: IO[bytes]) -> Iterator[bytes]:
    """Decompress with the module of Python 3.14."""
    from compression import zstd  # type: ignore[import-not-found,unused-ignore] # noqa: PLC0415 -- may be missing

    yield from iter(partial(zstd.ZstdFile(file).read1, CHUNK), b"")


def inflate_package(file: IO[bytes]) -> Iterator[bytes]:
    """Decompress with the package zstandard."""
    import zstandard  # noqa: PLC0415 -- may be missing

    yield from iter(
        partial(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read1, CHUNK), b""
    )


def inflate_program(file: IO[bytes]) -> Iterator[bytes]:
    """Decompress with the program zstd(1)."""
    program = shutil.which("zstd")
    if program is None:
        raise ImportError("zstd(1)")
    command = [program, "-dcq"]
    with subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:  # noqa: S603 -- nothing of it is foreign
        yield from iter(partial(os.read, process.stdout.fileno(), CHUNK), b"")  # type: ignore[union-attr]
    if process.returncode:
        raise Malformed("zstd(1) says so")


def inflate(file: IO[bytes], into: IO[bytes]) -> str:
    """Decompress a segment; return what stopped this before the end, or an empty text."""
    for way in (inflate_python, inflate_package, inflate_program):
        try:
            for chunk in way(file):
                into.write(chunk)
                if into.tell() > MAX_SEGMENT_BYTES:
                    raise CannotCheck(f"a compressed segment has more than {MAX_SEGMENT_BYTES} bytes")  # noqa: TRY301 -- raised on, below
        except ImportError:
            continue
        except (CannotCheck, OSError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 -- each of the three has a class of its own for damage
            return f"the compressed segment is damaged ({plain(error)})"
        return ""
    raise CannotCheck("compressed segments need Python 3.14, the package zstandard or the program zstd; none is here")


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


class Tree:
    """A tree that leaves are added to: it keeps the roots of the full subtrees it consists of, widest first."""

    def __init__(self) -> None:
        self.size = 0
        self.full: list[bytes] = []

    def add(self, leaf: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Add a leaf; yield (level, index, hash) of every hash of a tile of level 1 or more that this completes."""
        node, index, height = leaf, self.size, 0
        while index & 1:
            node = node_hash(self.full.pop(), node)
            index >>= 1
            height += 1
            if height % TILE_HEIGHT == 0:
                yield height // TILE_HEIGHT, index, node
        self.full.append(node)
        self.size += 1

    def root(self) -> bytes:
        """Return the root at this size."""
        if not self.full:
            return EMPTY_ROOT
        node = self.full[-1]
        for left in reversed(self.full[:-1]):
            node = node_hash(left, node)
        return node


def inclusion_roots(index: int, size: int, leaf: bytes, proof: list[bytes]) -> tuple[bytes, bytes]:
    """Return the root of ``size`` that an inclusion proof leads to, and with it the root of the tree of size ``index``.

    The left siblings on the way up are just the full subtrees of all leaves before this one: an inclusion proof of
    record n proves the root at size n, too. Followed as in RFC 9162, section 2.1.3.2, whose tree is the same.
    """
    node, before, last = leaf, b"", size - 1
    at = index
    for sibling in proof:
        if last == 0:
            raise Malformed("the inclusion proof has too many hashes")
        if at & 1 or at == last:
            node = node_hash(sibling, node)
            before = node_hash(sibling, before) if before else sibling
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        at, last = at >> 1, last >> 1
    if last:
        raise Malformed("the inclusion proof has too few hashes")
    return node, before or EMPTY_ROOT


def is_consistent(old: Checkpoint, new: Checkpoint, proof: list[bytes]) -> bool:
    """Check a consistency proof, as RFC 9162, section 2.1.4.2."""
    if not 0 < old.size < new.size:
        return old.size == new.size and old.root == new.root and not proof
    path = proof if old.size & (old.size - 1) else [old.root, *proof]
    if not path:
        return False
    at, last = old.size - 1, new.size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old_root = new_root = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            old_root, new_root = node_hash(sibling, old_root), node_hash(sibling, new_root)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new_root = node_hash(new_root, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and old_root == old.root and new_root == new.root


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
        digits = f"{number:03d}"
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
        name = f"tile/{level}/{'/'.join([*('x' + group for group in groups[:-1]), groups[-1]])}"
        candidates = [(name, TILE_WIDTH)]
        if width < TILE_WIDTH:  # the full tile has more leaves than the checkpoint, which is as good
            candidates.insert(0, (f"{name}.p/{width}", width))
        for path, wide in candidates:
            file = open_regular(self.folder, path)
            if file is None:
                continue
            with file:
                data = file.read(wide * HASH_BYTES + 1)
            if len(data) != wide * HASH_BYTES:
                first = number * TILE_WIDTH + min(len(data) // HASH_BYTES, width - 1)
                self.report.broken(first << level * TILE_HEIGHT, f"{path} does not have {wide} hashes")
            return data[: min(width, len(data) // HASH_BYTES) * HASH_BYTES]
        self.missing += 1
        return b""


# ---- "Checkpoints" (C2SP signed-note, tlog-checkpoint, tlog-cosignature) ------------------------------------------

ED25519, COSIGNATURE, ML_DSA_44 = 0x01, 0x04, 0x06
KEY_BYTES = {ED25519: 32, COSIGNATURE: 32, ML_DSA_44: 1312}
SIGNATURE_BYTES = {ED25519: 64, COSIGNATURE: 8 + 64, ML_DSA_44: 8 + 2420}
ALGORITHM = {ED25519: "Ed25519", COSIGNATURE: "Ed25519 cosignature", ML_DSA_44: "ML-DSA-44"}
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
    """The three lines of a checkpoint."""

    origin: str
    size: int
    root: bytes


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


def parse_checkpoint(note: Note) -> Checkpoint:
    """Read the text of a checkpoint."""
    lines = note.text.split("\n")
    if len(lines) != 4 or not lines[0]:  # noqa: PLR2004 -- three lines, each ended by a newline
        raise Malformed("not a checkpoint: it does not have three lines")
    root = unbase64(lines[2])
    if len(root) != HASH_BYTES:
        raise Malformed("not a checkpoint: its root is not a hash")
    return Checkpoint(lines[0], decimal(lines[1]), root)


def verify(key: Key, signature: bytes, text: str, about: Checkpoint | None) -> bool | None:
    """Verify one signature on a checkpoint, or (``about`` is None) on a certificate; None if it cannot be done here."""
    if len(signature) != SIGNATURE_BYTES[key.algorithm]:
        return False
    body = text.encode()
    try:
        if key.algorithm == ED25519:
            Ed25519PublicKey.from_public_bytes(key.public).verify(signature, body)
        elif key.algorithm == COSIGNATURE:
            time = int.from_bytes(signature[:8], "big")
            Ed25519PublicKey.from_public_bytes(key.public).verify(
                signature[8:], b"cosignature/v1\ntime %d\n" % time + body
            )
        elif not ML_DSA_HERE:
            return None
        else:
            public = MLDSA44PublicKey.from_public_bytes(key.public)
            if about is None:
                public.verify(signature[8:], body, CERTIFICATE_CONTEXT)
            else:
                public.verify(signature[8:], cosigned_message(key, signature[:8], about), b"")
    except UnsupportedAlgorithm:
        return None
    except (InvalidSignature, ValueError):
        return False
    return True


def cosigned_message(key: Key, time: bytes, about: Checkpoint) -> bytes:
    """Return what ML-DSA-44 signs: the ``cosigned_message`` of tlog-cosignature."""
    name, origin = key.name.encode(), about.origin.encode()
    if not 1 <= len(name) < TILE_WIDTH or not 1 <= len(origin) < TILE_WIDTH:
        raise ValueError("a name that does not fit into one length byte")
    named = bytes([len(name)]) + name + time + bytes([len(origin)]) + origin
    return b"subtree/v1\n\0" + named + struct.pack(">QQ", 0, about.size) + about.root


# ---- "Epochs" ------------------------------------------------------------------------------------------------------


class Chain:
    """The keys of the epochs, each certified by those before it, from the identity on."""

    def __init__(self, identity: Key | None, origin: str, unverified: Counter[str]) -> None:
        self.identity, self.origin, self.unverified = identity, origin, unverified
        self.starts: list[int] = []
        self.keys: list[list[Key]] = []
        self.failed = False

    def extend(self, seq: int, fields: dict[str, Any]) -> bytes | None:
        """Take in an epoch record; return the root that its certificate names, None behind a broken link.

        Whoever calls compares that root with the tree's at size ``seq``.
        """
        if self.failed:
            return None
        try:
            root, keys = self._certificate(seq, fields)
        except Malformed as error:
            self.failed = True
            raise Malformed(f"epoch {len(self.starts)}: {error}") from error
        self.starts.append(seq)
        self.keys.append(keys)
        return root

    def _certificate(self, seq: int, fields: dict[str, Any]) -> tuple[bytes, list[Key]]:
        number, certificate = fields.get("number"), fields.get("certificate")
        if type(number) is not int or not isinstance(certificate, str):
            raise Malformed("its record has no number or no certificate")
        if number != len(self.starts):
            raise Malformed(f"its record is missing; here is that of epoch {number}")
        if number == 0 and seq != 0:
            raise Malformed("its record is not record 0")
        note = parse_note(certificate.encode("utf-8", "surrogatepass"))
        title, *lines = note.text.split("\n")[:-1]
        if title != CERTIFICATE_CONTEXT.decode() or len(lines) not in (5, 6):
            raise Malformed("its certificate is not one of agentwatch-epoch/v1")
        if lines[0] != self.origin:
            raise Malformed(f"its certificate is of another log, {plain(lines[0])}")
        if decimal(lines[1]) != number or decimal(lines[2]) != seq:
            raise Malformed(f"its certificate is of epoch {plain(lines[1])} at record {plain(lines[2])}")
        keys = [parse_vkey(line) for line in lines[4:]]
        if [key.algorithm for key in keys] != [ED25519, ML_DSA_44][: len(keys)] or {k.name for k in keys} != {
            self.origin
        }:
            raise Malformed("its certificate names keys of a wrong type or name")
        for key in self.keys[-1] if self.keys else [self.identity] if self.identity else []:
            require_signature(key, note, None, self.unverified)
        return unbase64(lines[3]), keys

    def signers(self, size: int) -> list[Key]:
        """Return the keys that a checkpoint of this size must be signed with; none if there is no such epoch."""
        at = bisect.bisect_left(self.starts, size)
        return self.keys[at - 1] if at else []


def require_signature(key: Key, note: Note, about: Checkpoint | None, unverified: Counter[str]) -> None:
    """Raise unless the note has signatures of this key and all of them verify; count what cannot be verified here."""
    lines = [signature for name, key_id, signature in note.signatures if (name, key_id) == (key.name, key.key_id)]
    if not lines:
        raise Malformed(f"not signed by {key}")
    for signature in lines:
        result = verify(key, signature, note.text, about)
        if result is None:
            unverified[ALGORITHM[key.algorithm]] += 1
        elif not result:
            raise Malformed(f"the signature of {key} does not verify")


# ---- "Pruning" -----------------------------------------------------------------------------------------------------


def pruned_ranges(fields: dict[str, Any], seq: int) -> list[tuple[int, int]]:
    """Return the ranges that the ``prune`` record ``seq`` names, sorted and without overlap."""
    ranges: list[tuple[int, int]] = []
    named = fields.get("pruned")
    if not isinstance(named, list):
        raise Malformed("a prune record without a list of ranges")
    if not all(isinstance(pair, list) and [type(end) for end in pair] == [int, int] for pair in named):
        raise Malformed("a prune record with a range that is not [first, next]")
    for first, following in sorted((pair[0], pair[1]) for pair in named):
        if not 0 <= first < following <= seq:
            raise Malformed("a prune record with a range that is empty or not of older records")
        if ranges and first <= ranges[-1][1]:
            first, following = ranges[-1][0], max(ranges.pop()[1], following)  # noqa: PLW2901 -- joined
        ranges.append((first, following))
    return ranges


def first_outside(first: int, following: int, ranges: list[tuple[int, int]]) -> int | None:
    """Return the first number of [first, following) in none of the ranges, None if all are in one."""
    at = bisect.bisect_right(ranges, (first, sys.maxsize)) - 1
    inside = at >= 0 and first < ranges[at][1]
    outside = ranges[at][1] if inside else first
    return outside if outside < following else None


# ---- "Verifying" ---------------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """A checkpoint that must go with the log: its own, one of ``anchors/``, or one that was kept elsewhere."""

    source: str
    note: Note
    checkpoint: Checkpoint
    anchor: bool = False

    @classmethod
    def read(cls, source: str, data: bytes, *, anchor: bool = False) -> Claim:
        """Read a checkpoint."""
        try:
            note = parse_note(data)
            return cls(source, note, parse_checkpoint(note), anchor)
        except Malformed as error:
            raise Malformed(f"{source}: {error}") from error


@dataclass
class Options:
    """What the auditor brings along, and who wants to see each record."""

    identity: Key | None = None
    against: list[Claim] = field(default_factory=list)
    cosigners: list[Key] = field(default_factory=list)
    each: Callable[[int, dict[str, Any] | None], None] = lambda _seq, _fields: None


class Verifier:
    """What a folder and a bundle have in common: the identity, the chain, and checkpoints that must go with them."""

    def __init__(self, options: Options, report: Report) -> None:
        self.options, self.report = options, report
        self.unverified: Counter[str] = Counter()  # signatures that cannot be checked on this machine
        self.roots: dict[int, bytes] = {}  # of the tree at sizes that checkpoints are about
        self.good = [0]  # sizes at which the tree has the root that was signed, ascending
        self.doubts: list[
            tuple[int, int, str]
        ] = []  # a size with another root, the last good one below it, who says so
        self.cosigned: dict[str, int] = {}
        self.strangers: set[str] = set()

    def begin(self, checkpoint: bytes | None, identity: bytes | None) -> Claim:
        """Start the chain: with the auditor's identity, or else with TARGET's own, which proves less."""
        if checkpoint is None:
            raise CannotCheck("there is no checkpoint: nothing here is signed")
        own = Claim.read("checkpoint", checkpoint)
        origin, given, found = own.checkpoint.origin, self.options.identity, None
        try:
            found = parse_vkey(identity.decode().removesuffix("\n")) if identity is not None else None
        except ValueError as error:
            self.report.broken(0, f"identity: {plain(error)}")
        key = given or found
        if key is None:
            self.report.cannot.append("there is no identity, neither given nor in TARGET, for the epochs to begin with")
        elif key.name != f"{origin}/identity" or key.algorithm != ED25519:
            self.report.broken(0, f"the identity {key} is not one of {plain(origin)}")
        elif given and found and given != found:
            self.report.broken(0, f"this log says that its identity is {found}; the one given is {given}")
        if given is None and found is not None:
            self.report.not_proved.append(
                f"whose log it is: no identity was given, so it only goes with the key in its own file, {found}; "
                "a log replaced as a whole has another"
            )
        self.chain = Chain(key, origin, self.unverified)
        return own

    def epoch(self, seq: int, fields: dict[str, Any], root: bytes | None) -> None:
        """Take in the epoch record ``seq``; ``root`` is the tree's at that size, None if that is not known."""
        try:
            certified = self.chain.extend(seq, fields)
        except Malformed as error:
            self.report.broken(seq, str(error))
        else:
            if certified is not None and root is not None:
                self.compare(f"the certificate in record {seq}", seq, certified, root)

    def compare(self, source: str, size: int, signed: bytes, root: bytes) -> bool:
        """Compare a root that was signed with that of the tree. Records below the last right one are right."""
        at = bisect.bisect_left(self.good, size)
        if signed == root:
            self.good.insert(at, size)
        else:
            self.doubts.append((size, self.good[at - 1] if at else 0, source))
        return signed == root

    def judge(self, claim: Claim, end: int) -> None:
        """Check a checkpoint against the roots and the keys of this log, which ends before record ``end``."""
        source, size = f"{claim.source} (size {claim.checkpoint.size})", claim.checkpoint.size
        root, keys = self.roots.get(size), self.chain.signers(size)
        if claim.checkpoint.origin != self.chain.origin:
            self.report.broken(0, f"{source} is of another log, {plain(claim.checkpoint.origin)}")
        elif size > end:
            self.too_large(source, end)
        elif root is None:
            self.unknown(source)
        elif self.compare(source, size, claim.checkpoint.root, root):
            if not self.chain.failed:
                self.signed(source, claim, keys)
            self.cosignatures(source, claim)

    def signed(self, source: str, claim: Claim, keys: list[Key]) -> None:
        """Check that a checkpoint is signed by all keys of its epoch. An anchor may leave the log's signatures out."""
        size = claim.checkpoint.size
        first = self.good[max(bisect.bisect_left(self.good, size) - 1, 0)]
        if not keys and not claim.anchor:
            self.report.broken(first, f"{source}: no epoch signs that size")
        names = {(name, key_id) for name, key_id, _ in claim.note.signatures}
        for key in keys:
            if claim.anchor and (key.name, key.key_id) not in names:
                continue
            try:
                require_signature(key, claim.note, claim.checkpoint, self.unverified)
            except Malformed as error:
                self.report.broken(first, f"{source}: {error}")
        if not claim.anchor:
            self.report.proved = max(self.report.proved, size)

    def cosignatures(self, source: str, claim: Claim) -> None:
        """Verify what the auditor's cosigners signed."""
        known = {(key.name, key.key_id): key for key in self.options.cosigners}
        for name, key_id, _ in claim.note.signatures:
            key = known.get((name, key_id))
            if key is None:
                self.strangers |= {plain(name)} - {plain(self.chain.origin)}
                continue
            try:
                require_signature(key, claim.note, claim.checkpoint, self.unverified)
                self.cosigned[name] = max(self.cosigned.get(name, 0), claim.checkpoint.size)
            except Malformed as error:
                self.report.broken(None, f"{source}: {error}")

    def too_large(self, source: str, end: int) -> None:
        """Say that a checkpoint is of more records than there are."""
        self.report.broken(end, f"{source} was of more records than the {end} that are there: the log was cut")

    def unknown(self, source: str) -> None:
        """Say that the root cannot be computed: some number below that size has neither a record nor a tile."""
        self.report.cannot.append(f"{source}: the root of that size cannot be computed from what is here")

    def anchor(self, name: str, data: bytes) -> Claim | None:
        """Read a file of ``anchors/``; None if it is not one to check here."""
        match = ANCHOR_NAME.fullmatch(name)
        if name.endswith(".consistency"):  # of the anchor of that name, and used with it
            return None
        if match is None:
            self.report.remarks.append(f"anchors/{plain(name)} is not named as an anchor; it was not looked at")
        elif match[2] == "tsr":
            self.report.not_proved.append(f"anchors/{name}: the timestamp is there and was not checked")
        else:
            try:
                claim = Claim.read(f"anchors/{plain(name)}", data, anchor=match[2] != "checkpoint")
            except Malformed as error:
                self.report.broken(None, str(error))
            else:
                if claim.checkpoint.size == int(match[1]):
                    return claim
                self.report.broken(None, f"{claim.source} is of size {claim.checkpoint.size}")
        return None

    def finish(self) -> None:
        """Add what remains not proved."""
        for size, first, source in sorted(self.doubts):
            if not self.report.broken_within(
                0, size
            ):  # a record or a tile that is known to be wrong explains it better
                self.report.broken(
                    first, f"{source} has another root: a record from {first} on, before {size}, was changed"
                )
        add = self.report.not_proved.append
        for algorithm, count in self.unverified.items():
            add(f"{count} {algorithm} signatures were not checked: that needs the package cryptography, 47 or newer")
        if not self.options.against and not self.cosigned:
            add(
                "that the newest records were not cut off or replaced by who had the newest key (--against, --cosigner)"
            )
        for key in self.options.cosigners:
            if key.name in self.cosigned:
                self.report.remarks.append(f"cosigned by {key} up to size {self.cosigned[key.name]}")
            else:
                add(f"no checkpoint here is cosigned by {key}")
        if self.strangers:
            add(f"what others signed; give their --cosigner: {', '.join(sorted(self.strangers)[:8])}")


class Folder(Verifier):
    """A copy of a whole log folder."""

    def __init__(self, folder: Path, options: Options, report: Report) -> None:
        super().__init__(options, report)
        self.folder = folder
        self.tree: Tree | None = Tree()  # None from the first number on whose leaf is not known
        self.absent: list[tuple[int, int]] = []  # numbers that have a leaf and no record
        self.damage: dict[int, str] = {}  # records at which a segment could not be read on
        self.pruned: list[tuple[int, int]] = []
        self.void = 0

    def verify(self) -> None:
        """Take the steps, 1 to 4 in one pass over all records."""
        read = partial(read_small, self.folder)
        own = self.begin(read("checkpoint", MAX_NOTE_BYTES), read("identity", MAX_NOTE_BYTES))
        names = names_in(self.folder, "anchors")[:MAX_FILES]
        anchors = [self.anchor(name, read(f"anchors/{name}", MAX_NOTE_BYTES) or b"") for name in names]
        claims = [own, *self.options.against, *(claim for claim in anchors if claim)]
        self.size = own.checkpoint.size
        self.wanted = {claim.checkpoint.size for claim in claims}
        self.tiles = Tiles(self.folder, self.size, self.report)
        self.copies = {int(name) for name in names_in(self.folder, "epochs") if EPOCH_NAME.fullmatch(name)}
        match = re.search(r"/([0-9a-f]{32})\Z", own.checkpoint.origin)
        self.log_id = bytes.fromhex(match[1]) if match else None
        if match is None:
            self.report.broken(0, f"the origin {plain(own.checkpoint.origin)} does not end in a log id")
        end = self.walk()
        self.settle()
        for claim in sorted(claims, key=lambda claim: claim.checkpoint.size):  # step 5
            self.judge(claim, max(end, self.size))
        self.conclude(end)

    def walk(self) -> int:
        """Go through all numbers; return the one behind the last record."""
        following = 0
        for seq, payload in self.records():
            self.missing(following, seq)
            self.record(seq, payload)
            following = seq + 1
        self.missing(following, self.size)
        self.capture()
        return following

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Yield the records of all segments; an earlier one ends where the next one begins by its name."""
        names: dict[int, str] = {}
        for name in names_in(self.folder, ""):  # sorted: of two with the same number the one not compressed comes first
            if match := SEGMENT_NAME.fullmatch(name):
                names.setdefault(int(match[1]), name)
        firsts = sorted(names)
        for first, limit in zip(firsts, [*firsts[1:], None], strict=True):
            file = open_regular(self.folder, names[first])
            if file is None:
                raise CannotCheck(f"{names[first]} vanished while it was read")
            with file, tempfile.TemporaryFile() as inflated:
                if names[first].endswith(".zst"):  # sealed, so nothing in it is a write that was not finished
                    complaint = inflate(file, inflated)
                    if complaint:
                        self.report.remarks.append(f"{names[first]}: {complaint}")
                    yield from self.frames(inflated, first, limit, torn=False, complaint=complaint)
                else:
                    yield from self.frames(file, first, limit, torn=limit is None)

    def frames(
        self, file: IO[bytes], seq: int, limit: int | None, *, torn: bool, complaint: str = ""
    ) -> Iterator[tuple[int, bytes]]:
        """Step 1, framing: yield the records of one segment below ``limit``."""
        end, offset = file.seek(0, os.SEEK_END), 0
        file.seek(0)
        try:
            self.log_id = check_header(file.read(HEADER.size), seq, self.log_id)
            offset = HEADER.size
            while (limit is None or seq < limit) and (offset < end or complaint):
                payload = read_frame(file, offset, end, self.log_id, seq)
                yield seq, payload
                offset, seq = offset + FRAME.size + len(payload), seq + 1
        except Malformed as error:
            how = f"{complaint or error}, at offset {offset} of the segment"
            if seq < self.size:
                self.damage[seq] = how  # its leaf tells whether there was a record
            elif torn:
                self.report.remarks.append(f"{end - offset} bytes behind record {seq - 1} are no record: {how}")
                self.report.not_proved.append(
                    f"whether a record {seq} was begun: the last segment ends with less than one"
                )
            else:
                self.report.broken(seq, how)

    def record(self, seq: int, payload: bytes) -> None:
        """Step 2, leaves: compare one record with its tile, and add it to the tree."""
        leaf, fields = leaf_hash(payload), read_record(payload)
        self.report.records += 1
        self.options.each(seq, fields)
        if self.tiles.hash(0, seq) not in (None, leaf):
            self.report.broken(seq, "the record does not have the hash that the level-0 tile has for it")
        if seq in self.copies and read_small(self.folder, f"epochs/{seq:020d}", MAX_EPOCH_BYTES) != payload:
            self.report.remarks.append(f"epochs/{seq:020d} is not record {seq}; the record was used")
        self.prune(seq, fields)
        self.chained(seq, fields)
        self.add(leaf)

    def prune(self, seq: int, fields: dict[str, Any] | None) -> None:
        """Take what a prune record names. Behind the checkpoint anyone can add one, so there none counts.

        The newest is in a segment that is still there, as only a newer one could name it: ``pruned`` is not needed.
        """
        if fields is not None and fields.get("kind") == "prune" and seq < self.size:
            try:
                self.pruned = pruned_ranges(fields, seq)
            except Malformed as error:
                self.report.broken(seq, str(error))

    def missing(self, first: int, following: int) -> None:
        """Step 2 for numbers that are in no segment: void, pruned or damaged."""
        for seq in range(first, min(following, self.size)):
            leaf = self.tiles.hash(0, seq) if self.tree else None
            if leaf is None:
                if self.tree:
                    self.report.broken(seq, "neither the record nor a tile with its hash is there")
                self.tree = None
                return
            if leaf == VOID_LEAF:
                self.void += 1
            elif self.absent and self.absent[-1][1] == seq:
                self.absent[-1] = self.absent[-1][0], seq + 1
            else:
                self.absent.append((seq, seq + 1))
            if seq in self.copies and leaf != VOID_LEAF:
                self.copied(seq, leaf)
            self.add(leaf)
        if following > max(first, self.size):
            self.capture()
            self.tree = None
            self.report.not_proved.append(f"why there are no records {max(first, self.size)} to {following - 1}")

    def copied(self, seq: int, leaf: bytes) -> None:
        """Use the copy of an epoch record that is in no segment."""
        payload = read_small(self.folder, f"epochs/{seq:020d}", MAX_EPOCH_BYTES) or b""
        if leaf_hash(payload) == leaf:
            self.chained(seq, read_record(payload))
        else:
            self.report.broken(seq, f"epochs/{seq:020d} does not have the hash that the level-0 tile has for it")

    def chained(self, seq: int, fields: dict[str, Any] | None) -> None:
        """Step 4, chain: take in a record if it is one of an epoch."""
        if fields is not None and fields.get("kind") == "epoch":
            self.epoch(seq, fields, self.tree.root() if self.tree else None)
        elif seq == 0:
            self.report.broken(0, "record 0 is not that of epoch 0")

    def capture(self) -> None:
        """Keep the root of this size if a checkpoint is about it."""
        if self.tree and self.tree.size in self.wanted:
            self.roots[self.tree.size] = self.tree.root()

    def add(self, leaf: bytes) -> None:
        """Step 3, tree: add a leaf, and compare the hashes that it completes with the tiles."""
        self.capture()
        for level, index, node in self.tree.add(leaf) if self.tree else ():
            first, following = index << level * TILE_HEIGHT, (index + 1) << level * TILE_HEIGHT
            if self.tiles.hash(level, index) not in (None, node) and not self.report.broken_within(first, following):
                self.report.broken(
                    first, f"the level-{level} tile has another hash for records {first} to {following - 1}"
                )

    def settle(self) -> None:
        """Tell records that were pruned from those that are damaged."""
        for first, following in self.absent:
            lost = first_outside(first, following, self.pruned)
            if lost is not None:
                how = next((how for seq, how in self.damage.items() if first <= seq <= lost), "it is in no segment")
                self.report.broken(lost, f"{how}, and no prune record that the checkpoint proves names it")
        for seq in self.damage:
            if self.tree and not any(first <= seq < following for first, following in self.absent):
                self.report.remarks.append(f"a segment has bytes where record {seq} would be, which never was one")
        if not self.chain.starts and not self.chain.failed:
            self.report.broken(0, "there is no epoch record")

    def conclude(self, end: int) -> None:
        """Step 6, end: say what is not proved."""
        gone = sum(following - first for first, following in self.absent)
        self.report.completeness = (
            f"{self.report.records} records are there, {gone} are not any more, {self.void} numbers were skipped"
        )
        if end > self.report.proved:
            self.report.not_proved.append(f"the {end - self.report.proved} records behind the checkpoint")
        if gone:
            self.report.not_proved.append(f"what was in the {gone} records that are not there any more")
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
        self.epochs: dict[int, tuple[bytes, bytes | None]] = {}  # leaf hash, root in the certificate
        self.session: object = None
        self.next_number = 0  # session_seq
        self.last_kind: object = None
        self.last_record = -1
        self.holes = 0

    def verify(self) -> None:
        """Check all that is in the bundle."""
        self.list_members()
        own = self.begin(self.read("checkpoint", MAX_NOTE_BYTES), self.read("identity", MAX_NOTE_BYTES))
        self.checkpoint = own.checkpoint
        self.wanted = {claim.checkpoint.size for claim in self.options.against}
        manifest = self.manifest()
        self.session = manifest.get("session")
        self.read_epochs()
        entries = self.entries()
        self.roots[own.checkpoint.size] = own.checkpoint.root
        claims = [own, *self.options.against, *self.anchors()]
        for claim in sorted(claims, key=lambda claim: claim.checkpoint.size):
            self.judge(claim, own.checkpoint.size)
        self.whole()
        if manifest.get("records") not in (self.report.records, entries):
            self.report.broken(
                self.last_record + 1, f"{self.report.records} records are there, manifest.json has another number"
            )
        if manifest.get("size") != own.checkpoint.size:
            self.report.broken(None, f"the checkpoint is of size {own.checkpoint.size}, manifest.json has another size")
        self.report.not_proved.append("what account.txt and manifest.json say besides: they are not signed")
        self.finish()

    def list_members(self) -> None:
        """List the files. One that is there twice could be read one way by us and another way by others."""
        infos = self.archive.infolist()
        if len(infos) > MAX_FILES:
            raise CannotCheck(f"the zip file has more than {MAX_FILES} files")
        for info in infos:
            if info.filename in self.members:
                raise Malformed(f"two files in the bundle are named {plain(info.filename)}")
            if MEMBER_NAME.fullmatch(info.filename) and not info.is_dir():
                self.members[info.filename] = info
            else:
                self.report.remarks.append(f"{plain(info.filename)} is no part of a bundle; it was not looked at")
        if not self.members.keys() & {"checkpoint", "records.bin", "manifest.json"}:
            raise CannotCheck("the zip file is not an evidence bundle")

    def open(self, name: str) -> IO[bytes]:
        """Open a file of the bundle."""
        info = self.members.get(name)
        if info is None:
            raise Malformed(f"{name} is missing")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise CannotCheck(f"{name} is encrypted or compressed in an unusual way")
        try:
            return self.archive.open(info)
        except ZIP_TROUBLE as error:
            raise Malformed(f"{name} is damaged: {plain(error)}") from error

    def read(self, name: str, limit: int) -> bytes | None:
        """Read a whole file of at most ``limit`` bytes, None if there is none."""
        if name not in self.members:
            return None
        with self.open(name) as file:
            data = read_exactly(file, limit + 1)
        if len(data) > limit:
            raise Malformed(f"{name} has more than {limit} bytes")
        return data

    def manifest(self) -> dict[str, Any]:
        """Read manifest.json. It is not signed, so it only has to go with the rest."""
        try:
            found = json.loads(self.read("manifest.json", MAX_NOTE_BYTES) or b"")
        except (ValueError, RecursionError) as error:
            raise Malformed(f"manifest.json is missing or damaged: {plain(error)}") from error
        if not isinstance(found, dict):
            raise Malformed("manifest.json is not an object")
        if found.get("format") != BUNDLE_FORMAT:
            raise CannotCheck(
                f"the bundle is of format {plain(found.get('format'))}, this program knows {BUNDLE_FORMAT}"
            )
        return found

    def read_epochs(self) -> None:
        """Follow the chain of the copies. That they are in the tree, and with which root, is shown by records.bin."""
        for name in sorted(name for name in self.members if name.startswith("epochs/")):
            seq, payload = int(name[7:]), self.read(name, MAX_EPOCH_BYTES) or b""
            fields, root = read_record(payload), None
            try:
                if fields is None or fields.get("kind") != "epoch":
                    self.chain.failed = True
                    self.report.broken(seq, f"{name} is not an epoch record")
                else:
                    root = self.chain.extend(seq, fields)
            except Malformed as error:
                self.report.broken(seq, str(error))
            self.epochs[seq] = leaf_hash(payload), root
        if not self.epochs:
            self.chain.failed = True
            self.report.broken(0, "epoch 0: its record is missing, as all others")

    def entries(self) -> int:
        """Go through records.bin; return the number of entries."""
        count, newest, unproved = 0, {True: -1, False: -1}, set(self.epochs)
        with self.open("records.bin") as file:
            while head := read_exactly(file, ENTRY.size):
                try:
                    seq, payload, proof = self.entry(file, head)
                except Malformed as error:
                    self.report.broken(max(newest.values()) + 1, f"records.bin: {error}")
                    break
                is_epoch = seq in self.epochs
                if seq <= newest[is_epoch]:  # each of the two kinds ascends, wherever the epochs are put
                    self.report.broken(seq, f"records.bin has it behind record {newest[is_epoch]}")
                newest[is_epoch] = seq
                count += 1
                unproved.discard(seq)
                self.included(seq, leaf_hash(payload), proof)
                if not is_epoch:
                    self.session_record(seq, read_record(payload))
        for seq in unproved:
            self.report.broken(seq, "the epoch record has no inclusion proof")
        return count

    def entry(self, file: IO[bytes], head: bytes) -> tuple[int, bytes, list[bytes]]:
        """Read one entry."""
        if len(head) < ENTRY.size:
            raise Malformed("it ends within an entry")
        seq, length = ENTRY.unpack(head)
        if not 1 <= length <= MAX_PAYLOAD_BYTES:
            raise Malformed(f"the entry of record {seq} has an impossible length, {length}")
        payload, count = read_exactly(file, length), read_exactly(file, 1)
        proof = read_exactly(file, count[0] * HASH_BYTES) if count else b""
        if not count or len(proof) < count[0] * HASH_BYTES:
            raise Malformed(f"it ends within the entry of record {seq}")
        return seq, payload, hashes(proof)

    def included(self, seq: int, leaf: bytes, proof: list[bytes]) -> None:
        """Check an inclusion proof, and by that of an epoch record the root in its certificate."""
        if seq >= self.checkpoint.size:
            self.report.broken(seq, f"it is not in the tree of size {self.checkpoint.size}")
            return
        try:
            root, before = inclusion_roots(seq, self.checkpoint.size, leaf, proof)
        except Malformed as error:
            self.report.broken(seq, str(error))
            return
        copy, certified = self.epochs.get(seq, (leaf, None))
        if root != self.checkpoint.root:
            self.report.broken(seq, "its inclusion proof does not lead to the checkpoint's root")
        elif copy != leaf:
            self.report.broken(seq, "it is another record in records.bin than in epochs/")
        else:
            if certified is not None:
                self.compare(f"the certificate in record {seq}", seq, certified, before)
            if seq in self.wanted:
                self.roots[seq] = before

    def session_record(self, seq: int, fields: dict[str, Any] | None) -> None:
        """Check that a record is the next one of this session."""
        self.report.records += 1
        self.options.each(seq, fields)
        fields = fields or {}
        session, number = fields.get("session"), fields.get("session_seq")
        if not isinstance(session, str) or session != self.session:
            self.report.broken(seq, f"it is not of session {plain(self.session)} but of {plain(session)}")
        elif type(number) is not int or number < self.next_number:
            self.report.broken(seq, f"its session_seq is {plain(number)} where {self.next_number} should come")
        else:
            if number > self.next_number:
                self.holes += number - self.next_number
                self.report.broken(seq, f"before it session_seq {self.next_number} to {number - 1} are missing")
            self.next_number, self.last_kind, self.last_record = number + 1, fields.get("kind"), seq

    def whole(self) -> None:
        """Say whether all records of the session are there."""
        numbers = f"session_seq 0 to {self.next_number - 1}"
        if not self.next_number:
            self.report.broken(None, "there is no record of the session, not even its first")
        if self.holes or not self.next_number:
            self.report.completeness = f"NOT whole: {self.holes or 'all'} records of the session are missing"
        elif self.last_kind == "session_end":
            self.report.completeness = f"whole: {numbers}, the last a session_end"
        else:
            self.report.completeness = f"whole up to record {self.last_record}: {numbers}, no session_end"
            self.report.not_proved.append(
                f"that nothing came after record {self.last_record}: without session_end it still ran, or was cut"
            )

    def anchors(self) -> Iterator[Claim]:
        """Yield the checkpoints in ``anchors/`` that this one is proved to be consistent with."""
        for name in sorted(self.members):
            if not name.startswith("anchors/"):
                continue
            claim = self.anchor(name.removeprefix("anchors/"), self.read(name, MAX_NOTE_BYTES) or b"")
            if claim is not None and claim.checkpoint.size < self.checkpoint.size:
                proof = self.read(f"{name}.consistency", MAX_NOTE_BYTES)
                if proof is None and name.endswith(".checkpoint"):  # the copy of what a timestamp stamps
                    proof = self.read(f"{name.removesuffix('.checkpoint')}.tsr.consistency", MAX_NOTE_BYTES)
                if proof is None:
                    self.report.not_proved.append(f"{name}: it has no consistency proof, and so says nothing here")
                    continue
                if not is_consistent(claim.checkpoint, self.checkpoint, hashes(proof)):
                    self.report.broken(None, f"{name}: its consistency proof does not lead to this checkpoint")
                    continue
                self.roots[claim.checkpoint.size] = claim.checkpoint.root
            if claim is not None:
                yield claim

    def unknown(self, source: str) -> None:
        """Say that a bundle has no proof for that size: nothing bad, and nothing proved."""
        self.report.not_proved.append(f"{source}: this bundle has no proof for that size, so it was not compared")

    def too_large(self, source: str, end: int) -> None:
        """Say that a checkpoint is newer than the bundle: nothing bad, and nothing proved."""
        self.report.not_proved.append(f"{source} is newer than this bundle, of size {end}, and was not compared")


def read_exactly(file: IO[bytes], count: int) -> bytes:
    """Read ``count`` bytes, less only at the end of a file in the bundle."""
    data = bytearray()
    try:
        while len(data) < count and (more := file.read(min(count - len(data), CHUNK))):
            data += more
    except ZIP_TROUBLE as error:
        raise Malformed(f"a file in the bundle is damaged: {plain(error)}") from error
    return bytes(data)


# ---- "Reading msgpack" ---------------------------------------------------------------------------------------------

NUMBERS = {0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
SIZED = {  # what it is, and the bytes of its length
    0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4), 0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4),
    0xDC: ("array", 2), 0xDD: ("array", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip


class Msgpack:
    """A reader of one msgpack value."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.items = data, 0, 0

    def take(self, count: int) -> bytes:
        """Take the next bytes."""
        taken = self.data[self.at : self.at + count]
        if len(taken) < count:
            raise Malformed("msgpack that ends too early")
        self.at += count
        return taken

    def value(self, depth: int = 0) -> Any:
        """Take the next value."""
        self.items += 1
        if depth > MAX_DEPTH or self.items > MAX_ITEMS:
            raise Malformed("msgpack too deep or with too many values")
        byte = self.take(1)[0]
        if byte <= 0x7F or byte >= 0xE0:  # noqa: PLR2004 -- the fix formats of msgpack, here and below
            return byte if byte <= 0x7F else byte - 0x100  # noqa: PLR2004
        if byte <= 0xBF:  # noqa: PLR2004
            what, size = ("map", "array", "str", "str")[(byte - 0x80) >> 4], byte & (0x1F if byte >= 0xA0 else 0x0F)  # noqa: PLR2004
            return self.sized(what, size, depth)
        if byte in CONSTANTS:
            return CONSTANTS[byte]
        if byte in NUMBERS:
            return struct.unpack(NUMBERS[byte], self.take(struct.calcsize(NUMBERS[byte])))[0]
        if byte in SIZED:
            what, width = SIZED[byte]
            return self.sized(what, int.from_bytes(self.take(width), "big"), depth)
        raise Malformed(f"msgpack of type {byte:#x}, which the format does not have")

    def sized(self, what: str, size: int, depth: int) -> Any:
        """Take a value that has a length."""
        if what in ("bin", "str"):
            data = self.take(size)
            return data if what == "bin" else data.decode("utf-8", "backslashreplace")
        if what == "array":
            return [self.value(depth + 1) for _ in range(size)]
        found = {}
        for _ in range(size):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in found:
                raise Malformed("msgpack with a key that is not text, or is there twice")
            found[key] = self.value(depth + 1)
        return found


def read_record(payload: bytes) -> dict[str, Any] | None:
    """Return the map in a payload, None if there is not exactly one."""
    reader = Msgpack(payload)
    try:
        fields = reader.value()
    except Malformed:
        return None
    return fields if isinstance(fields, dict) and reader.at == len(payload) else None


# ---- An account of the records, for people -------------------------------------------------------------------------
# The document names `kind`, `session` and `session_seq`. It names no field for a record's time: here that is the first
# integer in it that can be one.

TIMES_NS = range(10**18, 4 * 10**18)  # 2001 to 2096, in nanoseconds since 1970


def time_of(fields: dict[str, Any]) -> int | None:
    """Return a record's time: the first of its integers that can be one."""
    return next((value for value in fields.values() if type(value) is int and value in TIMES_NS), None)


def rfc3339(time_ns: int | None) -> str:
    """Write a time."""
    return "-" if time_ns is None else datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Account:
    """Counts of what the records say."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.gaps: dict[str, Counter[str]] = {}
        self.first: int | None = None
        self.last: int | None = None

    def add(self, _seq: int, fields: dict[str, Any] | None) -> None:
        """Count one record."""
        kind = "(unreadable)" if fields is None else plain(fields.get("kind"))
        self.kinds[kind if kind in self.kinds or len(self.kinds) < MAX_NAMES else "(others)"] += 1
        fields = fields or {}
        if kind == "gap":
            cause = plain(fields.get("cause"))
            gap = self.gaps.setdefault(
                cause if cause in self.gaps or len(self.gaps) < MAX_NAMES else "(others)", Counter()
            )
            gap["records"] += 1
            for name in ("count", "bytes"):
                number = fields.get(name)
                gap[name] += number if type(number) is int else 0
        time_ns = time_of(fields)
        if time_ns is not None:
            self.first = min(self.first or time_ns, time_ns)
            self.last = max(self.last or time_ns, time_ns)

    def divergences(self) -> int:
        """Return how many records say that two accounts of the same thing differ."""
        return sum(count for kind, count in self.kinds.items() if kind.startswith("diverg"))

    def lines(self) -> Iterator[str]:
        """Yield the account for people."""
        yield f"first {rfc3339(self.first)}, last {rfc3339(self.last)}"
        for kind, count in self.kinds.most_common():
            yield f"{count:9} {kind}"
        for cause, gap in self.gaps.items():
            yield f"gap: {cause}: {gap['records']} records, of {gap['count']} lost, {gap['bytes']} bytes"
        yield f"not decoded (opaque): {self.kinds['opaque']}, divergences: {self.divergences()}"


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
            with archive:
                Bundle(archive, options, report).verify()
    except Malformed as error:
        report.broken(None, str(error))
    except CannotCheck as error:
        report.cannot.append(str(error))
    except (OSError, MemoryError, RecursionError) as error:
        report.cannot.append(f"reading failed: {type(error).__name__} {plain(error)}")
    except Exception as error:  # noqa: BLE001 -- the last resort: an auditor gets a verdict, not a traceback
        report.cannot.append(f"unexpected {type(error).__name__}, an error of this program: {plain(error)}")


def vkey(text: str) -> Key:
    """Read a vkey that was given, or a file that has one."""
    try:
        return parse_vkey(text)
    except Malformed as error:
        try:
            return parse_vkey(Path(text).read_text(encoding="utf-8").removesuffix("\n"))
        except (OSError, ValueError):
            raise argparse.ArgumentTypeError(f"neither a vkey ({error}) nor a file with one") from error


def kept_checkpoint(name: str) -> Claim:
    """Read a checkpoint that was kept elsewhere."""
    try:
        return Claim.read(plain(name), Path(name).read_bytes())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def identity_or_checkpoint(text: str) -> Key | Claim:
    """Read what was given as identity: a vkey, or a checkpoint, which a key of this log must have signed."""
    try:
        return vkey(text)
    except argparse.ArgumentTypeError:
        if not os.path.isfile(text):  # noqa: PTH113 -- a vkey is too long a name for some Path methods
            raise
        return kept_checkpoint(text)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Check a log of agentwatch or an evidence bundle cut from one.",
        epilog="Exit status: 0 intact, 1 broken, 2 usage, 3 cannot check.",
    )
    add = parser.add_argument
    add(
        "--identity",
        metavar="VKEY|FILE",
        type=identity_or_checkpoint,
        help="host identity key, from a source you trust",
    )
    add(
        "--against", metavar="FILE", type=kept_checkpoint, action="append", default=[], help="checkpoint kept elsewhere"
    )
    add("--cosigner", metavar="VKEY", type=vkey, action="append", default=[], help="key of a collector or witness")
    add("--json", action="store_true", help="one JSON object a line")
    add("--list", action="store_true", help="list the records too (before the verdict on them)")
    add("target", metavar="TARGET", type=Path, help="SESSION.tlog.zip, or a copy of a log folder")
    parsed = parser.parse_args(arguments)
    if not os.path.lexists(parsed.target):
        parser.error(f"{plain(parsed.target)} does not exist")
    return parsed


def listed(seq: int, fields: dict[str, Any] | None, *, as_json: bool) -> str:
    """Return one line about a record."""
    shown = {name: plain((fields or {}).get(name)) for name in ("kind", "session", "session_seq")}
    time = rfc3339(time_of(fields or {}))
    return (
        json.dumps({"record": seq, "time": time, **shown}) if as_json else " ".join([str(seq), time, *shown.values()])
    )


def rendered(report: Report, account: Account, *, as_json: bool) -> Iterable[str]:
    """Return the lines of the result."""
    if as_json:
        yield json.dumps({
            "verdict": {INTACT: "intact", BROKEN: "broken", CANNOT_CHECK: "cannot check"}[report.status],
            "integrity": report.verdict(), "records": report.records, "proved": report.proved,
            "completeness": report.completeness, "not_proved": report.not_proved[:MAX_SAID],
            "remarks": report.remarks[:MAX_SAID],
            "findings": [{"record": record, "how": how} for record, how in report.findings], "cannot": report.cannot,
            "kinds": account.kinds, "gaps": account.gaps, "divergences": account.divergences(),
            "first_ns": account.first, "last_ns": account.last,
        })  # fmt: skip
        return
    yield f"integrity:    {report.verdict()}"
    yield f"completeness: {report.completeness}"
    sections = {
        "not proved": report.not_proved[:MAX_SAID],
        "could not be checked": report.cannot,
        "more that is broken": [f"record {record}: {how}" for record, how in report.findings[1:]],
        "remarks": report.remarks[:MAX_SAID],
        "account of the records": account.lines(),
    }
    for title, lines in sections.items():
        shown = [f"  {line}" for line in lines]
        yield from [f"{title}:", *shown] if shown else []


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parsed = parse_arguments(arguments)
    report, account = Report(), Account()

    def each(seq: int, fields: dict[str, Any] | None) -> None:
        account.add(seq, fields)
        if parsed.list:
            sys.stdout.write(listed(seq, fields, as_json=parsed.json) + "\n")

    options = Options(None, parsed.against, parsed.cosigner, each)
    if isinstance(parsed.identity, Claim):
        options.against.append(parsed.identity)
    else:
        options.identity = parsed.identity
    try:
        examine(parsed.target, options, report)
        for line in rendered(report, account, as_json=parsed.json):
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # who reads this has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return CANNOT_CHECK
    return report.status


if __name__ == "__main__":
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
