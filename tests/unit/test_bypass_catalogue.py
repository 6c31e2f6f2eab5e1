"""docs/bypasses.md and the tests of its techniques: the one says what the others measure, and nothing better."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CATALOGUE = ROOT / "docs" / "bypasses.md"
TESTS = sorted((ROOT / "tests" / "kernel").glob("test_bypass_*.py"))
ATTACKERS = ROOT / "tests" / "kernel" / "bypasses"
CONTROLS = {"plain_statement"}
"""Tests of the measure itself: no attack."""
SHARED = {"pg", "pgtls"}
"""What attackers import."""

_ENTRY = re.compile(r"^### `(\w+)` — (covered|declared|open|untested)$\n(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^### .*$", re.MULTILINE)
_TOTALS = re.compile(r"^(\d+) covered, (\d+) declared, (\d+) open, (\d+) untested", re.MULTILINE)
_STATES = {"COVERED": "covered", "DECLARED": "declared"}


def entries() -> dict[str, tuple[str, str]]:
    """Return the state and the text of each technique."""
    found = _ENTRY.findall(CATALOGUE.read_text())
    assert len({name for name, _, _ in found}) == len(found)
    return {name: (state, text) for name, state, text in found}


def measured(test: ast.FunctionDef) -> str:
    """Return the state that a test holds the system to: open is an expected failure that must stay one."""
    for decorator in test.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.xfail":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in decorator.keywords}
            assert (given["strict"], given["raises"]) == ("True", "Unseen"), test.name
            assert "not_silent" in ast.unparse(test), test.name
            return "open"
    compared = {
        ast.unparse(node.comparators[0])
        for node in ast.walk(test)
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq)
    }
    (state,) = compared & set(_STATES)
    return _STATES[state]


def states_of_tests() -> dict[str, str]:
    """Return the state that the test of each technique holds the system to."""
    return {
        node.name.removeprefix("test_"): measured(node)
        for path in TESTS
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_each_heading_of_a_technique_is_an_entry() -> None:
    assert len(_HEADING.findall(CATALOGUE.read_text())) == len(entries()) > 0


def test_each_technique_has_the_state_that_its_test_measures() -> None:
    told = {name: state for name, (state, _) in entries().items() if state != "untested"}
    assert told == {name: state for name, state in states_of_tests().items() if name not in CONTROLS}


def test_totals_are_those_of_the_entries() -> None:
    states = [state for state, _ in entries().values()]
    found = _TOTALS.search(CATALOGUE.read_text())
    assert found is not None
    assert [int(n) for n in found.groups()] == [states.count(s) for s in ("covered", "declared", "open", "untested")]


@pytest.mark.parametrize("entry", entries().values(), ids=list(entries()))
def test_an_entry_says_what_is_seen_and_what_to_do_about_the_rest(entry: tuple[str, str]) -> None:
    state, text = entry
    if state in ("open", "untested"):
        assert "**Do:**" in text
    if state != "untested":
        assert "**Seen:**" in text


def test_each_attacker_is_used() -> None:
    used = "".join(path.read_text() for path in [*TESTS, ROOT / "tests" / "kernel" / "fix_bypass.py"])
    for path in ATTACKERS.iterdir():
        if path.stem not in SHARED and path.suffix in (".c", ".py"):
            assert f'"{path.name if path.suffix == ".py" else path.stem}"' in used, path.name
