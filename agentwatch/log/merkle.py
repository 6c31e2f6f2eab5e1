"""The Merkle tree of RFC 6962, section 2.1, with SHA-256: hashes, roots, proofs. Pure functions, no files.

A tree of some size is seen through a ``HashReader``, which gives the root of any complete subtree in it; tiles are one
(tiles.py), a list of leaves is another (``in_memory``). What always holds:

* a leaf and an inner node are never hashed alike (0x00, 0x01), so that a node cannot pass for a record;
* a proof is an argument for a root, not a fact: what makes one says nothing; what checks one raises ``ProofError``.

Indices and sizes are numbers of leaves; a subtree is named by its level (2**level leaves) and its index in that level.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

HASH_BYTES = 32
HashReader = Callable[[int, int], bytes]
"""``read(level, index)`` is the root of the complete subtree of the 2**level leaves from index * 2**level on."""

_sha256 = hashlib.sha256
EMPTY_ROOT = _sha256(b"").digest()


class ProofError(ValueError):
    """A proof does not prove what it was given for."""


def leaf_hash(payload: bytes) -> bytes:
    """Return the leaf of a record's stored bytes."""
    return _sha256(b"\x00" + payload).digest()


def leaf_hashes(payloads: Iterable[bytes]) -> list[bytes]:
    """Return the leaves of records."""
    # As ``leaf_hash``, without a call for each: every record passes here when it is written and when it is verified.
    return [_sha256(b"\x00" + payload).digest() for payload in payloads]


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the inner node over two roots."""
    return _sha256(b"\x01" + left + right).digest()


def parents(hashes: bytes) -> bytes:
    """Return the inner nodes over neighbours, all in one piece as ``hashes`` are; an odd one at the end has none."""
    pairs = range(0, len(hashes) - HASH_BYTES, 2 * HASH_BYTES)
    return b"".join([_sha256(b"\x01" + hashes[at : at + 2 * HASH_BYTES]).digest() for at in pairs])


VOID_LEAF = leaf_hash(b"")
"""The leaf of a number that no record ever had: no payload is empty, so it is no record's."""


class Frontier:
    """A growing tree, reduced to what its root needs: the complete subtrees on its right edge, largest first."""

    __slots__ = ("hashes", "size")

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        """``hashes`` are the roots of the subtrees that ``size`` consists of: one for each bit that is set in it."""
        self.size = size
        self.hashes = list(hashes)
        if len(self.hashes) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} subtrees, not {len(self.hashes)}")

    def append(self, leaf: bytes) -> None:
        """Add a leaf on the right."""
        rest = self.size
        while rest & 1:
            leaf = _sha256(b"\x01" + self.hashes.pop() + leaf).digest()
            rest >>= 1
        self.hashes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Return the root of the tree as it is now."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = node_hash(left, root)
        return root


def subtree_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root over the hashes of a complete subtree; their number is a power of two."""
    count = len(leaves)
    if count.bit_count() != 1:
        raise ValueError(f"{count} hashes are not those of a complete subtree")
    hashes = b"".join(leaves)
    while len(hashes) > HASH_BYTES:
        hashes = parents(hashes)
    return hashes


def in_memory(leaves: Sequence[bytes]) -> HashReader:
    """Return a reader of the tree over these leaves."""

    def read(level: int, index: int) -> bytes:
        return subtree_root(leaves[index << level : (index + 1) << level])

    return read


def frontier(size: int, read: HashReader) -> Frontier:
    """Return the frontier of the tree of this size."""
    return Frontier(size, (read(level, index) for level, index in _complete(0, size)))


def root(size: int, read: HashReader) -> bytes:
    """Return the root of the tree of this size."""
    return frontier(size, read).root()


def inclusion_proof(index: int, size: int, read: HashReader) -> list[bytes]:
    """Return the proof that leaf ``index`` is in the tree of this size (section 2.1.1), from the leaf up."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    proof: list[bytes] = []
    begin, end = 0, size
    path: list[tuple[int, int]] = []
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((begin, middle))
            begin = middle
    proof.extend(_range_root(*sibling, read) for sibling in reversed(path))
    return proof


def consistency_proof(old: int, new: int, read: HashReader) -> list[bytes]:
    """Return the proof that the tree of size ``new`` begins with that of size ``old`` (section 2.1.2).

    From the empty tree, and to the same size, it is empty.
    """
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} leaves does not begin with one of {old}")
    if old in (0, new):
        return []
    path: list[tuple[int, int]] = []
    begin, end = 0, new
    while end != old:
        middle = begin + _split(end - begin)
        if old <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((begin, middle))
            begin = middle
    if begin:
        path.append((begin, end))
    return [_range_root(*part, read) for part in reversed(path)]


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """Return the root that the proof leads to. Raises ProofError where it cannot be a proof for this place."""
    if not 0 <= index < size:
        raise ProofError(f"a tree of {size} leaves has no leaf {index}")
    _check_hashes([leaf, *proof])
    result = leaf
    for sibling, on_left in _siblings(index, size - 1, proof):
        result = node_hash(sibling, result) if on_left else node_hash(result, sibling)
    return result


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], expected: bytes) -> None:
    """Raise ProofError unless the proof shows that ``leaf`` has this place in the tree with this root."""
    if root_from_inclusion(index, size, leaf, proof) != expected:
        raise ProofError(f"the inclusion proof of leaf {index} leads to another root")


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Raise ProofError unless the proof shows that the second tree begins with the first.

    From the empty tree everything follows, if its root is the empty tree's.
    """
    if not 0 <= old <= new:
        raise ProofError(f"a tree of {new} leaves does not begin with one of {old}")
    _check_hashes([old_root, new_root, *proof])
    if old == new and old_root != new_root:
        raise ProofError(f"two trees of {old} leaves have different roots")
    if old == 0 and old_root != EMPTY_ROOT:
        raise ProofError("the root of the empty tree is that of another")
    if old in (0, new):
        if proof:
            raise ProofError("the consistency proof should be empty")
        return
    _verify_growth(old, old_root, new, new_root, proof)


def _verify_growth(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    # RFC 9162, section 2.1.4.2: from the subtree that ends the old tree, the last complete one, up to both roots.
    complete = (old & -old).bit_length() - 1
    hashes = [old_root, *proof] if old == 1 << complete else proof
    if not hashes:
        raise ProofError("the consistency proof is too short")
    of_old = of_new = hashes[0]
    for sibling, on_left in _siblings((old - 1) >> complete, (new - 1) >> complete, hashes[1:]):
        if on_left:
            of_old = node_hash(sibling, of_old)
            of_new = node_hash(sibling, of_new)
        else:
            of_new = node_hash(of_new, sibling)
    if of_old != old_root:
        raise ProofError(f"the consistency proof is of another tree of {old} leaves")
    if of_new != new_root:
        raise ProofError(f"the consistency proof leads to another tree of {new} leaves")


def _check_hashes(hashes: Iterable[bytes]) -> None:
    # Bytes that moved from one hash to its neighbour would be hashed alike.
    if any(len(digest) != HASH_BYTES for digest in hashes):
        raise ProofError(f"every hash of a proof has {HASH_BYTES} bytes")


def _siblings(at: int, last: int, proof: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    # The way up from node ``at`` of a level that ends with node ``last``: each hash of the proof, and whether it is on
    # the left. A node without a sibling is its own parent: such levels have no hash.
    for sibling in proof:
        if last == 0:
            raise ProofError("the proof is too long")
        on_left = bool(at & 1) or at == last
        yield sibling, on_left
        if on_left:
            while not at & 1 and at:
                at >>= 1
                last >>= 1
        at >>= 1
        last >>= 1
    if last:
        raise ProofError("the proof is too short")


def _split(size: int) -> int:
    # The largest power of two below size.
    return 1 << (size - 1).bit_length() - 1


def _complete(begin: int, end: int) -> Iterator[tuple[int, int]]:
    # The complete subtrees that leaves begin to end - 1 consist of, from the left, as (level, index). ``begin`` is a
    # multiple of the first one's size wherever this is called: it is the left edge of a subtree of the tree.
    while begin < end:
        level = (end - begin).bit_length() - 1
        yield level, begin >> level
        begin += 1 << level


def _range_root(begin: int, end: int, read: HashReader) -> bytes:
    level = (end - begin).bit_length() - 1
    if end - begin == 1 << level:
        return read(level, begin >> level)  # all but the last siblings of a proof are complete
    parts = [read(level, index) for level, index in _complete(begin, end)]
    result = parts.pop()
    while parts:
        result = node_hash(parts.pop(), result)
    return result
