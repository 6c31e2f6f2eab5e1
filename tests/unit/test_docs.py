"""The documents: commands in them exist, links lead somewhere, no kind of record and no key is left out."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import ssl
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from agentwatch import config
from agentwatch.cli import main
from agentwatch.collector import connection
from agentwatch.config_tables import TABLES
from agentwatch.log import epochs, note
from agentwatch.standalone import agentwatch_verify

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "agentwatch"
DOCUMENTS = sorted(
    [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md")]
)
OTHERS = {"chattr", "cp", "git", "install", "ln", "mv", "openssl", "systemctl"}
"""Programs that are not ours and may stand in a document."""
IDENTITY = "db-agents-1.identity"
"""The file with an identity that documents name; there when a command is parsed."""

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(((?!https?://)[^)#]*)(?:#([^)]*))?\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_REDIRECTION = re.compile(r"[<>]")
_CONTENT = re.compile(r"\$\(cat \S+\)")
"""A file's content, in a shell."""


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


def check_verifier(words: list[str]) -> None:
    """Let the standalone verifier parse the words. The files that they name are there; each holds a vkey."""
    for word in words:
        if word.endswith(".zip"):
            shutil.copy(IDENTITY, word)
    vkey = Path(IDENTITY).read_text().strip()
    agentwatch_verify.parse_arguments([vkey if _CONTENT.fullmatch(word) else word for word in words])


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where an identity was kept, as a reader of the documents does."""
    signer = note.Ed25519Signer(epochs.identity_name("db-agents-1/agentwatch/" + "0" * 32), bytes(32))
    (tmp_path / IDENTITY).write_text(f"{signer.key}\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(("document", "line"), COMMANDS)
def test_command_in_a_document_exists(document: str, line: str) -> None:
    words = [word for word in shlex.split(line, comments=True) if word != "&"]
    words = words[: next((at for at, word in enumerate(words) if _REDIRECTION.match(word)), None)]
    if words[0] == "sudo":
        words = words[1:]
    if words[0] == "agentwatch":
        check_agentwatch(words[1:])
    elif words[:2] == ["python3", "agentwatch_verify.py"]:
        check_verifier(words[2:])
    elif words[0] == "make":
        targets = [word for word in words[1:] if not word.startswith("-") and "/" not in word and "=" not in word]
        subprocess.run([shutil.which("make") or "make", "-n", *targets], cwd=ROOT, check=True, capture_output=True)
    else:
        assert words[0] in OTHERS, f"{document}: what is {words[0]}?"
        check_units(document, words)
        for word in words:
            if word.startswith("/opt/agentwatch/") and ".venv" not in word:
                assert list(ROOT.glob(word.removeprefix("/opt/agentwatch/"))), (
                    f"{document}: {word} is not in the checkout"
                )


def check_units(document: str, words: list[str]) -> None:
    for word in words:
        if words[0] == "systemctl" and word.endswith((".service", ".slice")):
            assert (ROOT / "systemd" / word).exists(), f"{document}: there is no unit {word}"


# -- certificates


def shake_hands(collector: ssl.SSLContext, host: ssl.SSLContext, name: str) -> str | None:
    """Connect a host to a collector of this name, in memory; return the host's name as the collector sees it."""
    to_collector, to_host = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = host.wrap_bio(to_host, to_collector, server_hostname=name)
    server = collector.wrap_bio(to_collector, to_host, server_side=True)
    waiting = [client, server]
    while waiting:
        side = waiting.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(side)
    return connection.name_in(server.getpeercert())


def test_certificates_made_as_operations_says_join_host_and_collector(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    lines = {line for _, line in COMMANDS if line.startswith("openssl ")}
    for line in sorted(lines, key=text.index):
        subprocess.run(shlex.split(line), cwd=tmp_path, check=True, capture_output=True)

    def side(protocol: int, name: str) -> ssl.SSLContext:
        return connection.context(protocol, tmp_path / "ca.pem", tmp_path / f"{name}.pem", tmp_path / f"{name}.key")

    host = side(ssl.PROTOCOL_TLS_CLIENT, "db-agents-1")
    assert shake_hands(side(ssl.PROTOCOL_TLS_SERVER, "collector"), host, "collector.example") == "db-agents-1"
    impostor = side(ssl.PROTOCOL_TLS_SERVER, "db-agents-1")
    for name in ("collector.example", "db-agents-1"):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(impostor, host, name)


# -- links


def anchors(document: Path) -> set[str]:
    """Return what GitHub makes of a document's headings."""
    headings = _HEADING.findall(document.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link, anchor in _LINK.findall(document.read_text()):
        target = document.parent / link if link else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


# -- configuration


@pytest.mark.parametrize(("document", "body"), [*blocks("toml"), ("docs/agentwatch.toml", "")])
def test_configuration_in_a_document_is_understood(document: str, body: str) -> None:
    text = body or (ROOT / document).read_text()
    parsed = config.parse(text, Path(document))
    assert [agent.name for agent in parsed.agents] == ["agent-backfill"] * ("[[agent]]" in text)


def written_out() -> str:
    """Return docs/agentwatch.toml with everything that is commented out in it."""
    return (ROOT / "docs" / "agentwatch.toml").read_text().replace("\n# ", "\n").split("\n", 1)[1]


def test_configuration_file_has_every_key() -> None:
    found = tomllib.loads(written_out())
    for name, kind in TABLES.items():
        assert set(found.pop(name)) == {field.name for field in fields(kind)}, name
    assert set(found.pop("agent")[0]) == {field.name for field in fields(config.AgentConfig)}
    assert set(found) == {field.name for field in fields(config.Config)} - {"agents", "path", *TABLES}


def differences(value: Any, default: Any) -> Iterator[str]:
    """Yield the keys that are not the default, of those that have one."""
    for field in fields(default):
        if getattr(default, field.name) is not None and getattr(value, field.name) != getattr(default, field.name):
            yield field.name


def test_configuration_file_has_the_defaults() -> None:
    parsed = config.parse(written_out(), Path("docs/agentwatch.toml"))
    for name, kind in TABLES.items():
        assert not list(differences(getattr(parsed, name), kind())), name
    # The tables differ in their examples, the agent is one; where cgroup v2 is depends on the host.
    defaults = config.Config(cgroup_root=parsed.cgroup_root)
    assert {*differences(parsed, defaults)} - {*TABLES} == {"agents"}
    assert parsed.agents == (config.AgentConfig("agent-backfill", "agents.slice/agent-backfill*"),)
    assert parsed.keys_path == defaults.keys_path


# -- records

ENVELOPES = frozenset({"envelope", "envelope_of", "_envelope"})
"""Functions that begin a record; its kind is their first argument."""
TOLD_KINDS = {"recorder.py", "observation/observer.py"}
"""Modules that begin records whose kind others tell them: those below, and ``requests/wire.py`` in a map."""
TELLERS = {
    "watchdog.py": (frozenset({"Report"}), 0),
    "collector/hosts.py": (frozenset({"append"}), 0),
    "observation/make.py": (frozenset[str](), 4),
    "canary.py": (frozenset[str](), 2),
}
"""How they tell: as the first argument of a function, or first in a tuple of so many."""


def nodes(module: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse((PACKAGE / module).read_text())))


def texts_of(module: str, functions: frozenset[str], width: int = 0) -> Iterator[str | None]:
    """Yield the first argument of calls, or the first item of tuples; None where it is no text that stands there."""
    for node in nodes(module):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[first, *_]) if name in functions:
                yield first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
            case ast.Tuple(elts=[ast.Constant(value=str(text)), *_] as items) if len(items) == width:
                yield text


def texts_in_maps(module: str) -> Iterator[str]:
    """Yield what stands behind the key ``kind`` in maps."""
    for node in nodes(module):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                match key, value:
                    case ast.Constant(value="kind"), ast.Constant(value=str(text)):
                        yield text


def written_kinds() -> set[str]:
    """Return the kinds of the records that the package writes, from its source."""
    kinds: set[str | None] = {epochs.KIND, *texts_in_maps("requests/wire.py")}
    told = set()
    for path in PACKAGE.rglob("*.py"):
        module = str(path.relative_to(PACKAGE))
        found = set(texts_of(module, ENVELOPES))
        if None in found:
            told.add(module)
        kinds |= found
    assert told == TOLD_KINDS, "where do these modules have their kinds from? Add it to TELLERS"
    for module, (functions, width) in TELLERS.items():
        found = set(texts_of(module, functions, width))
        assert found, module
        kinds |= found
    return {kind for kind in kinds if kind is not None}


def test_records_has_every_kind_that_is_written_and_no_other() -> None:
    text = (ROOT / "docs" / "records.md").read_text()
    documented = re.findall(r"^`(\w+)`:", text[text.index("## Kinds") : text.index("## Credentials")], re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == written_kinds()
