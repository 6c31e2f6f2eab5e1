from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentwatch.errors import LogError
from agentwatch.log import folder, sealing, segment
from agentwatch.log.reader import LogReader
from agentwatch.log.sealing import Sealer, compress, set_append_only
from agentwatch.log.writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAYLOADS = [b"record %03d " % n * (2 + n % 3) for n in range(60)]
FILE_CALLS = "write,pread64,fchown,fchmod,fsync,fadvise64,rename,unlink,ioctl,openat"
SEAL = "import sys, pathlib; from agentwatch.log.sealing import compress; compress(pathlib.Path(sys.argv[1]))"


@pytest.fixture
def log_dir(build_log: Callable[..., Path]) -> Iterator[Path]:
    made = build_log(PAYLOADS, segment_bytes=700)
    yield made
    unmark(made.parent)


def unmark(root: Path) -> None:
    for path in root.rglob("*.zst"):
        set_append_only(path, on=False)


def names(log_dir: Path) -> list[str]:
    return [item.path.name for item in folder.list_segments(log_dir)]


def is_marked(path: Path) -> bool:
    return "a" in subprocess.run(["lsattr", path], check=True, capture_output=True, text=True).stdout.split()[0]


def has_attribute(folder: Path) -> bool:
    probe = folder / "probe.zst"
    probe.touch()
    if not set_append_only(probe, on=True):
        return False
    set_append_only(probe, on=False)
    return True


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_compressed_segment_takes_the_place_of_the_original(log_dir: Path) -> None:
    for item in folder.list_segments(log_dir):
        plain = item.path.read_bytes()
        compress(item.path)
        packed = item.path.with_name(item.path.name + ".zst")
        assert not item.path.exists()
        assert subprocess.run(["zstd", "-dc", packed], check=True, capture_output=True).stdout == plain
    assert all(segment.is_compressed(name) for name in names(log_dir))
    assert list(LogReader(log_dir).records()) == list(enumerate(PAYLOADS))


def test_mode_and_group_are_those_of_the_original(log_dir: Path) -> None:
    path = folder.list_segments(log_dir)[0].path
    gid = 12345 if os.geteuid() == 0 else os.getegid()
    os.chown(path, -1, gid)
    path.chmod(0o640)
    mask = os.umask(0o777)
    try:
        compress(path, append_only=False)
    finally:
        os.umask(mask)
    now = folder.list_segments(log_dir)[0].path.stat()
    assert (stat.S_IMODE(now.st_mode), now.st_gid, now.st_uid) == (0o640, gid, os.geteuid())


def test_append_only_file_is_neither_changed_nor_removed(log_dir: Path) -> None:
    path = folder.list_segments(log_dir)[0].path
    marked = compress(path)
    packed = folder.list_segments(log_dir)[0].path
    assert marked == has_attribute(log_dir) == is_marked(packed)
    if marked:
        for change in (packed.unlink, lambda: packed.write_bytes(b""), lambda: packed.rename(packed.with_suffix(".x"))):
            with pytest.raises(PermissionError):
                change()
        assert set_append_only(packed, on=False)
    packed.unlink()


def test_unmarked_where_nobody_asked_for_it(log_dir: Path) -> None:
    assert not compress(folder.list_segments(log_dir)[0].path, append_only=False)
    assert not is_marked(folder.list_segments(log_dir)[0].path)


def test_file_system_without_the_attribute_is_said() -> None:
    assert not set_append_only(Path("/proc/self/status"), on=True)


def test_compressed_file_left_beside_its_original_is_replaced(log_dir: Path) -> None:
    path = folder.list_segments(log_dir)[0].path
    plain = path.read_bytes()
    compress(path)
    path.write_bytes(plain)
    compress(path)
    assert not path.exists()
    assert list(LogReader(log_dir).records()) == list(enumerate(PAYLOADS))


def test_damaged_segment_stays_as_it_is(log_dir: Path) -> None:
    path = folder.list_segments(log_dir)[1].path
    data = bytearray(path.read_bytes())
    data[90] ^= 1
    path.write_bytes(data)
    with pytest.raises(LogError, match=r"cannot compress .* damaged at byte"):
        compress(path)
    assert path.read_bytes() == data
    assert not list(log_dir.glob("*.zst*")) + list(log_dir.glob(".*"))


def test_what_reads_back_differently_does_not_replace_the_original(
    log_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = list(range(0, 300, 7))

    def write_to_a_bad_disk(temporary: Path, *args: object) -> None:
        write(temporary, *args)
        data = bytearray(temporary.read_bytes())
        data[places.pop()] ^= 0x10
        temporary.write_bytes(data)

    write: Callable[..., None] = sealing._write
    monkeypatch.setattr(sealing, "_write", write_to_a_bad_disk)
    path = folder.list_segments(log_dir)[1].path
    plain = path.read_bytes()
    while places:
        with pytest.raises(LogError, match="reads differently"):
            compress(path)
        assert path.read_bytes() == plain
        assert len(list(log_dir.iterdir())) == len(names(log_dir)) + 1


def run_under_strace(path: Path, inject: str) -> tuple[int, str]:
    strace = shutil.which("strace")
    assert strace, "these tests need strace (apt install strace)"
    trace = path.parent.with_suffix(".strace")
    argv = [strace, "-f", "-qq", "-y", "-o", str(trace), "-e", f"trace={FILE_CALLS}", *inject.split()]
    done = subprocess.run([*argv, sys.executable, "-B", "-c", SEAL, path], capture_output=True, check=False, text=True)
    return done.returncode, trace.read_text()


def calls_of_compress(trace: str) -> list[tuple[str, int]]:
    """Return the file system calls from the first that concerns a segment on, each with its number of that name."""
    seen: dict[str, int] = {}
    calls: list[tuple[str, int]] = []
    for line in trace.splitlines():
        name = re.sub(r"^\d+ +", "", line).split("(")[0]
        seen[name] = seen.get(name, 0) + 1
        if calls or re.search(r"[0-9]{20}\.segment", line):
            calls.append((name, seen[name]))
    return calls


def check_nothing_is_lost(log_dir: Path) -> None:
    assert list(LogReader(log_dir).records()) == list(enumerate(PAYLOADS))
    with_sealer(log_dir)
    assert [segment.is_compressed(name) for name in names(log_dir)] == [True] * (len(names(log_dir)) - 1) + [False]
    assert not list(log_dir.glob(".*"))
    assert not [path for path in log_dir.glob("*.segment") if path.name != names(log_dir)[-1]]
    assert list(LogReader(log_dir).records()) == list(enumerate(PAYLOADS))
    if has_attribute(log_dir.parent):
        assert all(is_marked(path) for path in log_dir.glob("*.zst"))


def with_sealer(log_dir: Path) -> Sealer:
    segments = folder.list_segments(log_dir)
    todo = [item for item in segments[:-1] if not segment.is_compressed(item.path.name)]
    sealer = Sealer(log_dir)
    sealer.tick(segments[-1].first_seq)
    wait_until(lambda: sealer.compressed + len(sealer.errors) >= len(todo))
    sealer.close()
    return sealer


@pytest.mark.slow
def test_compression_killed_at_every_system_call_loses_nothing(log_dir: Path, tmp_path: Path) -> None:
    first = names(log_dir)[0]
    clean = tmp_path / "clean"
    shutil.copytree(log_dir, clean)
    status, trace = run_under_strace(clean / first, "")
    assert status == 0
    calls = calls_of_compress(trace)
    assert {name for name, _ in calls} >= set(FILE_CALLS.split(",")) - {"openat"}
    for number, (name, nth) in enumerate(calls):
        copy = tmp_path / f"log{number}"
        shutil.copytree(log_dir, copy)
        _, trace = run_under_strace(copy / first, f"-e inject={name}:signal=KILL:when={nth}")
        assert "killed by SIGKILL" in trace
        check_nothing_is_lost(copy)


@pytest.mark.slow
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_compression_refused_at_any_system_call_leaves_the_log_readable(
    log_dir: Path, tmp_path: Path, error: str
) -> None:
    first = names(log_dir)[0]
    clean = tmp_path / "clean"
    shutil.copytree(log_dir, clean)
    calls = [
        call
        for call in calls_of_compress(run_under_strace(clean / first, "")[1])
        if call[0] in ("write", "pread64", "fchown", "fchmod", "fsync", "rename")
    ]
    for number, (name, nth) in enumerate(calls):
        copy = tmp_path / f"{error}{number}"
        shutil.copytree(log_dir, copy)
        status, _ = run_under_strace(copy / first, f"-e inject={name}:error={error}:when={nth}")
        assert status != 0
        if not (copy / first).exists():
            # The folder could not be synced after the original was removed: the compressed one had been made durable.
            assert (name, nth) == [call for call in calls if call[0] == "fsync"][-1]
        check_nothing_is_lost(copy)


def test_sealer_compresses_all_before_the_current_segment(log_dir: Path) -> None:
    segments = folder.list_segments(log_dir)
    sealer = with_sealer(log_dir)
    assert (sealer.compressed, list(sealer.errors)) == (len(segments) - 1, [])
    assert [segment.is_compressed(name) for name in names(log_dir)] == [True] * (len(segments) - 1) + [False]
    check_nothing_is_lost(log_dir)


def test_newest_segment_is_compressed_once_the_next_is_due(log_dir: Path) -> None:
    count = len(names(log_dir))
    sealer = Sealer(log_dir)
    sealer.tick(len(PAYLOADS))
    wait_until(lambda: sealer.compressed == count)
    sealer.close()
    assert all(segment.is_compressed(name) for name in names(log_dir))
    assert LogReader(log_dir).end() == len(PAYLOADS)


def test_sealer_takes_over_what_another_left(log_dir: Path) -> None:
    first, second, third = folder.list_segments(log_dir)[:3]
    left = log_dir / f".{first.path.name}.zst.new"
    left.write_bytes(b"half")
    foreign = log_dir / ".checkpoint.new"
    foreign.write_bytes(b"not ours")
    plain = second.path.read_bytes()
    compress(second.path, append_only=False)
    compress(third.path, append_only=False)
    second.path.write_bytes(plain)
    with_sealer(log_dir)
    assert foreign.exists()
    foreign.unlink()
    check_nothing_is_lost(log_dir)


def test_damaged_segment_is_tried_once_and_the_others_are_compressed(log_dir: Path) -> None:
    segments = folder.list_segments(log_dir)
    bad = segments[1].path
    data = bytearray(bad.read_bytes())
    data[90] ^= 1
    bad.write_bytes(data)
    sealer = Sealer(log_dir)
    sealer.tick(segments[-2].first_seq)
    wait_until(lambda: sealer.compressed == len(segments) - 3)
    sealer.tick(segments[-1].first_seq)
    wait_until(lambda: sealer.compressed == len(segments) - 2)
    sealer.close()
    assert [str(bad) in str(error) for error in sealer.errors] == [True]
    assert bad.read_bytes() == data


def test_what_the_disk_refused_is_tried_again_with_the_next_segment(log_dir: Path) -> None:
    segments = folder.list_segments(log_dir)
    # A folder in the way of the temporary file.
    way = log_dir / f".{segments[0].path.name}.zst.new"
    way.mkdir()
    sealer = Sealer(log_dir)
    sealer.tick(segments[1].first_seq)
    wait_until(lambda: len(sealer.errors) > 0)
    way.rmdir()
    sealer.tick(segments[2].first_seq)
    wait_until(lambda: sealer.compressed == 2)
    sealer.close()


def test_sealer_says_why_it_cannot_and_does_not_end(tmp_path: Path, build_log: Callable[..., Path]) -> None:
    sealer = Sealer(tmp_path / "log")
    sealer.tick(1)
    wait_until(lambda: len(sealer.errors) == 1)
    assert "no log" in str(sealer.errors[0])
    build_log([b"one"])
    sealer.tick(2)
    wait_until(lambda: sealer.compressed == 1)
    sealer.close()
    sealer.close()
    unmark(tmp_path)


def test_segment_pruned_while_it_is_compressed_does_not_come_back(
    log_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder.list_segments(log_dir)[0].path
    compare: Callable[..., None] = sealing._compare

    def pruned_meanwhile(*args: object) -> None:
        compare(*args)
        path.unlink()

    monkeypatch.setattr(sealing, "_compare", pruned_meanwhile)
    with pytest.raises(FileNotFoundError):
        compress(path)
    assert not list(log_dir.glob(f"*{path.name}*"))


def test_reader_beside_a_writer_and_a_sealer_never_sees_damage(tmp_path: Path) -> None:
    log_dir = tmp_path / "log"
    with LogWriter(log_dir, segment_bytes=3000) as writer:
        sealer = Sealer(log_dir)
        log = LogReader(log_dir)
        seen = 0
        for n in range(3000):
            writer.append(b"record %06d " % n * 4)
            if n % 20 == 19:
                writer.commit()
                sealer.tick(folder.list_segments(log_dir)[-1].first_seq)
                for seq, payload in log.records(seen):
                    assert (seq, payload) == (seen, b"record %06d " % seen * 4)
                    seen += 1
                assert log.read(n // 2) == b"record %06d " % (n // 2) * 4
        sealer.close()
    assert seen == 3000
    assert list(sealer.errors) == []
    assert sealer.compressed > 10
    assert [seq for seq, _ in LogReader(log_dir).records()] == list(range(3000))
    unmark(tmp_path)
