"""Records without the credentials in them: a record in; the same one, or a copy in which each is replaced, out.

A credential by syntax (``PASSWORD '...'``, ``--password=...``, a bearer token) becomes ``[secret 12 bytes hmac
5f3a9c0b1d2e4f60]``: its length and the first 16 hexadecimal digits of HMAC-SHA-256 under a key that only the recorder
has, so that equal ones are found equal and guesses cannot be tried. Quotes around it stay. A record that was changed
has ``secrets``, one map for each: ``field``, ``bytes``, ``hmac`` and, with policy ``seal``, ``sealed``: the value in a
sealed box (libsodium's crypto_box_seal) for the auditor's key. Nothing that a record holds makes this raise.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

from nacl.public import PublicKey, SealedBox

from agentwatch.records import secret_command, secret_text
from agentwatch.records.secret_patterns import (
    DOLLAR_TAG,
    HINTS,
    HINTS_BEHIND,
    KEY_AT_END,
    MARKER,
    MYSQL_CLIENTS,
    SHORT_OPTION,
    SQL_CLIENTS,
)
from agentwatch.records.secret_sql import Statement

if TYPE_CHECKING:
    from agentwatch.config_tables import SecretsConfig
    from agentwatch.records.encoding import Record
    from agentwatch.records.secret_text import Secret

TEXT, ARGV, SQL, TREE, VALUE = "text", "argv", "sql", "tree", "value"
FIELDS: dict[str, tuple[tuple[str, str], ...]] = {
    "statement": (("db.query.text", SQL), ("error", TEXT)),
    "exec": (("argv", ARGV),),
    "exec_failed": (("argv", ARGV),),
    "session_start": (("argv", ARGV),),
    "command_input": (("text", TEXT),),
    "delegation": (("command", ARGV), ("operation", TEXT), ("detail", TREE)),
    "request": (("operation", TEXT),),
    "read": (("question", ARGV),),
}
"""Where text of watched processes is, and how it is read. Other kinds, those of the log itself, are never touched."""
MYSQL_SYSTEMS = ("mysql", "mariadb")
HMAC_DIGITS = 16
"""64 bits: among a million different secrets two are equal by chance once in 37 million logs."""
MAX_LISTED = 1024
"""Secrets that ``secrets`` tells of one record; further ones are replaced and only counted, as ``omitted``. A load of
accounts has many; sealing takes a tenth of a millisecond each."""
MAX_SEARCHED_BYTES = 1024 * 1024
"""Of a text: an agent may write one that takes microseconds a byte to look through, while the ring fills. How much of a
longer one was not looked at is told in ``secrets``."""
MAX_TREE_DEPTH = 8
"""Of ``detail``; what is deeper is not looked at. Decoders make two levels."""
SHORTEST_FORMAT = 12
"""Characters of the shortest text with a token or a URL that has a password."""
_MAX_CLEAN_TEXT = 2048
_MAX_CLEAN = 4096
"""Statements come again and again: texts without a credential that are remembered, at most 8 MiB of them."""


class Redactor:
    """Replaces credentials in records, as the configuration says. Not for two threads at once."""

    def __init__(self, config: SecretsConfig, hash_key: bytes) -> None:
        self._keep = config.policy == "keep"
        self._hash_key = hash_key
        self._box: SealedBox[PublicKey] | None = None
        if config.policy == "seal" and config.auditor_key is not None:
            self._box = SealedBox(PublicKey(config.auditor_key))
        self._clean: set[str] = set()

    def apply(self, record: Record) -> Record:
        """Return a record without credentials: the same object if there are none, or if it has been here before."""
        fields = FIELDS.get(record["kind"])
        if fields is None or self._keep or "secrets" in record:
            return record
        work: _Work | None = None
        for name, how in fields:
            value = record.get(name)
            if value is None or (how is SQL and value in self._clean):
                continue
            if how is not TREE and not _suspect(value, how):
                if how is SQL and isinstance(value, str) and len(value) <= _MAX_CLEAN_TEXT:
                    self._remember(value)
                continue
            work = work or _Work(record, self._hash_key, self._box)
            work.field(name, how, value)
        if (params := record.get("params")) and (work is not None or _suspect(params, VALUE)):
            work = work or _Work(record, self._hash_key, self._box)
            work.params(params)
        return record if work is None else work.result()

    def _remember(self, text: str) -> None:
        if len(self._clean) >= _MAX_CLEAN:
            self._clean.clear()
        self._clean.add(text)


def _suspect(value: object, how: str) -> bool:
    """Tell whether something may hold a credential: cheap, and wrong in one direction only."""
    if isinstance(value, list):
        if how is VALUE:
            value = [item for item in value if isinstance(item, str | bytes) and len(item) >= SHORTEST_FORMAT]
            if not value:
                return False
        value = "\0".join([item if isinstance(item, str) else repr(item) for item in value])
    elif isinstance(value, bytes):
        value = value.decode("latin-1")
    elif not isinstance(value, str):
        return False
    low = value.lower()
    # A chain, as a loop over names takes twice the time.
    if (
        "pass" in low
        or "key" in low
        or "secret" in low
        or "token" in low
        or "auth" in low
        or "pwd" in low
        or "crypt" in low
        or "identified" in low
    ):
        return True
    if how is SQL and not _has_room(low):
        return False
    if how not in (SQL, VALUE) and SHORT_OPTION.search(value) is not None:
        return True
    return any(hint in low for hint in HINTS) or any(
        part in low and any(hint in low for hint in hints) for part, hints in HINTS_BEHIND
    )


def _has_room(low: str) -> bool:
    """Tell whether a literal, quoted name or comment of a statement is long enough for a credential with a format."""
    for literal in low.split("'")[1::2]:
        if len(literal) >= SHORTEST_FORMAT:
            return True
    return '"' in low or "--" in low or "/*" in low or ("$" in low and DOLLAR_TAG.search(low) is not None)


class _Work:
    """One record while its credentials are being replaced."""

    def __init__(self, record: Record, hash_key: bytes, box: SealedBox[PublicKey] | None) -> None:
        self._record = record
        self._hash_key = hash_key
        self._box = box
        self._new: Record = {}
        self._told: list[dict[str, Any]] = []
        self._omitted = 0
        self._hashes: dict[bytes, dict[str, Any]] = {}
        self._parameters: set[int] = set()
        typed = record["kind"] == "command_input" and record.get("comm")
        self._typed_to = typed.encode("utf-8", "surrogatepass") if isinstance(typed, str) else b""

    def result(self) -> Record:
        """Return the record itself if nothing was found, else its copy."""
        if not self._new and not self._told:
            return self._record
        told = [*self._told, {"omitted": self._omitted}] if self._omitted else self._told
        return {**self._record, **self._new, "secrets": told}

    def field(self, name: str, how: str, value: object) -> None:
        """Look through one field."""
        new: object
        if how is ARGV:
            new = self._argv(name, value) if isinstance(value, list) else value
        elif how is TREE:
            new = self._tree(name, value, 0)
        else:
            new = self._text(name, value, how)
        if new is not value:
            self._new[name] = new

    def params(self, params: object) -> None:
        """Look through the parameters: those that the statement says are credentials, formats in the others."""
        if not isinstance(params, list):
            return
        new = list(params)
        for i, value in enumerate(params):
            if i + 1 in self._parameters and isinstance(value, str | bytes | int | float) and value not in ("", b""):
                spelled = value if isinstance(value, str | bytes) else str(value)
                data = _as_bytes(spelled)
                if not MARKER.fullmatch(data):
                    new[i] = _like(spelled, self._mark(f"params[{i}]", data))
            elif isinstance(value, str | bytes) and len(value) >= SHORTEST_FORMAT:
                new[i] = self._text(f"params[{i}]", value, VALUE)
        if any(a is not b for a, b in zip(new, params, strict=True)):
            self._new["params"] = new

    def _argv(self, name: str, words: list[Any]) -> list[Any]:
        plain = [_as_bytes(word) if isinstance(word, str | bytes) else b"" for word in words]
        found: dict[int, list[Secret]] = {}
        for number, secret in secret_command.argv(plain):
            found.setdefault(number, []).append(secret)
        if not found:
            return words
        new = list(words)
        for number in sorted(found):
            new[number] = self._replaced(f"{name}[{number}]", words[number], plain[number], found[number])
        return new if any(a is not b for a, b in zip(new, words, strict=True)) else words

    def _tree(self, name: str, value: object, depth: int) -> object:
        new: object = value
        if isinstance(value, str | bytes):
            return self._text(name, value, TEXT)
        if depth >= MAX_TREE_DEPTH:
            return value
        if isinstance(value, list):
            new = [self._tree(f"{name}[{i}]", item, depth + 1) for i, item in enumerate(value)]
            return new if any(a is not b for a, b in zip(new, value, strict=True)) else value
        if isinstance(value, dict):
            new = {key: self._item(f"{name}.{key}", key, item, depth) for key, item in value.items()}
            return new if any(new[key] is not value[key] for key in value) else value
        return new

    def _item(self, name: str, key: object, item: object, depth: int) -> object:
        if (
            isinstance(key, str)
            and isinstance(item, str | bytes)
            and item
            and KEY_AT_END.search(_as_bytes(key).lower())
        ):
            data = _as_bytes(item)
            return item if MARKER.fullmatch(data) else _like(item, self._mark(name, data))
        return self._tree(name, item, depth + 1)

    def _text(self, name: str, value: object, how: str) -> object:
        if not isinstance(value, str | bytes):
            return value
        data = _as_bytes(value)
        if len(data) > MAX_SEARCHED_BYTES:
            self._unsearched(name, len(data) - MAX_SEARCHED_BYTES)
            found = self._secrets(data[:MAX_SEARCHED_BYTES], how)
        else:
            found = self._secrets(data, how)
        return self._replaced(name, value, data, found)

    def _unsearched(self, name: str, size: int) -> None:
        self._told.append({"field": name, "unsearched": size})

    def _secrets(self, data: bytes, how: str) -> list[Secret]:
        low = data.lower()
        if how is SQL:
            mysql = self._record.get("db.system.name") in MYSQL_SYSTEMS
            statement = Statement(data, low, mysql=mysql)
            self._parameters = statement.parameters
            return statement.secrets
        if how is VALUE:
            return [*secret_text.formats(data, low, 0, len(data)), *secret_text.named(data, low, 0, len(data))]
        if self._typed_to in SQL_CLIENTS and not data.startswith(b"\\"):
            return Statement(data, low, mysql=self._typed_to in MYSQL_CLIENTS).secrets
        return list(secret_command.line(data, low))

    def _replaced(self, name: str, value: str | bytes, data: bytes, secrets: list[Secret]) -> str | bytes:
        parts: list[bytes] = []
        end = 0
        for secret in sorted(secrets, key=lambda s: (s.start, -s.end)):
            if secret.start < end or not secret.value:
                continue
            parts += (data[end : secret.start], self._mark(name, secret.value))
            end = secret.end
        if not parts:
            return value
        parts.append(data[end:])
        return _like(value, b"".join(parts))

    def _mark(self, field: str, value: bytes) -> bytes:
        """Take note of a credential; return what takes its place."""
        told = self._hashes.get(value)
        if told is None:
            digest = hmac.digest(self._hash_key, value, "sha256").hex()[:HMAC_DIGITS]
            told = self._hashes[value] = {"bytes": len(value), "hmac": digest}
            if self._box is not None and len(self._told) < MAX_LISTED:
                told["sealed"] = self._box.encrypt(value)
        if len(self._told) < MAX_LISTED:
            self._told.append({"field": field, **told})
        else:
            self._omitted += 1
        return b"[secret %d bytes hmac %s]" % (told["bytes"], told["hmac"].encode())


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def _like(value: str | bytes, data: bytes) -> str | bytes:
    # Cuts are beside characters of ASCII, so what was UTF-8 still is.
    return data.decode("utf-8", "surrogatepass") if isinstance(value, str) else data
