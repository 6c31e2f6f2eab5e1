"""Records as lines for people: what ``tail``, ``replay`` and ``show`` print. Every line is safe for a terminal."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from agentwatch.cli.safe import printable, printable_lines
from agentwatch.query import times

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentwatch.records.encoding import Record

_ENVELOPE = frozenset(
    {"kind", "time", "boottime", "host", "boot_id", "session", "agent", "event", "pid", "tid", "exe", "comm", "uid"}
)


def headline(record: Record, tables: str = "") -> str:
    """Return one line: the kind and what matters most about it."""
    told = _TOLD.get(record["kind"], _anything)(record)
    return printable(f"{record['kind']} {told}{f' [{tables}]' if tables else ''}".rstrip())


def body(record: Record) -> list[str]:
    """Return what follows the headline of a statement: its text verbatim and its parameters."""
    if record["kind"] != "statement":
        return []
    sql = record.get("db.query.text")
    lines = ["(text not known: prepared before the watch began)"] if sql is None else printable_lines(_text(sql))
    if record.get("truncated") is True:
        lines.append(f"(kept in part: {record.get('text_length')} bytes were sent)")
    params = record.get("params") or ()
    return lines + [f"${number} = {printable(_value(value))}" for number, value in enumerate(params, 1)]


def who(record: Record) -> str:
    """Return the process that a record is about."""
    if record.get("pid") is None:
        return "-"
    name = _text(record.get("exe") or record.get("comm") or "?").rpartition("/")[2]
    return printable(f"{name}[{record['pid']}]")


def command_line(argv: Any) -> str:
    """Return arguments as a shell would take them."""
    if not isinstance(argv, list | tuple):
        return ""
    return " ".join(shlex.quote(_text(word)) for word in argv)


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _value(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    return f"'{value}'" if isinstance(value, str) else str(value)


def _session_start(record: Record) -> str:
    begun = command_line(record.get("argv")) or record.get("cgroup") or ""
    before = ", processes were there before" if record.get("preexisting") else ""
    return f"{record.get('agent', '')} as {record.get('user') or '?'} ({record.get('origin', '?')}{before}): {begun}"


def _session_end(record: Record) -> str:
    return "" if record.get("status") is None else f"status {record['status']}"


def _exec(record: Record) -> str:
    lost = (record.get("argv_bytes") or 0) - (record.get("argv_captured") or 0)
    cut = f" (and {lost} bytes more)" if lost > 0 else ""
    odd = " (from memory)" if record.get("memfd") else " (deleted file)" if record.get("deleted") else ""
    return f"{command_line(record.get('argv'))}{cut}{odd}"


def _exec_failed(record: Record) -> str:
    asked = command_line(record.get("argv")) or _text(record.get("filename") or "?")
    return f"{asked}: {record.get('error') or record.get('errno')}"


def _command_input(record: Record) -> str:
    text = record.get("text")
    missing = (record.get("length") or 0) - len(text if isinstance(text, bytes) else (text or "").encode())
    told = "" if text is None else f"{_text(text)} "
    if missing > 0:
        told += f"({missing} bytes not kept{': ' + _text(record['reason']) if record.get('reason') else ''})"
    return told.rstrip()


def _exit(record: Record) -> str:
    by = f" (signal {record['signal']})" if record.get("signal") else ""
    return f"{record.get('status')}{by} after {times.span(record.get('duration_ns'))}"


def _connect(record: Record) -> str:
    result = f": {record.get('error') or record['errno']}" if record.get("errno") else ""
    return f"{record.get('transport')} {_text(record.get('peer') or '?')}{result}"


def _statement(record: Record) -> str:
    parts = [_text(record.get("outcome") or "?")]
    if record.get("db.response.status_code"):
        parts.append(f"{record['db.response.status_code']} {_text(record.get('error') or '')}".rstrip())
    if record.get("rows") is not None:
        parts.append(f"{record['rows']} rows")
    if record.get("duration_ns") is not None:
        parts.append(times.span(record["duration_ns"]))
    if record.get("joined"):
        parts.append("joined in its middle")
    return f"{_text(record.get('db.user') or '?')}@{_text(record.get('db.namespace') or '?')} {', '.join(parts)}"


def _opaque(record: Record) -> str:
    return (
        f"{record.get('reason')} {_text(record.get('peer') or '?')}:"
        f" {record.get('bytes_out', 0)} bytes out, {record.get('bytes_in', 0)} in"
    )


def _delegation(record: Record) -> str:
    detail = record.get("detail")
    told = [_text(detail[key]) for key in _ABOUT if detail.get(key)] if isinstance(detail, dict) else []
    parts = [_text(record.get("channel") or "?"), _text(record.get("operation") or "opened"), *told]
    command = command_line(record.get("command"))
    peer = "" if record.get("peer") is None else f" ({_text(record['peer'])})"
    return f"{' '.join(parts)}{f': {command}' if command else ''}{peer}"


_ABOUT = ("unit", "image", "container", "exec", "destination", "member")
"""Details of a delegation that its line tells."""


def _gap(record: Record) -> str:
    parts = [_text(record.get("cause") or "?")]
    parts += [f"{record[key]} {word}" for key, word in (("count", "events"), ("bytes", "bytes")) if record.get(key)]
    parts += [_text(record[key]) for key in ("direction", "detail") if record.get(key)]
    return ", ".join(parts)


def _cgroup_move(record: Record) -> str:
    return f"{_text(record.get('from') or '?')} -> {_text(record.get('to') or '?')}"


def _anything(record: Record) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in record.items() if key not in _ENVELOPE)


_TOLD: dict[str, Callable[[Record], str]] = {
    "session_start": _session_start,
    "session_end": _session_end,
    "exec": _exec,
    "exec_failed": _exec_failed,
    "exit": _exit,
    "command_input": _command_input,
    "connect": _connect,
    "statement": _statement,
    "opaque": _opaque,
    "delegation": _delegation,
    "gap": _gap,
    "cgroup_move": _cgroup_move,
}
