"""From probes/ and the running kernel's BTF to one source text and its compiler flags.

The probes name kernel members as ``OFF(struct, member)`` and ask ``HAS(struct, member)``; this module finds both in
the sources and turns them into ``-D`` macros from BTF. So no probe trusts the layout of some other kernel's
headers, and a member that is missing is named before anything is compiled.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.errors import KernelError, ProbeLoadError
from agentwatch.kernel import hooks
from agentwatch.kernel.counters import possible_cpus

if TYPE_CHECKING:
    from agentwatch.kernel.btf import Btf

PROBES = Path(__file__).resolve().parents[2] / "probes"
INSTALLED_PROBES = Path(__file__).resolve().parents[1] / "probes"
SUBJECTS = (
    "process.c",
    "connect.c",
    "unix.c",
    "tls.c",
    "library.c",
    "input.c",
    "reach.c",
    "wire.c",
    "rows.c",
    "cgroup.c",
)

LAYOUT = ("abi.h", "maps.h")

_COMMENT = re.compile(r"/\*.*?\*/|\s", re.DOTALL)
_INCLUDE = re.compile(r'^#include "([a-z_0-9]+\.h)"$', re.MULTILINE)
_OFF = re.compile(r"\bOFF\((\w+), (\w+)\)")
_HAS = re.compile(r"\bHAS\((\w+), (\w+)\)")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Watch(NamedTuple):
    """What the compiled program watches and how large its ring is."""

    cgroup_id: int
    level: int
    ring_bytes: int
    maps_dir: Path
    """Where the maps are, or will be, pinned."""


def probes_dir() -> Path:
    """Return the directory of the probes' sources: the checkout's, or the one installed with the package."""
    for directory in (PROBES, INSTALLED_PROBES):
        if (directory / "abi.h").exists():
            return directory
    raise ProbeLoadError(f"the probes' sources are not at {PROBES}; install agentwatch again")


def source(directory: Path) -> str:
    """Return all subjects as one text, each local header once, where it is first included.

    BCC gives maps and helpers their meaning only in the main file, hence one text.
    """
    seen: set[str] = set()

    def inline(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        try:
            text = (directory / name).read_text(encoding="utf-8")
        except OSError as e:
            raise ProbeLoadError(f"cannot read the probe source {directory / name}: {e.strerror}") from e
        return _INCLUDE.sub(lambda m: inline(m[1]), text)

    return "\n".join(inline(name) for name in SUBJECTS)


def dispatchers(slots: dict[str, int]) -> str:
    """Return what is attached to tracepoints and functions: one program for each slot, which calls what is in it."""
    kinds = hooks.dispatched()
    return "\n".join(
        f"int {dispatcher(program)}(void *ctx) {{ {hooks.DISPATCHED[kinds[program]]}.call(ctx, {slot}); return 0; }}"
        for program, slot in slots.items()
        if program in kinds
    )


def dispatcher(program: str) -> str:
    """Return the name of what is attached for a program that has a slot."""
    return f"at_{program}"


def layout(directory: Path) -> str:
    """Return the SHA-256 of what two builds must have in common to share their maps."""
    text = "".join((directory / name).read_text(encoding="utf-8") for name in LAYOUT)
    return hashlib.sha256(_COMMENT.sub("", text).encode()).hexdigest()


def flags(text: str, btf: Btf, watch: Watch) -> list[str]:
    """Return the compiler flags for ``text``: offsets of this kernel, what is watched, sizes.

    Raises KernelError naming a member that this kernel does not have and that no ``HAS`` guards.
    """
    result = [
        f"-DWATCH_CGROUP={watch.cgroup_id}ULL",
        f"-DWATCH_LEVEL={watch.level}",
        f"-DRING_PAGES={watch.ring_bytes // _PAGE_BYTES}",
        f"-DPAGE_SIZE={_PAGE_BYTES}",
        f"-DMOUNT_NAMESPACE={_mount_namespace()}U",
        f"-DCPUS={possible_cpus()}",
        f'-DPIN_DIR="{watch.maps_dir}/"',
        "-Wno-unused-function",
    ]
    guarded = set(_HAS.findall(text))
    for struct_name, member in sorted(guarded):
        present = int(btf.offset(f"{struct_name}.{member}") is not None)
        result.append(f"-DHAS_{struct_name}__{member}={present}")
    for struct_name, member in sorted(set(_OFF.findall(text))):
        offset = btf.offset(f"{struct_name}.{member}")
        if offset is not None:
            result.append(f"-DOFF_{struct_name}__{member}={offset}")
        elif not _guarded(struct_name, guarded):
            raise KernelError(
                f"this kernel ({os.uname().release}) has no {struct_name}.{member}, which the probes read; "
                "agentwatch does not support it"
            )
    return result


def _mount_namespace() -> int:
    """Return the number of the host's mount namespace: process 1's, or our own where that is hidden."""
    try:
        return Path("/proc/1/ns/mnt").stat().st_ino
    except OSError:
        return Path("/proc/self/ns/mnt").stat().st_ino


def _guarded(struct_name: str, guarded: set[tuple[str, str]]) -> bool:
    """Whether a HAS() of the same struct chooses between alternatives (the unused one needs no offset)."""
    return any(name == struct_name for name, _ in guarded)
