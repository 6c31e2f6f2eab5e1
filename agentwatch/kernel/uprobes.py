"""TLS libraries: which functions of them are hooked, and the links that do it, one file (inode) at a time.

A uprobe is a breakpoint in a file, for every process that maps it, now or later; probes/tls.c asks first whether the
process is watched. What is attached is pinned below ``files_dir``, so it stays when the recorder ends, and it holds
the inode, so that its number is not given to another file meanwhile.

A library is found by the symbols in its file, never by its name: drivers bring their own copies, under names of their
own or linked into an extension. The kernel tells of each file that a watched process maps to run it and that is not in
the map ``files`` (probes/library.c); ``scan`` looks into what is installed before anything maps it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.errors import KernelError, PrivilegeError, ProbesNotLoaded
from agentwatch.kernel import bpf, elf, hooks, pins
from agentwatch.kernel.abi import Call

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agentwatch.config import Config

_WRITE, _READ, _IO, _FREE = Call.CALL_WRITE, Call.CALL_READ, Call.CALL_IO, Call.CALL_FREE

FUNCTIONS: dict[str, int] = {
    # OpenSSL and BoringSSL, ssl.h
    "SSL_write": _WRITE | Call.COUNT_INT,
    "SSL_write_ex": _WRITE | Call.COUNT_FOURTH,
    "SSL_write_ex2": _WRITE | Call.COUNT_FIFTH,
    "SSL_write_early_data": _WRITE | Call.COUNT_FOURTH,
    "SSL_sendfile": _WRITE | Call.COUNT_LONG | Call.CALL_NO_BUFFER,
    "SSL_read": _READ | Call.COUNT_INT,
    "SSL_read_ex": _READ | Call.COUNT_FOURTH,
    "SSL_read_early_data": _READ | Call.COUNT_FOURTH,
    "SSL_peek": _IO,
    "SSL_peek_ex": _IO,
    "SSL_do_handshake": _IO,
    "SSL_free": _FREE,
    "BIO_write": Call.CALL_RECORD,
    # GnuTLS, gnutls.h
    "gnutls_record_send": _WRITE | Call.COUNT_LONG,
    "gnutls_record_send2": _WRITE | Call.COUNT_LONG,
    "gnutls_record_send_range": _WRITE | Call.COUNT_LONG,
    "gnutls_record_send_early_data": _WRITE | Call.COUNT_ALL,
    "gnutls_record_recv": _READ | Call.COUNT_LONG,
    "gnutls_record_recv_seq": _READ | Call.COUNT_LONG,
    "gnutls_record_recv_early_data": _READ | Call.COUNT_LONG,
    "gnutls_record_uncork": _IO,
    "gnutls_handshake": _IO,
    "gnutls_deinit": _FREE,
    # Go's crypto/tls, by the register calling convention (Go 1.17)
    "crypto/tls.(*Conn).Write": _WRITE | Call.COUNT_LONG | Call.CALL_GO,
    "crypto/tls.(*Conn).Read": _READ | Call.COUNT_LONG | Call.CALL_GO,
    "crypto/tls.(*Conn).Close": _FREE | Call.CALL_GO,
}
"""Function -> the cookie of its uprobes (``enum aw_call``). A peek hands over what a read will hand over again."""

_NAMES = frozenset(FUNCTIONS)
_RETURNING = (_WRITE, _READ, _IO)
_LEAST_BYTES = 4096
"""A smaller file has no room for a library."""
_ELF_MAGIC = b"\x7fELF"
_KEY = struct.Struct("<QII")
_DEVICE_SHIFT = 20
_FS_IOC_GETVERSION = 0x80087601
MAX_HOOKED = 4096
"""Files that are hooked at one time, each with up to three links that are held open. An agent can make any number of
copies of a library: what it says through one beyond the limit is declared as not read."""
_ENTRY_PIN = re.compile(r"(\d+):(\d+)-(\d+)-enter")
"""The link that every file has which is hooked."""


class Library(NamedTuple):
    """A file with functions of a TLS library in it, which are hooked now."""

    path: str
    """As it was found; its process may have another name for it."""
    device: int
    inode: int
    functions: tuple[str, ...]


class Hooked(NamedTuple):
    """A file that is hooked, as far as its pins tell."""

    device: int
    """As in ``st_dev``."""
    inode: int
    path: str | None
    """Where it was found when the probes were loaded, if it is there still."""


class Scan(NamedTuple):
    """What a scan came across."""

    files: int
    """ELF files that were looked into."""
    libraries: tuple[Library, ...]
    seconds: float
    problem: str | None
    """Why the last one that could not be hooked could not."""


class Uprobes:
    """What attaches. Raises ProbesNotLoaded."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._folder = pins.files_dir(config)
        self._programs = {name: bpf.obj_get(pins.programs_dir(config) / name) for name in hooks.LIBRARY_PROGRAMS}
        self._files = pins.open_map(config, "files")
        self._links: dict[Path, int] = {}
        """Pins, held open: one that is removed then detaches nothing."""
        for pin in self._folder.iterdir():
            with contextlib.suppress(KernelError):
                self._links[pin] = bpf.obj_get(pin)

    def close(self) -> None:
        """Let go of everything; what is pinned stays attached."""
        for descriptor in (*self._programs.values(), *self._links.values(), self._files):
            os.close(descriptor)
        self._links.clear()

    def look_into(self, path: Path | str, *, mark: bool = False) -> Library | None:
        """Attach to a file's TLS functions; return it if it has any and they were not hooked before.

        ``mark``: the kernel need not tell of the file any more. Where the generation of an inode is not told, it does
        once more. Raises OSError if it cannot be read, KernelError if the kernel refuses.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(descriptor)
            found = self._hook(descriptor, status)
            if mark:
                key = _KEY.pack(status.st_ino, kernel_device(status.st_dev), _generation(descriptor))
                bpf.map_update(self._files, key, b"\1")
        finally:
            os.close(descriptor)
        if not found:
            return None
        return Library(str(path), status.st_dev, status.st_ino, tuple(sorted({f.name for f in found})))

    def _hook(self, descriptor: int, status: os.stat_result) -> Sequence[elf.Function]:
        """Attach to what an open file has; return that, nothing if it was hooked before."""
        if not _may_hold_code(descriptor, status):
            return ()
        name = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}-{status.st_ino}"
        if self._folder / f"{name}-enter" in self._links:
            return ()
        found = elf.functions(descriptor, _NAMES)
        if not found:
            return ()
        if sum(pin.name.endswith("-enter") for pin in self._links) >= MAX_HOOKED:
            raise KernelError(f"{MAX_HOOKED} TLS libraries are hooked already; unload and load the probes")
        # By the descriptor: the name could have become another file's.
        self._attach(f"/proc/self/fd/{descriptor}", name, found)
        return found

    def unmark(self, device: int, inode: int, generation: int) -> None:
        """Have the kernel tell of a file again: it could not be looked into. ``device``: in the kernel's own form."""
        bpf.map_delete(self._files, _KEY.pack(inode, device, generation))

    def restore(self) -> list[Path]:
        """Pin again what is held and not pinned any more; return what that was."""
        programs = pins.programs_dir(self._config)
        held = self._links | {programs / name: descriptor for name, descriptor in self._programs.items()}
        gone = [pin for pin in held if not pin.exists()]
        for pin in gone:
            with contextlib.suppress(OSError, KernelError, PrivilegeError):
                for folder in (self._config.pin_dir, pin.parent):
                    folder.mkdir(mode=0o700, exist_ok=True)
                bpf.obj_pin(held[pin], pin)
        return gone

    def scan(self, roots: Sequence[Path]) -> Scan:
        """Look into every file below the roots that could be mapped to run it; what cannot be read is left out."""
        began = time.monotonic()
        libraries: list[Library] = []
        files = 0
        problem = None
        for path, _ in _candidates(roots):
            try:
                library = self.look_into(path, mark=True)
            except OSError:
                continue
            except KernelError as e:
                problem = str(e)
                continue
            files += 1
            if library is not None:
                libraries.append(library)
        return Scan(files, tuple(libraries), time.monotonic() - began, problem)

    def scan_processes(self, processes: Sequence[int]) -> list[Library]:
        """Look into what processes have mapped already, also in other mount namespaces."""
        found = []
        for tgid in processes:
            for path in mapped_files(tgid):
                with contextlib.suppress(OSError, KernelError):
                    library = self.look_into(path, mark=True)
                    if library is not None:
                        found.append(library)
        return found

    def _attach(self, path: str, name: str, found: Sequence[elf.Function]) -> None:
        """Attach to returns first: a call that has no entry is nothing, one that never returns would be forgotten."""
        c = [f for f in found if not FUNCTIONS[f.name] & Call.CALL_GO]
        go = [(place, FUNCTIONS[f.name]) for f in found for place in f.returns]
        returning = [(f.offset, FUNCTIONS[f.name]) for f in c if FUNCTIONS[f.name] & Call.CALL_KIND in _RETURNING]
        entries = [(f.offset, FUNCTIONS[f.name]) for f in found]
        self._link(path, f"{name}-return", "on_tls_return", returning, at_return=True)
        self._link(path, f"{name}-go-return", "on_tls_return", go)
        self._link(path, f"{name}-enter", "on_tls_enter", entries)

    def _link(
        self, path: str, name: str, program: str, places: list[tuple[int, int]], *, at_return: bool = False
    ) -> None:
        if not places:
            return
        offsets, cookies = [p[0] for p in places], [p[1] for p in places]
        link = bpf.attach_uprobes(self._programs[program], path, offsets, cookies, at_return=at_return)
        pin = self._folder / name
        try:
            bpf.obj_pin(link, pin)
        except BaseException:
            os.close(link)
            raise
        self._links[pin] = link


def hooked(config: Config) -> list[Hooked]:
    """Return the files that are hooked, in the order of device and inode."""
    paths: dict[tuple[int, int], str] = {}
    with contextlib.suppress(ProbesNotLoaded):
        for path in pins.read_status(config).libraries:
            with contextlib.suppress(OSError):
                status = Path(path).stat()
                paths[status.st_dev, status.st_ino] = path
    found = sorted(_hooked_inodes(pins.files_dir(config)))
    return [Hooked(device, inode, paths.get((device, inode))) for device, inode in found]


def _hooked_inodes(folder: Path) -> Iterator[tuple[int, int]]:
    if not folder.is_dir():
        return
    for pin in folder.iterdir():
        if match := _ENTRY_PIN.fullmatch(pin.name):
            major, minor, inode = map(int, match.groups())
            yield os.makedev(major, minor), inode


def _generation(descriptor: int) -> int:
    """Return the generation of an open file's inode, 0 where the file system does not tell it."""
    buffer = bytearray(struct.calcsize("l"))
    try:
        fcntl.ioctl(descriptor, _FS_IOC_GETVERSION, buffer)
    except OSError:
        return 0
    return int.from_bytes(buffer[:4], "little")


def kernel_device(device: int) -> int:
    """Return st_dev as the kernel has it in a super block."""
    return os.major(device) << _DEVICE_SHIFT | os.minor(device)


def mapped_files(tgid: int) -> list[str]:
    """Return the files that a process has mapped to run them, by links that lead to them whatever their names are."""
    found: dict[tuple[str, str], str] = {}
    for line in _mappings(tgid):
        span, flags, _, device, inode, *_ = line.split(maxsplit=5)
        if "x" in flags and inode != "0":
            found.setdefault((device, inode), f"/proc/{tgid}/map_files/{_shortened(span)}")
    return list(found.values())


def mapped_file(tgid: int, address: int) -> str | None:
    """Return the link to the file that a process has mapped at an address, None if it has none (any more)."""
    if not address:
        return f"/proc/{tgid}/exe"
    for line in _mappings(tgid):
        span = line.partition(" ")[0]
        begin, end = (int(bound, 16) for bound in span.split("-"))
        if begin <= address < end:
            return f"/proc/{tgid}/map_files/{_shortened(span)}"
    return None


def _mappings(tgid: int) -> list[str]:
    """Return the lines of a process's maps, none if it is gone."""
    try:
        return Path(f"/proc/{tgid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _shortened(span: str) -> str:
    """Return an address range of maps as map_files spells it: without leading zeros."""
    return "-".join(f"{int(address, 16):x}" for address in span.split("-"))


def _may_hold_code(descriptor: int, status: os.stat_result) -> bool:
    if not stat.S_ISREG(status.st_mode) or status.st_size < _LEAST_BYTES:
        return False
    return os.pread(descriptor, len(_ELF_MAGIC), 0) == _ELF_MAGIC


def _candidates(roots: Sequence[Path]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield files that are executable, or named as shared objects are; each inode once, links not followed."""
    seen: set[tuple[int, int]] = set()
    for root in roots:
        for directory, _, names in os.walk(root):
            for name in names:
                path = os.path.join(directory, name)  # noqa: PTH118 -- some 100,000 of them
                try:
                    status = os.lstat(path)
                except OSError:
                    continue
                if not stat.S_ISREG(status.st_mode) or status.st_size < _LEAST_BYTES:
                    continue
                if not (status.st_mode & 0o111 or ".so" in name or name.endswith(".node")):
                    continue
                key = status.st_dev, status.st_ino
                if key not in seen:
                    seen.add(key)
                    yield path, status
