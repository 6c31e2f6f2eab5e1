"""The log with its tree and signatures: what is appended here is signed a second later at the latest.

In: payloads, as for LogWriter. Out: besides segments, tiles, checkpoints, ``epoch`` records and copies of these. What
always holds:

* only durable records are signed, and a size is signed once, by the keys of its epoch;
* tiles are written before the checkpoint that needs them; partial ones are removed after the next checkpoint stands;
* a number that was signed for is never given out again. If its record is lost the tree keeps its leaf, and who
  verifies sees which record it was;
* a log that does not lead to its own checkpoint, or whose keys are gone, is not continued: it is moved, whole, into a
  folder ``broken-TIME`` in its folder, and a new log with a new identity begins. ``set_aside`` says so to the
  caller, who records it. Recording goes on in any case.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import msgpack

from agentwatch.errors import LogError, NotFoundError, SegmentDamaged, StoreError
from agentwatch.log import checkpoint, epochs, folder, merkle, note, segment, tiles
from agentwatch.log.access import Access
from agentwatch.log.checkpoint import Checkpoint
from agentwatch.log.epochs import Certificate
from agentwatch.log.keys import NEXT, EpochKeys, KeyFolder, new_seed
from agentwatch.log.reader import LogReader
from agentwatch.log.sealing import set_append_only
from agentwatch.log.tiles import TileReader, TileWriter
from agentwatch.log.writer import SEGMENT_BYTES, SEGMENT_NS, LogWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

log = logging.getLogger(__name__)

CHECKPOINT_NS = 500 * 10**6
"""Between two checkpoints. With a commit (50 ms) and a turn of the recorder before it: within a second of a record."""
EPOCH_NS = 3600 * 10**9
RETRY_NS = 10**9
"""After the disk refused a checkpoint or a key."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Options(NamedTuple):
    """How a log is written. ``host`` goes into the origin of a new one, members of ``reader_gid`` may read it."""

    host: str
    reader_gid: int | None = None
    post_quantum: bool = False
    segment_bytes: int = SEGMENT_BYTES
    segment_ns: int = SEGMENT_NS
    epoch_ns: int = EPOCH_NS


class SetAside(NamedTuple):
    """A log that was not continued: where it is now, and why."""

    path: Path
    why: str


class SignedLog:
    """The one writer of the log in ``log_dir``, with the keys in ``key_dir``. Not for use by several threads at once.

    Attributes: ``writer`` (the LogWriter; append and commit there), ``set_aside`` (None normally), ``fault`` (why the
    last checkpoint could not be written; None normally), ``signed`` (the newest checkpoint).
    """

    writer: LogWriter

    def __init__(self, log_dir: Path, key_dir: Path, options: Options) -> None:
        """Lock, recover, and begin an epoch where none goes on.

        Raises BusyError, PrivilegeError, LogError, StoreError.
        """
        self.log_dir = log_dir
        self.set_aside: SetAside | None = None
        self.fault: str | None = None
        self.signed: Checkpoint | None = None
        self._options = options
        self._access = Access(options.reader_gid)
        self._current: EpochKeys | None = None
        self._signers: list[note.Signer] = []
        self._pending: tuple[EpochKeys, bytes] | None = None
        self._signed_ns = self._retry_ns = 0
        try:
            self._boot_id = BOOT_ID.read_text(encoding="ascii").strip()
            self._keys = KeyFolder(key_dir)
            self._open()
        except OSError as e:
            raise folder.failure(e, f"cannot open the log {log_dir} for writing") from e

    # -- opening

    def _open(self) -> None:
        with contextlib.ExitStack() as stack:
            self.writer = self._new_writer(stack)
            try:
                self._resume()
            except (LogError, note.NoteError) as e:
                log.error("the log %s is not continued: %s", self.log_dir, e)  # noqa: TRY400 -- a finding, not a fault
                stack.close()
                self.set_aside = SetAside(_set_aside(self.log_dir), str(e))
                self._keys.discard()
                self.writer = self._new_writer(stack)
                self._resume()
            self._permit_all()
            try:
                self._change_keys()
            except (OSError, StoreError) as e:
                if self._current is None:
                    raise
                # A disk that is full now does not keep a recorder from starting; ``tick`` tries again.
                self._refused(e)
            stack.pop_all()

    def _new_writer(self, stack: contextlib.ExitStack) -> LogWriter:
        options = self._options
        self.signed = _read_checkpoint(self.log_dir)
        writer = LogWriter(
            self.log_dir,
            reader_gid=options.reader_gid,
            segment_bytes=options.segment_bytes,
            segment_ns=options.segment_ns,
            least_seq=self.signed.size if self.signed else 0,
            on_durable=self._take,
        )
        stack.callback(writer.close)
        return writer

    def _resume(self) -> None:
        # Take up the log where it is. LogError or NoteError: it cannot be continued.
        size = self.writer.next_seq
        if size == 0:
            if any((self.log_dir / name).exists() for name in (epochs.FOLDER, tiles.FOLDER)):
                raise LogError("its records are gone")
            lost = self._keys.load()
            if lost is not None and self.set_aside is None:
                self.set_aside = SetAside(self.log_dir, f"there is nothing left of the log {lost.origin}")
            self._keys.discard()
            self._current = None
            self._tree = self._tiles_from(0, _nothing)
            return
        self._tree = self._grow(self._signed_tree(), size)
        self._current = self._find_keys()
        self._signers = self._current.signers

    def _signed_tree(self) -> TileWriter:
        signed = self.signed
        if signed is not None:
            read = TileReader(self.log_dir, signed.size)
            with contextlib.suppress(LogError):
                if merkle.root(signed.size, read) == signed.root:
                    return self._tiles_from(signed.size, read)
            log.warning("the tiles of %s do not lead to its checkpoint; they are made again", self.log_dir)
        if signed is not None and signed.size > LogReader(self.log_dir).end():
            # LogError if there is no tile either. A checkpoint may name any number: it is not counted up to.
            TileReader(self.log_dir, signed.size).leaf(signed.size - 1)
        tree = self._tiles_from(0, _nothing)
        if signed is not None and self._grow(tree, signed.size).root() != signed.root:
            raise LogError(f"its {signed.size} records do not lead to its checkpoint: it was altered")
        return tree

    def _tiles_from(self, size: int, read: merkle.HashReader) -> TileWriter:
        return TileWriter(self.log_dir, size, read, mode=self._access.mode, gid=self._access.gid)

    def _grow(self, tree: TileWriter, size: int) -> TileWriter:
        tree.extend(_leaves(self.log_dir, tree.size, size))
        return tree

    def _find_keys(self) -> EpochKeys:
        coming = self._keys.load(NEXT)
        if coming is not None and self._begun_by(coming) is not None:
            self._keys.promote()
        elif coming is not None:
            self._keys.discard_next()
        current = self._keys.load()
        if current is None:
            raise LogError(f"there is no key in {self._keys.path} that could sign it")
        payload = self._begun_by(current)
        if payload is None:
            raise LogError(
                f"the key in {self._keys.path} is not the one that it names last: it is older than its key, or another"
            )
        self._copy_epoch(current.seq, payload)
        return current

    def _begun_by(self, keys: EpochKeys) -> bytes | None:
        # The record that lets these keys sign, if the log has it.
        if checkpoint.log_id_of(keys.origin) != self.writer.log_id or keys.seq >= self.writer.next_seq:
            return None
        try:
            payload = self._payload(keys.seq)
            return payload if epochs.parse(keys.seq, payload).certificate.keys == keys.public else None
        except (LogError, note.NoteError):
            return None

    def _payload(self, seq: int) -> bytes:
        try:
            return LogReader(self.log_dir).read(seq)
        except (SegmentDamaged, NotFoundError):
            # The copy will do if the tree says that it is the record.
            payload = _read_file(self._epoch_path(seq))
            if payload is None or merkle.leaf_hash(payload) != TileReader(self.log_dir, seq + 1).leaf(seq):
                raise
            return payload

    # -- running

    def tick(self, now_ns: int) -> None:
        """Sign what is due, change keys when it is time. ``now_ns`` is CLOCK_MONOTONIC. Never raises: see ``fault``."""
        if now_ns < self._retry_ns:
            return
        try:
            self._change_keys()
            if now_ns - self._signed_ns >= CHECKPOINT_NS:
                self._sign()
                self._signed_ns = now_ns
        except (OSError, StoreError) as e:
            self._refused(e)
            self._retry_ns = now_ns + RETRY_NS
        else:
            if self._pending is None:
                self.fault = None

    def _refused(self, error: OSError | StoreError) -> None:
        if self.fault is None:
            log.error("cannot sign the log %s: %s", self.log_dir, error)
        self.fault = str(error)

    def sign(self) -> None:
        """Commit and sign everything now. Raises StoreError."""
        self.writer.commit()
        try:
            self._finish_epoch()
            self._sign()
        except OSError as e:
            raise folder.failure(e, f"cannot sign the log {self.log_dir}") from e

    def secret(self, name: str) -> bytes:
        """Return 32 random bytes that stay the same, kept beside the keys. Raises as the constructor does."""
        try:
            return self._keys.secret(name)
        except OSError as e:
            raise folder.failure(e, f"cannot keep a secret beside the keys of {self.log_dir}") from e

    def close(self) -> None:
        """Commit, sign and let go of the log. Raises StoreError; the log is closed even then."""
        try:
            self.sign()
        finally:
            self.writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, first: int, payloads: list[bytes]) -> None:
        if first != self._tree.size:
            raise LogError(f"record {first} is durable before the tree, of {self._tree.size} records, comes to it")
        self._tree.extend(merkle.leaf_hashes(payloads))
        if self._pending is not None:
            keys, payload = self._pending
            if first <= keys.seq < first + len(payloads) and payloads[keys.seq - first] != payload:
                # It was given up (``drop_waiting``) and its number given out again: these keys begin nothing.
                self._pending = None

    def _sign(self) -> None:
        # Not while keys change: what is durable then is not for the keys that are still there.
        size = self._tree.size
        if self._pending is not None or self._current is None or (self.signed and self.signed.size == size):
            return
        old = self._tree.flush()
        signed = Checkpoint(self._current.origin, size, self._tree.root())
        self._write(checkpoint.FILE, str(_sign(signed.text, self._signers)).encode())
        self.signed = signed
        self._tree.discard(old)

    # -- epochs

    def _is_over(self, keys: EpochKeys) -> bool:
        age = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - keys.began_ns
        # A negative age is none of this boot.
        return keys.boot_id != self._boot_id or not 0 <= age < self._options.epoch_ns

    def _change_keys(self) -> None:
        self._finish_epoch()
        if self._pending is None and (self._current is None or self._is_over(self._current)):
            self._begin_epoch()
            self._finish_epoch()

    def _begin_epoch(self) -> None:
        # The certificate speaks of all records before its own, so these have to be in the tree.
        self.writer.commit()
        before, signers = self._current, self._signers
        origin = before.origin if before else checkpoint.make_origin(self._options.host, self.writer.log_id)
        if before is None:
            signers = [note.Ed25519Signer(epochs.identity_name(origin), new_seed())]
            self._write(epochs.IDENTITY_FILE, f"{signers[0].key}\n".encode())
        keys = EpochKeys(
            origin=origin,
            number=before.number + 1 if before else 0,
            seq=self.writer.next_seq,
            boot_id=self._boot_id,
            began_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            ed25519=new_seed(),
            ml_dsa_44=new_seed() if self._options.post_quantum else None,
        )
        certificate = Certificate(origin, keys.number, keys.seq, self._tree.root(), keys.public)
        payload = self._record(keys.number, str(_sign(certificate.text, signers)))
        self._keys.store_next(keys)
        self.writer.append(payload, critical=True)
        self._pending = (keys, payload)
        self.writer.commit()

    def _record(self, number: int, certificate: str) -> bytes:
        record = {
            "kind": epochs.KIND,
            "time": time.time_ns(),
            "boottime": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            "host": self._options.host,
            "boot_id": self._boot_id,
            "number": number,
            "certificate": certificate,
        }
        packed: bytes = msgpack.packb(record)
        return packed

    def _finish_epoch(self) -> None:
        if self._pending is None or self.writer.durable_seq <= self._pending[0].seq:
            return
        keys, payload = self._pending
        self._copy_epoch(keys.seq, payload)
        self._keys.promote()
        self._current, self._signers, self._pending = keys, keys.signers, None

    # -- files

    def _epoch_path(self, seq: int) -> Path:
        return self.log_dir / epochs.FOLDER / epochs.file_name(seq)

    def _copy_epoch(self, seq: int, payload: bytes) -> None:
        path = self._epoch_path(seq)
        if _read_file(path) == payload:
            return
        path.parent.mkdir(0o700, exist_ok=True)
        self._permit(path.parent)
        folder.replace_file(path, payload, mode=self._access.mode, gid=self._access.gid, durable=True)

    def _permit(self, path: Path) -> None:
        # One writer died between making it and this, or had another reader group.
        now = path.lstat()
        mode = self._access.folder_mode if stat.S_ISDIR(now.st_mode) else self._access.mode
        if not stat.S_ISLNK(now.st_mode) and (stat.S_IMODE(now.st_mode), now.st_gid) != (mode, self._access.gid):
            os.chown(path, -1, self._access.gid)
            path.chmod(mode)

    def _permit_all(self) -> None:
        # The identity last: its mode says that the others have theirs.
        identity = self.log_dir / epochs.IDENTITY_FILE
        parts = [self.log_dir / name for name in (tiles.FOLDER, epochs.FOLDER, checkpoint.FILE)]
        with contextlib.suppress(FileNotFoundError):
            now = identity.lstat()
            if (stat.S_IMODE(now.st_mode), now.st_gid) == (self._access.mode, self._access.gid):
                return
            for path in (*parts, *(path for part in parts for path in part.rglob("*")), identity):
                if path.exists():
                    self._permit(path)

    def _write(self, name: str, content: bytes) -> None:
        folder.replace_file(self.log_dir / name, content, mode=self._access.mode, gid=self._access.gid, durable=True)


def _sign(text: str, signers: list[note.Signer]) -> note.Note:
    signed = note.Note(text, ())
    for signer in signers:
        signed = signed.signed_by(signer, int(time.time()))
    return signed


def _nothing(level: int, index: int) -> bytes:
    raise LogError(f"an empty tree has no hash of level {level}, number {index}")


def _leaves(log_dir: Path, begin: int, end: int) -> Iterator[bytes]:
    """Yield the leaves of records; of one that cannot be read the leaf that a tile has, else the void leaf."""
    if begin == end:
        return
    old = TileReader(log_dir, end)
    seq = begin
    for number, payload in LogReader(log_dir).records(begin, end, on_damage=_pass_over):
        for missing in range(seq, number):
            yield _old_leaf(old, missing)
        yield merkle.leaf_hash(payload)
        seq = number + 1
    for missing in range(seq, end):
        yield _old_leaf(old, missing)


def _old_leaf(read: TileReader, seq: int) -> bytes:
    try:
        return read.leaf(seq)
    except LogError:
        return merkle.VOID_LEAF


def _pass_over(_: SegmentDamaged) -> None:
    """Whoever verifies says what is damaged."""


def _read_checkpoint(log_dir: Path) -> Checkpoint | None:
    # A damaged one is as good as none: the tree is made again from the records, and signed again.
    content = _read_file(log_dir / checkpoint.FILE)
    if content is None:
        return None
    try:
        return Checkpoint.parse(note.parse(content).text)
    except note.NoteError as e:
        log.warning("the checkpoint of %s is damaged (%s); another one follows", log_dir, e)
        return None


def _read_file(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _set_aside(log_dir: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    number = 1
    while True:
        target = log_dir / (f"{folder.SET_ASIDE}{stamp}" if number == 1 else f"{folder.SET_ASIDE}{stamp}.{number}")
        with contextlib.suppress(FileExistsError):
            target.mkdir(0o700)
            break
        number += 1
    # The checkpoint last: without it a part of a log that was left behind could pass for a whole one.
    for path in sorted(log_dir.iterdir(), key=lambda path: path.name == checkpoint.FILE):
        if path.name == folder.LOCK_NAME or path.name.startswith(folder.SET_ASIDE):
            continue
        if segment.is_compressed(path.name):
            set_append_only(path, on=False)
        path.rename(target / path.name)
    for path in (target, log_dir):
        folder.fsync_folder(path)
    return target
