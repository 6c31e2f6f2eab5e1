"""Invariant: any file gives functions that were asked for, in order, in code that it has, and never raises.

Each of Go has return instructions, all of them behind its first one; the others have none.

Run: python tests/fuzz/fuzz_elf.py -max_total_time=300
"""

from __future__ import annotations

import struct
import sys
from itertools import pairwise, product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.unit.kernel.fix_elf import functions
from tests.unit.kernel.fix_go import with_everything

WANTED = {"SSL_write", "a.A", "a.B"}
SEEDS = [with_everything(stripped=stripped, headers=headers) for stripped, headers in product((False, True), repeat=2)]
EDIT = struct.Struct("<HBB")
RETURNS = (b"\xc3", b"\xc2", b"\xf3\xc3", b"\xf2\xc3")


def build(data: bytes) -> bytes:
    """Make a file of fuzzer bytes: one of the executables, changed, or the bytes themselves."""
    kind = data[0] if data else 0
    if kind >= 8 * len(SEEDS):
        return data
    file = bytearray(SEEDS[kind % len(SEEDS)])
    for place, step, value in EDIT.iter_unpack(data[1 : 1 + (len(data) - 1) // EDIT.size * EDIT.size]):
        at = place % max(1, len(file))
        if step % 8 == 0:
            file[at:] = b""
        elif step % 8 < 4:
            file[at : at + 1] = bytes([value])
        elif step % 8 < 6:
            file[at : at + 8] = struct.pack("<Q", value << step % 57)
        else:
            file[at : at + 8] = file[place // 2 : place // 2 + 8]
    return bytes(file)


def check(data: bytes) -> None:
    """Check the invariant for one input."""
    file = build(data)
    found = functions(file, WANTED)
    assert all(before.offset < after.offset for before, after in pairwise(found))
    for name, offset, returns in found:
        assert name in WANTED
        assert 0 <= offset < len(file)
        assert bool(returns) == ("." in name)
        assert all(offset <= at and file.startswith(RETURNS, at) for at in returns)


def main() -> None:
    """Run atheris."""
    import atheris  # noqa: PLC0415 - only here: the short form of this test runs without it

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
