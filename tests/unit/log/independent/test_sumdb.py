# ruff: noqa: S311 -- random test data
"""Our tree, notes and tiles before an independent judge: golang.org/x/mod/sumdb, which the Go tools trust.

The judge is compiled once in a session, from Debian's sources and without a network; the Go programs are in the folders
beside this file.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from agentwatch.log import merkle, note
from agentwatch.log.checkpoint import Checkpoint, make_origin
from agentwatch.log.merkle import ProofError
from agentwatch.log.note import Key, Note, NoteError
from agentwatch.log.tiles import TileReader, TileWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).parent
GO_PATH = Path("/usr/share/gocode")
SUMDB = GO_PATH / "src/golang.org/x/mod/sumdb/tlog"

pytestmark = [
    pytest.mark.skipif(shutil.which("go") is None, reason="no Go: the independent judge needs golang-go"),
    pytest.mark.skipif(not SUMDB.is_dir(), reason=f"no {SUMDB}: the independent judge needs golang-golang-x-mod-dev"),
]


class Judge:
    """The Go programs of this folder, each compiled when it is first asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ask(self, program: str, request: object) -> Any:
        """Return a program's answer to a request; both are JSON."""
        path = self._folder / program
        if not path.exists():
            self._build(program, path)
        done = subprocess.run(
            [path], input=json.dumps(request), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _build(self, program: str, path: Path) -> None:
        settings = {"GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOCACHE": str(self._folder / "cache"), "GOFLAGS": ""}
        command = ["go", "build", "-o", str(path), "."]
        environment = {**os.environ, **settings}
        done = subprocess.run(
            command, cwd=HERE / program, env=environment, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge(tmp_path_factory.mktemp("sumdb"))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def b64s(hashes: Sequence[bytes]) -> list[str]:
    return [b64(digest) for digest in hashes]


def unb64s(texts: Sequence[str] | None) -> list[bytes]:
    return [base64.b64decode(text) for text in texts or ()]


# -- trees


class Tree(NamedTuple):
    """Random records, and the tree over them as we have it."""

    records: list[bytes]
    leaves: list[bytes]

    def root(self, size: int) -> bytes:
        return merkle.root(size, merkle.in_memory(self.leaves))

    def inclusion(self, index: int, size: int) -> list[bytes]:
        return merkle.inclusion_proof(index, size, merkle.in_memory(self.leaves))

    def consistency(self, old: int, new: int) -> list[bytes]:
        return merkle.consistency_proof(old, new, merkle.in_memory(self.leaves))


@pytest.fixture(scope="module")
def tree() -> Tree:
    records = [random.randbytes(random.choice((0, 1, 31, 32, 33, 64, 1000))) for _ in range(150)]
    return Tree(records, [merkle.leaf_hash(record) for record in records])


def pairs(count: int, size: int) -> list[tuple[int, int]]:
    """Return pairs of numbers, the first less than the second; those about powers of two and at random."""
    edges = [(a, b) for b in (1, 2, 3, 64, 65, size) for a in {0, 1, b // 2, b - 1} if a < b]
    drawn = [sorted(random.sample(range(size + 1), 2)) for _ in range(count)]
    return [*edges, *((a, b) for a, b in drawn)]


def changed(proof: list[bytes]) -> list[bytes]:
    """Return a proof that mostly differs: by a hash changed, missing, there twice, added or in another place."""
    if not proof:
        return random.choice(([], [random.randbytes(32)]))
    at = random.randrange(len(proof))
    before, here, behind = proof[:at], proof[at], proof[at + 1 :]
    other = random.randbytes(32)
    return random.choice(
        (
            proof,
            [*before, other, *behind],
            [*before, *behind],
            [*before, here, here, *behind],
            [*proof, other],
            [proof[-1], *proof[1:-1], proof[0]],
        )
    )


def holds(check: Callable[..., None], *args: object) -> bool:
    try:
        check(*args)
    except ProofError:
        return False
    return True


def test_roots_are_the_same(judge: Judge, tree: Tree) -> None:
    answer = judge.ask("tree", {"Records": b64s(tree.records)})
    assert unb64s(answer["Roots"]) == [tree.root(size) for size in range(1, len(tree.records) + 1)]


def test_proofs_are_the_same_and_each_accepts_the_others(judge: Judge, tree: Tree) -> None:
    record_pairs = pairs(60, len(tree.records))
    tree_pairs = [(old, new) for old, new in pairs(60, len(tree.records)) if old]
    asked = {"Records": b64s(tree.records), "RecordProofs": record_pairs, "TreeProofs": tree_pairs}
    answer = judge.ask("tree", asked)
    for (index, size), texts in zip(record_pairs, answer["RecordProofs"], strict=True):
        assert unb64s(texts) == tree.inclusion(index, size)
        merkle.verify_inclusion(index, size, tree.leaves[index], unb64s(texts), tree.root(size))
    for (old, new), texts in zip(tree_pairs, answer["TreeProofs"], strict=True):
        assert unb64s(texts) == tree.consistency(old, new)
        merkle.verify_consistency(old, tree.root(old), new, tree.root(new), unb64s(texts))


def test_both_judge_every_proof_alike_right_or_wrong(judge: Judge, tree: Tree) -> None:
    records, trees, ours = [], [], []
    for index, size in pairs(400, len(tree.records)):
        proof = changed(tree.inclusion(index, size))
        said = max(0, index + random.choice((0, 0, 0, 1, -1)))
        root, leaf = tree.root(size), tree.leaves[index]
        records.append({"Proof": b64s(proof), "Size": size, "Root": b64(root), "Index": said, "Leaf": b64(leaf)})
        ours.append(holds(merkle.verify_inclusion, said, size, leaf, proof, root))
    for old, new in pairs(400, len(tree.records)):
        if not old:
            continue
        proof = changed(tree.consistency(old, new))
        said = max(1, new + random.choice((0, 0, 0, 1, -1)))
        roots = tree.root(old), tree.root(new)
        part = {"Proof": b64s(proof), "New": said, "NewRoot": b64(roots[1]), "Old": old, "OldRoot": b64(roots[0])}
        trees.append(part)
        ours.append(holds(merkle.verify_consistency, old, roots[0], said, roots[1], proof))
    answer = judge.ask("tree", {"RecordChecks": records, "TreeChecks": trees})
    assert [*answer["RecordChecks"], *answer["TreeChecks"]] == ours
    assert {True, False} == set(answer["RecordChecks"]) == set(answer["TreeChecks"])


# -- notes

ORIGIN = make_origin("db-agents-1", bytes(range(16)))
TEXT = Checkpoint(ORIGIN, 1834, bytes(range(32))).text


def sign(text: str, *signers: note.Signer) -> Note:
    made = Note(text, ())
    for signer in signers:
        made = made.signed_by(signer, 1679315147)
    return made


def test_our_checkpoints_are_opened(judge: Judge) -> None:
    ours = note.Ed25519Signer(ORIGIN, random.randbytes(32))
    seeds = random.randbytes(32), random.randbytes(32)
    beside: list[note.Signer] = [note.MlDsaSigner(ORIGIN, seeds[0]), note.Cosigner("collector", seeds[1])]
    stored = str(sign(TEXT, ours, *beside)).encode()
    (opened,) = judge.ask("notes", [{"Note": b64(stored), "Vkeys": [str(ours.key)]}])
    assert opened["Error"] == ""
    assert opened["Text"] == TEXT
    assert opened["Signers"] == [ORIGIN]
    assert opened["Others"] == [ORIGIN, "collector"]


def test_notes_of_the_judge_are_verified(judge: Judge) -> None:
    texts = [TEXT, "one line\n", "with an\n\nempty line\n", "\n", "\N{SNOWMAN}\n", "— name AAAAAAAA\n"]
    for text, signed in zip(texts, judge.ask("notes", [{"Name": ORIGIN, "Text": text} for text in texts]), strict=True):
        assert signed["Error"] == ""
        key = Key.parse(signed["Vkey"])
        parsed = note.parse(base64.b64decode(signed["Note"]))
        note.verify(parsed, [key])
        assert (str(key), parsed.text) == (signed["Vkey"], text)


MATTERS = (b"\n", b"\r", b" ", b"+", b"=", b"\xc2\xa0", b"\xe2\x80\x94", b"A", b"\x00")


def mutants(stored: bytes, count: int) -> list[bytes]:
    """Return the note with one to three bytes changed, taken out or put in, often ones that matter to the format."""
    found = []
    for _ in range(count):
        data = bytearray(stored)
        for _ in range(random.randrange(1, 4)):
            at = random.randrange(len(data))
            piece = random.choice((*MATTERS, random.randbytes(1)))
            data[at : at + random.randrange(2)] = random.choice((piece, piece, b""))
        found.append(bytes(data))
    return found


def refusal(data: bytes, key: Key) -> str | None:
    try:
        note.verify(note.parse(data), [key])
    except NoteError as e:
        return str(e)
    return None


def test_what_we_accept_the_judge_accepts_and_the_rest_is_another_spelling(judge: Judge) -> None:
    signer = note.Ed25519Signer(ORIGIN, random.randbytes(32))
    stranger = note.Cosigner("collector", random.randbytes(32))
    stored = str(sign(TEXT, signer, stranger)).encode()
    candidates = [stored, *mutants(stored, 4000)]
    answers = judge.ask("notes", [{"Note": b64(data), "Vkeys": [str(signer.key)]} for data in candidates])
    accepted = 0
    for data, opened in zip(candidates, answers, strict=True):
        why = refusal(data, signer.key)
        if why is None:
            assert (opened["Error"], opened["Text"], note.parse(data).text) == ("", TEXT, TEXT), data
            accepted += 1
        else:
            # The judge ignores bits behind the end of base64. In everything else it refuses what we refuse.
            assert opened["Error"] or "bits behind the end" in why, (data, why)
    assert accepted


def test_vkeys_are_taken_alike(judge: Judge) -> None:
    good = str(note.Ed25519Signer(ORIGIN, random.randbytes(32)).key)
    candidates = [good]
    candidates += [f"{good[:at]}{random.choice('+z=0G')}{good[at + random.randrange(2) :]}" for at in range(len(good))]
    stored = b64(str(sign(TEXT, note.Ed25519Signer(ORIGIN, bytes(32)))).encode())
    answers = judge.ask("notes", [{"Note": stored, "Vkeys": [vkey]} for vkey in candidates])
    for vkey, answer in zip(candidates, answers, strict=True):
        try:
            ours = str(Key.parse(vkey)) == vkey
        except NoteError:
            ours = False
        assert ours == (answer["Error"] == "note has no verifiable signatures"), (vkey, answer)


# -- tiles


def grown(log_dir: Path, leaves: list[bytes], steps: Sequence[int]) -> bytes:
    writer = TileWriter(log_dir, 0, TileReader(log_dir, 0), mode=0o600, gid=os.getgid())
    for size in steps:
        writer.extend(leaves[writer.size : size])
        writer.discard(writer.flush())
    return merkle.root(writer.size, TileReader(log_dir, writer.size))


@pytest.mark.parametrize("size", [1, 255, 256, 257, 511, 1000, 65_536, 70_000])
def test_our_tiles_are_read_and_proved(judge: Judge, tmp_path: Path, size: int) -> None:
    leaves = [merkle.leaf_hash(b"record %d" % index) for index in range(size)]
    old = random.randrange(1, size + 1)
    root = grown(tmp_path, leaves, sorted({*random.choices(range(size), k=5), size}))
    answer = judge.ask("tiles", {"Log": str(tmp_path), "Size": size, "Root": b64(root), "Old": old})
    assert answer["Error"] == ""
    assert base64.b64decode(answer["Root"]) == root
    assert unb64s(answer["Leaves"]) == leaves
    assert unb64s(answer["TreeProof"]) == merkle.consistency_proof(old, size, TileReader(tmp_path, size))
    ours = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(answer["Tiles"]) == sorted(ours)


def test_a_changed_bit_in_any_tile_is_found(judge: Judge, tmp_path: Path) -> None:
    # The judge's other side: it does not say yes to everything.
    leaves = [merkle.leaf_hash(b"record %d" % index) for index in range(1000)]
    root = grown(tmp_path, leaves, [1000])
    asked = {"Log": str(tmp_path), "Size": 1000, "Root": b64(root), "Old": 500}
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
        path.write_bytes(flipped)
        assert re.search("inconsistent|of another tree|differs", judge.ask("tiles", asked)["Error"]), path
        path.write_bytes(data)
    assert judge.ask("tiles", asked)["Error"] == ""
