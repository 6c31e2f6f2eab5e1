"""The statements of one simple Query: the text in, the place of each statement out.

In: the text of a Query message. Out: ``(start, end)`` of each statement, without its ``;`` and without white space
around it, as pg_stat_statements cuts them: comments before a statement belong to it, a piece of nothing but comments
is no statement. Always: the pieces are in order, do not overlap, and everything between them is ``;``, white space
and comments.

Specification: src/backend/parser/scan.l (tokens), src/fe_utils/psqlscan.l (parentheses of CREATE RULE, BEGIN
ATOMIC). Texts in client encodings that are no superset of ASCII byte by byte (SJIS, BIG5, GBK) may be cut wrongly;
the decoder compares the number of pieces with the server's answers before it believes them.
"""

from __future__ import annotations

import re

MAX_STATEMENTS = 10_000
"""A Query with more statements is kept as one: each would cost a record of its own for a few bytes of text."""
MAX_TOKENS = 500_000
"""A text with more quotes, comments and ';' than this is kept as one: about half a second of work."""

_SPACE = b" \t\n\r\f\v"
_WORD = rb"[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*"
_EDGE = re.compile(rb"[;'\"$]|--|/\*")
# Only a statement that begins with CREATE can hold a ';' of its own: in a routine's body or a rule's parentheses.
_CREATE_EDGE = re.compile(rb"[;'\"$()]|--|/\*|" + _WORD)
_FIRST = re.compile(rb"[ \t\n\r\f\v]*(?:(--)|(/\*)|(" + _WORD + rb")|)")
_NEWLINE = re.compile(rb"[\n\r]|\Z")
_COMMENT_EDGE = re.compile(rb"/\*|\*/")
_ESCAPE_EDGE = re.compile(rb"\\.|'|\Z", re.DOTALL)
_DOLLAR_QUOTE = re.compile(rb"\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$")
# A string goes on in the next line ('quotecontinue'), with the escapes that it began with.
_CONTINUED = re.compile(rb"(?:[ \t\f\v]|--[^\n\r]*)*[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*[\n\r])*'")
_IDENTIFIER = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_$") | frozenset(
    range(128, 256)
)
_DIGITS = frozenset(b"0123456789")
_ROUTINE_WORDS = 4
_ROUTINE = (
    [b"create", b"function"],
    [b"create", b"procedure"],
    [b"create", b"or", b"replace", b"function"],
    [b"create", b"or", b"replace", b"procedure"],
)


def is_single(text: bytes) -> bool:
    """Tell whether the text certainly holds at most one statement, without reading its tokens."""
    first = text.find(b";")
    return first < 0 or not text[first + 1 :].strip(_SPACE)


def split(text: bytes, *, standard_strings: bool = True) -> list[tuple[int, int]] | None:
    """Return the place of each statement; None for a text beyond the limits.

    ``standard_strings`` is the session's ``standard_conforming_strings``.
    """
    pieces: list[tuple[int, int]] = []
    scanner = _Scanner(text, standard_strings=standard_strings)
    begin = 0
    while begin < len(text):
        first = scanner.first_token(begin)
        end = scanner.statement_end(first)
        if first < end:
            pieces.append(_trim(text, begin, end))
        if len(pieces) > MAX_STATEMENTS or scanner.tokens > MAX_TOKENS:
            return None
        begin = end + 1
    return pieces


class _Scanner:
    """The tokens that matter for where a statement ends."""

    def __init__(self, text: bytes, *, standard_strings: bool) -> None:
        self.text = text
        self.standard_strings = standard_strings
        self.tokens = 0
        self._inner_dollar = -1  # place of the last '$' that was found to be inside an identifier

    def first_token(self, pos: int) -> int:
        """Return where the first token is that is no white space and no comment."""
        while self.tokens <= MAX_TOKENS and (match := _FIRST.match(self.text, pos)):
            self.tokens += 1
            if match.group(1):
                pos = self._line_end(match.end())
            elif match.group(2):
                pos = self._comment_end(match.end())
            else:
                return match.start(3) if match.group(3) else match.end()
        return len(self.text)

    def statement_end(self, pos: int) -> int:
        """Return the place of the ``;`` that ends the statement beginning at ``pos``, or the end of the text."""
        text = self.text
        create = text[pos : pos + 6].lower() == b"create"
        find = (_CREATE_EDGE if create else _EDGE).search
        words: list[bytes] = []
        parentheses = body = 0
        while self.tokens <= MAX_TOKENS and (edge := find(text, pos)):
            self.tokens += 1
            token = edge.group()
            if token == b";":
                if not parentheses and not body:
                    return edge.start()
                pos = edge.end()
            elif token == b"(":
                parentheses += 1
                pos = edge.end()
            elif token == b")":
                parentheses = max(0, parentheses - 1)
                pos = edge.end()
            elif token in _SPECIAL:
                pos = self._after(token, edge.start())
            else:
                body = body if parentheses else _body_depth(words, token.lower(), body)
                pos = edge.end()
        return len(text)

    def _after(self, token: bytes, start: int) -> int:
        """Return where the string, quoted identifier or comment that begins at ``start`` ends."""
        if token == b"'":
            return self._string_end(start)
        if token == b'"':
            end = self.text.find(b'"', start + 1)
            return len(self.text) if end < 0 else end + 1
        if token == b"$":
            return self._dollar_end(start)
        return self._line_end(start) if token == b"--" else self._comment_end(start + 2)

    def _line_end(self, pos: int) -> int:
        match = _NEWLINE.search(self.text, pos)
        return match.start() if match else len(self.text)

    def _comment_end(self, pos: int) -> int:
        depth = 1
        while depth:
            edge = _COMMENT_EDGE.search(self.text, pos)
            if edge is None:
                return len(self.text)
            depth += 1 if edge.group() == b"/*" else -1
            pos = edge.end()
        return pos

    def _string_end(self, start: int) -> int:
        # A doubled quote needs no care: it ends one string and begins the next, in the same mode.
        text = self.text
        escapes = not self.standard_strings or (
            text[start - 1 : start] in (b"e", b"E") and not (start > 1 and text[start - 2] in _IDENTIFIER)
        )
        if not escapes:
            end = text.find(b"'", start + 1)
            return len(text) if end < 0 else end + 1
        pos = start + 1
        while edge := _ESCAPE_EDGE.search(text, pos):
            pos = edge.end()
            if edge.group() == b"":
                break
            if edge.group() == b"'":
                if text[pos : pos + 1] == b"'":
                    pos += 1
                elif again := _CONTINUED.match(text, pos):
                    pos = again.end()
                else:
                    break
        return pos

    def _dollar_end(self, start: int) -> int:
        if self._inside_identifier(start):
            self._inner_dollar = start
            return start + 1
        quote = _DOLLAR_QUOTE.match(self.text, start)
        if quote is None:
            return start + 1
        end = self.text.find(quote.group(), quote.end())
        return len(self.text) if end < 0 else end + len(quote.group())

    def _inside_identifier(self, start: int) -> bool:
        """Tell a '$' within an identifier from one after a number or a parameter like ``$1``."""
        pos = start - 1
        while pos >= 0 and self.text[pos] in _DIGITS:
            pos -= 1
        if pos < 0 or self.text[pos] not in _IDENTIFIER:
            return False
        return self.text[pos] != ord("$") or pos == self._inner_dollar


_SPECIAL = frozenset((b"'", b'"', b"$", b"--", b"/*"))


def _body_depth(words: list[bytes], word: bytes, depth: int) -> int:
    """Count BEGIN ATOMIC, CASE and END of a routine's body; ``words`` keeps the first four and the last word."""
    if words[:_ROUTINE_WORDS] not in _ROUTINE and words[:2] not in _ROUTINE:
        if len(words) < _ROUTINE_WORDS:
            words.append(word)
        return depth
    last = words[_ROUTINE_WORDS] if len(words) > _ROUTINE_WORDS else b""
    words[_ROUTINE_WORDS:] = [word]
    if depth == 0:
        return 1 if word == b"atomic" and last == b"begin" else 0
    return depth + (word == b"case") - (word == b"end")


def _trim(text: bytes, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    left = len(piece) - len(piece.lstrip(_SPACE))
    return start + left, start + len(piece.rstrip(_SPACE))
