"""Credentials in commands: the words that a program was started with, and lines that somebody typed.

In: words, or a line. Out: ``Secret`` values, which may overlap and come in no order. A word with blanks is read as a
line (``sh -c``), or as a statement where a client of a database takes it as one (``psql -c``). Nothing raises; linear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentwatch.records import secret_patterns as patterns
from agentwatch.records.secret_options import counts, is_path, options, shell
from agentwatch.records.secret_sql import Statement
from agentwatch.records.secret_text import Secret, formats, named

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def argv(words: Sequence[bytes]) -> Iterator[tuple[int, Secret]]:
    """Find credentials in a command's words: which word, and what in it."""
    for number, start in options(words):
        word = words[number]
        yield number, Secret(start, len(word), word[start:])
    program = b""
    for number, word in enumerate(words):
        previous = words[number - 1] if number else b""
        base = word.rpartition(b"/")[2]
        program = base if base in patterns.PROGRAMS else program
        low = word.lower()
        if program in patterns.SQL_CLIENTS and patterns.SQL_OPTION.match(previous):
            found: Iterable[Secret] = Statement(word, low, mysql=program in patterns.MYSQL_CLIENTS).secrets
        elif _is_text(word) and not low.startswith(b"--") and not patterns.SETS_VARIABLE.match(previous):
            found = line(word, low)
        else:
            found = _word(word, low)
        for secret in found:
            yield number, secret


def line(data: bytes, low: bytes) -> Iterator[Secret]:
    """Find credentials in a line for a shell, also its options."""
    yield from formats(data, low, 0, len(data))
    yield from named(data, low, 0, len(data))
    yield from shell(data, 0, len(data))


def _word(data: bytes, low: bytes) -> Iterator[Secret]:
    yield from formats(data, low, 0, len(data))
    assigned = _assigned(data, low)
    if assigned is not None:
        yield assigned
    else:
        yield from named(data, low, 0, len(data))


def _is_text(word: bytes) -> bool:
    return any(blank in word for blank in (b" ", b"\n", b"\t", b";"))


def _assigned(data: bytes, low: bytes) -> Secret | None:
    """Return the value of an argument that is all ``NAME=VALUE``: to its end, whatever is in it."""
    match = patterns.KEY.search(low, 0, patterns.MAX_PREFIX_BYTES)
    while match is not None and low[match.end() : match.end() + 1] != b"=":
        match = patterns.KEY.search(low, match.end(), patterns.MAX_PREFIX_BYTES)
    if match is None or not patterns.PLAIN_PREFIX.match(low, 0, match.start()) or b"://" in low[: match.start()]:
        return None
    if patterns.WORKING_DIRECTORY.search(data[: match.end()]):
        return None
    first = match.end() + 1
    following = patterns.NEXT_NAME.search(low, first)
    last = following.start() if following else len(data)
    value = data[first:last]
    if not counts(value) or patterns.NAMES_A_SECRET.match(value) or (match[0].endswith(b"key") and is_path(value)):
        return None
    return Secret(first, last, value)
