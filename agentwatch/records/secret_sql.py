"""Credentials in a statement: which literals and which parameters are one, by what stands around them.

In: the bytes of a statement as it was sent, and whether it is in MySQL's dialect. Out: ``Secret`` values and the
numbers of parameters. Only a value that the server reads as one literal is hidden: literals, quoted names and comments
are told apart as the server's own lexer does, for otherwise ``/* password = '*/ DROP TABLE t; --'`` would hide a
command. What is in a dollar-quoted body is read as SQL again, what is in another literal or in a comment as plain text.
Never raises; linear.
"""

from __future__ import annotations

import re

from agentwatch.records import secret_patterns as patterns
from agentwatch.records.secret_options import shell
from agentwatch.records.secret_text import Secret, formats, named

MAX_DEPTH = 4
"""Bodies within bodies that are read as SQL; a deeper one is read as plain text."""
MAX_COLUMNS = 2000
"""PostgreSQL allows 1600 in a table, MySQL 4096; a wider INSERT has its columns' names not read."""

_COMMON = rb"'|\"|`|--|/\*|identified|crypt|pgp_sym_|aes_|into\s|passw|passphrase|pass|pwd|pswd|secret|api|access|"
_COMMON += rb"account|auth|encryption|private|signing|master|storage|token|rediscli_auth|_auth|storepass|keypass"
_SEEK = re.compile(_COMMON + rb"|\$")
_SEEK_MYSQL = re.compile(_COMMON + rb"|#|\?")
_LIST = re.compile(rb"[(),;'\"`$#?]|--|/\*")
_QUOTES = {ord(q): re.compile(b"%b+" % q.encode()) for q in "'\"`"}
_QUOTES_AND_ESCAPES = {ord(q): re.compile(rb"%b+|\\" % q.encode()) for q in "'\""}
_LIKE_CODE = re.compile(rb"[\s;()]|/\*")
"""What a command needs and a password rarely has: where literals may end elsewhere, such a value is not hidden."""
_COMMENT_PART = re.compile(rb"/\*|\*/")
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|(?s:.))")
_UNICODE = re.compile(rb"\\(?:\\|\+([0-9a-fA-F]{6})|([0-9a-fA-F]{4}))")
_CONTROL = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"f": b"\f"}
_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_$") | frozenset(range(0x80, 0x100))


class Statement:
    """One statement, read once: ``secrets`` in it, ``parameters`` (numbers from 1) that are credentials."""

    def __init__(self, data: bytes, low: bytes, *, mysql: bool = False) -> None:
        self.data = data
        self.low = low
        self.mysql = mysql
        self.secrets: list[Secret] = list(formats(data, low, 0, len(data)))
        self.parameters: set[int] = set()
        self._marks = 0  # question marks that were passed
        self._doubtful = False  # where literals end depends on a setting of the server that is not known here
        self._depth = 0  # of bodies around
        self._code(0, len(data))

    def _code(self, pos: int, end: int) -> None:
        seek = _SEEK_MYSQL if self.mysql else _SEEK
        while (match := seek.search(self.low, pos, end)) is not None:
            first = self.low[match.start()]
            if first in b"'\"`$#?-/":
                pos = self._pass_over(match.start(), end)
            else:
                pos = self._word(match.start(), match.end(), end)

    # --- literals, names, comments ---------------------------------------------------------------------------------

    def _pass_over(self, at: int, end: int) -> int:
        """Pass over what begins with a mark; look into it, and at what follows a quoted name. Returns where it ends."""
        first = self.low[at]
        if first in b"-#" or self.low.startswith(b"/*", at):
            return self._comment(at, end)
        if first == ord("?"):
            self._marks += 1
            return at + 1
        literal = self._literal(at, end)
        if literal is not None:
            self._look_into(at, literal, end)
            return self._behind_literal(at, literal, end)
        if first not in b'"`':
            return at + 1
        stop = self._closing(_QUOTES[first], at + 1, end)
        if patterns.KEY_AT_END.search(self.low, max(at + 1, stop - patterns.MAX_PREFIX_BYTES), stop):
            return self._value_behind(stop, end, stop + 1)
        return stop + 1

    def _comment(self, at: int, end: int) -> int:
        if not self.low.startswith(b"/*", at):
            stop = self.low.find(b"\n", at, end)
        elif self.mysql:
            if self.low[at + 2 : at + 3] in (b"!", b"+"):
                return at + 3  # the server reads it
            stop = self.low.find(b"*/", at + 2, end)
            stop += 2 if stop >= 0 else 0
        else:
            stop = self._nested_comment(at, end)
        stop = stop if stop >= 0 else end
        closed = self.low[stop - 2 : stop] == b"*/"
        self.secrets += named(self.data, self.low, at + 2, max(at + 2, stop - 2 * closed))
        return stop

    def _nested_comment(self, at: int, end: int) -> int:
        level = 0
        for part in _COMMENT_PART.finditer(self.low, at, end):
            level += 1 if part[0] == b"/*" else -1
            if level == 0:
                return part.end()
        return -1

    def _literal(self, at: int, end: int) -> tuple[int, int, int] | None:
        """Return where the content of the literal at a mark begins and ends, and where the literal ends."""
        first = self.low[at]
        if first == ord("$"):
            tag = patterns.DOLLAR.match(self.low, at, end)
            if tag is None or (at and self.low[at - 1] in _WORD):
                return None
            stop = self.low.find(tag[0], tag.end(), end)
            # The tag has its case; a search in lower case may stop early at one that differs.
            stop = self.data.find(self.data[at : tag.end()], tag.end(), end) if stop >= 0 else -1
            return (tag.end(), end, end) if stop < 0 else (tag.end(), stop, stop + len(tag[0]))
        if first != ord("'") and not (self.mysql and first == ord('"')):
            return None
        escapes = self.mysql or (first == ord("'") and self._prefix(at) == b"e")
        stop = self._closing((_QUOTES_AND_ESCAPES if escapes else _QUOTES)[first], at + 1, end)
        if self.mysql or not escapes:
            # standard_conforming_strings and NO_BACKSLASH_ESCAPES decide whether that ends it.
            self._doubtful |= self.low.find(b"\\" + self.low[at : at + 1], at + 1, min(stop + 1, end)) >= 0
        return at + 1, stop, min(stop + 1, end)

    def _closing(self, marks: re.Pattern[bytes], pos: int, end: int) -> int:
        """Return where the quote is that closes what began before ``pos``: the last of an odd number; else the end."""
        while (match := marks.search(self.low, pos, end)) is not None:
            pos = match.end()
            if self.low[match.start()] == ord("\\"):
                pos += 1
            elif (pos - match.start()) % 2:
                return pos - 1
        return end

    def _prefix(self, at: int) -> bytes:
        start = at - 2 if self.low[max(0, at - 2) : at] == b"u&" else at - 1
        if start < 0 or (start and self.low[start - 1] in _WORD):
            return b""
        return self.low[start:at]

    def _look_into(self, at: int, literal: tuple[int, int, int], end: int) -> None:
        """Find credentials within a literal that no name stands in front of."""
        first, last, _ = literal
        low = self.low
        if low[at] == ord("$") and self._depth < MAX_DEPTH:
            self._depth += 1
            self._code(first, last)
            self._depth -= 1
            return
        self.secrets += named(self.data, low, first, min(last, end), nested=low[at] != ord("$"))
        if patterns.RUNS_PROGRAM.search(low, max(0, at - 16), at):
            self.secrets += shell(self.data, first, last)

    def _behind_literal(self, at: int, literal: tuple[int, int, int], end: int) -> int:
        """Look at what stands behind such a literal, which may be a name itself. Returns where to go on."""
        first, last, stop = literal
        low = self.low
        is_name = patterns.KEY_AT_END.search(low, max(first, last - patterns.MAX_PREFIX_BYTES), last)
        if is_name and patterns.SETS.search(low, max(0, at - 32), at):
            comma = patterns.SQL_COMMA.match(low, stop, end)
            return (self._value(comma.end(), end) or stop) if comma else stop
        behind = patterns.REVERSED.match(low, stop, end)
        if behind is not None and patterns.KEY_AT_END.search(behind[1].rstrip(b'"`')):
            self._hide(at, first, last)
        return stop

    # --- values behind words ---------------------------------------------------------------------------------------

    def _word(self, start: int, found: int, end: int) -> int:
        """Look at a word that may say that what follows is a credential. Returns where to go on."""
        low = self.low
        begins = not start or low[start - 1] not in _WORD
        if begins:
            for pattern in (patterns.IDENTIFIED, patterns.FIRST_ARGUMENT, patterns.SECOND_ARGUMENT):
                match = pattern.match(low, start, end)
                if match is not None:
                    stop = self._value(match.end(), end)
                    old = patterns.REPLACE.match(low, stop, end) if stop and pattern is patterns.IDENTIFIED else None
                    return (self._value(old.end(), end) or stop) if old and stop else stop or match.end()
            if low.startswith(b"into", start) and (insert := patterns.INSERT.match(low, start, end)) is not None:
                return self._insert(insert, end)
        key = patterns.KEY.match(low, start, end)
        return found if key is None else self._value_behind(key.end(), end, key.end())

    def _value_behind(self, key_end: int, end: int, otherwise: int) -> int:
        after = patterns.SQL_AFTER_KEY.match(self.low, key_end, end)
        if after is None:
            return otherwise
        stop = self._value(after.end(), end)
        if stop is None:
            return otherwise
        while after[1] and (comma := patterns.SQL_COMMA.match(self.low, stop, end)) is not None:
            following = self._value(comma.end(), end)
            if following is None:
                break
            stop = following
        return stop

    def _value(self, at: int, end: int) -> int | None:
        """Hide the literal, or note the parameter, at a place. Returns where it ends; None if there is neither."""
        prefix = patterns.SQL_LITERAL.match(self.low, at, end)
        if prefix is not None and (literal := self._literal(prefix.end(), end)) is not None:
            self._hide(prefix.end(), literal[0], literal[1])
            return literal[2]
        parameter = patterns.SQL_PARAMETER.match(self.low, at, end)
        if parameter is None:
            return None
        if parameter[1] is not None:
            self.parameters.add(int(parameter[1]))
        elif self.mysql:
            self._marks += 1
            self.parameters.add(self._marks)
        return parameter.end()

    def _hide(self, at: int, first: int, last: int) -> None:
        value = self.data[first:last]
        if self._doubtful and _LIKE_CODE.search(value):
            return
        if 0 < len(value) <= patterns.MAX_VALUE_BYTES and value.strip(b"*") and not patterns.MARKER.match(value):
            self.secrets.append(Secret(first, last, self._plain(at, value)))

    def _plain(self, at: int, value: bytes) -> bytes:
        """Return a literal's value, without doubled quotes and escapes: equal values are equal however spelled."""
        quote = self.low[at : at + 1]
        if quote == b"$":
            return value
        value = value.replace(quote * 2, quote)
        prefix = self._prefix(at)
        if prefix == b"e" or self.mysql:
            return _ESCAPE.sub(_unescaped, value)
        return _UNICODE.sub(_character, value) if prefix == b"u&" else value

    # --- INSERT INTO t (name, password) VALUES (...), (...) --------------------------------------------------------

    def _insert(self, insert: re.Match[bytes], end: int) -> int:
        columns = [name.strip(b' \t\r\n"`') for name in insert[1].split(b",", MAX_COLUMNS)]
        wanted = {i for i, name in enumerate(columns) if patterns.KEY_AT_END.search(name)}
        if not wanted:
            return insert.end()
        level, column, pos = 0, 0, insert.end()
        while (match := _LIST.search(self.low, pos, end)) is not None:
            pos, mark = match.end(), match[0]
            if mark == b"(":
                level, column = level + 1, 0 if level == 0 else column
            elif mark == b"," and level == 1:
                column += 1
            elif mark == b")":
                level -= 1
                if level <= 0 and not patterns.SQL_COMMA.match(self.low, pos, end):
                    return pos
                continue
            elif mark == b";" and level == 0:
                return pos
            elif mark in b"'\"`$#?--/*":
                pos = self._pass_over(match.start(), end) if mark != b"#" or self.mysql else pos
                continue
            if mark in b"(," and level == 1 and column in wanted:
                pos = self._first_value(pos, end)
        return end

    def _first_value(self, pos: int, end: int) -> int:
        gap = patterns.SQL_GAP.match(self.low, pos, end)
        return self._value(gap.end() if gap else pos, end) or pos


def _unescaped(match: re.Match[bytes]) -> bytes:
    body = match[1]
    if body[:1] == b"x" and len(body) > 1:
        return bytes([int(body[1:], 16)])
    if body[:1] in b"01234567":
        return bytes([int(body, 8) & 0xFF])
    if body[:1] in b"uU" and len(body) > 1:
        return _encoded(int(body[1:], 16), match[0])
    return _CONTROL.get(body, body)


def _character(match: re.Match[bytes]) -> bytes:
    return _encoded(int(match[1] or match[2], 16), match[0]) if match[1] or match[2] else b"\\"


def _encoded(code: int, spelled: bytes) -> bytes:
    return chr(code).encode("utf-8", "surrogatepass") if code <= 0x10FFFF else spelled  # noqa: PLR2004 -- Unicode's last
