"""Functions of TLS libraries are found in whatever a linker writes; files that are not such give nothing."""

from __future__ import annotations

import ctypes
import lzma
import os
import random
import struct
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.hash import GNUHashSection

from agentwatch.kernel import elf, elf_symbols
from tests.unit.kernel.fix_elf import (
    address_of,
    compile_c,
    copied,
    executable,
    functions,
    offsets,
    run,
    space_of,
    symbol,
    true_offsets,
    without_dynamic,
    without_section_headers,
)

if TYPE_CHECKING:
    from collections.abc import Callable

OPENSSL = {"SSL_read", "SSL_write", "SSL_read_ex", "SSL_write_ex", "SSL_set_fd", "SSL_free"}
GNUTLS = {"gnutls_record_send", "gnutls_record_recv", "gnutls_deinit"}
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
BUNDLED = Path(psycopg.__file__).parents[1] / "psycopg_binary.libs"

SOURCE = """
int SSL_write(int n) { return n + 1; }
int SSL_write_ex(int n) { return n + 2; }
__attribute__((visibility("hidden"), noinline)) int SSL_read(int n) { return n * 3; }
static __attribute__((noinline)) int SSL_free(int n) { return n * 5; }
int SSL_do(int n) { return SSL_read(n) - SSL_free(n); }
int SSL_set_fd = 7;
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elf")


@pytest.fixture(scope="module")
def library(folder: Path) -> Path:
    return compile_c(folder / "library.so", SOURCE)


def test_exported_hidden_and_local_functions_are_found_and_data_is_not(library: Path) -> None:
    found = offsets(library, OPENSSL)
    assert found.keys() == {"SSL_write", "SSL_write_ex", "SSL_read", "SSL_free"}
    assert found == true_offsets(library, OPENSSL)
    assert all(function.returns == () for function in functions(library, OPENSSL))


def test_an_offset_is_where_the_kernel_maps_the_function_from(library: Path) -> None:
    loaded = ctypes.CDLL(str(library))
    address = ctypes.cast(loaded.SSL_write, ctypes.c_void_p).value
    assert address is not None
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, *_ = line.split()
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            assert line.endswith(str(library))
            assert offsets(library, {"SSL_write"}) == {"SSL_write": {address - start + int(offset, 16)}}
            return
    pytest.fail("the library is not mapped")


def test_a_wanted_name_is_not_the_beginning_of_another(library: Path) -> None:
    assert not functions(library, {"SSL_wri", "SSL", "rite", ""})


def test_a_stripped_library_has_what_it_exports(library: Path) -> None:
    stripped = copied(library, "stripped.so", "--strip-all")
    assert offsets(stripped, OPENSSL) == {
        name: true_offsets(library, OPENSSL)[name] for name in ("SSL_write", "SSL_write_ex")
    }


def test_local_functions_of_a_stripped_library_are_in_its_debugdata(library: Path) -> None:
    debug = copied(library, "debug", "--only-keep-debug")
    mini = copied(debug, "mini", "--strip-all", "--keep-symbol=SSL_read", "--keep-symbol=SSL_free")
    packed = mini.with_suffix(".xz")
    packed.write_bytes(lzma.compress(mini.read_bytes()))
    stripped = copied(library, "debugdata.so", "--strip-all", f"--add-section=.gnu_debugdata={packed}")
    assert offsets(stripped, OPENSSL) == true_offsets(library, OPENSSL)


@pytest.mark.parametrize("style", ["gnu", "sysv", "both", "none"])
@pytest.mark.parametrize("change", [bytes, without_section_headers])
def test_exported_functions_are_found_by_every_kind_of_hash_table(
    folder: Path, style: str, change: Callable[[bytes], bytes]
) -> None:
    path = compile_c(folder / f"{style}.so", SOURCE, f"-Wl,--hash-style={style.replace('none', 'sysv')}", "-s")
    content = change(path.read_bytes())
    if style == "none":
        hashes = struct.pack("<Q", 4)  # DT_HASH; made a DT_DEBUG
        with path.open("rb") as stream:
            dynamic = ELFFile(stream).get_section_by_name(".dynamic")
            assert isinstance(dynamic, DynamicSection)
            at = dynamic["sh_offset"] + [e.entry.d_tag for e in dynamic.iter_tags()].index("DT_HASH") * 16
        assert content[at : at + 8] == hashes
        content = content[:at] + struct.pack("<Q", 21) + content[at + 8 :]
    assert offsets(content, OPENSSL) == true_offsets(path, OPENSSL)
    assert offsets(content, OPENSSL).keys() == {"SSL_write", "SSL_write_ex"}


@pytest.mark.parametrize("flags", [["-Wl,--hash-style=sysv"], ["-Wl,--hash-style=gnu"]])
def test_a_name_that_the_linker_merged_with_the_end_of_another_is_found(folder: Path, flags: list[str]) -> None:
    path = compile_c(
        folder / "merged.so", "int my_SSL_write(int n) { return n; } int SSL_write(int n) { return n + 1; }", *flags
    )
    assert path.read_bytes().count(b"\0my_SSL_write\0") == 2
    assert b"\0SSL_write\0" not in path.read_bytes()
    assert offsets(path, OPENSSL) == true_offsets(path, OPENSSL)


def test_a_function_that_was_linked_twice_is_found_twice(folder: Path) -> None:
    other = folder / "other.c"
    other.write_text(
        "__attribute__((noinline)) static int SSL_write(int n) { return n * 7; }"
        "int other(int n) { return SSL_write(n); }"
    )
    path = compile_c(
        folder / "twice",
        "int other(int); __attribute__((noinline)) static int SSL_write(int n) { return n * 9; }"
        "int main(int n, char **v) { return SSL_write(n) + other(n); }",
        "-no-pie",
        str(other),
    )
    assert len(offsets(path, OPENSSL)["SSL_write"]) == 2
    assert offsets(path, OPENSSL) == true_offsets(path, OPENSSL)


def test_two_names_of_one_function_are_one_function(folder: Path) -> None:
    path = compile_c(
        folder / "alias.so",
        'int SSL_write(int n) { return n + 1; } int SSL_read(int) __attribute__((alias("SSL_write")));',
    )
    assert [function.name for function in functions(path, OPENSSL)] == ["SSL_read"]
    assert [function.name for function in functions(path, {"SSL_write"})] == ["SSL_write"]


def test_the_version_of_a_name_does_not_matter(folder: Path) -> None:
    script = folder / "versions"
    script.write_text("OPENSSL_3.0.0 { global: SSL_write; SSL_write_ex; local: *; };")
    path = compile_c(folder / "versions.so", SOURCE, f"-Wl,--version-script={script}")
    assert "SSL_write@@OPENSSL_3.0.0" in run("readelf", "-sW", path)
    assert offsets(path, OPENSSL) == true_offsets(path, OPENSSL)
    assert offsets(without_dynamic(path.read_bytes()), OPENSSL) == true_offsets(path, OPENSSL)


def test_both_versions_of_a_name_are_found(folder: Path) -> None:
    script = folder / "two-versions"
    script.write_text("A { global: SSL_write; }; B { global: SSL_write; } A;")
    path = compile_c(
        folder / "two-versions.so",
        '__asm__(".symver old, SSL_write@A\\n.symver new, SSL_write@@B");'
        "int old(int n) { return n + 1; } int new(int n) { return n + 2; }",
        f"-Wl,--version-script={script}",
        "-s",
    )
    assert len(offsets(path, OPENSSL)["SSL_write"]) == 2
    assert offsets(path, OPENSSL) == true_offsets(path, OPENSSL)


def test_what_is_only_called_or_chosen_at_run_time_is_not_found(folder: Path, library: Path) -> None:
    source = """
    int SSL_write(int);
    static int chosen(int n) { return n; }
    static void *choose(void) { return chosen; }
    int SSL_read(int) __attribute__((ifunc("choose")));
    int main(int n, char **v) { return SSL_write(n) + SSL_read(n); }
    """
    path = compile_c(folder / "caller", source, "-no-pie", str(library))
    assert "SSL_write" in run("readelf", "-sW", path)
    assert "IFUNC" in run("readelf", "-sW", path)
    assert not functions(path, OPENSSL)


def true_exports(path: Path, wanted: set[str]) -> dict[str, set[int]]:
    """Ask pyelftools's reader of hash tables, which is quick enough for large files."""
    found = {}
    with path.open("rb") as stream:
        file = ELFFile(stream)
        table = file.get_section_by_name(".gnu.hash")
        assert isinstance(table, GNUHashSection)
        for name in wanted:
            symbol = table.get_symbol(name)
            if symbol is not None:
                found[name] = set(file.address_offsets(symbol["st_value"]))
    return found


REAL = [
    LIBRARIES / "libssl.so.3",
    LIBRARIES / "libcrypto.so.3",
    LIBRARIES / "libgnutls.so.30",
    *BUNDLED.glob("libssl*"),
    *BUNDLED.glob("libcrypto*"),
    Path("/usr/bin/python3"),
    Path("/usr/bin/node"),
]


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_functions_of_installed_files_are_where_pyelftools_finds_them(path: Path) -> None:
    if not path.exists():
        pytest.skip(f"{path} is not installed")
    wanted = OPENSSL | GNUTLS | {"EVP_EncryptUpdate", "Py_Main"}
    assert offsets(path, wanted) == true_exports(path, wanted)
    assert offsets(path, wanted)


def test_a_file_without_a_wanted_name_takes_less_than_a_millisecond() -> None:
    path = LIBRARIES / "libcrypto.so.3"
    if not path.exists():
        pytest.skip(f"{path} is not installed")
    times = []
    for _ in range(20):
        start = time.perf_counter()
        assert not functions(path, OPENSSL | GNUTLS)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.001


def test_other_machines_and_kinds_of_files_have_no_functions(folder: Path, library: Path) -> None:
    content = library.read_bytes()
    for at, value in ((4, 1), (5, 2), (18, 183), (16, 1), (16, 4), (0, 0)):  # class, order, machine, type, magic
        assert not functions(content[:at] + bytes([value]) + content[at + 1 :], OPENSSL)
    run("gcc", "-c", "-o", folder / "object.o", library.with_suffix(".c"))
    assert not functions(folder / "object.o", OPENSSL)
    assert not functions(b"", OPENSSL)
    assert not functions(b"#!/bin/sh\nSSL_write\n", OPENSSL)


def test_what_is_not_a_regular_file_has_no_functions() -> None:
    reading, writing = os.pipe()
    null, here = os.open("/dev/null", os.O_RDONLY), os.open(".", os.O_RDONLY)
    for fd in (reading, writing, null, here):
        assert elf.functions(fd, frozenset(OPENSSL)) == ()
        os.close(fd)


def test_the_position_in_the_file_stays(library: Path) -> None:
    with library.open("rb") as stream:
        stream.seek(17)
        assert elf.functions(stream.fileno(), frozenset(OPENSSL))
        assert os.lseek(stream.fileno(), 0, os.SEEK_CUR) == 17


@pytest.fixture(scope="module")
def small(folder: Path) -> bytes:
    """Return a library whose symbols come from all tables."""
    return compile_c(folder / "small.so", SOURCE, "-nostdlib", "-Wl,-z,noseparate-code").read_bytes()


def test_a_file_cut_anywhere_has_some_of_its_functions(small: bytes) -> None:
    whole = functions(small, OPENSSL)
    assert len(whole) == 4
    for end in range(0, len(small), 5):
        assert set(functions(small[:end], OPENSSL)) <= set(whole)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_file_never_raises_and_every_offset_is_in_it(small: bytes, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - the same damage each time
    for _ in range(500):
        damaged = bytearray(small)
        for _ in range(chance.choice((1, 3, 20))):
            damaged[chance.choice((chance.randrange(512), chance.randrange(len(damaged))))] = chance.randrange(256)
        assert all(0 <= function.offset < len(damaged) for function in functions(bytes(damaged), OPENSSL))


def test_sizes_beyond_the_file_are_read_to_its_end() -> None:
    strings = b"\0SSL_write\0"
    parts = {".text": b"\xc3", ".symtab": symbol(1, address_of(".text")), ".strtab": strings}
    content = bytearray(executable(parts))
    (shoff,) = struct.unpack_from("<Q", content, 0x28)
    for section in (2, 3):
        struct.pack_into("<Q", content, shoff + section * 64 + 32, 1 << 63)
    assert offsets(bytes(content), OPENSSL) == {"SSL_write": {space_of(".text")}}


def test_a_function_outside_of_the_code_is_not_found() -> None:
    for address in (0, 1, address_of(".text") + (1 << 30), (1 << 64) - 1):
        parts = {".text": b"\xc3", ".symtab": symbol(1, address), ".strtab": b"\0SSL_write\0"}
        assert not functions(executable(parts), OPENSSL)


def test_a_table_made_of_wanted_names_only_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "names"
    parts = {".text": b"\xc3", ".symtab": symbol(1, address_of(".text")), ".strtab": b"\0SSL_write\0"}
    content = bytearray(executable(parts))
    (shoff,) = struct.unpack_from("<Q", content, 0x28)
    symbols, strings = (shoff + section * 64 + 24 for section in (2, 3))
    names = b"SSL_write\0" * 400_000
    struct.pack_into("<QQ", content, strings, len(content), len(names))
    table = b"".join(symbol(0, address_of(".text") + number % 4096) for number in range(100_000))
    struct.pack_into("<QQ", content, symbols, len(content) + len(names), len(table))
    path.write_bytes(content + names + table)
    start = time.perf_counter()
    assert 0 < len(functions(path, OPENSSL)) <= elf.MAX_SYMBOLS
    assert time.perf_counter() - start < 5


def test_debugdata_that_unpacks_to_more_than_memory_is_cut(monkeypatch: pytest.MonkeyPatch, library: Path) -> None:
    monkeypatch.setattr(elf_symbols, "MAX_DEBUGDATA_BYTES", 1 << 20)
    bomb = lzma.compress(library.read_bytes() + bytes(64 << 20), preset=0)
    path = library.with_name("bomb.xz")
    path.write_bytes(bomb)
    stripped = copied(library, "bomb.so", "--strip-all", f"--add-section=.gnu_debugdata={path}")
    tracemalloc.start()
    try:
        assert offsets(stripped, OPENSSL) == true_offsets(library, OPENSSL)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packed", [b"", b"rubbish", lzma.compress(b"no ELF"), lzma.compress(bytes(9999))[:-40]])
def test_damaged_debugdata_is_as_none(packed: bytes) -> None:
    parts = {".text": b"\xc3", ".gnu_debugdata": packed}
    assert not functions(executable(parts), OPENSSL)
