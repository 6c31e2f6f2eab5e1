"""Tiles: the layout of tlog-tiles, a tree that grows in any steps, and a reader beside a writer."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwatch.errors import LogError
from agentwatch.log import merkle, tiles
from agentwatch.log.tiles import TileReader, TileWriter, partial_tiles, tile_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SPEC_SIZE = 70_000
LEAVES = [hashlib.sha256(b"leaf %d" % index).digest() for index in range(SPEC_SIZE)]


def new(log_dir: Path, size: int = 0, *, mode: int = 0o600) -> TileWriter:
    return TileWriter(log_dir, size, TileReader(log_dir, size), mode=mode, gid=os.getgid())


def grow(writer: TileWriter, sizes: Iterable[int]) -> None:
    for size in sizes:
        writer.extend(LEAVES[writer.size : size])
        writer.discard(writer.flush())


def files(log_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(log_dir)): path.read_bytes() for path in log_dir.rglob("*") if path.is_file()}


def mth(leaves: Sequence[bytes]) -> bytes:
    grown = merkle.Frontier()
    for leaf in leaves:
        grown.append(leaf)
    return grown.root()


def layout(size: int) -> dict[str, bytes]:
    """Return the tiles of a tree by tlog-tiles: MTH(D[(n*256 + i) * 256**l : (n*256 + i + 1) * 256**l])."""
    found: dict[str, bytes] = {}
    hashes, level = LEAVES[:size], 0
    while hashes:
        for n in range(-(-len(hashes) // 256)):
            part = hashes[n * 256 : n * 256 + 256]
            name = f"tile/{level}/{n:03d}" + ("" if len(part) == 256 else f".p/{len(part)}")
            found[name] = b"".join(part)
        level += 1
        hashes = [mth(hashes[at : at + 256]) for at in range(0, len(hashes) - 255, 256)]
    return found


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    log_dir = tmp_path_factory.mktemp("big")
    grow(new(log_dir), [SPEC_SIZE])
    return log_dir


# -- names and layout


@pytest.mark.parametrize(
    ("tile", "name"),
    [
        ((0, 0), "tile/0/000"),
        ((0, 999), "tile/0/999"),
        ((0, 1000), "tile/0/x001/000"),
        ((4, 1234067), "tile/4/x001/x234/067"),
        ((0, 1234067, 8), "tile/0/x001/x234/067.p/8"),
        ((0, 0, 7), "tile/0/000.p/7"),
        ((1, 273, 255), "tile/1/273.p/255"),
        ((63, 123456789), "tile/63/x123/x456/789"),
        ((2, 10**12), "tile/2/x001/x000/x000/x000/000"),
    ],
)
def test_names_are_those_of_tlog_tiles(tile: tuple[int, ...], name: str) -> None:
    assert tile_path(*tile) == name


def test_seventy_thousand_records_have_the_tiles_of_the_specifications_example(big: Path) -> None:
    found = files(big)
    level_0 = [name for name in found if name.startswith("tile/0/") and ".p/" not in name]
    assert sorted(level_0) == [f"tile/0/{n:03d}" for n in range(273)]
    assert sorted(set(found) - set(level_0)) == ["tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"]
    assert found == layout(SPEC_SIZE)
    assert set(partial_tiles(SPEC_SIZE)) == {(0, 273, 112), (1, 1, 17), (2, 0, 1)}


def test_256_records_have_a_full_tile_and_its_root(tmp_path: Path) -> None:
    grow(new(tmp_path), [256])
    assert files(tmp_path) == {
        "tile/0/000": b"".join(LEAVES[:256]),
        "tile/1/000.p/1": mth(LEAVES[:256]),
    }


def test_an_empty_tree_has_no_tiles(tmp_path: Path) -> None:
    writer = new(tmp_path)
    assert writer.flush() == set()
    assert files(tmp_path) == {}
    assert writer.root() == merkle.EMPTY_ROOT == merkle.root(0, TileReader(tmp_path, 0))


def test_full_tiles_have_8192_bytes(big: Path) -> None:
    for name, data in files(big).items():
        assert len(data) == 32 * (int(name.rpartition("/")[2]) if ".p/" in name else 256)


# -- growing


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 900), max_size=8), st.booleans())
def test_growing_in_any_steps_gives_the_same_tree(steps: list[int], reopened: bool) -> None:  # noqa: FBT001 -- hypothesis
    with tempfile.TemporaryDirectory() as name:
        log_dir = Path(name)
        writer = new(log_dir)
        for size in itertools.accumulate(steps):
            if reopened:
                writer = new(log_dir, writer.size)
            grow(writer, [size])
            assert files(log_dir) == layout(size)
            assert writer.root() == mth(LEAVES[:size])
        assert not [path for path in log_dir.rglob("*.p") if not any(path.iterdir())]


def test_every_size_up_to_two_tiles_and_more(tmp_path: Path) -> None:
    writer = new(tmp_path)
    for size in range(1, 530):
        grow(writer, [size])
        assert merkle.root(size, TileReader(tmp_path, size)) == writer.root() == mth(LEAVES[:size])
    assert files(tmp_path) == layout(529)


def test_partial_tiles_stay_until_they_are_discarded(tmp_path: Path) -> None:
    writer = new(tmp_path)
    grow(writer, [7])
    writer.extend(LEAVES[7:300])
    old = writer.flush()
    assert old == {"tile/0/000.p/7"}
    assert files(tmp_path) == {**layout(300), "tile/0/000.p/7": b"".join(LEAVES[:7])}
    assert merkle.root(7, TileReader(tmp_path, 7)) == mth(LEAVES[:7])
    writer.discard(old)
    writer.discard(old)
    assert files(tmp_path) == layout(300)


def test_nothing_is_written_before_flush_and_nothing_twice(tmp_path: Path) -> None:
    writer = new(tmp_path)
    writer.extend(LEAVES[:600])
    assert files(tmp_path) == {}
    writer.flush()
    shutil.rmtree(tmp_path / "tile")
    assert writer.flush() == set()
    assert files(tmp_path) == {}


@pytest.mark.parametrize("in_the_way", ["tile", "tile/0", "tile/0/001", "tile/0/002.p", "tile/1", "tile/1/000.p"])
def test_what_the_disk_refused_is_written_by_the_next_flush(tmp_path: Path, in_the_way: str) -> None:
    writer = new(tmp_path)
    path = tmp_path / in_the_way
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file where a folder should be, or a folder where a file should be: the one thing that stops root.
    if in_the_way == "tile/0/001":
        (path / "x").mkdir(parents=True)
    else:
        path.write_bytes(b"")
    writer.extend(LEAVES[:600])
    for _ in range(2):
        with pytest.raises(OSError, match=path.name):
            writer.flush()
    writer.extend(LEAVES[600:700])
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    writer.flush()
    assert {name: data for name, data in files(tmp_path).items() if "/." not in name} == layout(700)


@pytest.mark.parametrize(("mode", "folder_mode"), [(0o600, 0o700), (0o640, 0o750)])
def test_modes_are_set_whatever_the_umask_is(tmp_path: Path, mode: int, folder_mode: int) -> None:
    umask = os.umask(0o777)
    try:
        grow(new(tmp_path, mode=mode), [300])
    finally:
        os.umask(umask)
    for path in (tmp_path / "tile").rglob("*"):
        assert path.stat().st_mode & 0o7777 == (folder_mode if path.is_dir() else mode)
    assert (tmp_path / "tile").stat().st_mode & 0o7777 == folder_mode


# -- reading


def test_every_hash_of_a_tree_is_read(big: Path) -> None:
    read = TileReader(big, SPEC_SIZE)
    for level in range(17):
        last = (SPEC_SIZE >> level) - 1
        for index in {0, 1, last // 2, last - 1, last} & set(range(last + 1)):
            assert read(level, index) == mth(LEAVES[index << level : (index + 1) << level])
    assert read.leaf(69_999) == LEAVES[69_999]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_proofs_from_tiles_are_those_of_the_tree(big: Path, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, SPEC_SIZE))
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(0, size))
    read = TileReader(big, size)
    root = mth(LEAVES[:size])
    assert merkle.root(size, read) == root
    merkle.verify_inclusion(index, size, LEAVES[index], merkle.inclusion_proof(index, size, read), root)
    merkle.verify_consistency(old, mth(LEAVES[:old]), size, root, merkle.consistency_proof(old, size, read))


@pytest.mark.parametrize(
    ("level", "index"), [(0, SPEC_SIZE), (0, 10**9), (4, 4375), (8, 273), (16, 1), (17, 0), (63, 0), (0, -1), (8, -1)]
)
def test_a_hash_that_the_tree_does_not_have_is_refused(big: Path, level: int, index: int) -> None:
    with pytest.raises(LogError, match="has no"):
        TileReader(big, SPEC_SIZE)(level, index)


def test_a_tree_that_is_said_to_be_larger_than_its_tiles_is_refused(big: Path) -> None:
    for size in (SPEC_SIZE + 1, SPEC_SIZE * 256, 10**18):
        with pytest.raises(LogError, match="is missing or has not"):
            merkle.root(size, TileReader(big, size))


@pytest.mark.parametrize("name", ["tile/0/000", "tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"])
@pytest.mark.parametrize("change", ["missing", "empty", "short", "long", "half a hash", "folder"])
def test_a_tile_that_is_not_as_it_should_be_is_refused(big: Path, tmp_path: Path, name: str, change: str) -> None:
    path = tmp_path / name
    data = (big / name).read_bytes()
    path.parent.mkdir(parents=True)
    if change == "folder":
        path.mkdir()
    elif change != "missing":
        contents = {"empty": b"", "short": data[:-32], "long": data + bytes(32), "half a hash": data + bytes(16)}
        path.write_bytes(contents[change])
    read = TileReader(tmp_path, SPEC_SIZE)
    level, index = int(name.split("/")[1]), int(name.split("/")[2].removesuffix(".p"))
    with pytest.raises(LogError, match=r"is missing or has not|cannot read the tile"):
        read.tile(level, index)


def test_a_smaller_tree_is_read_from_wider_tiles(tmp_path: Path) -> None:
    writer = new(tmp_path)
    grow(writer, [100])
    for size in range(1, 101):
        assert merkle.root(size, TileReader(tmp_path, size)) == mth(LEAVES[:size])
    (tmp_path / "tile/0/000.p/99").write_bytes(b"short")
    (tmp_path / "tile/0/000.p/²").write_bytes(b"")
    (tmp_path / "tile/0/000.p/.100.new").write_bytes(b"")
    assert TileReader(tmp_path, 98).tile(0, 0) == b"".join(LEAVES[:98])
    grow(writer, [256])
    assert TileReader(tmp_path, 98).tile(0, 0) == b"".join(LEAVES[:98])


def test_a_reader_keeps_no_more_tiles_than_its_limit(big: Path) -> None:
    read = TileReader(big, SPEC_SIZE)
    for _ in range(2):
        for tile in range(274):
            assert read.leaf(tile * 256) == LEAVES[tile * 256]
            assert len(read._tiles) <= tiles.CACHED_TILES


def test_a_reader_finds_its_tree_while_partial_tiles_are_replaced(tmp_path: Path) -> None:
    published = [1]
    writer = new(tmp_path)
    grow(writer, [1])
    failures: list[BaseException] = []
    roots = merkle.Frontier()
    expected = [roots.root()]
    for leaf in LEAVES[:3000]:
        roots.append(leaf)
        expected.append(roots.root())

    def run() -> None:
        try:
            for step in itertools.cycle((1, 3, 17, 2, 250)):
                if writer.size >= len(expected) - 1:
                    return
                grow(writer, [min(writer.size + step, len(expected) - 1)])
                published[0] = writer.size
        except BaseException as e:  # noqa: BLE001 -- it is raised again below
            failures.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    reads = 0
    while thread.is_alive() or reads == 0:
        size = published[0]
        read = TileReader(tmp_path, size)
        assert merkle.root(size, read) == expected[size]
        index = reads * 7919 % size
        proof = merkle.inclusion_proof(index, size, read)
        merkle.verify_inclusion(index, size, LEAVES[index], proof, expected[size])
        reads += 1
    thread.join()
    assert failures == []
    assert merkle.root(3000, TileReader(tmp_path, 3000)) == expected[3000]
