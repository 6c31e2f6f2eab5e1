"""The corpus of credentials, and redactors to read it with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.config_tables import SecretsConfig
from agentwatch.records.secrets import Redactor

if TYPE_CHECKING:
    from agentwatch.records.encoding import Record

CORPUS = Path(__file__).with_name("secrets_corpus.toml")
HASH_KEY = b"the key of this test, 32 bytes.."
MARKER = re.compile(r"\[secret [0-9]+ bytes hmac [0-9a-f]{16}\]")
_MARKED = re.compile(r"«[^»]*(?:»|\Z)", re.DOTALL)

Text = str | list[str]


class Example(NamedTuple):
    """One text of the corpus: the record it comes in and the field, what has to come out of it ("«»": replaced)."""

    group: str
    wanted: str  # found, kept, missed, spoiled
    record: Record
    field: str
    expected: Text


def _each(text: Text, change: re.Pattern[str], by: str) -> Text:
    return [change.sub(by, word) for word in text] if isinstance(text, list) else change.sub(by, text)


def record_with(group: str, text: Text) -> tuple[Record, str]:
    """Return a record with a text of a group of the corpus, and the field that has it."""
    if group in ("postgresql", "mysql"):
        return {"kind": "statement", "db.system.name": group, "db.query.text": text, "params": None}, "db.query.text"
    if group == "message":
        return {"kind": "statement", "db.query.text": "SELECT 1", "params": [], "error": text}, "error"
    if group == "shell":
        return {"kind": "command_input", "comm": "bash", "text": text}, "text"
    return {"kind": "exec", "argv": text}, "argv"


def corpus() -> list[Example]:
    """Return all examples."""
    found = []
    for group, by_wanted in tomllib.loads(CORPUS.read_text(encoding="utf-8")).items():
        for wanted, texts in by_wanted.items():
            for text in texts:
                record, field = record_with(group, _each(text, re.compile("[«»]"), ""))
                found.append(Example(group, wanted, record, field, _each(text, _MARKED, "«»")))
    return found


def redactor(policy: str = "hash", auditor_key: bytes | None = None) -> Redactor:
    return Redactor(SecretsConfig(policy, auditor_key), HASH_KEY)


def told(value: object) -> object:
    """Return a text, or words, with «» for each marker."""
    if isinstance(value, list):
        return [MARKER.sub("«»", word) for word in value]
    assert isinstance(value, str)
    return MARKER.sub("«»", value)
