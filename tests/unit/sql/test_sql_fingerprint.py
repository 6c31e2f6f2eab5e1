"""Folding keeps the tables: what the grammar says of a text it says of the folded text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwatch.sql import postgres, tables
from agentwatch.sql.fingerprint import fold, strip

CORPUS = (Path(__file__).parents[2] / "golden" / "sql" / "corpus.sql").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT * FROM t  WHERE a = 'it''s' AND b = 1.5e3", "SELECT * FROM t WHERE a = 'x' AND b = 1.5"),
        ("SELECT $$ ' $$, $a$ $$ $a$, E'\\'', b'01', $1", "SELECT 'x', 'x', E'x', b'x', $1"),
        ("a IN (1, 2,\n 3)", "a IN (1)"),
        ("VALUES (1, 'a', NULL), ($1, DEFAULT, -5)", "VALUES (1)"),
        ("VALUES (1, now()), (2, now())", "VALUES (1, now())"),
        ('SELECT t1.a2, "(1), (1)", "it\'s" FROM t2', 'SELECT t1.a2, "(1), (1)", "it\'s" FROM t2'),
        ("a -- 'x\n b /* ' /* \" */ */ c", "a\nb /**/ c"),
        ("'a'\n  'b'", "'x'\n'x'"),
        ("a$b$c, x LIKE'y'", "a$b$c, x LIKE'x'"),
        ("FETCH 99999999999 FROM c1", "FETCH 1.5 FROM c1"),
        ("1a, 0x1F, 1..2", "1a, 1.5, 1..2"),
    ],
)
def test_shape(text: str, expected: str) -> None:
    folded = fold(text)
    assert (folded.text, folded.key, folded.whole) == (expected, expected, True)


@pytest.mark.parametrize(
    "text",
    [
        "DO $$ DELETE FROM orders $$",
        "; DO LANGUAGE plpgsql 'x'",
        "PREPARE p AS SELECT 1",
        "EXECUTE p ('a')",
        "EXPLAIN (ANALYZE 0) DELETE FROM t",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT * FROM U&\"d!0061t\" UESCAPE '!'",
    ],
)
def test_where_literals_decide_nothing_is_folded_or_cached(text: str) -> None:
    folded = fold(text)
    assert folded.text == text
    assert folded.key is None


def test_words_inside_literals_do_not_keep_a_text_from_being_folded() -> None:
    assert fold("SELECT 'prepare; do explain'").text == "SELECT 'x'"


@pytest.mark.parametrize("text", ["'a", '"a', "$a$ b", "/* /* */", "E'a\\'", "+-" * 40])
def test_open_literals_and_endless_operators_are_not_whole(text: str) -> None:
    assert not fold(f"SELECT {text}").whole


@pytest.mark.parametrize("text", CORPUS)
def test_folded_corpus_means_the_same_and_folds_to_itself(text: str) -> None:
    folded = fold(text)
    assert postgres.analyse(folded.text) == postgres.analyse(strip(text).text) == postgres.analyse(text)
    assert fold(folded.text).text == folded.text


LITERALS = st.one_of(
    st.integers(-(10**12), 10**12).map(str),
    st.floats(0, 1e9, allow_nan=False).map(str),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8).map(
        lambda s: "'" + s.replace("'", "''") + "'"
    ),
    st.sampled_from(["NULL", "$1", "E'\\''", "$$'$$", "$a$ $$ $a$", "B'1'", "DEFAULT", "'x'::text", "now()", "(1)"]),
)
NAMES = st.sampled_from(["orders", "s.items", '"(1), (1)"', '"it\'s"', "größe", "a1", "u&x", "e", '"do"', "t$1$"])
SPACES = st.sampled_from([" ", "\n", "\t ", " -- ' \" (1)\n", "/* ' /* \" */ */", "  "])


@st.composite
def statements(draw: st.DrawFn) -> str:
    def values(names: st.SearchStrategy[str]) -> str:
        return f"({', '.join(draw(st.lists(names, min_size=1, max_size=4)))})"

    rows = ",".join(values(LITERALS) for _ in range(draw(st.integers(1, 3))))
    words = draw(
        st.sampled_from(
            [
                ["INSERT", "INTO", draw(NAMES), "VALUES", rows],
                [
                    "SELECT",
                    "*",
                    "FROM",
                    draw(NAMES),
                    "WHERE",
                    "a",
                    "IN",
                    values(LITERALS),
                    "AND",
                    "b",
                    "=",
                    draw(LITERALS),
                ],
                ["UPDATE", draw(NAMES), "SET", "a", "=", draw(LITERALS), "FROM", draw(NAMES), "LIMIT", draw(LITERALS)],
                ["DELETE", "FROM", draw(NAMES), "USING", draw(NAMES), ",", draw(NAMES), ";", "SELECT", draw(LITERALS)],
                [
                    "SELECT",
                    values(LITERALS),
                    ",",
                    values(NAMES),
                    ",",
                    values(NAMES),
                    "FROM",
                    draw(NAMES),
                    ",",
                    draw(NAMES),
                ],
            ]
        )
    )
    return "".join(word + draw(SPACES) for word in words)


@given(statements())
@settings(max_examples=300, deadline=None)
def test_what_the_grammar_says_of_a_text_it_says_of_its_shape(text: str) -> None:
    answer = postgres.analyse(text)
    if answer is not None:
        assert postgres.analyse(fold(text).text) == answer


@given(st.lists(st.one_of(statements(), st.sampled_from(CORPUS), st.text()), min_size=2, max_size=6))
@settings(max_examples=150, deadline=None)
def test_cached_answer_equals_uncached_answer(texts: list[str]) -> None:
    tables.clear_cache()
    warm = [tables.analyse(text) for text in (*texts, *texts)]
    cold = []
    for text in (*texts, *texts):
        tables.clear_cache()
        cold.append(tables.analyse(text))
    assert warm == cold


@given(st.one_of(st.binary(), st.text(), statements()), st.data())
@settings(max_examples=300, deadline=None)
def test_never_raises_on_any_input_or_cut(text: str | bytes, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(text)))
    for piece in (text, text[:end]):
        answer = tables.analyse(piece)
        assert (answer.tables is None) == (answer.confidence == "none")
        tables.analyse(piece, "mysql")
        tables.prepares(piece)
        tables.analyse(piece, truncated=True)
        if isinstance(piece, str):
            tables.normalise_name(piece)
