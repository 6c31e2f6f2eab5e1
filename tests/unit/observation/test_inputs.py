"""Lines of input: what is read becomes the lines that were written, however it was cut."""

from __future__ import annotations

import pickle
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agentwatch.kernel.abi import Header, Input, InputSource, Omitted
from agentwatch.observation import inputs
from agentwatch.observation.inputs import IDLE_NS, MAX_LINE_BYTES, MAX_READERS, InputLines, Line

PIPE, TTY, FILE = InputSource.FROM_PIPE, InputSource.FROM_TTY, InputSource.FROM_FILE


def piece(  # noqa: PLR0913 -- each says one thing about a piece
    data: bytes,
    *,
    source: int = PIPE,
    inode: int = 7,
    tgid: int = 100,
    at: int = 0,
    omitted: int = 0,
    total: int | None = None,
    time: int = 1000,
) -> Input:
    header = Header(0, 0, 0, time, 5, tgid, tgid, 0, 0, 0, 0)
    return Input(header, inode, at, len(data) if total is None else total, source, omitted, data)


def read(*pieces: Input) -> list[tuple[bytes | None, str]]:
    """Return the lines of pieces and of the exit that follows."""
    lines = InputLines()
    found = [line for one in pieces for line in lines.take(one)] + lines.ended(100, inputs.EXIT)
    assert len(lines) == 0
    return [(line.text, line.ended_by) for line in found]


def texts(*pieces: Input) -> list[bytes | None]:
    return [text for text, _ in read(*pieces)]


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=20), st.sampled_from([PIPE, TTY]))
def test_lines_do_not_depend_on_the_pieces(data: bytes, cuts: list[int], source: int) -> None:
    data = data.replace(b"\x01", b"\n").replace(b"\x02", b"\r\n")
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [piece(data[a:b], source=source) for a, b in pairwise(edges)]
    assert read(*pieces) == read(*([piece(data, source=source)] if data else []))
    if source == PIPE:
        whole = data.split(b"\n")
        assert texts(*pieces) == (whole[:-1] if not whole[-1] else whole)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=12), st.integers(1, 60))
def test_a_shell_that_goes_back_in_its_file_reads_one_input(lines: list[bytes], ahead: int) -> None:
    lines = [line.replace(b"\n", b"-") for line in lines]
    script = b"".join(line + b"\n" for line in lines)
    pieces, at = [], 0
    while at < len(script):
        pieces.append(piece(script[at : at + ahead], source=FILE, at=at))
        end = script.find(b"\n", at, at + ahead)
        at = at + ahead if end < 0 else end + 1
    assert texts(*pieces) == lines


def test_a_file_that_was_changed_meanwhile_is_read_again() -> None:
    first = piece(b"echo a\necho b\nech", source=FILE)
    assert read(first, piece(b"evil x\n", source=FILE, at=7)) == [
        (b"echo a", "newline"),
        (b"echo b", "newline"),
        (b"ech", "seek"),
        (b"evil x", "newline"),
    ]


def test_the_same_text_in_another_file_is_another_input() -> None:
    assert texts(*[piece(b"x\n", source=FILE)] * 3) == [b"x", b"x", b"x"]


def test_enter_on_a_terminal_is_one_line_whatever_it_sends() -> None:
    assert texts(*(piece(bytes([b]), source=TTY) for b in b"a\rb\nc\r\nd\r")) == [b"a", b"b", b"c", b"d"]
    assert texts(piece(b"a\r\n\nb\n", source=TTY)) == [b"a", b"", b"b"]
    assert texts(piece(b"a\r\n")) == [b"a\r"]


def test_a_long_line_is_cut_and_says_so() -> None:
    lines = InputLines()
    found: list[Line] = []
    for _ in range(5):
        found += lines.take(piece(b"x" * 32768))
    found += lines.take(piece(b"y\nnext\n"))
    assert [(len(line.text or b""), line.length, line.truncated) for line in found] == [
        (MAX_LINE_BYTES, 5 * 32768 + 1, True),
        (4, 4, False),
    ]


def test_what_ends_a_line_without_a_newline() -> None:
    assert read(piece(b"a")) == [(b"a", "exit")]
    assert read(piece(b"a"), piece(b"")) == [(b"a", "eof")]
    lines = InputLines()
    assert lines.take(piece(b"a", time=0)) == []
    assert lines.idle(IDLE_NS - 1) == []
    assert [(line.text, line.ended_by) for line in lines.idle(IDLE_NS)] == [(b"a", "idle")]
    assert lines.idle(2 * IDLE_NS) == []
    assert len(lines) == 0


def test_a_password_is_counted_and_not_kept() -> None:
    lines = InputLines()
    hidden = {"source": TTY, "omitted": Omitted.OMITTED_ECHO_OFF, "total": 1}
    found = [line for _ in range(8) for line in lines.take(piece(b"", **hidden))]
    found += lines.take(piece(b"ls\n", source=TTY))
    assert [(line.text, line.length, line.reason, line.truncated) for line in found] == [
        (None, 8, "echo-off", True),
        (b"ls", 2, None, False),
    ]


def test_a_line_whose_rest_was_not_copied_says_so() -> None:
    lines = InputLines()
    found = lines.take(piece(b"begin")) + lines.take(piece(b"", omitted=Omitted.OMITTED_LIMIT, total=1000))
    found += lines.take(piece(b"", omitted=Omitted.OMITTED_LIMIT, total=1000)) + lines.ended(100, inputs.EXEC)
    assert [(line.text, line.length, line.reason, line.truncated, line.ended_by) for line in found] == [
        (b"begin", 5, None, True, "omitted"),
        (None, 2000, "limit", True, "exec"),
    ]


def test_inputs_of_one_process_do_not_mix() -> None:
    assert texts(piece(b"one ", inode=1), piece(b"two\n", inode=2), piece(b"line\n", inode=1)) == [b"two", b"one line"]


def test_readers_are_bounded() -> None:
    lines = InputLines()
    found = [line for tgid in range(MAX_READERS + 3) for line in lines.take(piece(b"x", tgid=tgid))]
    assert [(line.tgid, line.ended_by) for line in found] == [(0, "limit"), (1, "limit"), (2, "limit")]
    assert len(lines) == MAX_READERS


def test_state_survives_pickle() -> None:
    lines = InputLines()
    lines.take(piece(b"half"))
    again: InputLines = pickle.loads(pickle.dumps(lines))  # noqa: S301 -- made one call before
    assert [line.text for line in again.take(piece(b" and half\n"))] == [b"half and half"]
