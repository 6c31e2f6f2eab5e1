"""Evidence bundles: the records of one session and what proves that they are in the log. Format: docs/log-format.md.

In: a log, a session's id. Out: a zip file that needs nothing of this host to be checked. What always holds:

* records are the exact bytes that were stored, each with an inclusion proof for one checkpoint;
* the log itself is searched, not the index: what the index does not know is in the bundle all the same;
* everything up to the checkpoint is in it. Records of the session behind it, which nobody signed for yet, are counted.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from agentwatch import __version__
from agentwatch.anchors import store
from agentwatch.errors import LogError, NotFoundError, SegmentDamaged
from agentwatch.log import checkpoint, epochs, folder, merkle, note
from agentwatch.log.reader import LogReader
from agentwatch.log.tiles import TileReader
from agentwatch.records.encoding import Record, decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

FORMAT = "agentwatch-bundle/1"
SUFFIX = ".tlog.zip"
MAX_ANCHORS = 4
"""Of each kind, the newest: one that is a minute younger proves no more than that."""
_ENTRY = struct.Struct(">QI")

Progress = Callable[[int, int], None]
Account = Callable[["Found"], str]
"""Makes the plain-text account."""


class Found(NamedTuple):
    """What the log has of a session: stored records by sequence number, and what could not be read on the way."""

    session: str
    records: dict[int, bytes]
    behind: int
    damage: list[SegmentDamaged]

    def decoded(self) -> Iterator[tuple[int, Record]]:
        """Yield the records."""
        for seq, payload in self.records.items():
            yield seq, decode(payload)


class Bundle(NamedTuple):
    """What was written: the checkpoint's size, records of the session, those behind the checkpoint, anchors."""

    size: int
    records: int
    behind: int
    anchors: int


def make(log_dir: Path, session: str, out: Path, account: Account, progress: Progress | None = None) -> Bundle:
    """Write the bundle of a session to ``out``, which must not exist.

    Raises NotFoundError if the log has no record of the session or no checkpoint, LogError where the tree is not whole.
    """
    signed_note = _checkpoint(log_dir)
    signed = checkpoint.Checkpoint.parse(note.parse(signed_note).text)
    tiles = TileReader(log_dir, signed.size)
    found = _find(log_dir, session, signed.size, progress)
    chain = dict(_epochs(log_dir, signed.size))
    anchors = dict(_anchors(log_dir, signed, tiles))
    manifest = _manifest(found, signed.size)
    text = account(found)
    with zipfile.ZipFile(out, "x", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("manifest.json", json.dumps(manifest, indent=1) + "\n")
        bundle.writestr("account.txt", text)
        bundle.writestr(checkpoint.FILE, signed_note)
        bundle.writestr(epochs.IDENTITY_FILE, _read(log_dir / epochs.IDENTITY_FILE))
        for seq, payload in chain.items():
            bundle.writestr(f"{epochs.FOLDER}/{epochs.file_name(seq)}", payload)
        for name, content in anchors.items():
            bundle.writestr(f"{store.FOLDER}/{name}", content)
        with bundle.open("records.bin", "w", force_zip64=True) as file:
            for entry in _entries(found.records | chain, signed.size, tiles):
                file.write(entry)
    return Bundle(signed.size, len(found.records), found.behind, len(anchors))


def _checkpoint(log_dir: Path) -> bytes:
    try:
        return _read(log_dir / checkpoint.FILE)
    except FileNotFoundError as e:
        raise NotFoundError(f"there is no checkpoint in {log_dir}: nothing is signed that could be evidence") from e


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as e:
        raise folder.failure(e, f"cannot read {path}") from e


def _find(log_dir: Path, session: str, size: int, progress: Progress | None) -> Found:
    reader = LogReader(log_dir)
    end = reader.end()
    found = Found(session, {}, 0, [])
    behind = 0
    needle = session.encode()
    for seq, payload in reader.records(0, end, on_damage=found.damage.append):
        # Most records are of other sessions, and are not decoded.
        if needle in payload and decode(payload).get("session") == session:
            if seq < size:
                found.records[seq] = payload
            else:
                behind += 1
        if progress is not None and seq % 4096 == 0:
            progress(seq, end)
    if not found.records:
        raise NotFoundError(f"the log has no signed record of the session {session}")
    return found._replace(behind=behind)


def _epochs(log_dir: Path, size: int) -> Iterable[tuple[int, bytes]]:
    # The copies: segments that held these records may have been pruned.
    try:
        paths = sorted((log_dir / epochs.FOLDER).iterdir())
    except OSError as e:
        raise folder.failure(e, f"cannot list {log_dir / epochs.FOLDER}") from e
    for path in paths:
        seq = epochs.parse_file_name(path.name)
        if seq is not None and seq < size:
            yield seq, _read(path)


def _anchors(log_dir: Path, signed: checkpoint.Checkpoint, tiles: TileReader) -> Iterable[tuple[str, bytes]]:
    taken: dict[str, int] = {}
    for anchor in store.read_anchors(log_dir):
        if isinstance(anchor, store.Unfit) or anchor.size > signed.size:
            continue
        taken[anchor.by] = taken.get(anchor.by, 0) + 1
        if taken[anchor.by] > MAX_ANCHORS:
            continue
        if anchor.response is not None:
            yield anchor.name, anchor.response
            yield f"{anchor.size}.{store.STAMPED}", anchor.checkpoint
        else:
            yield anchor.name, anchor.checkpoint
        if anchor.size < signed.size:
            proof = merkle.consistency_proof(anchor.size, signed.size, tiles)
            yield f"{anchor.name}.{store.CONSISTENCY}", b"".join(proof)


def _entries(records: dict[int, bytes], size: int, tiles: TileReader) -> Iterator[bytes]:
    for seq in sorted(records):
        payload = records[seq]
        if merkle.leaf_hash(payload) != tiles.leaf(seq):
            raise LogError(f"record {seq} is not the one that was signed for; see agentwatch verify")
        proof = merkle.inclusion_proof(seq, size, tiles)
        yield b"".join((_ENTRY.pack(seq, len(payload)), payload, bytes([len(proof)]), *proof))


def _manifest(found: Found, size: int) -> dict[str, Any]:
    first = next(found.decoded())[1]
    return {
        "format": FORMAT,
        "session": found.session,
        "host": first.get("host"),
        "agent": first.get("agent"),
        "records": len(found.records),
        "size": size,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
    }
