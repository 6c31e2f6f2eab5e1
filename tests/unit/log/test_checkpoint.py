"""Checkpoints: three lines, each with one spelling."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwatch.log import checkpoint, note
from agentwatch.log.checkpoint import Checkpoint
from agentwatch.log.note import NoteError

LOG_ID = bytes.fromhex("6f1c0f3a9b7d4e0b8c6d2a1e5f403b21")
ORIGIN = "db-agents-1/agentwatch/6f1c0f3a9b7d4e0b8c6d2a1e5f403b21"
ROOT = base64.b64decode("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=")
TEXT = f"{ORIGIN}\n1834\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"


def test_the_example_of_the_format_is_read_and_written() -> None:
    assert Checkpoint.parse(TEXT) == Checkpoint(ORIGIN, 1834, ROOT)
    assert Checkpoint(ORIGIN, 1834, ROOT).text == TEXT
    assert checkpoint.make_origin("db-agents-1", LOG_ID) == ORIGIN
    assert checkpoint.log_id_of(ORIGIN) == LOG_ID


@settings(deadline=None)
@given(
    st.text(max_size=300),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 10**19 - 1),
    st.binary(min_size=32, max_size=32),
)
def test_what_is_written_is_read_whatever_the_host_is_called(host: str, log_id: bytes, size: int, root: bytes) -> None:
    made = Checkpoint(checkpoint.make_origin(host, log_id), size, root)
    assert Checkpoint.parse(made.text) == made
    assert note.parse(f"{made.text}\n— name AAAAAAAA\n").text == made.text
    assert checkpoint.log_id_of(made.origin) == log_id


@settings(deadline=None)
@given(st.text(alphabet=f"{TEXT}\t \r\x00é0aZ", max_size=120))
def test_a_text_is_a_checkpoint_in_one_spelling_or_none(text: str) -> None:
    for candidate in (text, TEXT[: len(text)] + text, text + TEXT[len(text) :]):
        try:
            parsed = Checkpoint.parse(candidate)
        except NoteError:
            continue
        assert parsed.text == candidate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n\n",
        TEXT[:-1],
        f"{TEXT}\n",
        f"{TEXT}extension\n",
        f"\n{TEXT}",
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("\n1834", "\n\n1834"),
        TEXT.replace(ORIGIN, f"{ORIGIN} "),
        TEXT.replace(ORIGIN, "example.com/behind-the-sofa"),
        TEXT.replace(ORIGIN, "agentwatch-epoch/v1"),
        TEXT.replace("db-agents-1", ""),
        TEXT.replace("db-agents-1", "db agents"),
        TEXT.replace("db-agents-1", "db/agents"),
        TEXT.replace("db-agents-1", "d\u00e4b"),
        TEXT.replace("db-agents-1", "a" * (checkpoint.MAX_HOST + 1)),
        TEXT.replace("3b21\n", "3B21\n"),
        TEXT.replace("3b21\n", "3b2\n"),
        *(
            TEXT.replace("1834", size)
            for size in ("", "01834", "-1", "+1", " 1", "1 ", "1e3", "0x1", "1_0", "\u0661", "1" * 20)
        ),
        TEXT.replace("q2I=", "q2I"),
        TEXT.replace("q2I=", "q2J="),
        TEXT.replace("q2I=", "q2I=="),
        TEXT.replace("q2I=", "q2I= "),
        TEXT.replace("q2I=", ""),
        TEXT.replace("CsUY", "CsUYCsUY"),
        TEXT.replace("m/X", "m_X"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        Checkpoint.parse(text)


def test_the_longest_origin_can_be_signed_with_ml_dsa() -> None:
    origin = checkpoint.make_origin("a" * 1000, LOG_ID)
    assert len(origin) == note.MAX_SHORT_BYTES
    signer = note.MlDsaSigner(origin, bytes(32))
    text = Checkpoint(origin, 1, ROOT).text
    note.verify(note.Note(text, ()).signed_by(signer, 1), [signer.key])
