"""Imports point one way; the map below is the design's, and this walks every import of the package to hold it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import agentwatch

PACKAGE = Path(agentwatch.__file__).parent
BASE = frozenset({"errors", "config", "config_tables"})
"""What everything may import, beside ``agentwatch`` itself (its version)."""

ONLY = {
    "errors": frozenset[str](),
    "config_tables": frozenset({"errors"}),
    "config": frozenset({"config_tables", "errors"}),
    "protocols": frozenset({"errors", "protocols"}),
    "log": frozenset({"errors", "log"}),
    "anchors": frozenset({"errors", "log", "anchors"}),
    "standalone": frozenset[str](),
}
"""Packages that may import these and nothing else of agentwatch."""

NEVER = {
    "query": frozenset({"kernel", "cli", "recorder", "streams", "protocols", "identity"}),
    "index": frozenset({"kernel", "cli", "recorder", "streams", "protocols", "identity", "query"}),
    "sql": frozenset({"kernel", "cli", "recorder", "streams", "protocols", "identity", "query", "index", "log"}),
    "records": frozenset({"kernel", "cli", "recorder", "streams", "identity", "query", "index", "log", "sql"}),
    "streams": frozenset({"cli", "recorder", "query", "index", "log", "sql"}),
    "identity": frozenset({"cli", "recorder", "query", "index", "log", "sql"}),
    "kernel": frozenset({"cli", "recorder", "query", "index", "log", "sql", "records", "protocols", "streams"}),
    "recorder": frozenset({"cli", "query", "index", "sql"}),
    "collector": frozenset({"kernel", "cli", "recorder", "query", "index", "sql", "streams", "protocols", "identity"}),
    "requests": frozenset({"kernel", "cli", "recorder", "query", "index", "sql", "streams", "protocols", "identity"}),
}
"""Packages, and what they must not import, at any level of a file."""

RESPONDER = (
    "sessions",
    "statements",
    "commands",
    "show",
    "replay",
    "tail",
    "verify",
    "index",
    "hold",
    "evidence",
    "checkpoint",
    "secrets",
)
"""Commands that run on a machine without BPF."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports anywhere, also within functions and for types only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts(path: Path) -> set[str]:
    """Return the parts of agentwatch (packages or top modules) that a file imports."""
    own = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    names = {name.split(".")[1] for name in imported(path) if name.startswith("agentwatch.")}
    return names & own


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    allowed = ONLY.get(part)
    if allowed is not None:
        assert parts(path) <= allowed
    assert not parts(path) & NEVER.get(part, frozenset())


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_loader_imports_bcc(path: Path) -> None:
    if path.relative_to(PACKAGE) != Path("kernel/loader.py"):
        assert "bcc" not in {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("command", RESPONDER)
def test_nothing_that_a_responder_runs_reaches_the_kernel_side(command: str) -> None:
    files = {f"agentwatch.{'.'.join(p.relative_to(PACKAGE).with_suffix('').parts)}": p for p in MODULES}
    waiting, seen = [f"agentwatch.cli.{command}", "agentwatch.cli.__init__"], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in files:
            continue
        seen.add(name)
        waiting += [*imported(files[name]), *(f"{module}.__init__" for module in imported(files[name]))]
    assert f"agentwatch.cli.{command}" in seen
    assert not {name for name in seen if name.startswith(("agentwatch.kernel", "agentwatch.recorder"))}


def test_the_base_is_what_everything_may_import() -> None:
    assert all(not BASE & never for never in NEVER.values())
