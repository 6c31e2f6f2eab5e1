"""What a statement does to which tables, from its text alone: the public side of the SQL package.

In: the text as it was sent, bytes or str, whole or cut. Out: an `Analysis`. Always holds: it never raises; the answer
is a function of the text (the cache never changes it); ``tables`` is None where the text cannot tell, and never a
guess of "none".

What is meant by "touched": the tables that the text names. EXPLAIN without ANALYZE reads what it names (the plan only);
with ANALYZE the statement runs and its tables are as without EXPLAIN. PREPARE, and CREATE FUNCTION in SQL, list the
tables of what they define, with the reason ``not-executed``. EXECUTE and FETCH name no table: `prepares`, `declares`
and their counterparts let a reader of the same connection resolve them. DO and CALL run what the text does not show:
"could not tell". An ordinary ``SELECT f(x)`` tells the tables it names; what functions, triggers, rules and views do
inside the database is not in the text. FOR UPDATE and LOCK only read. Temporary tables are tables.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

from agentwatch.sql import postgres
from agentwatch.sql.fingerprint import Folded, fold, strip
from agentwatch.sql.model import Analysis, TableRef
from agentwatch.sql.names import normalise_name
from agentwatch.sql.scanner import scan

__all__ = [
    "Analysis",
    "TableRef",
    "analyse",
    "cursor_name",
    "declares",
    "normalise_name",
    "prepared_name",
    "prepares",
]

MAX_CACHED_SHAPES = 4096
"""Of at most MAX_KEY_CHARACTERS each: 64 MiB if all were the longest, about 4 MiB with common statements."""
MAX_CACHED_TEXTS = 2048
MAX_CACHED_TEXT_CHARACTERS = 1024
"""Verbatim texts: what is sent with bind parameters repeats exactly and then costs one look-up."""

_NAMES = re.compile(r"(?i)\b(?:prepare|execute|declare|fetch|move)\b")
_NAMED = re.compile(rf"(?:[ \n;]|/\*\*/)*{_NAMES.pattern[4:]}", re.IGNORECASE)
_POSTGRESQL = "postgresql"


def analyse(text: str | bytes, dialect: str = _POSTGRESQL, *, truncated: bool = False) -> Analysis:
    """Return operation and tables of a text. ``truncated``: it is a prefix and a suffix of what was sent."""
    if isinstance(text, bytes):
        decoded = _decode(text)
        if decoded is None:
            # Names in ASCII are right in nearly every encoding; others may not be.
            return _weaken(_analyse(text.decode("latin-1"), dialect, truncated=truncated), "encoding")
        text = decoded
    if len(text) <= MAX_CACHED_TEXT_CHARACTERS and not truncated:
        return _analyse_text(text, dialect)
    return _analyse(text, dialect, truncated=truncated)


def prepares(text: str | bytes) -> tuple[str, Analysis] | None:
    """Return (name, what it will do) of a text that is one PREPARE; EXECUTE of that name does it."""
    found = _named(text, "PrepareStmt")
    return None if found is None or found[1] is None else (found[0], found[1])


def prepared_name(text: str | bytes) -> str | None:
    """Return the name that a text, being one EXECUTE, runs."""
    found = _named(text, "ExecuteStmt")
    return None if found is None else found[0]


def declares(text: str | bytes) -> tuple[str, Analysis] | None:
    """Return (name, what it reads) of a text that is one DECLARE CURSOR; FETCH of that name reads it."""
    found = _named(text, "DeclareCursorStmt")
    return None if found is None or found[1] is None else (found[0], found[1])


def cursor_name(text: str | bytes) -> str | None:
    """Return the name of the cursor that a text, being one FETCH or MOVE, reads."""
    found = _named(text, "FetchStmt")
    return None if found is None else found[0]


def clear_cache() -> None:
    """Forget every cached answer (they stay right: this is for measuring)."""
    _analyse_text.cache_clear()
    _parse_shape.cache_clear()


class _RefusedError(Exception):
    """A text that a parser does not take; raised so that the cache does not keep it."""


@lru_cache(MAX_CACHED_TEXTS)
def _analyse_text(text: str, dialect: str) -> Analysis:
    return _analyse(text, dialect, truncated=False)


def _analyse(text: str, dialect: str, *, truncated: bool) -> Analysis:
    folds = dialect == _POSTGRESQL
    if "\0" in text:
        # A message of the protocol ends at its NUL, so no server ever saw this as one text.
        return scan(fold(text.replace("\0", " ; ")).text, "nul", fold_names=folds)
    if truncated:
        return scan(fold(text).text, "truncated", fold_names=folds)
    return _analyse_postgresql(text) if folds else _analyse_other(text, dialect)


def _analyse_postgresql(text: str) -> Analysis:
    folded = fold(text)
    if postgres.too_long(folded.text):
        return scan(folded.text, "too-long")
    if folded.whole:
        answer = _parse_folded(folded)
        if answer is None:
            # A list that was folded may have been more than a list: ask the grammar about the text itself.
            answer = postgres.analyse(strip(text).text)
        if answer is not None:
            return answer
    return scan(folded.text[: folded.sure], "syntax")


def _parse_folded(folded: Folded) -> Analysis | None:
    if folded.key is None:
        return postgres.analyse(folded.text)
    try:
        return _parse_shape(folded.key)
    except _RefusedError:
        return None


@lru_cache(MAX_CACHED_SHAPES)
def _parse_shape(shape: str) -> Analysis:
    answer = postgres.analyse(shape)
    if answer is None:
        raise _RefusedError
    return answer


def _analyse_other(text: str, dialect: str) -> Analysis:
    with warnings.catch_warnings():
        # sqlglot's own import warns where its old Rust tokenizer is installed beside it.
        warnings.simplefilter("ignore", DeprecationWarning)
        from agentwatch.sql import dialects  # noqa: PLC0415 -- sqlglot takes 0.2 s to import; PostgreSQL needs none

    answer = dialects.analyse(text, dialect)
    return scan(text, "syntax", fold_names=False) if answer is None else answer


def _decode(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def _weaken(answer: Analysis, reason: str) -> Analysis:
    return answer._replace(confidence="partial", reason=reason) if answer.confidence == "exact" else answer


def _named(text: str | bytes, kind: str) -> tuple[str, Analysis | None] | None:
    decoded = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    if not _NAMES.search(decoded):
        return None
    folded = fold(decoded)
    found = postgres.named(folded.text) if folded.whole and _NAMED.match(folded.text) else None
    return None if found is None or found[0] != kind else (found[1], found[2])
