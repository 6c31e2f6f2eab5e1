"""Where one statement of a text ends and the next begins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.protocols import postgres_split
from agentwatch.protocols.postgres_split import is_single, split


def pieces(text: str, *, standard_strings: bool = True) -> list[str] | None:
    found = split(text.encode(), standard_strings=standard_strings)
    return None if found is None else [text.encode()[start:end].decode() for start, end in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" ; -- c\n ; /* ; */", []),
        ("select 1", ["select 1"]),
        ("select 1; select 2;", ["select 1", "select 2"]),
        ("select 'a;''b;'; x", ["select 'a;''b;'", "x"]),
        ("select E'a\\';b'; x", ["select E'a\\';b'", "x"]),
        ("select e'a\\\\'; x", ["select e'a\\\\'", "x"]),
        ("select E'a'\n  -- c\n 'b\\';c'; z", ["select E'a'\n  -- c\n 'b\\';c'", "z"]),
        ("select type'\\'; x", ["select type'\\'", "x"]),
        ('select "a"";"; y', ['select "a"";"', "y"]),
        ("select $$;$$, $a$ $$;$b$ ;$a$; b;;;", ["select $$;$$, $a$ $$;$b$ ;$a$", "b"]),
        ("select a$b$c; select d$b$ ; x", ["select a$b$c", "select d$b$", "x"]),
        ("select $1; select $2", ["select $1", "select $2"]),
        ("a /* ; /* ; */ ; */ ; b -- ;\n; c", ["a /* ; /* ; */ ; */", "b -- ;", "c"]),
        ("select 4 -- it's\n; select 5", ["select 4 -- it's", "select 5"]),
        ("select 1 - -1; select 2 / 3", ["select 1 - -1", "select 2 / 3"]),
        (
            "create rule r as on insert to t do (select 1; select 2); select 3",
            ["create rule r as on insert to t do (select 1; select 2)", "select 3"],
        ),
        (
            "create function f() returns int begin atomic select case when true then 1 end; select 2; end; begin; end",
            [
                "create function f() returns int begin atomic select case when true then 1 end; select 2; end",
                "begin",
                "end",
            ],
        ),
        (
            "create or replace procedure p() begin atomic; insert into t values (1); end; call p()",
            ["create or replace procedure p() begin atomic; insert into t values (1); end", "call p()"],
        ),
        ("create table atomic (a int); begin; commit", ["create table atomic (a int)", "begin", "commit"]),
        ("select 'unterminated; select 2", ["select 'unterminated; select 2"]),
        ("select /* unterminated; select 2", ["select /* unterminated; select 2"]),
        ("select $x$ unterminated; select 2", ["select $x$ unterminated; select 2"]),
    ],
)
def test_statements_are_those_of_the_servers_lexer(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


def test_backslashes_escape_when_strings_are_not_standard() -> None:
    assert pieces("select 'a\\';b'; x", standard_strings=False) == ["select 'a\\';b'", "x"]


def test_texts_beyond_the_limits_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_split, "MAX_STATEMENTS", 3)
    assert split(b"a;b;c") is not None
    assert split(b"a;b;c;d") is None
    monkeypatch.setattr(postgres_split, "MAX_TOKENS", 10)
    assert split(b"select " + b"'" * 100) is None


_PARTS = [
    "a",
    ";",
    "'",
    '"',
    "$",
    "$$",
    "\\",
    "/*",
    "*/",
    "--",
    "\n",
    "E'",
    "(",
    ")",
    "create function",
    "begin atomic",
]


@given(st.lists(st.sampled_from([*_PARTS, " end", " 1", "é"]), max_size=30).map("".join))
def test_pieces_are_in_order_and_leave_only_separators(text: str) -> None:
    whole = text.encode()
    found = split(whole)
    assert found is not None
    position = 0
    for start, end in found:
        assert position <= start < end
        assert whole[start:end].strip()
        position = end
    if is_single(whole):
        assert len(found) <= 1
