"""Functions of Go executables, stripped or not, are found with every return instruction, or not at all."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from agentwatch.kernel import elf_image, golang
from tests.unit.kernel.fix_elf import (
    BASE,
    address_of,
    copied,
    executable,
    functions,
    run,
    space_of,
    symbol,
    without_section_headers,
)
from tests.unit.kernel.fix_go import ENTRY, RETURNS, build_info, go_parts, module, pclntab, pointed_build_info

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TLS_PROGRAM = """
package main

import "crypto/tls"

func main() {
	c, err := tls.Dial("tcp", "127.0.0.1:1", nil)
	if err == nil {
		c.Write([]byte("x"))
		c.Read(make([]byte, 1))
		c.Close()
	}
}
"""
FILE_PROGRAM = """
package main

import "os"

func main() {
	os.Stdout.Write([]byte("x"))
	os.Stdin.Read(make([]byte, 1))
}
"""
PROGRAMS = {
    "exe": (TLS_PROGRAM, {"crypto/tls.(*Conn).Read", "crypto/tls.(*Conn).Write", "crypto/tls.(*Conn).Close"}),
    # Go compiles its own library anew for these, which would take a minute with crypto/tls.
    "pie": (FILE_PROGRAM, {"os.(*File).Read", "os.(*File).Write"}),
}
RETURN = re.compile(r"^ *([0-9a-f]+):\t(?:repz |bnd )?retq?\b", re.MULTILINE)

needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="there is no go here to build an executable with")


def version(content: bytes) -> str | None:
    image = elf_image.of_bytes(content)
    assert image is not None
    return golang.version(image)


class Builder:
    """Builds one of the programs, each variant once."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.folder, self.mode = folder, mode
        source, self.wanted = PROGRAMS[mode]
        (folder / "main.go").write_text(source)

    def build(self, name: str, *flags: str) -> Path:
        path = self.folder / name
        if not path.exists():
            places = {"GOCACHE": str(self.folder / "cache"), "GOPATH": str(self.folder / "path")}
            environment = {**os.environ, **places, "GO111MODULE": "off", "GOTOOLCHAIN": "local", "GOFLAGS": ""}
            command = ["go", "build", f"-buildmode={self.mode}", "-o", str(path), *flags, "main.go"]
            subprocess.run(command, check=True, cwd=self.folder, env=environment)
        return path


@pytest.fixture(scope="module", params=PROGRAMS)
def go(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("go"), request.param)


def true_functions(path: Path, wanted: set[str]) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Ask objdump, and readelf for where the text is in the file."""
    load = re.search(r"LOAD +(\S+) (\S+) \S+ \S+ \S+ R E", run("readelf", "-lW", path))
    assert load is not None
    shift = int(load[1], 16) - int(load[2], 16)
    found = {}
    for name in wanted:
        text = run("objdump", "-d", "--no-show-raw-insn", f"--disassemble={name}", path)
        start = re.search(rf"^([0-9a-f]+) <{re.escape(name)}>:", text, re.MULTILINE)
        assert start is not None
        found[name] = int(start[1], 16) + shift, tuple(int(at, 16) + shift for at in RETURN.findall(text))
    return found


@needs_go
def test_every_return_is_the_one_that_objdump_shows(go: Builder) -> None:
    path = go.build("plain")
    found = {function.name: (function.offset, function.returns) for function in functions(path, go.wanted)}
    assert found == true_functions(path, go.wanted)
    assert all(found[name][1] for name in go.wanted)


@needs_go
def test_a_stripped_executable_has_the_same_functions(go: Builder) -> None:
    plain = go.build("plain")
    expected = functions(plain, go.wanted)
    assert {function.name for function in expected} == go.wanted
    assert functions(go.build("linked-stripped", "-ldflags=-s -w"), go.wanted) == expected
    stripped = copied(plain, "stripped", "--strip-all")
    assert functions(stripped, go.wanted) == expected
    assert functions(without_section_headers(stripped.read_bytes()), go.wanted) == expected


@needs_go
def test_the_version_is_what_go_says(go: Builder) -> None:
    path = go.build("plain")
    content = path.read_bytes()
    said = run("go", "version", path).split(": ")[1].strip()
    assert version(content) == version(without_section_headers(content)) == said


def test_a_name_with_a_dot_is_looked_for_in_executables_of_go_only() -> None:
    parts = {".text": b"\xc3", ".symtab": symbol(1, address_of(".text"), 1), ".strtab": b"\0a.B\0"}
    assert not functions(executable(parts), {"a.B"})
    assert functions(executable({**parts, ".go.buildinfo": build_info("go1.17")}), {"a.B"})


def found_b(content: bytes) -> bool:
    """Tell whether a.B was found, and all that is to be known of it."""
    found = functions(content, {"a.B"})
    start = space_of(".text") + ENTRY
    assert found in ((), (("a.B", start, tuple(start + at for at in RETURNS)),))
    return bool(found)


@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("magic", [0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1])
def test_every_format_of_the_function_table_is_read(magic: int, *, headers: bool) -> None:
    parts = go_parts(build_info("go1.17.5"), pclntab(magic, address_of(".text")))
    assert found_b(executable(parts, headers=headers))


@pytest.mark.parametrize("magic", [0xFFFFFFFB, 0xFFFFFFF2, 0])
def test_an_unknown_format_gives_nothing(magic: int) -> None:
    assert not found_b(executable(go_parts(build_info("go1.30"), pclntab(magic, address_of(".text")))))


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("go1.17", True),
        ("go1.21.13 X:loopvar", True),
        ("devel go1.26-ab12 Mon", True),
        ("go1.16.15", False),
        ("go1.9", False),
        ("devel +ab12 Mon", False),
        ("ago1.20", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("info", [build_info, pointed_build_info])
def test_only_go_with_arguments_in_registers_counts(info: Callable[[str], bytes], text: str, *, known: bool) -> None:
    content = executable(go_parts(info(text), pclntab(0xFFFFFFF0, address_of(".text"))))
    assert version(content) == (text or None)
    assert found_b(content) == known


def test_a_long_version_has_a_length_of_two_bytes() -> None:
    text = "go1.27.0 X:" + "x" * 150
    info = build_info("").rstrip(b"\0").ljust(32, b"\0") + bytes([len(text) & 0x7F | 0x80, len(text) >> 7])
    assert version(executable(go_parts(info + text.encode(), b""))) == text


@pytest.mark.parametrize("info", [b"", b"\xff Go buildinf:", build_info("go1.20")[:33], b"\xff Go build" + bytes(40)])
def test_damaged_build_information_is_as_none(info: bytes) -> None:
    assert version(executable(go_parts(info, b""))) is None


def test_pointers_of_another_byte_order_are_not_followed() -> None:
    assert version(executable(go_parts(pointed_build_info("go1.17", flags=1), b""))) is None


@pytest.mark.parametrize("headers", [True, False])
def test_the_start_of_the_text_is_taken_from_the_module_since_go_1_26(*, headers: bool) -> None:
    parts = go_parts(build_info("go1.26"), pclntab(0xFFFFFFF1, 0))
    assert found_b(executable({**parts, ".go.module": module(address_of(".text"))}, headers=headers))


@pytest.mark.parametrize("content", [None, b"", module(0), module(BASE)[8:], module(BASE).replace(b"\x40", b"\x41")])
def test_where_the_start_of_the_text_is_not_to_be_known_nothing_is_found(content: bytes | None) -> None:
    parts = go_parts(build_info("go1.26"), pclntab(0xFFFFFFF1, 0))
    assert not found_b(executable(parts if content is None else {**parts, ".go.module": content}))


@pytest.mark.parametrize("kind", [8, 6])
def test_a_pointer_that_is_in_a_relocation_is_taken_from_there(kind: int) -> None:
    field = address_of(".gopclntab") + 8 + 2 * 8
    rela = struct.pack("<QQQ", field - 8, 8, 1) + struct.pack("<QQQ", field, kind, address_of(".text"))
    dynamic = struct.pack("<6Q", 7, address_of(".rela"), 8, len(rela), 0, 0)
    parts = {**go_parts(build_info("go1.25"), pclntab(0xFFFFFFF1, 0)), ".rela": rela, ".dynamic": dynamic}
    assert found_b(executable(parts)) == (kind == 8)


@pytest.mark.parametrize(
    "code",
    [
        b"\x90" * 8,  # never returns
        b"\xc3\x06\x90\xc3",  # 06 is no instruction
        b"\xc3\x48\xb8\0\0",  # ends within an instruction
        b"\xc3" * (golang.MAX_RETURNS + 1),
        b"",
    ],
)
def test_a_function_whose_returns_are_not_all_known_is_not_found(code: bytes) -> None:
    table = symbol(1, address_of(".text"), len(code))
    parts = {**go_parts(build_info("go1.20"), b""), ".text": code, ".symtab": table, ".strtab": b"\0a.B\0"}
    assert not functions(executable(parts), {"a.B"})


def test_a_function_longer_than_the_limit_is_not_found() -> None:
    table = symbol(1, address_of(".text"), golang.MAX_FUNCTION_BYTES + 1)
    parts = {**go_parts(build_info("go1.20"), b""), ".symtab": table, ".strtab": b"\0a.B\0"}
    content = executable(parts) + bytes(golang.MAX_FUNCTION_BYTES)
    assert not functions(content, {"a.B"})
