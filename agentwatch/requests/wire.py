"""What is said over ``run_dir/requests.sock``: one message there, one message back, each a JSON object. No sockets.

The socket is AF_UNIX, SOCK_SEQPACKET: a message arrives whole or not at all. Request::

    {"kind": "read", "log": [DEVICE, INODE], "command": "sessions", "question": [WORD, ...], "truncated": false}
    {"kind": "hold", "log": [DEVICE, INODE], "session": UUID, "held": true, "reason": TEXT}

``log`` is the folder that is meant: a host's recorder writes one log, and its readers may have copies of others.
Answer::

    {"seq": 1834}    the record that was written, durable
    {"error": TEXT}  nothing was recorded, and why; with "other_log": true, this recorder writes another log

What always holds: ``parse_request`` raises ValueError, and nothing else, for whatever a peer sends.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from agentwatch.records.encoding import text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SOCKET_NAME = "requests.sock"
MAX_MESSAGE_BYTES = 16 * 1024
"""A command line that is longer is cut. Times ``server.MAX_RATE`` it is what a user can have written in a second."""
MAX_QUESTION_BYTES = 12 * 1024
"""Of the question within a message, as JSON."""
MAX_COMMAND = 64
MAX_REASON = 1000
"""Characters of a reason: a sentence or a few, and the number of a case."""
_JSON_BYTES = 12
"""What a character takes in JSON at the most (two surrogates, escaped)."""
_SESSION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


class Asked(NamedTuple):
    """A request as it was sent and checked. ``fields`` are those of the record, as docs/records.md names them."""

    kind: str
    log: tuple[int, int]
    fields: dict[str, Any]


class Answer(NamedTuple):
    """``seq`` of the record that was written, or why none was."""

    seq: int | None
    error: str | None = None
    other_log: bool = False


def log_identity(log_dir: Path) -> tuple[int, int]:
    """Return what tells one folder from another. Raises OSError."""
    found = log_dir.stat()
    return found.st_dev, found.st_ino


def is_session(typed: str) -> bool:
    """Tell whether a text is the whole id of a session."""
    return _SESSION.match(typed) is not None


def read_request(log: tuple[int, int], command: str, question: Sequence[str]) -> bytes:
    """Return the message that a read is. ``question`` is decoded as ``sys.argv`` is; what is too long is cut."""
    kept, truncated = _fitting(question)
    return _encode({"kind": "read", "log": log, "command": command, "question": kept, "truncated": truncated})


def hold_request(log: tuple[int, int], session: str, reason: str, *, held: bool) -> bytes:
    """Return the message that asks for a hold, or for its end."""
    return _encode({"kind": "hold", "log": log, "session": session, "held": held, "reason": reason})


def parse_request(data: bytes) -> Asked:
    """Return what a peer asks for. Raises ValueError, whose text may be sent back."""
    message = _object(data)
    kind, log = message.get("kind"), message.get("log")
    check = _CHECKS.get(kind) if isinstance(kind, str) else None
    if check is None:
        raise ValueError(f"unknown kind; known are: {', '.join(_CHECKS)}")
    if not isinstance(log, list) or [type(number) for number in log] != [int, int]:
        raise ValueError("'log' must be device and inode of the log's folder")
    return Asked(str(kind), (log[0], log[1]), check(message))


def encode_answer(answer: Answer) -> bytes:
    """Return the message that an answer is."""
    if answer.error is None:
        return _encode({"seq": answer.seq})
    return _encode({"error": answer.error[:MAX_REASON], "other_log": answer.other_log})


def parse_answer(data: bytes) -> Answer:
    """Return an answer. Raises ValueError."""
    message = _object(data)
    seq, error = message.get("seq"), message.get("error")
    if type(seq) is int:
        return Answer(seq)
    if not isinstance(error, str):
        raise ValueError("neither 'seq' nor 'error'")  # noqa: TRY004 -- one error for all that is not understood
    return Answer(None, error, other_log=message.get("other_log") is True)


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode("ascii")


def _object(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ValueError("not JSON") from e
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 -- as above
    return message


def _fitting(words: Sequence[str]) -> tuple[list[str], bool]:
    kept: list[str] = []
    room = MAX_QUESTION_BYTES
    for word in words:
        size = len(json.dumps(word)) + 2
        if size > room:
            beginning = word[: room // _JSON_BYTES]
            return [*kept, beginning] if beginning else kept, True
        kept.append(word)
        room -= size
    return kept, False


def _read_fields(message: dict[str, Any]) -> dict[str, Any]:
    question, truncated = message.get("question"), message.get("truncated")
    if not isinstance(question, list) or not all(isinstance(word, str) for word in question):
        raise ValueError("'question' must be a list of texts")
    if not isinstance(truncated, bool):
        raise ValueError("'truncated' must be true or false")  # noqa: TRY004 -- as above
    # As arguments of a program are recorded: bytes that are no text stay what they were.
    words = [text(word.encode("utf-8", "surrogateescape")) for word in question]
    return {"command": _text(message, "command", MAX_COMMAND), "question": words, "truncated": truncated}


def _hold_fields(message: dict[str, Any]) -> dict[str, Any]:
    session, held = message.get("session"), message.get("held")
    if not isinstance(session, str) or not is_session(session):
        raise ValueError("'session' must be the whole id of a session")
    if not isinstance(held, bool):
        raise ValueError("'held' must be true or false")  # noqa: TRY004 -- as above
    return {"held_session": session, "held": held, "reason": _text(message, "reason", MAX_REASON)}


def _text(message: dict[str, Any], key: str, limit: int) -> str:
    value = message.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= limit:
        raise ValueError(f"{key!r} must be a text of 1 to {limit} characters")
    value.encode()  # a lone surrogate is a ValueError here, and would be one in the recorder
    return value


_CHECKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"read": _read_fields, "hold": _hold_fields}
