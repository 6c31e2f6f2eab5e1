"""Records as the JSON objects that scripts rely on. The keys are a contract; docs/records.md names the fields.

Times are RFC 3339 in UTC with nine decimals. Bytes become text where there must be text, with the exact bytes in base64
beside it. Numbers that JSON does not have (``NaN``, ``Infinity``) are given as the text that the server would print.
"""

from __future__ import annotations

import math
from base64 import b64encode
from typing import TYPE_CHECKING, Any

from agentwatch.query.times import iso

if TYPE_CHECKING:
    from agentwatch.index.names import Shape
    from agentwatch.records.encoding import Record
    from agentwatch.sql.model import TableRef

Row = dict[str, Any]
"""One JSON object."""

_STATEMENT_FIELDS = (
    "db.response.status_code",
    "error",
    "outcome",
    "duration_ns",
)


_AS_IT_IS = frozenset({str, int, bool, type(None)})
"""Types that JSON holds as they are: nearly every value."""


def statement(seq: int, record: Record, shape: Shape) -> Row:
    """Return a statement with what the index derived from it. ``tables`` is null where they could not be told."""
    row = {
        **_head(seq, record),
        **_plain_fields(record, "pid", "exe", "peer", "transport", "protocol", "connection"),
        **_plain_fields(record, "db.system.name", "db.namespace", "db.user"),
        "db.query.text": as_text(record.get("db.query.text")),
        "db.operation.name": shape.operation,
        "params": plain(record.get("params")),
        "tables": None if shape.tables is None else tables(shape.tables),
        "rows": record.get("rows"),
        **_plain_fields(record, *_STATEMENT_FIELDS),
        "truncated": record.get("truncated") is True,
    }
    if isinstance(text := record.get("db.query.text"), bytes):
        row["db.query.text_base64"] = b64encode(text).decode()
    return row


def command(seq: int, record: Record, status: int | None, duration_ns: int | None) -> Row:
    """Return a program; ``exe`` of one that could not be executed is the file that was asked for."""
    failed = record["kind"] == "exec_failed"
    return {
        **_head(seq, record),
        "argv": plain(record.get("argv") or []),
        "exe": as_text(record.get("filename") if failed else record.get("exe")),
        **_plain_fields(record, "cwd", "pid", "ppid", "uid"),
        "status": status,
        "duration_ns": duration_ns,
        **_plain_fields(record, "errno", "error"),
    }


def event(seq: int, record: Record) -> Row:
    """Return any record as an object: ``seq kind time`` and its own keys."""
    row = {"seq": seq, "kind": record["kind"], "time": _time(record)}
    row.update((str(key), plain(value)) for key, value in record.items() if key not in ("kind", "time"))
    for key in ("db.query.text", "text"):
        if isinstance(text := record.get(key), bytes):
            row[key] = as_text(text)
            row[f"{key}_base64"] = b64encode(text).decode()
    return row


def tables(found: tuple[TableRef, ...]) -> list[Row]:
    """Return tables as objects."""
    return [{"name": t.name, "schema": t.schema, "access": t.access} for t in found]


def plain(value: object) -> Any:
    """Return a value as JSON can hold it."""
    if type(value) in _AS_IT_IS:
        return value
    if isinstance(value, bytes | bytearray):
        return {"base64": b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {as_text(key) if isinstance(key, bytes) else str(key): plain(item) for key, item in value.items()}
    return value if isinstance(value, float) else str(value)


def as_text(value: object) -> str | None:
    """Return a text field; what is not UTF-8 in it as U+FFFD."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else None


def _head(seq: int, record: Record) -> Row:
    return {"seq": seq, "time": _time(record), **_plain_fields(record, "session", "agent")}


def _time(record: Record) -> str | None:
    time = record.get("time")
    return iso(time) if isinstance(time, int) else None


def _plain_fields(record: Record, *keys: str) -> Row:
    return {key: value if type(value := record.get(key)) in _AS_IT_IS else _plain_field(value) for key in keys}


def _plain_field(value: object) -> Any:
    return as_text(value) if isinstance(value, bytes) else plain(value)
