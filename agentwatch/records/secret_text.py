"""Credentials in text of no particular language: by their own format, and behind names.

In: bytes and where to look. Out: ``Secret`` values, each a place and the value that stands there without its quoting;
they may overlap and come in no order. Nothing raises; time is linear in the length. Quotes are taken as they come:
where a shell would read them in another way, a value may end too early or too late, never behind the end of its line.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes

from agentwatch.records import secret_patterns as patterns

if TYPE_CHECKING:
    from collections.abc import Iterator

ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
"""A character behind a backslash; group 1 is what it stands for in double quotes."""
_BASE64_PARTS = re.compile(rb"\s+|\\[nr]")


class Secret(NamedTuple):
    """A credential: from where to where it is spelled in a text, and its value."""

    start: int
    end: int
    value: bytes


def formats(data: bytes, low: bytes, start: int, end: int) -> Iterator[Secret]:
    """Find what is a credential by its own format: tokens, verifiers, URLs, private keys, bearer tokens."""
    for match in patterns.TOKEN.finditer(data, start, end):
        yield Secret(match.start(), match.end(), match[0])
    for match in patterns.URL.finditer(data, start, end):
        if match[1][:1] not in (b"$", b"{", b"*") and not patterns.PLACEHOLDER.match(match[1].lower()):
            yield Secret(match.start(1), match.end(1), unquote_to_bytes(match[1]))
    for match in patterns.BEARER.finditer(low, start, end):
        yield Secret(match.start(1), match.end(1), data[match.start(1) : match.end(1)])
    ending = -1
    for match in patterns.PEM.finditer(low, start, end):
        body = match.end()
        if ending < body:
            found = low.find(patterns.PEM_END, body, end)
            ending = found if found >= 0 else end  # the key was cut
        stop = min(ending, body + patterns.MAX_VALUE_BYTES)
        read = patterns.PEM_BODY.match(low, body, stop)
        if read is not None and read.end() == stop and (value := data[body:stop].strip()):
            first = data.index(value, body)
            yield Secret(first, first + len(value), b"".join(_BASE64_PARTS.split(value)))


def named(data: bytes, low: bytes, start: int, end: int, *, nested: bool = False) -> Iterator[Secret]:
    """Find values behind names (``password=...``, ``"token": "..."``) and in headers of HTTP.

    ``nested``: the text stands in a literal of SQL, so that its own quotes are doubled.
    """
    pos = start
    while (match := patterns.KEY.search(low, pos, end)) is not None:
        pos = match.end()
        secret = _behind(data, low, match, end, nested=nested)
        if secret is not None:
            yield secret
            pos = max(pos, secret.end)
    for match in patterns.HEADER.finditer(low, start, end):
        value = data[match.start(1) : match.end(1)].rstrip()
        left = patterns.MARKER.search(value) or patterns.STILL_TO_READ.search(value)
        if not left and not patterns.PLACEHOLDER.match(value.lower()):
            yield Secret(match.start(1), match.start(1) + len(value), value)


def _behind(data: bytes, low: bytes, key: re.Match[bytes], end: int, *, nested: bool) -> Secret | None:
    """Return the value behind a name, None where there is none, one with nothing in it where it is to be left alone."""
    after = patterns.AFTER_KEY.match(low, key.end(), end)
    if after is None:
        return None
    at = after.end()
    if nested and low.startswith(b"''", at) and (quoted := _quoted(data, at, b"''", end)) is not None:
        return quoted
    before = data[max(0, key.start() - patterns.MAX_PREFIX_BYTES) : key.end()]
    if after[1] in (b"", b":") and key[0] == b"token" and patterns.COMPLAINT.search(before[:-5].lower()):
        return None
    opener = patterns.OPENER.match(low, at, end)
    if not after[1]:  # only blanks between: PASSWORD 'x', but not the "token" of a sentence
        follows = opener is not None and at > key.end() and key[0] != b"token"
        return _quoted(data, at, opener[0], end) if opener is not None and follows else None
    if opener is None:
        return _unquoted(data, low, before, after, end)
    quoted = _quoted(data, at, opener[0], end)
    return quoted if quoted is not None else _unquoted(data, low, before, opener, end)


def _quoted(data: bytes, at: int, quote: bytes, end: int) -> Secret | None:
    """Return what is between two quotes on one line; an empty value where it is none that counts."""
    first = at + len(quote)
    last = data.find(quote, first, min(end, first + patterns.MAX_QUOTED_BYTES))
    while (
        last > first and quote in (b'"', b"'") and data[last - 1 : last] == b"\\" and data[last - 2 : last - 1] != b"\\"
    ):
        last = data.find(quote, last + 1, min(end, first + patterns.MAX_QUOTED_BYTES))
    if last < 0:
        return None
    value = data[first:last]
    if b"\n" in value:
        return None
    if not value or patterns.MARKER.match(value) or patterns.PLACEHOLDER.match(value.lower()):
        return Secret(first, first, b"")
    if quote != b"'" and patterns.REFERENCE.match(value) and value.startswith(b"$"):
        return Secret(first, first, b"")
    return Secret(first, last, ESCAPED.sub(rb"\1", value) if quote == b'"' else value)


def _unquoted(data: bytes, low: bytes, before: bytes, after: re.Match[bytes], end: int) -> Secret | None:
    """Return the value that begins where ``after`` (what stands behind a name, or a quote that is not closed) ends."""
    at = after.end()
    colon = b":" in after[0] and b"=" not in after[0]
    alone = colon or after[0][-1:] in (b" ", b"\t")  # else it is code, or prose
    if (colon and not patterns.LINE_START.search(before)) or patterns.WORKING_DIRECTORY.search(before):
        return None
    limit = patterns.MAX_ALONE_BYTES if alone else patterns.MAX_VALUE_BYTES
    match = patterns.UNQUOTED.match(data, at, min(end, at + limit))
    if match is None or (alone and not patterns.LINE_END.match(data, match.end(), end)):
        return None
    value = match[0].rstrip(patterns.CLOSERS) or match[0]
    read_later = value[-1:] in (b"(", b"[") or any(patterns.REFERENCE.match(v.lower()) for v in (value, match[0]))
    if read_later or patterns.PLACEHOLDER.match(value.lower()) or low.startswith(b"[secret ", at):
        return Secret(at, at + len(value), b"")
    return Secret(at, at + len(value), ESCAPED.sub(rb"\1", value))
