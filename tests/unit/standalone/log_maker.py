"""Logs and bundles as docs/log-format.md has them, made naively and without agentwatch: what the verifier is tested on.

Trees and proofs are the recursive definitions of RFC 6962, section 2.1, word for word: slow, and not the
verifier's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import struct
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgpack
import zstandard
from crc32c import crc32c
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ORIGIN_PREFIX = "db-agents-1/agentwatch/"
TIME_NS = 1_760_000_000_000_000_000
Leaves = list[bytes]


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def leaf(payload: bytes | None) -> bytes:
    return sha(b"\0" + (payload or b""))


def split(n: int) -> int:
    """The largest power of two smaller than n."""
    return 1 << (n - 1).bit_length() - 1


def mth(leaves: Leaves) -> bytes:
    if not leaves:
        return sha(b"")
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return sha(b"\1" + mth(leaves[:k]) + mth(leaves[k:]))


def path(m: int, leaves: Leaves) -> Leaves:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def consistency(m: int, leaves: Leaves, *, whole: bool = True) -> Leaves:
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*consistency(m, leaves[:k], whole=whole), mth(leaves[k:])]
    return [*consistency(m - k, leaves[k:], whole=False), mth(leaves[:k])]


@dataclass(frozen=True)
class Signer:
    """A key with the name it signs under; ``kind`` is the type of its signatures."""

    name: str
    kind: int
    private: Ed25519PrivateKey | MLDSA44PrivateKey

    @classmethod
    def new(cls, name: str, kind: int = 1) -> Signer:
        return cls(name, kind, MLDSA44PrivateKey.generate() if kind == 6 else Ed25519PrivateKey.generate())

    @property
    def data(self) -> bytes:
        return bytes([self.kind]) + self.private.public_key().public_bytes_raw()

    @property
    def key_id(self) -> bytes:
        return sha(self.name.encode() + b"\n" + self.data)[:4]

    @property
    def vkey(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(self.data).decode()}"

    def line(self, text: str, *, certificate: bool = False, time: int = 1_760_000_000) -> str:
        body, eight = text.encode(), struct.pack(">Q", 0 if certificate else time)
        if isinstance(self.private, MLDSA44PrivateKey):
            signature = eight + self._ml_dsa(text, eight, certificate=certificate)
        elif self.kind == 4:
            signature = eight + self.private.sign(b"cosignature/v1\ntime %d\n" % time + body)
        else:
            signature = self.private.sign(body)
        return f"\u2014 {self.name} {base64.b64encode(self.key_id + signature).decode()}\n"

    def _ml_dsa(self, text: str, time: bytes, *, certificate: bool) -> bytes:
        assert isinstance(self.private, MLDSA44PrivateKey)
        if certificate:
            return self.private.sign(text.encode(), b"agentwatch-epoch/v1")
        origin, size, root = text.splitlines()
        message = b"subtree/v1\n\0" + bytes([len(self.name)]) + self.name.encode() + time + bytes([len(origin)])
        message += origin.encode() + struct.pack(">QQ", 0, int(size)) + base64.b64decode(root)
        return self.private.sign(message)


@dataclass
class Log:
    """A log in memory; payloads are None for numbers that were skipped."""

    log_id: bytes = bytes(range(16))
    post_quantum: bool = False
    payloads: list[bytes | None] = field(default_factory=list)
    epochs: list[tuple[int, list[Signer]]] = field(default_factory=list)
    sessions: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.origin = ORIGIN_PREFIX + self.log_id.hex()
        self.identity = Signer.new(f"{self.origin}/identity")

    def leaves(self, size: int | None = None) -> Leaves:
        return [leaf(payload) for payload in self.payloads[:size]]

    def root(self, size: int | None = None) -> bytes:
        return mth(self.leaves(size))

    def new_keys(self) -> list[Signer]:
        return [Signer.new(self.origin, kind) for kind in ((1, 6) if self.post_quantum else (1,))]

    def start_epoch(
        self, *, signers: list[Signer] | None = None, number: int | None = None, at: int | None = None
    ) -> None:
        """Add an epoch record, by default a right one."""
        seq, keys = len(self.payloads), self.new_keys()
        number = len(self.epochs) if number is None else number
        root = base64.b64encode(self.root()).decode()
        said = seq if at is None else at
        lines = ["agentwatch-epoch/v1", self.origin, str(number), str(said), root, *(key.vkey for key in keys)]
        text = "".join(line + "\n" for line in lines)
        signers = signers or (self.epochs[-1][1] if self.epochs else [self.identity])
        note = text + "\n" + "".join(key.line(text, certificate=True) for key in signers)
        self.add(kind="epoch", number=number, certificate=note, boot_id="0" * 32)
        self.epochs.append((seq, keys))

    def add(self, **fields: Any) -> int:
        fields = {"time": TIME_NS + len(self.payloads) * 10**9, **fields}
        self.payloads.append(msgpack.packb(fields))
        return len(self.payloads) - 1

    def say(self, session: str, kind: str = "statement", **fields: Any) -> int:
        """Add the next record of a session."""
        number = self.sessions.get(session, 0)
        self.sessions[session] = number + 1
        return self.add(kind=kind, session=session, session_seq=number, **fields)

    def keys_for(self, size: int) -> list[Signer]:
        return [keys for start, keys in self.epochs if start < size][-1]

    def checkpoint(self, size: int | None = None, *, signers: list[Signer] | None = None, root: bytes = b"") -> bytes:
        size = len(self.payloads) if size is None else size
        text = f"{self.origin}\n{size}\n{base64.b64encode(root or self.root(size)).decode()}\n"
        return (text + "\n" + "".join(key.line(text) for key in signers or self.keys_for(size))).encode()

    # Files

    def frame(self, seq: int, payload: bytes) -> bytes:
        length = struct.pack(">I", len(payload))
        return length + struct.pack(">I", (crc32c(self.log_id + length + payload) + seq) % 2**32) + payload

    def segment(self, first: int, payloads: Iterable[bytes], *, log_id: bytes = b"") -> bytes:
        header = b"\x89AWLOG\r\n" + struct.pack(">IQQ", 1, first, TIME_NS) + bytes(16) + (log_id or self.log_id)
        frames = (self.frame(seq, payload) for seq, payload in enumerate(payloads, first))
        return header + struct.pack(">I", crc32c(header)) + b"".join(frames)

    def write_segments(self, folder: Path, starts: Iterable[int]) -> None:
        """Write segments that begin at these numbers; one that was skipped ends a segment."""
        for first in starts:
            payloads = []
            for seq in range(first, len(self.payloads)):
                payload = self.payloads[seq]
                if payload is None or (seq in starts and seq != first):
                    break
                payloads.append(payload)
            (folder / f"{first:020d}.segment").write_bytes(self.segment(first, payloads))

    def write_tiles(self, folder: Path, size: int | None = None) -> None:
        shutil.rmtree(folder / "tile", ignore_errors=True)
        hashes, level = self.leaves(size), 0
        while hashes:
            for number in range(0, len(hashes), 256):
                tile = hashes[number : number + 256]
                digits = f"{number // 256:03d}"
                name = digits if len(digits) == 3 else f"x{digits[:-3]:0>3}/{digits[-3:]}"
                at = folder / f"tile/{level}/{name}{'' if len(tile) == 256 else f'.p/{len(tile)}'}"
                at.parent.mkdir(parents=True, exist_ok=True)
                at.write_bytes(b"".join(tile))
            hashes = [mth(hashes[at : at + 256]) for at in range(0, len(hashes) - 255, 256)]
            level += 1

    def write(self, folder: Path, starts: Iterable[int] = (0,), size: int | None = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        self.write_segments(folder, tuple(starts))
        self.write_tiles(folder, size)
        (folder / "checkpoint").write_bytes(self.checkpoint(size))
        (folder / "identity").write_text(self.identity.vkey + "\n")
        (folder / "epochs").mkdir(exist_ok=True)
        for seq, _ in self.epochs:
            (folder / f"epochs/{seq:020d}").write_bytes(self.payloads[seq] or b"")
        return folder

    # Bundles

    def entry(self, seq: int, size: int, payload: bytes | None = None, proof: Leaves | None = None) -> bytes:
        payload = payload or self.payloads[seq] or b""
        proof = path(seq, self.leaves(size)) if proof is None else proof
        return struct.pack(">QI", seq, len(payload)) + payload + bytes([len(proof)]) + b"".join(proof)

    def of_session(self, session: str, size: int) -> list[int]:
        found = []
        for seq, payload in enumerate(self.payloads[:size]):
            if payload is not None and msgpack.unpackb(payload).get("session") == session:
                found.append(seq)
        return found

    def bundle(self, session: str, size: int | None = None) -> dict[str, bytes]:
        """Return the files of a bundle."""
        size = len(self.payloads) if size is None else size
        epochs = [seq for seq, _ in self.epochs if seq < size]
        records = self.of_session(session, size)
        manifest = {"format": "agentwatch-bundle/1", "session": session, "host": "db-agents-1", "agent": "coder"}
        manifest |= {"records": len(records), "size": size, "made": "2026-01-02T03:04:05Z", "version": "1.0"}  # type: ignore[dict-item]
        return {
            "checkpoint": self.checkpoint(size),
            "identity": self.identity.vkey.encode() + b"\n",
            **{f"epochs/{seq:020d}": self.payloads[seq] or b"" for seq in epochs},
            "records.bin": b"".join(self.entry(seq, size) for seq in sorted([*records, *epochs])),
            "account.txt": b"for people\n",
            "manifest.json": json.dumps(manifest).encode(),
        }


def zipped(files: dict[str, bytes], target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target


def compressed(segment: bytes, cuts: list[tuple[int, int]], *, checksum: bool = True) -> bytes:
    """Return the seekable form; each cut is (offset at which a zstd frame begins, first record that begins in it)."""
    compressor = zstandard.ZstdCompressor(write_checksum=checksum)
    ends = [offset for offset, _ in cuts[1:]] + [len(segment)]
    parts = [segment[start:end] for (start, _), end in zip(cuts, ends, strict=True)]
    frames = [compressor.compress(part) for part in parts]
    firsts = b"".join(struct.pack(">Q", seq) for _, seq in cuts)
    sizes = zip(frames, parts, strict=True)
    table = b"".join(struct.pack("<II", len(frame), len(part)) for frame, part in sizes)
    table += struct.pack("<IBI", len(frames), 0, 0x8F92EAB1)
    skippable = (
        struct.pack("<II", 0x184D2A5A, len(firsts)) + firsts + struct.pack("<II", 0x184D2A5E, len(table)) + table
    )
    return b"".join(frames) + skippable


def ordinary_log(size: int = 600, epochs: tuple[int, ...] = (0, 200, 420), *, post_quantum: bool = False) -> Log:
    """Two sessions, a gap, records of no session; two full tiles and a half."""
    log = Log(post_quantum=post_quantum)
    while len(log.payloads) < size:
        n = len(log.payloads)
        if n in epochs:
            log.start_epoch()
        elif n == 7:
            log.add(kind="gap", cause="ring full", count=3, bytes=99)
        elif n == size - 2:
            log.say("ada", "session_end")
        elif n % 7 == 1:
            log.say("ada", sql=f"select {n}")
        elif n % 11 == 2:
            log.say("bob", sql="delete from t")
        else:
            log.add(kind="heartbeat", n=n, blob=b"\xff\0", more=[None, True, -1, 1.5, {"a": 2**40}])
    return log
