"""What of the uprobes needs no kernel: what is hooked how, which files are looked into, what a process has mapped."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from agentwatch.kernel import uprobes
from agentwatch.kernel.abi import Call
from agentwatch.kernel.uprobes import FUNCTIONS, kernel_device, mapped_file, mapped_files

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = {Call.CALL_WRITE, Call.CALL_READ, Call.CALL_IO, Call.CALL_FREE, Call.CALL_RECORD}
PLACES = {Call.COUNT_INT, Call.COUNT_LONG, Call.COUNT_ALL, Call.COUNT_FOURTH, Call.COUNT_FIFTH}
FLAGS = Call.CALL_GO | Call.CALL_NO_BUFFER
PAGE = mmap.PAGESIZE
ELF = b"\x7fELF" + bytes(8192)


# -- what is hooked


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_cookie_of_a_function_is_one_that_the_probes_know(name: str) -> None:
    cookie = FUNCTIONS[name]
    kind, where = cookie & Call.CALL_KIND, cookie & Call.COUNT_WHERE
    assert kind in KINDS
    assert where in PLACES
    assert cookie == kind | where | cookie & FLAGS
    assert where == Call.COUNT_INT or kind in (Call.CALL_WRITE, Call.CALL_READ)  # others count nothing
    if cookie & Call.CALL_GO:
        assert where in (Call.COUNT_INT, Call.COUNT_LONG)  # its results are in registers
    if cookie & Call.CALL_NO_BUFFER:
        assert kind == Call.CALL_WRITE


def test_functions_are_hooked_as_their_signatures_say() -> None:
    int_ = {"SSL_write": Call.CALL_WRITE, "SSL_read": Call.CALL_READ}
    for name, cookie in FUNCTIONS.items():
        if name in int_:
            assert cookie == int_[name] | Call.COUNT_INT
        elif name.startswith(("SSL_write", "SSL_read")):
            fifth = name == "SSL_write_ex2"  # its flags are before the place for the count
            kind = Call.CALL_WRITE if "write" in name else Call.CALL_READ
            assert cookie == kind | (Call.COUNT_FIFTH if fifth else Call.COUNT_FOURTH)
        elif name.startswith("gnutls_record_") and not name.endswith("uncork"):
            kind = Call.CALL_WRITE if "send" in name else Call.CALL_READ
            early = name == "gnutls_record_send_early_data"  # returns 0 when it has taken everything
            assert cookie == kind | (Call.COUNT_ALL if early else Call.COUNT_LONG)
        assert bool(cookie & Call.CALL_GO) == name.startswith("crypto/tls.")


def test_what_a_peek_shows_is_not_told_twice() -> None:
    assert {FUNCTIONS[name] & Call.CALL_KIND for name in FUNCTIONS if "peek" in name} == {Call.CALL_IO}


def test_each_library_has_a_function_that_says_when_a_connection_ends() -> None:
    for prefix in ("SSL_", "gnutls_", "crypto/tls."):
        kinds = [cookie & Call.CALL_KIND for name, cookie in FUNCTIONS.items() if name.startswith(prefix)]
        assert kinds.count(Call.CALL_FREE) == 1
        assert {Call.CALL_WRITE, Call.CALL_READ} <= set(kinds)


# -- devices


@pytest.mark.parametrize("major", [0, 1, 8, 259, 4095])
@pytest.mark.parametrize("minor", [0, 1, 255, 256, 70_000, (1 << 20) - 1])
def test_a_device_is_the_number_that_a_super_block_has(major: int, minor: int) -> None:
    assert kernel_device(os.makedev(major, minor)) == major << 20 | minor


# -- what a process has mapped


def identity(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def test_files_that_this_process_runs_are_found_by_links_to_them() -> None:
    maps = psutil.Process().memory_maps(grouped=False)
    expected = {identity(one.path) for one in maps if "x" in one.perms and one.path.startswith("/")}
    links = mapped_files(os.getpid())
    assert len(set(links)) == len(links)
    names = [str(Path(link).readlink()) for link in links]
    assert {identity(name) for name in names} == expected
    assert len([name for name in names if "libc.so" in name]) == 1
    assert {Path(link) for link in links} <= set(Path(f"/proc/{os.getpid()}/map_files").iterdir())


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A file that this process has mapped to run it, twice, and the address of its first mapping."""
    path = tmp_path / "a library with spaces and\nlines.so"
    path.write_bytes(ELF)
    access = mmap.PROT_READ | mmap.PROT_EXEC
    with path.open("rb") as file, contextlib.ExitStack() as stack:
        for at in (0, PAGE):
            stack.enter_context(mmap.mmap(file.fileno(), PAGE, mmap.MAP_PRIVATE, access, offset=at))
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        found = [line for line in lines if line.split()[4] == str(path.stat().st_ino)]
        assert len(found) in (1, 2)  # neighbours become one
        yield path, int(found[0].split("-")[0], 16)


def test_a_file_is_found_once_whatever_its_name_is_and_when_that_is_gone(mapped: tuple[Path, int]) -> None:
    path, address = mapped
    inode = path.stat().st_ino
    path.unlink()
    links = [Path(link) for link in mapped_files(os.getpid())]
    found = [link for link in links if "library with spaces and" in str(link.readlink())]
    assert len(found) == 1
    at = mapped_file(os.getpid(), address)
    assert at is not None
    assert "library with spaces and" in str(Path(at).readlink())
    if os.geteuid() == 0:  # others may not follow these links
        assert Path(at).stat().st_ino == found[0].stat().st_ino == inode
        assert found[0].read_bytes() == ELF


def test_an_address_within_a_mapping_leads_to_its_file(mapped: tuple[Path, int]) -> None:
    _, address = mapped
    first = mapped_file(os.getpid(), address)
    assert first is not None
    assert mapped_file(os.getpid(), address + PAGE - 1) == first
    assert mapped_file(os.getpid(), 1) is None


def test_the_program_itself_has_no_address() -> None:
    assert mapped_file(os.getpid(), 0) == f"/proc/{os.getpid()}/exe"


def test_a_process_that_is_gone_has_nothing_mapped() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert mapped_files(gone.pid) == []
    assert mapped_file(gone.pid, 4096) is None


def test_addresses_are_spelt_as_map_files_spells_them() -> None:
    assert uprobes._shortened("00400000-0040b000") == "400000-40b000"
    assert uprobes._shortened("7f0000000000-7f0000001000") == "7f0000000000-7f0000001000"


# -- what is looked into


def candidates(*roots: Path) -> list[str]:
    return sorted(Path(path).name for path, _ in uprobes._candidates(roots))


def make(path: Path, content: bytes = ELF, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_files_that_may_be_mapped_to_run_them_are_candidates(tmp_path: Path) -> None:
    for name in ("libssl.so", "libssl.so.3", "ssl.cpython-311-x86_64-linux-gnu.so", "deep/down/addon.node"):
        make(tmp_path / name)
    for mode, name in ((0o755, "program"), (0o100, "for its owner"), (0o001, "for others")):
        make(tmp_path / "bin" / name, mode=mode)
    for name in ("notes.txt", "libssl.a", "module.py", "node"):
        make(tmp_path / name)
    named = ["libssl.so", "libssl.so.3", "ssl.cpython-311-x86_64-linux-gnu.so", "addon.node"]
    assert candidates(tmp_path) == sorted([*named, "program", "for its owner", "for others"])


def test_small_files_are_no_candidates(tmp_path: Path) -> None:
    make(tmp_path / "small.so", bytes(uprobes._LEAST_BYTES - 1))
    make(tmp_path / "large.so", bytes(uprobes._LEAST_BYTES))
    assert candidates(tmp_path) == ["large.so"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path / "outside" / "elsewhere.so")
    root = tmp_path / "root"
    make(root / "libssl.so.3")
    (root / "libssl.so").symlink_to("libssl.so.3")
    (root / "dangling.so").symlink_to("nothing.so")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "round").symlink_to(root)
    assert candidates(root) == ["libssl.so.3"]


def test_a_file_with_several_names_is_a_candidate_once(tmp_path: Path) -> None:
    first = make(tmp_path / "one" / "libssl.so")
    (tmp_path / "two").mkdir()
    os.link(first, tmp_path / "two" / "libssl-copy.so")
    assert len(candidates(tmp_path)) == 1
    assert len(candidates(tmp_path / "one", tmp_path / "two", tmp_path)) == 1


def test_what_is_no_file_is_no_candidate(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.so")
    (tmp_path / "folder.so").mkdir()
    make(tmp_path / "libssl.so")
    assert candidates(tmp_path) == ["libssl.so"]
    assert candidates(tmp_path / "none", tmp_path / "libssl.so") == []


def test_a_candidate_comes_with_its_own_status(tmp_path: Path) -> None:
    make(tmp_path / "libssl.so")
    ((path, status),) = uprobes._candidates([tmp_path])
    assert (path, status) == (str(tmp_path / "libssl.so"), (tmp_path / "libssl.so").lstat())


@pytest.mark.parametrize(
    ("content", "may"),
    [
        (ELF, True),
        (b"\x7fELF" + bytes(uprobes._LEAST_BYTES - 4), True),
        (b"\x7fELF" + bytes(uprobes._LEAST_BYTES - 5), False),
        (b"#!/bin/sh\n" + bytes(8192), False),
        (bytes(8192), False),
    ],
)
def test_only_elf_files_may_hold_code(tmp_path: Path, content: bytes, *, may: bool) -> None:
    descriptor = os.open(make(tmp_path / "file", content), os.O_RDONLY)
    try:
        assert uprobes._may_hold_code(descriptor, os.fstat(descriptor)) == may
    finally:
        os.close(descriptor)


def test_a_folder_or_a_device_holds_no_code(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            assert not stat.S_ISREG(status.st_mode)
            assert not uprobes._may_hold_code(descriptor, status)
        finally:
            os.close(descriptor)
