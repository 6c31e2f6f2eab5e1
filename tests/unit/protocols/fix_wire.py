"""PostgreSQL messages written by hand, and conversations in which every answer names the statement it belongs to."""

from __future__ import annotations

import struct

from agentwatch.protocols.base import Direction, Message, Outcome, Statement
from agentwatch.protocols.postgres import PostgresDecoder

OUT, IN = Direction.OUT, Direction.IN
Turn = tuple[Direction, bytes]
AT = 7


def message(kind: str, body: bytes = b"") -> bytes:
    return kind.encode() + struct.pack(">I", len(body) + 4) + body


def packet(code: int, body: bytes = b"") -> bytes:
    return struct.pack(">II", len(body) + 8, code) + body


def startup(version: int = 3 << 16, **parameters: str) -> bytes:
    body = b"".join(name.encode() + b"\0" + value.encode() + b"\0" for name, value in parameters.items())
    return packet(version, body + b"\0")


def query(text: bytes) -> bytes:
    return message("Q", text + b"\0")


def parse(text: bytes, name: bytes = b"", oids: tuple[int, ...] = ()) -> bytes:
    return message("P", name + b"\0" + text + b"\0" + struct.pack(f">h{len(oids)}I", len(oids), *oids))


def bind(*values: bytes | None, name: bytes = b"", portal: bytes = b"", formats: tuple[int, ...] = ()) -> bytes:
    packed = b"".join(struct.pack(">i", -1) if v is None else struct.pack(">i", len(v)) + v for v in values)
    head = portal + b"\0" + name + b"\0" + struct.pack(f">h{len(formats)}h", len(formats), *formats)
    return message("B", head + struct.pack(">h", len(values)) + packed + struct.pack(">h", 0))


def execute(portal: bytes = b"", rows: int = 0) -> bytes:
    return message("E", portal + b"\0" + struct.pack(">i", rows))


def describe(kind: bytes = b"P", name: bytes = b"") -> bytes:
    return message("D", kind + name + b"\0")


def close(kind: bytes, name: bytes) -> bytes:
    return message("C", kind + name + b"\0")


SYNC, FLUSH, TERMINATE, COPY_DONE = message("S"), message("H"), message("X"), message("c")
PARSED, BOUND, CLOSED, NO_DATA, SUSPENDED, EMPTY = map(message, "123nsI")
DESCRIPTION = message("T", b"\0\1x\0" + bytes(18))
ROW = message("D", b"\0\1\0\0\0\1x")
COPY_IN = message("G", b"\0\0\1\0\0")
COPY_OUT = message("H", b"\0\0\1\0\0")


def ready(status: bytes = b"I") -> bytes:
    return message("Z", status)


def complete(tag: bytes) -> bytes:
    return message("C", tag + b"\0")


def error(text: bytes, code: bytes = b"22012", severity: bytes = b"ERROR", **more: bytes) -> bytes:
    fields = b"S" + severity + b"\0V" + severity + b"\0C" + code + b"\0M" + text + b"\0"
    return message("E", fields + b"".join(k.encode() + v + b"\0" for k, v in more.items()) + b"\0")


def notice(text: bytes) -> bytes:
    return message("N", b"SNOTICE\0C00000\0M" + text + b"\0\0")


HELLO: list[Turn] = [
    (OUT, startup(user="bob", database="shop", application_name="test")),
    (IN, message("R", b"\0\0\0\3")),
    (OUT, message("p", b"a secret password\0")),
    (IN, message("R", bytes(4)) + message("S", b"TimeZone\0UTC\0") + message("K", bytes(8)) + ready()),
]


def simple(number: int) -> list[Turn]:
    answer = DESCRIPTION + ROW * 3 + complete(b"SELECT %d" % number) + ready()
    return [(OUT, query(b"select %d" % number)), (IN, answer)]


def failing(number: int) -> list[Turn]:
    return [(OUT, query(b"fail %d" % number)), (IN, error(b"fail %d" % number) + ready())]


def extended(number: int, name: bytes = b"") -> list[Turn]:
    asked = parse(b"select %d" % number, name) + bind(b"v", name=name) + describe() + execute() + SYNC
    return [
        (OUT, asked),
        (IN, PARSED + BOUND + DESCRIPTION + ROW + complete(b"SELECT %d" % number) + ready()),
    ]


def prepared(number: int, name: bytes) -> list[Turn]:
    return [
        (OUT, bind(b"v", name=name) + execute() + SYNC),
        (IN, BOUND + ROW * 2 + complete(b"SELECT %d" % number) + ready()),
    ]


def batch(*numbers: int) -> list[Turn]:
    text = b"; ".join(b"select %d" % number for number in numbers)
    answers = b"".join(DESCRIPTION + ROW + complete(b"SELECT %d" % number) for number in numbers)
    return [(OUT, query(text)), (IN, answers + ready())]


def copy_in(number: int) -> list[Turn]:
    return [
        (OUT, query(b"copy %d from stdin" % number)),
        (IN, COPY_IN),
        (OUT, message("d", b"1\n" * 9) + message("d", b"Z\0\0\0\5I") + COPY_DONE),
        (IN, complete(b"COPY %d" % number) + ready()),
    ]


def copy_out(number: int) -> list[Turn]:
    rows = message("d", b"row\n") * number
    answer = COPY_OUT + rows + message("c") + complete(b"COPY %d" % number) + ready()
    return [(OUT, query(b"copy %d to stdout" % number)), (IN, answer)]


def skipped(number: int) -> list[Turn]:
    asked = parse(b"fail %d" % number) + bind() + execute()
    later = parse(b"select %d" % (number + 1)) + bind() + execute() + SYNC
    return [(OUT, asked), (IN, PARSED + error(b"fail %d" % number)), (OUT, later), (IN, ready())]


def conversation() -> list[Turn]:
    """Return everything once, in turns: the client waits for the server."""
    turns = list(HELLO)
    for part in (
        simple(11),
        extended(12),
        extended(13, b"s"),
        failing(14),
        prepared(13, b"s"),
        batch(15, 16, 17),
        copy_in(18),
        copy_out(19),
        skipped(20),
        simple(22),
        prepared(13, b"s"),
        simple(23),
    ):
        turns += part
    return turns


def pipelined() -> list[Turn]:
    """Return a conversation whose client does not wait."""
    groups = [extended(number) for number in range(30, 42)] + [failing(42), simple(43)]
    asked = [group[0] for group in groups]
    answered = [group[1] for group in groups]
    order = asked[:4] + answered[:2] + asked[4:6] + answered[2:3] + asked[6:] + answered[3:] + simple(44) + simple(45)
    return HELLO + order


def run(turns: list[Turn], decoder: PostgresDecoder | None = None) -> list[Message]:
    """Feed all and close."""
    decoder = decoder or PostgresDecoder()
    return [m for direction, data in turns for m in decoder.feed(direction, data, AT)] + decoder.close(AT)


def statements(messages: list[Message]) -> list[Statement]:
    return [m for m in messages if isinstance(m, Statement)]


def short(messages: list[Message]) -> list[tuple[bytes | None, str, str | None]]:
    return [(s.text, str(s.outcome), s.command_tag or s.status_code) for s in statements(messages)]


def wrongly_paired(found: list[Statement]) -> list[Statement]:
    """Return statements that have the answer of another: each answer names its statement by number."""
    wrong = []
    for s in found:
        words = (s.text or b"").decode().split()
        number = words[1] if len(words) > 1 else None
        if s.text is None or s.text_length != len(s.text):
            continue
        if s.outcome is Outcome.OK:
            wrong += [s] if (s.command_tag or "").split()[-1:] != [number] else []
        elif s.outcome is Outcome.ERROR:
            wrong += [s] if (s.error or "").split()[-1:] != [number] else []
    return wrong
