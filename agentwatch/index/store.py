"""The SQLite file of the index: where it lies, who may write it, and what happens when it is not usable.

One writer at a time (an flock beside the file), any number of readers (WAL). The file is derived from the log, so a
file that is missing, of another schema version or damaged is not an error for a writer: it starts again from
nothing. A reader that may not write gets an empty index in that case, and the answer states that nothing is indexed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sqlite3
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.errors import BusyError, PrivilegeError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentwatch.config import Config

SCHEMA_VERSION = 3
"""Raised with every change of schema.sql or of what is derived; another version in a file means: build it again."""
FILE_NAME = "index.db"
LOCK_NAME = "index.lock"
BUSY_TIMEOUT_S = 5.0
"""How long SQLite waits for a checkpoint of another process before it gives up."""
CACHE_KIB = 32 * 1024
"""Page cache of the writer: holds the upper levels of the trees of some ten million statements."""


class Position(NamedTuple):
    """How far the index has read the log."""

    next_seq: int
    last_digest: bytes | None
    first_time: int | None
    last_time: int | None
    boot_id: str | None


def digest(payload: bytes) -> bytes:
    """Return the mark by which the index knows the last record it read."""
    return hashlib.sha256(payload).digest()


def path_of(config: Config) -> Path:
    """Return where the index lies."""
    return config.state_dir / FILE_NAME


def position(db: sqlite3.Connection) -> Position:
    """Return how far the index has read the log."""
    row = db.execute("SELECT next_seq, last_digest, first_time, last_time, boot_id FROM position").fetchone()
    return Position(*row) if row else Position(0, None, None, None, None)


@contextmanager
def describing(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into StoreError, with what to do about them."""
    try:
        yield
    except sqlite3.DatabaseError as e:
        if is_damage(e):
            raise StoreError(
                f"the index {path} is damaged ({e}); it is derived from the log: run `agentwatch index rebuild`"
            ) from e
        raise StoreError(f"cannot use the index {path}: {e}") from e


def is_damage(error: sqlite3.Error) -> bool:
    """Tell a file whose content is not an index from trouble that passes (a full disk, a lock, a permission)."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return False
    # Errors of the plain class SQLITE_ERROR (no such table, no such column) mean a schema that is not ours.
    return (code & 0xFF) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


class WriterLock:
    """The flock that makes the indexer the only one; held until ``close``."""

    def __init__(self, config: Config) -> None:
        """Take the lock, making the directory. Raises BusyError, PrivilegeError, StoreError."""
        make_directory(config)
        path = config.state_dir / LOCK_NAME
        with _opening(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(self._fd)
            raise BusyError(f"another process is indexing ({path} is locked); wait for it or stop it") from e

    def close(self) -> None:
        """Let the next writer in."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def make_directory(config: Config) -> None:
    """Make the state directory, for root and the reader group only. One that exists keeps its mode."""
    with _opening(config.state_dir):
        config.state_dir.parent.mkdir(parents=True, exist_ok=True)
        try:
            config.state_dir.mkdir(mode=0o700)
        except FileExistsError:
            return
        if (gid := config.reader_gid()) is not None:
            os.chown(config.state_dir, -1, gid)
            config.state_dir.chmod(0o750)


def open_writer(config: Config) -> sqlite3.Connection:
    """Open the index for writing; the caller holds the WriterLock. Starts again where the file is not usable."""
    path = path_of(config)
    if path.exists():
        try:
            return _open_existing(path)
        except sqlite3.Error as e:
            if not is_damage(e):
                raise StoreError(f"cannot open the index {path}: {e}") from e
        except _OtherVersion:
            pass
    return create(config)


def create(config: Config) -> sqlite3.Connection:
    """Make an empty index in the place of whatever lies there; the caller holds the WriterLock."""
    path = path_of(config)
    with _opening(path), describing(path):
        # The database goes first: a leftover write-ahead log must never meet a database that is not its own.
        for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            name.unlink(missing_ok=True)
        # Before SQLite writes a byte the mode is right; the -wal and -shm files take it from the database.
        gid = config.reader_gid()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if gid is not None:
                os.fchown(fd, -1, gid)
                os.fchmod(fd, 0o640)
        finally:
            os.close(fd)
        db = _connect(path)
        db.execute("PRAGMA journal_mode = WAL")
        _tune_writer(db)
        db.executescript(f"BEGIN;\n{_schema()}\nPRAGMA user_version = {SCHEMA_VERSION};\nCOMMIT;")
        return db


def open_reader(config: Config) -> sqlite3.Connection:
    """Open the index for reading; an empty one where none is usable. Raises PrivilegeError, StoreError."""
    path = path_of(config)
    try:
        path.stat()
    except FileNotFoundError:
        return empty()
    except PermissionError as e:
        raise _forbidden(path) from e
    if not os.access(path, os.R_OK):
        raise _forbidden(path)
    try:
        return _open_readable(path)
    except sqlite3.Error as e:
        if is_damage(e):
            return empty()
        raise StoreError(f"cannot open the index {path}: {e}") from e
    except _OtherVersion:
        return empty()


def empty() -> sqlite3.Connection:
    """Return an index that has read nothing, in memory."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(_schema())
    return db


class _OtherVersion(Exception):
    pass


def _schema() -> str:
    return resources.files("agentwatch.index").joinpath("schema.sql").read_text(encoding="utf-8")


def _connect(path: Path, query: str = "mode=rw") -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{query}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, cached_statements=256)


def _tune_writer(db: sqlite3.Connection) -> None:
    # NORMAL: after a power cut the last transactions may be missing, never half of one; they are read again.
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")


def _open_existing(path: Path) -> sqlite3.Connection:
    return _checked(_connect(path), tune=True)


def _open_readable(path: Path) -> sqlite3.Connection:
    try:
        return _checked(_connect(path, "mode=ro"))
    except sqlite3.OperationalError as e:
        # A reader that may not make the -shm file can still read when nobody writes: there is no -wal then.
        if Path(f"{path}-wal").exists() or e.sqlite_errorcode & 0xFF not in (
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_READONLY,
        ):
            raise
        return _checked(_connect(path, "mode=ro&immutable=1"))


def _checked(db: sqlite3.Connection, *, tune: bool = False) -> sqlite3.Connection:
    try:
        same_version = db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
        if same_version:
            position(db)
            if tune:
                _tune_writer(db)
    except BaseException:
        db.close()
        raise
    if not same_version:
        db.close()
        raise _OtherVersion
    return db


def _forbidden(path: Path) -> PrivilegeError:
    return PrivilegeError(f"cannot read {path}: permission denied; ask as root or as a member of reader_group")


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as e:
        raise PrivilegeError(f"cannot write {path}: permission denied; index as root") from e
    except OSError as e:
        if e.errno == errno.EROFS:
            raise PrivilegeError(f"cannot write {path}: the file system is read-only") from e
        raise StoreError(f"cannot write {path}: {e.strerror}") from e
