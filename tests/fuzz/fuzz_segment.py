"""Invariant: any bytes are read in order or raise AgentwatchError, and a new writer loses nothing that was readable.

After that writer every record reads as before, and its own record has a number that none had.

Run: python tests/fuzz/fuzz_segment.py -max_total_time=300
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from agentwatch.errors import AgentwatchError
from agentwatch.log import segment
from agentwatch.log.framing import check as verify
from agentwatch.log.reader import LogReader
from agentwatch.log.writer import LogWriter

LOG_ID = bytes(range(16))
SEED = segment.seed(LOG_ID)
LINES_BYTES = 3


def build(data: bytes) -> dict[str, bytes]:
    """Make segment files of fuzzer bytes: each step is right, cut, altered or rubbish, as the bytes say."""
    files: dict[str, bytes] = {}
    seq = 0
    content = bytearray()
    first = 0
    at = 0
    while at + LINES_BYTES <= len(data):
        step, size, value = data[at : at + LINES_BYTES]
        at += LINES_BYTES
        if step % 8 < 3:
            content += segment.frame(bytes([value]) * (size + 1), seq, SEED)
            seq += 1
        elif step % 8 == 3:
            content += data[at : at + size]
            at += size
        elif step % 8 == 4:
            content = content[: max(0, len(content) - size)]
        elif step % 8 == 5 and content:
            content[(size * 256 + value) % len(content)] ^= 1 << step // 8 % 8
        elif step % 8 == 6:
            content += bytes(size)
        else:
            files[segment.segment_name(first)] = bytes(content)
            seq += value % 3
            first = seq
            content = bytearray(segment.Header(first, 1, bytes(16), LOG_ID if size else bytes(16)).pack())
    files[segment.segment_name(first)] = bytes(content)
    return files


def read(log_dir: Path) -> dict[int, bytes]:
    """Return all that is readable; check order and that number by number gives the same."""
    log = LogReader(log_dir)
    records: dict[int, bytes] = {}
    last = -1
    for seq, payload in log.records(on_damage=lambda _: None):
        assert seq > last
        last = seq
        records[seq] = payload
    assert log.end() > last
    for seq, payload in records.items():
        assert log.read(seq) == payload
    return records


def check(data: bytes) -> None:
    """Check the invariant for one input."""
    with tempfile.TemporaryDirectory() as name:
        log_dir = Path(name)
        for file, content in build(data).items():
            (log_dir / file).write_bytes(content)
        try:
            before = read(log_dir)
            report = verify(log_dir)
            with LogWriter(log_dir) as writer:
                new = writer.append(b"new")
        except AgentwatchError:
            return
        assert report.records == len(before)
        assert read(log_dir) == {**before, new: b"new"}
        assert new not in before


def main() -> None:
    """Run atheris."""
    import atheris  # noqa: PLC0415 - only here: the short form of this test runs without it

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
