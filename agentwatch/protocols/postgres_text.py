"""Statement texts and message bodies beyond the limits: prefix, suffix, length and SHA-256, in bounded memory.

In: the text, whole or in pieces. Out: ``bytes`` up to ``MAX_TEXT_BYTES``, beyond that a ``Cut``. Always: what
comes out does not depend on the pieces.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

MAX_TEXT_BYTES = 16 * 1024 * 1024
"""A statement is kept byte for byte up to here."""
KEEP_BYTES = 64 * 1024
"""Beyond it, so much of its beginning and of its end."""
_MAX_REST_BYTES = 2 + 4 * 65535
"""What follows the text in a Parse: a count and the type OIDs."""


class Cut(NamedTuple):
    """A text of which only ``kept`` is here, prefix and suffix.

    ``sha256`` covers the whole; None where bytes are missing.
    """

    kept: bytes
    length: int
    sha256: bytes | None


Text = bytes | Cut


def bounded(text: bytes) -> Text:
    """Return the text as it is kept."""
    if len(text) <= MAX_TEXT_BYTES:
        return text
    return Cut(text[:KEEP_BYTES] + text[-KEEP_BYTES:], len(text), hashlib.sha256(text).digest())


class LongBody:
    """The body of a message that is too long to be held, read as it passes by.

    Of a Query (``Q``) and a Parse (``P``) the text is kept as a ``Cut``, of a Parse its ``name`` and ``rest`` (what
    follows the text); of anything else only ``head``, its first 64 KiB.
    """

    __slots__ = (
        "_digest",
        "_length",
        "_prefix",
        "_suffix",
        "_text_over",
        "damaged",
        "head",
        "kind",
        "missing",
        "name",
        "rest",
    )

    def __init__(self, kind: int, size: int) -> None:
        self.kind = kind
        self.missing = size
        self.head = b""
        self.name: bytes | None = b"" if kind == ord("Q") else None
        self.rest = b""
        self.damaged = False
        self._prefix = b""
        self._suffix = bytearray()
        self._length = 0
        self._digest: Any = hashlib.sha256()
        self._text_over = kind not in b"QP"

    def add(self, data: bytes) -> None:
        """Take the next bytes of the body; never more than ``missing``."""
        self.missing -= len(data)
        begin = 0
        if len(self.head) < KEEP_BYTES:
            seen = len(self.head)
            self.head += data[: KEEP_BYTES - seen]
            if self.name is None and not self._text_over:
                end = self.head.find(b"\0")
                if end < 0:
                    # A name of 64 KiB is nobody's; without a name the text cannot be found either.
                    self._text_over = len(self.head) == KEEP_BYTES
                    return
                self.name = self.head[:end]
                begin = end + 1 - seen
        if self._text_over:
            self.rest += data[: _MAX_REST_BYTES - len(self.rest)]
            return
        end = data.find(b"\0", begin)
        if end < 0:
            self._add_text(data[begin:])
            return
        self._add_text(data[begin:end])
        self._text_over = True
        self.rest = data[end + 1 :][:_MAX_REST_BYTES]

    def _add_text(self, text: bytes) -> None:
        self._length += len(text)
        if self._digest is not None:
            self._digest.update(text)
        room = KEEP_BYTES - len(self._prefix)
        if room:
            self._prefix += text[:room]
        self._suffix += text[-KEEP_BYTES:]
        if len(self._suffix) > 4 * KEEP_BYTES:
            del self._suffix[:-KEEP_BYTES]

    def damage(self) -> None:
        """Note that the missing bytes will never come."""
        self.damaged = True

    @property
    def text(self) -> Text:
        """The text; where bytes of it are missing its beginning, with the length that the message claims."""
        if self.damaged and not self._text_over:
            claimed = self._length + max(0, self.missing - (1 if self.kind == ord("Q") else 3))
            return Cut(self._prefix, claimed, None) if claimed > len(self._prefix) else self._prefix
        over = self._length - len(self._prefix)
        kept = self._prefix + self._suffix[-min(KEEP_BYTES, over) :] if over else self._prefix
        if len(kept) == self._length:
            return kept
        return Cut(kept, self._length, None if self._digest is None else self._digest.digest())

    def __getstate__(self) -> dict[str, Any]:
        # hashlib cannot be saved in the middle: a text during which the recorder restarts has no SHA-256.
        state = {slot: getattr(self, slot) for slot in self.__slots__}
        state["_digest"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for slot, value in state.items():
            setattr(self, slot, value)
