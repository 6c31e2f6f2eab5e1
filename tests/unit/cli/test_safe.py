from __future__ import annotations

import json
import unicodedata

import orjson
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.cli.safe import json_line, printable, printable_lines

UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def is_safe(text: str) -> bool:
    return not any(unicodedata.category(c) in UNSAFE for c in text)


@given(st.text())
def test_printable_has_no_character_that_steers_a_terminal(text: str) -> None:
    assert is_safe(printable(text))


@given(st.text())
def test_lines_are_safe_and_as_many_as_were_written(text: str) -> None:
    lines = printable_lines(text)
    assert all(map(is_safe, lines))
    assert len(lines) == text.count("\n") + 1


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_json_is_safe_and_has_the_same_value(text: str) -> None:
    line = json_line(orjson.dumps({text: [text]}))
    assert is_safe(line)
    assert json.loads(line) == {text: [text]}


def test_ordinary_text_stays_as_it_is() -> None:
    text = "SELECT 'Grüße', '日本', '🙂' -- a\\b"
    assert printable(text) == text
    assert printable("\x1b[2J\r\n\t\x00\x7f\x9b\u202e") == "\\x1b[2J\\r\\n\\t\\x00\\x7f\\x9b\\u202e"
