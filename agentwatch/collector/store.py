"""What the collector keeps of one host, in a folder with the host's name.

``identity``, ``epochs/`` and ``checkpoint`` are what was accepted (trust.py), as files of a log's folder; ``log/`` is
the mirror of the records (mirror.py); ``silent`` is there while the host is silent. What always holds: what was
answered with a commit point is on disk, and what was accepted is never replaced by something smaller. The mirror
hangs on the trust and not the other way round: a mirror that is damaged takes no more records, and checkpoints go on
being accepted.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING

from agentwatch.collector import files
from agentwatch.collector.frames import VERSION, Commit
from agentwatch.collector.mirror import Mirror
from agentwatch.collector.trust import FORGED, IDENTITY, Refusal, Tree, Trust
from agentwatch.errors import AgentwatchError, LogError
from agentwatch.log import checkpoint, epochs, folder, note
from agentwatch.log.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agentwatch.collector.frames import Head, Hello, Records, Step
    from agentwatch.log.access import Access

log = logging.getLogger(__name__)

MIRROR = "log"
MIRROR_RETRY_NS = 300 * 10**9
"""After a mirror could not be opened: to look at a damaged one costs reading all of it."""
SILENT = "silent"


class Host:
    """One host. Not for use by several threads at once."""

    def __init__(self, path: Path, access: Access) -> None:
        """Read what is kept. Raises LogError where that is damaged, StoreError."""
        self.name = path.name
        self._path = path
        self._access = access
        self._mirror: Mirror | None = None
        self._mirror_failed_ns: int | None = None
        self._outdated = False
        self._waiting: str | None = None
        """The accepted checkpoint that the mirror comes to next."""
        self._trust = self._restore()

    @property
    def enrolled(self) -> bool:
        """Whether anything of its log has been accepted."""
        return self._trust is not None and bool(self._trust.chain.epochs)

    @property
    def origin(self) -> str:
        """The origin of its log; empty before the first greeting."""
        return self._trust.origin if self._trust else ""

    @property
    def identity(self) -> str:
        """The vkey of its log's identity; empty before the first greeting."""
        return str(self._trust.identity) if self._trust else ""

    @property
    def size(self) -> int:
        """Records in the newest accepted tree."""
        return self._trust.head.size if self._trust else 0

    def greet(self, hello: Hello) -> None:
        """Begin with a log, or go on with the known one. Raises Refusal for another one, LogError, StoreError."""
        if self._outdated:
            self._trust = self._restore()
            self._outdated = False
        if hello.version != VERSION:
            raise Refusal(FORGED, f"version {hello.version} of the protocol; this collector speaks version {VERSION}")
        if self.enrolled:
            if (hello.origin, hello.identity) != (self.origin, self.identity):
                raise Refusal(IDENTITY, f"its log is {hello.origin[:80]!r}, and it was enrolled with {self.origin}")
        else:
            try:
                key = note.Key.parse(hello.identity)
                self._trust = Trust(checkpoint.parse_origin(hello.origin), key)
            except note.NoteError as e:
                raise Refusal(FORGED, str(e)) from e
        self.wake()

    def commit_point(self, cosignature: str = "") -> Commit:
        """Return what was accepted so far."""
        trust = self._known()
        next_seq = 0 if not self.enrolled else self._mirror.next_seq if self._mirror else None
        return Commit(*trust.head, len(trust.chain.epochs), trust.epoch_leaf, next_seq, cosignature)

    def take_epochs(self, steps: tuple[Step, ...], enrol: Callable[[], None]) -> None:
        """Accept epochs; ``enrol`` is called before the first one of all is kept. Raises Refusal, StoreError."""
        trust = self._known()
        with self._writing():
            for step in steps:
                first = not trust.chain.epochs
                if not trust.take_epoch(step):
                    continue
                if first:
                    self._enrol(enrol)
                    self._access.make_folder(self._path / epochs.FOLDER)
                    self._access.write(self._path / epochs.IDENTITY_FILE, f"{trust.identity}\n".encode())
                self._access.write(self._path / epochs.FOLDER / epochs.file_name(step.seq), step.payload)
        self.wake()
        self._follow(lambda mirror: mirror.keep_epochs(trust.identity, trust.chain.epochs, self._path / epochs.FOLDER))

    def take_head(self, head: Head) -> Checkpoint:
        """Accept a checkpoint. Raises Refusal, StoreError."""
        trust = self._known()
        found = trust.take_head(head)
        with self._writing():
            self._access.write(self._path / checkpoint.FILE, head.note.encode())
        self._waiting = self._waiting or head.note
        self._settle()
        return found

    def take_records(self, batch: Records) -> None:
        """Keep records that are proved. Raises Refusal."""
        trust = self._known()
        self._follow(lambda mirror: mirror.add(batch, trust.head))
        self._settle()

    @property
    def silent(self) -> bool:
        """Whether an alarm stands that it is silent."""
        return (self._path / SILENT).exists()

    @silent.setter
    def silent(self, value: bool) -> None:
        with self._writing():
            if value:
                self._access.write(self._path / SILENT, b"")
            else:
                (self._path / SILENT).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the mirror."""
        mirror, self._mirror = self._mirror, None
        if mirror is not None:
            with contextlib.suppress(AgentwatchError):
                mirror.close()

    def distrust_memory(self) -> None:
        """Go back to what is on disk with the next greeting, after an error."""
        self.close()
        self._outdated = True

    def _enrol(self, enrol: Callable[[], None]) -> None:
        try:
            enrol()
        except BaseException:
            self._trust = None
            raise

    def _known(self) -> Trust:
        if self._trust is None or self._outdated:
            raise Refusal(FORGED, "it did not say whose log it sends")
        return self._trust

    def _restore(self) -> Trust | None:
        self._waiting = None
        content = files.read(self._path / epochs.IDENTITY_FILE)
        if content is None:
            return None
        stored = [(seq, files.read(path) or b"") for seq, path in self._listed_epochs()]
        newest = files.read(self._path / checkpoint.FILE)
        try:
            identity = note.Key.parse(content.decode())
            trust = Trust(identity.name.removesuffix("/identity"), identity)
            self._waiting = newest.decode() if newest is not None else None
            trust.restore(stored, self._waiting)
        except (note.NoteError, UnicodeDecodeError, Refusal) as e:
            raise LogError(f"what is kept of the host in {self._path} is damaged: {e}; restore it from a backup") from e
        return trust

    def _listed_epochs(self) -> list[tuple[int, Path]]:
        try:
            return files.epochs_in(self._path / epochs.FOLDER)
        except OSError as e:
            raise folder.failure(e, f"cannot list the epochs of {self._path}") from e

    def wake(self) -> None:
        """Open the mirror where it is not open, unless that failed a short time ago."""
        trust = self._known()
        failed_ns = self._mirror_failed_ns
        if self._mirror is not None or not self.enrolled:
            return
        if failed_ns is not None and time.monotonic_ns() - failed_ns < MIRROR_RETRY_NS:
            return
        try:
            self._mirror = Mirror(self._path / MIRROR, trust.origin, self._access)
        except (AgentwatchError, OSError) as e:
            self._mirror_fails(e)
            return
        self._follow(lambda mirror: mirror.keep_epochs(trust.identity, trust.chain.epochs, self._path / epochs.FOLDER))
        self._settle()

    def _settle(self) -> None:
        if self._waiting is None or self._mirror is None:
            return
        signed, tree = self._waiting, _tree_of(self._waiting)
        if tree.size > self._mirror.next_seq:
            return
        self._follow(lambda mirror: mirror.settle(signed, tree))
        newest = files.read(self._path / checkpoint.FILE)
        waiting = newest.decode() if newest is not None else signed
        self._waiting = None if waiting == signed else waiting
        self._settle()

    def _follow(self, do: Callable[[Mirror], object]) -> None:
        # What goes wrong with the mirror ends the mirror, not the trust.
        if self._mirror is None:
            return
        try:
            do(self._mirror)
        except Refusal:
            raise
        except (AgentwatchError, OSError) as e:
            self._mirror_fails(e)

    def _mirror_fails(self, error: Exception) -> None:
        log.error("no records are taken from %s for now: %s", self.name, error)
        self._mirror_failed_ns = time.monotonic_ns()
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise folder.failure(e, f"cannot keep what {self.name} sent in {self._path}") from e


def _tree_of(signed: str) -> Tree:
    found = Checkpoint.parse(note.parse(signed).text)
    return Tree(found.size, found.root)
