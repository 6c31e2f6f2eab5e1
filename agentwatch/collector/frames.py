"""The wire between a host and its collector: messages as bytes, and back. No sockets, no clocks, no files.

The protocol, version 1, over one TLS 1.3 connection on which both sides have shown certificates:

1. The host says ``Hello``: the origin and the identity of its log. The answer is ``Commit``, the collector's *commit
   point*: the newest tree of this log that it has accepted (size and root), how many epochs it knows, and the next
   record that it needs.
2. The host sends signed trees in the order in which they were signed: ``Epochs`` (a certificate states the root of
   all records before it, signed by the keys of the epoch before) and then the ``Head``, its checkpoint. Each comes
   with the consistency proof from the signed tree before it; the one after an epoch's certificate also with the
   inclusion proof of that epoch's record, which its own certificate cannot cover. So the trees are a chain from the
   empty one to the newest, each signed by the keys that the one before names, whether records are sent or not.
3. The host may send ``Records`` from the next needed one on, in batches, up to the newest accepted tree. A batch comes
   with the consistency proof from the tree that ends with it to that newest tree: the collector computes the former
   from the records themselves, so it believes each batch by itself and stores nothing that it has not proved.
4. Every message is answered before the next: by ``Commit``, with a cosignature after a ``Head``; or by ``Refused``,
   then the connection ends. ``Alive`` asks for nothing but an answer.

Whatever was interrupted goes on from the next ``Hello``: no message changes what an earlier one made durable.

A frame is 4 bytes length of the head, 4 bytes length of the body (both big-endian), the head (one msgpack map with
text keys), the body. Only ``Records`` has a body: for each record 4 bytes length and the payload; or length 0, which
no payload has, and the 32 bytes of the leaf: the host has that record no more, or never had it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from agentwatch.log import segment
from agentwatch.log.merkle import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

VERSION = 1
HEAD_BYTES = 512 * 1024
"""Many epochs in one frame. It bounds as well what nested empty lists unpack to: some 60 times as much."""
BODY_BYTES = 1024 * 1024
"""What a batch of records should have: small enough for a slow line, large enough that answers do not count."""
MAX_BODY_BYTES = segment.MAX_PAYLOAD_BYTES + 4
"""One record of any size. Who receives decides when it has room for a frame that is more than ordinary."""
BATCH_RECORDS = 8192
"""Records in a batch: as objects the smallest ones take ten times their bytes."""
PROOF_HASHES = 64
"""One for each level of the largest tree there can be."""
PREFIX_BYTES = 8
EPOCHS_BYTES = HEAD_BYTES // 2
"""Epochs with their proofs, after which another frame begins."""

_PREFIX = struct.Struct(">II")
_LENGTH = struct.Struct(">I")
_MAX_TEXT = 64 * 1024
_MAX_SIZE = 1 << 63


class FrameError(ValueError):
    """What came is no message of this protocol."""


class Leaf(NamedTuple):
    """Stands for a record that the host cannot give: pruned, damaged, or a number that no record had."""

    digest: bytes


Item = bytes | Leaf
Proof = tuple[bytes, ...]


class Hello(NamedTuple):
    """Whose log this is: ``identity`` is the vkey of the host identity key."""

    version: int
    origin: str
    identity: str


class Step(NamedTuple):
    """One epoch: its record, the consistency proof of the tree before it, the inclusion proof of the epoch before."""

    seq: int
    payload: bytes
    consistency: Proof
    inclusion: Proof


class Epochs(NamedTuple):
    """Epochs in order: those that the collector does not know yet, or all if its last one is not this log's."""

    steps: tuple[Step, ...]


class Head(NamedTuple):
    """A checkpoint, its consistency proof, and the inclusion proof of the last epoch's record where it is owed."""

    note: str
    consistency: Proof
    inclusion: Proof


class Records(NamedTuple):
    """Records from ``first`` on, and the consistency proof from the tree that ends with them to the newest one."""

    first: int
    consistency: Proof
    items: tuple[Item, ...]


class Alive(NamedTuple):
    """Nothing new."""


class Commit(NamedTuple):
    """The commit point.

    ``epoch_leaf`` is the leaf of the last of the ``epochs``, the void leaf without one; ``next_seq`` is None where no
    records are taken now; ``cosignature`` is a signature line or empty.
    """

    size: int
    root: bytes
    epochs: int
    epoch_leaf: bytes
    next_seq: int | None
    cosignature: str


class Refused(NamedTuple):
    """Why the collector takes no more from this host."""

    reason: str
    message: str


Message = Hello | Epochs | Head | Records | Alive | Commit | Refused


def encode(message: Message) -> bytes:
    """Return the frame of a message."""
    body = b""
    if isinstance(message, Records):
        body = b"".join(_pack_item(item) for item in message.items)
        fields: dict[str, Any] = {"first": message.first, "consistency": message.consistency}
    else:
        fields = message._asdict()
    head: bytes = msgpack.packb({"type": type(message).__name__.lower(), **fields}, use_bin_type=True)
    return _PREFIX.pack(len(head), len(body)) + head + body


class Decoder:
    """Bytes in as they come, messages out. Keeps one frame and what came with it; raises FrameError."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def begun(self) -> bool:
        """Whether a frame has begun."""
        return bool(self._buffer)

    @property
    def announced(self) -> int:
        """Bytes that the frame under way has in all; 0 where that is not known yet. Raises FrameError for too many."""
        if len(self._buffer) < PREFIX_BYTES:
            return 0
        head, body = _PREFIX.unpack_from(self._buffer)
        if not 0 < head <= HEAD_BYTES or body > MAX_BODY_BYTES:
            raise FrameError(f"a frame of {head} and {body} bytes is more than there can be")
        return PREFIX_BYTES + int(head) + int(body)

    def feed(self, data: bytes) -> None:
        """Take bytes from the other side."""
        self._buffer += data

    def take(self) -> Message | None:
        """Return the next whole message, None if there is none yet."""
        end = self.announced
        if not end or len(self._buffer) < end:
            return None
        head = PREFIX_BYTES + int(_PREFIX.unpack_from(self._buffer)[0])
        with memoryview(self._buffer) as view:
            fields, body = bytes(view[PREFIX_BYTES:head]), bytes(view[head:end])
        del self._buffer[:end]
        return _decode(fields, body)


def _pack_item(item: Item) -> bytes:
    if isinstance(item, Leaf):
        return _LENGTH.pack(0) + item.digest
    return _LENGTH.pack(len(item)) + item


def _decode(head: bytes, body: bytes) -> Message:
    try:
        fields = msgpack.unpackb(head, raw=False)
    except (ValueError, msgpack.UnpackException, RecursionError) as e:
        raise FrameError("a message is not msgpack") from e
    if not isinstance(fields, dict):
        raise FrameError("a message is not a map")
    kind = fields.pop("type", None)
    make = _MAKERS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise FrameError("a message of an unknown type")
    if isinstance(kind, str) and (kind == "records") < bool(body):
        raise FrameError(f"{kind} has no body")
    try:
        return make(fields, body)
    except (KeyError, TypeError) as e:
        raise FrameError(f"{kind} lacks something") from e


def _hello(fields: dict[str, Any], _body: bytes) -> Hello:
    return Hello(_size(fields["version"]), _text(fields["origin"]), _text(fields["identity"]))


def _epochs(fields: dict[str, Any], _body: bytes) -> Epochs:
    return Epochs(tuple(_step(values) for values in _list(fields["steps"])))


def _step(values: object) -> Step:
    seq, payload, consistency, inclusion = _list(values, Step)
    return Step(_size(seq), _bytes(payload), _proof(consistency), _proof(inclusion))


def _head(fields: dict[str, Any], _body: bytes) -> Head:
    return Head(_text(fields["note"]), _proof(fields["consistency"]), _proof(fields["inclusion"]))


def _records(fields: dict[str, Any], body: bytes) -> Records:
    return Records(_size(fields["first"]), _proof(fields["consistency"]), tuple(_items(body)))


def _alive(_fields: dict[str, Any], _body: bytes) -> Alive:
    return Alive()


def _commit(fields: dict[str, Any], _body: bytes) -> Commit:
    next_seq = fields["next_seq"]
    return Commit(
        _size(fields["size"]),
        _hash(fields["root"]),
        _size(fields["epochs"]),
        _hash(fields["epoch_leaf"]),
        None if next_seq is None else _size(next_seq),
        _text(fields["cosignature"]),
    )


def _refused(fields: dict[str, Any], _body: bytes) -> Refused:
    return Refused(_text(fields["reason"]), _text(fields["message"]))


_MAKERS: dict[str, Callable[[dict[str, Any], bytes], Message]] = {
    "hello": _hello,
    "epochs": _epochs,
    "head": _head,
    "records": _records,
    "alive": _alive,
    "commit": _commit,
    "refused": _refused,
}


def _items(body: bytes) -> Iterable[Item]:
    at = count = 0
    while at < len(body):
        count += 1
        if count > BATCH_RECORDS or at + _LENGTH.size > len(body):
            raise FrameError("a batch has too many records, or is cut short")
        length = int(_LENGTH.unpack_from(body, at)[0])
        at += _LENGTH.size
        end = at + (length or HASH_BYTES)
        if end > len(body):
            raise FrameError("a record in a batch is cut short")
        yield body[at:end] if length else Leaf(body[at:end])
        at = end


def _list(value: object, like: type[tuple[Any, ...]] | None = None) -> Sequence[Any]:
    if not isinstance(value, list) or (like is not None and len(value) != len(like.__annotations__)):
        raise FrameError("a list is missing or has another length")
    return value


def _proof(value: object) -> Proof:
    hashes = _list(value)
    if len(hashes) > PROOF_HASHES + 1:
        raise FrameError("a proof has more hashes than any tree's")
    return tuple(_hash(item) for item in hashes)


def _hash(value: object) -> bytes:
    if len(data := _bytes(value)) != HASH_BYTES:
        raise FrameError(f"a hash has {HASH_BYTES} bytes")
    return data


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise FrameError("bytes are missing")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise FrameError("a text is missing or too long")
    return value


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MAX_SIZE:
        raise FrameError("a number is missing or is none that can be")
    return value
