"""The documents: every command in them is one that exists, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from agentwatch import config
from agentwatch.cli import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md")]
)
OTHERS = {"cp", "git", "install", "ln", "systemctl"}
"""Programs that are not ours and may stand in a document."""

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://)([^)#]+)")


def blocks(language: str) -> list[tuple[str, str]]:
    """Return the fenced blocks of a language, each with its document's name."""
    return [
        (str(document.relative_to(ROOT)), body)
        for document in DOCUMENTS
        for kind, body in _BLOCK.findall(document.read_text())
        if kind == language
    ]


COMMANDS = sorted(
    {
        (name, line[2:])
        for name, body in blocks("console")
        for line in body.splitlines()
        if line.startswith(("$ ", "# "))
    }
)


def check_agentwatch(words: list[str]) -> None:
    """Let click parse the words as it would to run them."""
    command: click.Command = main
    context = click.Context(main, info_name="agentwatch")
    while isinstance(command, click.Group):
        name, words = words[0], words[1:]
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=name, parent=context)
    with command.make_context(command.name, words, parent=context):
        pass


@pytest.mark.parametrize(("document", "line"), COMMANDS)
def test_command_in_a_document_exists(document: str, line: str) -> None:
    words = [word for word in shlex.split(line, comments=True) if word != "&"]
    if words[0] == "sudo":
        words = words[1:]
    if words[0] == "agentwatch":
        check_agentwatch(words[1:])
    elif words[0] == "make":
        targets = [word for word in words[1:] if not word.startswith("-") and "/" not in word and "=" not in word]
        subprocess.run([shutil.which("make") or "make", "-n", *targets], cwd=ROOT, check=True, capture_output=True)
    else:
        assert words[0] in OTHERS, f"{document}: what is {words[0]}?"
        for word in words:
            if word.startswith("/opt/agentwatch/") and ".venv" not in word:
                assert list(ROOT.glob(word.removeprefix("/opt/agentwatch/"))), (
                    f"{document}: {word} is not in the checkout"
                )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document: Path) -> None:
    for link in _LINK.findall(document.read_text()):
        assert (document.parent / link).exists(), link


@pytest.mark.parametrize(("document", "body"), [*blocks("toml"), ("docs/agentwatch.toml", "")])
def test_configuration_in_a_document_is_understood(document: str, body: str) -> None:
    parsed = config.parse(body or (ROOT / document).read_text(), Path(document))
    assert [agent.name for agent in parsed.agents] == ["agent-backfill"]


def test_configuration_with_every_default_written_out_is_understood() -> None:
    text = (ROOT / "docs" / "agentwatch.toml").read_text().replace("\n# ", "\n")
    parsed = config.parse(text.split("\n", 1)[1], Path("docs/agentwatch.toml"))
    assert parsed == config.Config(
        cgroup_root=parsed.cgroup_root, reader_group="agentwatch", agents=parsed.agents, path=parsed.path
    )
