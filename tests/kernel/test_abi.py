"""probes/abi.h and agentwatch/kernel/abi.py are the same, as whole sets: judged by the BTF of the loaded program."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from agentwatch import config
from agentwatch.kernel import abi, bpf, pins
from agentwatch.kernel.btf import Btf

if TYPE_CHECKING:
    from tests.kernel.fix_watch import Watch

pytestmark = pytest.mark.kernel


@pytest.fixture
def program(watch: Watch) -> Btf:
    descriptor = pins.open_map(config.load(watch.config), "abi")
    try:
        return Btf(bpf.map_btf(descriptor))
    finally:
        os.close(descriptor)


def test_structs_have_the_same_names_offsets_and_sizes(program: Btf) -> None:
    compiled = {name: _compiled(program, name) for name in program.struct_names("aw_")}
    mirrored = {name: _mirrored(name) for name in abi.LAYOUTS}
    assert compiled == mirrored


def test_enums_have_the_same_names_and_values(program: Btf) -> None:
    compiled = {name: program.enum(name) for name in program.enum_names("aw_")}
    mirrored = {name: {f"AW_{m.name}": m.value for m in enum} for name, enum in abi.ENUMS.items()}
    assert compiled == mirrored


def test_version_is_the_same(program: Btf) -> None:
    members = {m.name: m for m in program.members("abi_witness") or []}
    assert members["version"].size == abi.VERSION


def test_a_layout_without_implicit_padding_has_the_size_of_its_parts() -> None:
    for name in abi.LAYOUTS:
        aligned = struct.calcsize(abi.layout(name).format.replace("<", "@", 1))
        assert abi.layout(name).size == aligned, name


def _compiled(program: Btf, name: str) -> list[tuple[str, int, int]]:
    return [(m.name, m.offset, m.size) for m in program.members(name) or []]


def _mirrored(name: str) -> list[tuple[str, int, int]]:
    result, offset = [], 0
    for member, code in abi.LAYOUTS[name]:
        size = abi.HEADER.size if not code else struct.calcsize(f"<{code}")
        result.append((member, offset, size))
        offset += size
    return result
