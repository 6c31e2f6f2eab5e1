"""The tree against the vectors of the Certificate Transparency reference implementation and the RFC's own words."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwatch.log import merkle
from agentwatch.log.merkle import ProofError

if TYPE_CHECKING:
    from collections.abc import Iterator

CT_RECORDS = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
CT_ROOTS = [
    bytes.fromhex(text)
    for text in (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
CT_INCLUSION = {
    (0, 1): "",
    (0, 8): "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    (5, 8): "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    (2, 3): "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    (1, 5): "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
}
CT_CONSISTENCY = {
    (1, 1): "",
    (1, 8): "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    (6, 8): "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    (2, 5): "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
}
OTHER = hashlib.sha256(b"other").digest()


def hashes(text: str) -> list[bytes]:
    data = bytes.fromhex(text)
    return [data[at : at + 32] for at in range(0, len(data), 32)]


def leaves(size: int) -> list[bytes]:
    return [merkle.leaf_hash(b"record %d" % index) for index in range(size)]


CT = merkle.in_memory([merkle.leaf_hash(record) for record in CT_RECORDS])
TREE = leaves(70)
READ = merkle.in_memory(TREE)


# The definitions of RFC 6962, section 2.1, word for word, over leaf hashes.


def split(size: int) -> int:
    k = 1
    while k * 2 < size:
        k *= 2
    return k


def mth(d: list[bytes]) -> bytes:
    if len(d) <= 1:
        return d[0] if d else hashlib.sha256().digest()
    k = split(len(d))
    return hashlib.sha256(b"\x01" + mth(d[:k]) + mth(d[k:])).digest()


def path(m: int, d: list[bytes]) -> list[bytes]:
    if len(d) == 1:
        return []
    k = split(len(d))
    return [*path(m, d[:k]), mth(d[k:])] if m < k else [*path(m - k, d[k:]), mth(d[:k])]


def subproof(m: int, d: list[bytes], *, known: bool) -> list[bytes]:
    if m == len(d):
        return [] if known else [mth(d)]
    k = split(len(d))
    if m <= k:
        return [*subproof(m, d[:k], known=known), mth(d[k:])]
    return [*subproof(m - k, d[k:], known=False), mth(d[:k])]


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_the_ct_reference(size: int) -> None:
    grown = merkle.Frontier()
    for record in CT_RECORDS[:size]:
        grown.append(merkle.leaf_hash(record))
    assert grown.root() == merkle.root(size, CT) == CT_ROOTS[size]


@pytest.mark.parametrize(("index", "size"), CT_INCLUSION)
def test_inclusion_proofs_are_those_of_the_ct_reference(index: int, size: int) -> None:
    proof = merkle.inclusion_proof(index, size, CT)
    assert proof == hashes(CT_INCLUSION[index, size])
    merkle.verify_inclusion(index, size, merkle.leaf_hash(CT_RECORDS[index]), proof, CT_ROOTS[size])


@pytest.mark.parametrize(("old", "new"), CT_CONSISTENCY)
def test_consistency_proofs_are_those_of_the_ct_reference(old: int, new: int) -> None:
    proof = merkle.consistency_proof(old, new, CT)
    assert proof == hashes(CT_CONSISTENCY[old, new])
    merkle.verify_consistency(old, CT_ROOTS[old], new, CT_ROOTS[new], proof)


def test_the_void_leaf_is_the_leaf_of_no_bytes() -> None:
    assert hashlib.sha256(b"\x00").digest() == merkle.VOID_LEAF


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_root_and_proof_is_what_the_rfc_defines(data: st.DataObject) -> None:
    new = data.draw(st.integers(1, len(TREE)))
    index = data.draw(st.integers(0, new - 1))
    old = data.draw(st.integers(1, new))
    assert merkle.root(new, READ) == mth(TREE[:new])
    assert merkle.inclusion_proof(index, new, READ) == path(index, TREE[:new])
    assert merkle.consistency_proof(old, new, READ) == subproof(old, TREE[:new], known=True)


def test_every_proof_of_every_small_tree_is_accepted() -> None:
    for size in range(34):
        root = mth(TREE[:size])
        for index in range(size):
            merkle.verify_inclusion(index, size, TREE[index], merkle.inclusion_proof(index, size, READ), root)
        for old in range(size + 1):
            merkle.verify_consistency(old, mth(TREE[:old]), size, root, merkle.consistency_proof(old, size, READ))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 70), st.integers(0, 70))
def test_a_frontier_grows_on_from_any_size(one: int, other: int) -> None:
    begin, end = sorted((one, other))
    grown = merkle.frontier(begin, READ)
    for leaf in TREE[begin:end]:
        grown.append(leaf)
    assert grown.root() == mth(TREE[:end])
    assert grown.hashes == merkle.frontier(end, READ).hashes


def test_a_frontier_has_one_hash_for_each_bit_of_its_size() -> None:
    with pytest.raises(ValueError, match="5 leaves has 2 subtrees, not 1"):
        merkle.Frontier(5, [OTHER])


def wrong(proof: list[bytes]) -> Iterator[list[bytes]]:
    """Yield every proof that differs: in a hash, by one hash less or more, in order, in where a hash ends."""
    for at, digest in enumerate(proof):
        yield [*proof[:at], OTHER, *proof[at + 1 :]]
        for bit in (0, 255):
            flipped = bytearray(digest)
            flipped[bit // 8] ^= 1 << bit % 8
            yield [*proof[:at], bytes(flipped), *proof[at + 1 :]]
        yield [*proof[:at], *proof[at + 1 :]]
        yield [*proof[:at], digest[:-1], *proof[at + 1 :]]
        yield [*proof[:at], b"", *proof[at + 1 :]]
    for at in range(len(proof) + 1):
        yield [*proof[:at], OTHER, *proof[at:]]
        yield [*proof[:at], merkle.EMPTY_ROOT, *proof[at:]]
    for at in range(len(proof) - 1):
        one, other = proof[at : at + 2]
        yield [*proof[:at], other, one, *proof[at + 2 :]]
        yield [*proof[:at], one + other[:1], other[1:], *proof[at + 2 :]]
        yield [*proof[:at], one[:-1], one[-1:] + other, *proof[at + 2 :]]
        yield [*proof[:at], one + other, *proof[at + 2 :]]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 13, 33])
def test_every_wrong_inclusion_proof_is_refused(size: int) -> None:
    root = mth(TREE[:size])
    for index in range(size):
        proof = merkle.inclusion_proof(index, size, READ)
        for other in wrong(proof):
            with pytest.raises(ProofError):
                merkle.verify_inclusion(index, size, TREE[index], other, root)
        for other_index in [*range(-1, index), *range(index + 1, size + 1)]:
            with pytest.raises(ProofError):
                merkle.verify_inclusion(other_index, size, TREE[index], proof, root)
        with pytest.raises(ProofError, match="another root"):
            merkle.verify_inclusion(index, size, OTHER, proof, root)
        with pytest.raises(ProofError, match="another root"):
            merkle.verify_inclusion(index, size, TREE[index], proof, OTHER)


def test_an_inclusion_proof_is_refused_for_another_size() -> None:
    for size in range(1, 20):
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, READ)
            for other_size in range(1, 24):
                if other_size == size or index >= other_size:
                    continue
                with pytest.raises(ProofError):
                    merkle.verify_inclusion(index, other_size, TREE[index], proof, mth(TREE[:other_size]))


@pytest.mark.parametrize(("old", "new"), [(1, 2), (1, 8), (2, 3), (3, 4), (4, 8), (6, 8), (7, 13), (8, 13), (31, 33)])
def test_every_wrong_consistency_proof_is_refused(old: int, new: int) -> None:
    old_root, new_root = mth(TREE[:old]), mth(TREE[:new])
    proof = merkle.consistency_proof(old, new, READ)
    for other in wrong(proof):
        with pytest.raises(ProofError):
            merkle.verify_consistency(old, old_root, new, new_root, other)
    for roots in (
        (OTHER, new_root),
        (old_root, OTHER),
        (new_root, old_root),
        (old_root, old_root),
        (new_root, new_root),
    ):
        with pytest.raises(ProofError):
            merkle.verify_consistency(old, roots[0], new, roots[1], proof)
    for other_old in range(-1, new + 2):
        if other_old != old:
            with pytest.raises(ProofError):
                merkle.verify_consistency(other_old, old_root, new, new_root, proof)


def test_a_proof_of_growth_is_refused_for_another_size() -> None:
    for new in range(2, 20):
        for old in range(1, new):
            proof = merkle.consistency_proof(old, new, READ)
            for other in range(old, 24):
                if other != new:
                    with pytest.raises(ProofError):
                        merkle.verify_consistency(old, mth(TREE[:old]), other, mth(TREE[:other]), proof)


def test_a_proof_with_more_than_its_place_has_is_too_long() -> None:
    for index, size in ((0, 1), (4, 5), (2, 8)):
        proof = [*merkle.inclusion_proof(index, size, READ), OTHER]
        with pytest.raises(ProofError, match="too long"):
            merkle.root_from_inclusion(index, size, TREE[index], proof)
        with pytest.raises(ProofError, match="too short"):
            merkle.root_from_inclusion(index, size * 2 + 1, TREE[index], proof[:-1])


def test_a_leaf_or_root_that_took_bytes_of_its_neighbour_is_refused() -> None:
    # Both would be hashed to what the right ones are hashed to.
    one, other = TREE[:2]
    root = merkle.node_hash(one, other)
    longer, shorter = one + other[:1], other[1:]
    assert merkle.node_hash(longer, shorter) == root
    with pytest.raises(ProofError, match="32 bytes"):
        merkle.verify_inclusion(0, 2, longer, [shorter], root)
    with pytest.raises(ProofError, match="32 bytes"):
        merkle.verify_consistency(1, longer, 2, root, [shorter])


def test_a_rewritten_past_has_no_proof() -> None:
    # Leaf 2 changed after the tree had five: neither tree's proofs lead from the old root to the new one.
    rewritten = [*TREE[:2], OTHER, *TREE[3:9]]
    for read in (READ, merkle.in_memory(rewritten)):
        with pytest.raises(ProofError):
            merkle.verify_consistency(5, mth(TREE[:5]), 9, mth(rewritten), merkle.consistency_proof(5, 9, read))


def test_trees_of_one_size_have_one_root() -> None:
    for size in (0, 1, 5):
        root = mth(TREE[:size])
        merkle.verify_consistency(size, root, size, root, [])
        for roots in ((root, OTHER), (OTHER, root)):
            with pytest.raises(ProofError):
                merkle.verify_consistency(size, roots[0], size, roots[1], [])
        with pytest.raises(ProofError, match="should be empty"):
            merkle.verify_consistency(size, root, size, root, [OTHER])


def test_from_the_empty_tree_everything_follows_but_not_from_another_root() -> None:
    merkle.verify_consistency(0, merkle.EMPTY_ROOT, 5, mth(TREE[:5]), [])
    with pytest.raises(ProofError, match="empty tree"):
        merkle.verify_consistency(0, OTHER, 5, mth(TREE[:5]), [])
    with pytest.raises(ProofError, match="should be empty"):
        merkle.verify_consistency(0, merkle.EMPTY_ROOT, 5, mth(TREE[:5]), [OTHER])


@pytest.mark.parametrize(("index", "size"), [(-1, 5), (5, 5), (0, 0)])
def test_there_is_no_proof_of_a_leaf_that_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="has no leaf"):
        merkle.inclusion_proof(index, size, READ)


@pytest.mark.parametrize(("old", "new"), [(-1, 5), (6, 5)])
def test_a_tree_does_not_shrink(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="does not begin with"):
        merkle.consistency_proof(old, new, READ)
