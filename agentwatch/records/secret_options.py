"""Credentials in the options of commands: ``mysql -pVALUE``, ``--token VALUE``, ``curl -u user:VALUE``.

In: the words of a command, or a line for a shell. Out: where in which word a credential begins (it ends with the word).
Which short option has one depends on the program, and the nearest one in front of it counts: ``sudo``, ``env``,
``docker exec`` and the like need no knowledge. Nothing raises; linear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentwatch.records import secret_patterns as patterns
from agentwatch.records.secret_text import ESCAPED, Secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ENDS_OF_COMMANDS = (b";", b"|", b"&", b"(", b")")


def counts(value: bytes) -> bool:
    """Tell whether something can be a credential: not nothing, not stars, not what was replaced."""
    return 0 < len(value) <= patterns.MAX_VALUE_BYTES and bool(value.strip(b"*")) and not patterns.MARKER.match(value)


def is_path(value: bytes) -> bool:
    """Tell whether a value names a file, where the name in front of it can mean both (``--private-key``)."""
    return patterns.PATH.match(value) is not None


def shell(data: bytes, start: int, end: int) -> Iterator[Secret]:
    """Find the values of options in a line for a shell, in which variables and quotes still stand."""
    places = [(m.start(), m.end()) for m in patterns.SHELL_WORD.finditer(data, start, end)]
    words = [data[first:last] for first, last in places]
    bare = [word[1:-1] if len(word) > 1 and word[:1] in b"'\"" and word[-1:] == word[:1] else word for word in words]
    for number, offset in options(bare):
        word, skipped = bare[number], bare[number] != words[number]
        value = word[offset:]
        first = places[number][0] + offset + skipped
        if not skipped and len(value) > 1 and value[:1] in b"'\"" and value[-1:] == value[:1]:
            value, first = value[1:-1], first + 1
        quoted = data[first - 1 : first] == b"'"
        if value and (quoted or not patterns.REFERENCE.match(value.lower())) and not patterns.MARKER.match(value):
            if b"\n" in value or patterns.PLACEHOLDER.match(value.lower()) or value.startswith(b"[secret"):
                continue
            yield Secret(first, first + len(value), value if quoted else ESCAPED.sub(rb"\1", value))


def options(words: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Find the options with a credential: the number of the word that has it, and where in the word it begins."""
    program, name, allowed = patterns.Program(), b"", True
    for number, word in enumerate(words):
        if word in ENDS_OF_COMMANDS:
            program, name = patterns.Program(), b""
            continue
        base = word.rpartition(b"/")[2]
        if base in patterns.PROGRAMS and not word.startswith(b"-"):
            program, name = patterns.PROGRAMS[base], base
            allowed = not program.needs
            continue
        allowed = allowed or word == program.needs
        found = _option(words, number, name, program if allowed else patterns.Program())
        if found is not None and counts(words[found[0]][found[1] :]):
            yield found


def _option(words: Sequence[bytes], number: int, name: bytes, program: patterns.Program) -> tuple[int, int] | None:
    word = words[number]
    following = words[number + 1] if number + 1 < len(words) else b""
    if name == b"openssl" and patterns.OPENSSL_PASS.match(word):
        return number, 5
    if word.startswith(b"-"):
        short = _short_option(words, number, program) if word[1:2] != b"-" else None
        return short if short is not None else _long_option(word.lower(), number, following, program)
    # aws configure set aws_secret_access_key VALUE
    sets = number and words[number - 1] == b"set" and following
    return (number + 1, 0) if sets and patterns.KEY_AT_END.search(word.lower()[-patterns.MAX_PREFIX_BYTES :]) else None


def _short_option(words: Sequence[bytes], number: int, program: patterns.Program) -> tuple[int, int] | None:
    word = words[number]
    letter = word[1:2]
    if not letter:
        return None
    if len(word) > 2 and letter in program.attached:  # noqa: PLR2004 -- the dash and the letter
        return _from(words, number, 2, program.after)
    if len(word) == 2 and letter in program.separate and number + 1 < len(words):  # noqa: PLR2004 -- as above
        return _from(words, number + 1, 0, program.after)
    return None


def _from(words: Sequence[bytes], number: int, start: int, after: bytes) -> tuple[int, int] | None:
    if not after:
        return number, start
    at = words[number].find(after, start)
    return None if at < 0 or at + 1 == len(words[number]) else (number, at + 1)


def _long_option(low: bytes, number: int, following: bytes, program: patterns.Program) -> tuple[int, int] | None:
    if not following or following in ENDS_OF_COMMANDS or not patterns.OPTION.match(low):
        return None
    if program.after and patterns.LONG_WITH_USER.match(low):
        at = following.find(program.after)
        return None if at < 0 else (number + 1, at + 1)
    if patterns.LONG_ALSO.match(low):
        return number + 1, 0
    key = patterns.KEY_AT_END.search(low)
    no_value = program.prompts or following.startswith((b"-", b"<", b">"))
    return None if key is None or no_value or _is_no_credential(key[0], following) else (number + 1, 0)


def _is_no_credential(key: bytes, value: bytes) -> bool:
    # docker build --secret id=..., ssh --private-key FILE, ffmpeg -pass 1
    names = patterns.NAMES_A_SECRET.match(value) is not None
    return names or (key.endswith(b"key") and is_path(value)) or (key == b"pass" and value.isdigit())
