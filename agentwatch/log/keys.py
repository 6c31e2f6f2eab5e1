"""The private keys of a log: who signs now, and who will. One folder, root's alone, never part of the log.

In: the folder. Out: the keys of the present epoch, across restarts of the writer within one boot. What always holds:

* the host identity key is never stored: it lives while the first certificate is made;
* the key of an epoch is on disk before anything depends on it, and its predecessor is overwritten and gone
  once the log has the record that certifies it;
* a folder or file that others than its owner can open is refused, not repaired: somebody may have read it.

``epoch`` is the key that signs; ``epoch.next`` the one that will when its record is durable.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from agentwatch.errors import LogError, PrivilegeError
from agentwatch.log import checkpoint, folder, note

if TYPE_CHECKING:
    from pathlib import Path

CURRENT = "epoch"
NEXT = "epoch.next"
SEED_BYTES = 32


class EpochKeys(NamedTuple):
    """The keys of one epoch.

    ``seq`` is the record that began it, ``began_ns`` was CLOCK_BOOTTIME then, in the boot ``boot_id``.
    """

    origin: str
    number: int
    seq: int
    boot_id: str
    began_ns: int
    ed25519: bytes
    ml_dsa_44: bytes | None

    @property
    def signers(self) -> list[note.Signer]:
        """Who signs in this epoch, all of them."""
        found: list[note.Signer] = [note.Ed25519Signer(self.origin, self.ed25519)]
        if self.ml_dsa_44 is not None:
            found.append(note.MlDsaSigner(self.origin, self.ml_dsa_44))
        return found

    @property
    def public(self) -> tuple[note.Key, ...]:
        """Their public sides."""
        return tuple(signer.key for signer in self.signers)


def new_seed() -> bytes:
    """Return a private key, of either kind."""
    return os.urandom(SEED_BYTES)


class KeyFolder:
    """The folder of the keys.

    Raises PrivilegeError if others can look into it, LogError if a key file is no such thing.
    """

    def __init__(self, path: Path) -> None:
        """Make the folder where there is none. Raises OSError too."""
        self.path = path
        if not path.is_dir():
            path.mkdir(0o700, parents=True)
            path.chmod(0o700)  # not by umask
            folder.fsync_folder(path.parent)
        self._refuse_open(path, path.lstat())
        for name in (CURRENT, NEXT):
            with contextlib.suppress(FileNotFoundError):
                self._refuse_open(path / name, (path / name).lstat())

    def load(self, name: str = CURRENT) -> EpochKeys | None:
        """Return the keys in a file, None without one."""
        content = self._read(name)
        return None if content is None else _unpack(self.path / name, content)

    def store_next(self, keys: EpochKeys) -> None:
        """Keep the keys of the next epoch; they are on disk when this returns. Raises OSError."""
        self._write(NEXT, _pack(keys))

    def promote(self) -> None:
        """Let the next keys be the present ones; those before are overwritten first. Raises OSError; may be repeated.

        A file system that writes elsewhere (copy on write, a flash disk) may still have the old blocks: then it is
        only as gone as that disk forgets.
        """
        if (self.path / NEXT).exists():
            self._overwrite(CURRENT)
            (self.path / NEXT).rename(self.path / CURRENT)
        # Else it was only this that failed before, and the present keys are the ones to keep.
        folder.fsync_folder(self.path)

    def discard_next(self) -> None:
        """Forget keys that never began an epoch."""
        self._overwrite(NEXT)
        (self.path / NEXT).unlink(missing_ok=True)

    def discard(self) -> None:
        """Forget the keys of a log that was set aside."""
        for name in (CURRENT, NEXT):
            self._overwrite(name)
            (self.path / name).unlink(missing_ok=True)
        folder.fsync_folder(self.path)

    def secret(self, name: str) -> bytes:
        """Return 32 random bytes that stay the same: of the file ``name``, made when they are first asked for."""
        content = self._read(name)
        if content is None:
            self._write(name, os.urandom(SEED_BYTES))
            content = self._read(name)
        if content is None or len(content) != SEED_BYTES:
            raise LogError(f"{self.path / name} should hold {SEED_BYTES} bytes; remove it, and a new one is made")
        return content

    def _read(self, name: str) -> bytes | None:
        try:
            fd = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            self._refuse_open(self.path / name, os.fstat(fd))
            return file.read()

    def _write(self, name: str, content: bytes) -> None:
        folder.replace_file(self.path / name, content, mode=0o600, gid=os.getegid(), durable=True)
        folder.fsync_folder(self.path)

    def _overwrite(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(self.path / name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                size, done = os.fstat(fd).st_size, 0
                while done < size:
                    done += os.pwrite(fd, bytes(size - done), done)
                os.fdatasync(fd)
            finally:
                os.close(fd)

    def _refuse_open(self, path: Path, status: os.stat_result) -> None:
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise PrivilegeError(
                f"{path} can be opened by others than user {os.geteuid()}: keys in it are no secret. "
                f"Find out who could, then remove {self.path}: the log begins anew with a new identity"
            )


def _pack(keys: EpochKeys) -> bytes:
    fields = keys._asdict()
    for name in ("ed25519", "ml_dsa_44"):
        fields[name] = None if fields[name] is None else base64.b64encode(fields[name]).decode()
    return json.dumps(fields).encode()


def _unpack(path: Path, content: bytes) -> EpochKeys | None:
    # Overwritten with zeros and not replaced yet: a crash in ``promote``, and the next keys are there.
    if not any(content):
        return None
    try:
        fields: dict[str, Any] = json.loads(content)
        for name in ("ed25519", "ml_dsa_44"):
            fields[name] = None if fields[name] is None else base64.b64decode(fields[name], validate=True)
        return _checked(EpochKeys(**fields))
    except (ValueError, TypeError, KeyError, binascii.Error) as e:
        raise LogError(
            f"{path} is not a key file of a log; move it away: the log begins anew with a new identity"
        ) from e


def _checked(keys: EpochKeys) -> EpochKeys:
    # Raises ValueError, of which NoteError is one, for what would fail later, where nobody expects it to.
    checkpoint.parse_origin(keys.origin)
    numbers = (keys.number, keys.seq, keys.began_ns)
    if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(keys.boot_id, str):
        raise ValueError("a number is none")
    if any(seed is not None and len(seed) != SEED_BYTES for seed in keys[-2:]) or keys.ed25519 is None:
        raise ValueError("a key is none")
    return keys
