"""What is believed of one host's log: signed trees, each proved to begin with the one before. No files, no sockets.

In: epochs and checkpoints with their proofs (frames.py says which). Out: a larger ``head``, or a ``Refusal``, after
which everything is as it was before. What always holds:

* the head is signed by keys that follow, epoch by epoch, from the identity that the host was enrolled with;
* every head begins with all heads before it: no record that was ever covered can be changed, taken out or cut off;
* the record of every epoch but the newest is proved to be in the head's tree; that of the newest one is owed until a
  larger tree is accepted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agentwatch.errors import LogError
from agentwatch.log import epochs, merkle, note
from agentwatch.log.checkpoint import Checkpoint
from agentwatch.log.note import NoteError

if TYPE_CHECKING:
    from agentwatch.collector.frames import Head, Proof, Step

ROLLBACK = "rollback"
"""A tree that is smaller than one that was accepted."""
FORK = "fork"
"""A tree that is signed as it should be and does not begin with the one that was accepted."""
FORGED = "forged"
"""A signature, a record or an epoch is not what it should be."""
IDENTITY = "identity"
"""Another log than the one that this host was enrolled with, or a log that is another host's."""
CERTIFICATE = "certificate"
"""The connection's certificate is not from the right authority, or names no host."""

MAX_EPOCHS = 100_000
"""One an hour and one a boot: some ten years. Of each but the last one only the keys are kept in memory."""
MAX_EPOCH_BYTES = 16 * 1024
"""A certificate with two ML-DSA-44 keys and signatures has 6 KiB."""


class Refusal(LogError):
    """What a host sent is not accepted. ``evidence`` is the checkpoint, where it was signed as it should be."""

    def __init__(self, reason: str, message: str, evidence: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.evidence = evidence


class Tree(NamedTuple):
    """A tree: its size and its root."""

    size: int
    root: bytes


class Trust:
    """The trees of one log that were accepted so far."""

    def __init__(self, origin: str, identity: note.Key) -> None:
        """Raise Refusal where the identity is not that of a log with this origin."""
        if identity.name != epochs.identity_name(origin):
            raise Refusal(IDENTITY, f"the key of {identity.name} is not the identity of the log {origin}")
        self.origin = origin
        self.chain = epochs.Chain(identity)
        self.head = Tree(0, merkle.EMPTY_ROOT)

    @property
    def epoch_leaf(self) -> bytes:
        """The leaf of the last epoch's record."""
        known = self.chain.epochs
        return merkle.leaf_hash(known[-1].payload) if known else merkle.VOID_LEAF

    @property
    def identity(self) -> note.Key:
        """The key that certified epoch 0."""
        return self.chain.identity

    def restore(self, stored: list[tuple[int, bytes]], checkpoint: str | None) -> None:
        """Take back what was accepted before: epochs in order, and the newest checkpoint. Raises NoteError."""
        for seq, payload in stored:
            epoch = epochs.parse(seq, payload)
            self.chain.add(epoch, _certified(epoch))
            self.head = Tree(seq, epoch.certificate.root)
            self._forget_payloads()
        if checkpoint is not None:
            found = self.chain.verify(note.parse(checkpoint))
            self.head = max(self.head, Tree(found.size, found.root), key=lambda tree: tree.size)

    def take_epoch(self, step: Step) -> bool:
        """Accept the next epoch, or look at one that is known; tell whether it was new. Raises Refusal."""
        if len(self.chain.epochs) >= MAX_EPOCHS or len(step.payload) > MAX_EPOCH_BYTES:
            raise Refusal(FORGED, f"more epochs than {MAX_EPOCHS}, or one of more than {MAX_EPOCH_BYTES} bytes")
        try:
            epoch = epochs.parse(step.seq, step.payload)
            if epoch.certificate.origin != self.origin:
                raise Refusal(IDENTITY, f"the certificate in record {step.seq} is of {epoch.certificate.origin}")
            if epoch.certificate.number < len(self.chain.epochs):
                self._compare(epoch)
                return False
            tree = Tree(step.seq, epoch.certificate.root)
            self.chain.add(epoch, lambda _: self._follow(tree, step.consistency, step.inclusion, epoch.signed))
        except NoteError as e:
            raise Refusal(FORGED, str(e)) from e
        self.head = tree
        self._forget_payloads()
        return True

    def take_head(self, head: Head) -> Checkpoint:
        """Accept a checkpoint; the one that was accepted last may come again. Raises Refusal."""
        try:
            signed = note.parse(head.note)
            found = Checkpoint.parse(signed.text)
            if found.origin != self.origin:
                raise Refusal(IDENTITY, f"this is a checkpoint of {found.origin}, and the host's log is {self.origin}")
            self.chain.verify(signed)
        except NoteError as e:
            raise Refusal(FORGED, f"the checkpoint: {e}") from e
        tree = Tree(found.size, found.root)
        self._follow(tree, head.consistency, head.inclusion, signed)
        self.head = tree
        return found

    def _compare(self, epoch: epochs.Epoch) -> None:
        # Two epochs of one number, signed by the same keys: what a log leaves that was put back to an earlier state.
        number = epoch.certificate.number
        known = self.chain.epochs
        if known[number].certificate == epoch.certificate:
            return
        note.verify(epoch.signed, known[number - 1].certificate.keys if number else (self.identity,))
        message = f"epoch {number} begins with record {epoch.seq}, and another one with record {known[number].seq}"
        raise Refusal(FORK, message, str(epoch.signed))

    def _follow(self, tree: Tree, consistency: Proof, inclusion: Proof, signed: note.Note) -> bytes:
        # Only what is signed comes here: what fails now was said by who has the keys, and is worth keeping.
        if tree.size < self.head.size:
            message = f"a tree of {tree.size} records, and one of {self.head.size} was accepted before"
            raise Refusal(ROLLBACK, message, str(signed))
        try:
            merkle.verify_consistency(*self.head, *tree, consistency)
        except merkle.ProofError as e:
            message = f"the tree of {tree.size} records does not begin with that of {self.head.size}: {e}"
            raise Refusal(FORK, message, str(signed)) from e
        last = self.chain.epochs[-1] if self.chain.epochs else None
        if last is not None and last.seq == self.head.size < tree.size:
            try:
                merkle.verify_inclusion(last.seq, tree.size, merkle.leaf_hash(last.payload), inclusion, tree.root)
            except merkle.ProofError as e:
                message = f"record {last.seq} in the tree of {tree.size} is not that of its epoch: {e}"
                raise Refusal(FORGED, message, str(signed)) from e
        return tree.root

    def _forget_payloads(self) -> None:
        # An epoch's keys may be needed to judge an old checkpoint, its payload never after the next one.
        if len(known := self.chain.epochs) > 1:
            known[-2] = known[-2]._replace(payload=b"", signed=note.Note("", ()))


def _certified(epoch: epochs.Epoch) -> epochs.RootOf:
    # The proof was looked at when the epoch was accepted.
    return lambda _: epoch.certificate.root
