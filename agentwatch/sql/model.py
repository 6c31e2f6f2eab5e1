"""The values that every extractor of tables gives back."""

from __future__ import annotations

from typing import NamedTuple


class TableRef(NamedTuple):
    """A table that a statement names, as PostgreSQL folds the name. ``access`` is ``read`` or ``write``.

    ``schema`` and ``catalog`` are None unless they were written.
    """

    name: str
    schema: str | None
    access: str
    catalog: str | None = None


class Analysis(NamedTuple):
    """What one text says. ``tables`` is None for "could not tell"; the empty tuple means that there are none.

    ``operation`` is the kind of the first statement. ``confidence`` is ``exact`` (by the grammar), ``partial`` (what is
    listed was named, more may be missing) or ``none`` (nothing could be told). ``reason`` says why it is not exact, or
    ``not-executed`` where the tables are exact and the statement only described the work. ``statements`` counts
    those in the text.
    """

    operation: str | None
    tables: tuple[TableRef, ...] | None
    confidence: str
    reason: str | None
    statements: int


def in_order(refs: list[tuple[int, TableRef]]) -> tuple[TableRef, ...]:
    """Return each reference once: writes first, then by position in the text."""
    first = dict.fromkeys(ref for _, ref in sorted(refs, key=lambda item: (item[1].access != "write", item[0])))
    return tuple(first)


def conclude(
    operation: str | None, refs: list[tuple[int, TableRef]], unknown: str | None, note: str | None, statements: int
) -> Analysis:
    """Make the answer: with something ``unknown`` it is partial, and "could not tell" when nothing is known at all."""
    tables = in_order(refs)
    if unknown is None:
        return Analysis(operation, tables, "exact", note, statements)
    if not tables:
        return Analysis(operation, None, "none", unknown, statements)
    return Analysis(operation, tables, "partial", unknown, statements)
