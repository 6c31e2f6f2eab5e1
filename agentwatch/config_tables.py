"""The tables of the configuration file, ``[tls]``, ``[log]`` and so on: one frozen value each, checked key by key.

``TABLES`` names each table's type. A type's fields are its keys, their defaults the defaults; ``CHECKS`` has what a key
takes. Unknown keys are errors.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agentwatch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_USE_POLICIES = ("declare", "hold")
DISK_FULL_POLICIES = ("wait", "hold", "drop-oldest", "stop")
SECRETS_POLICIES = ("hash", "seal", "keep")
KEY_BYTES = 32
MAX_DAYS = 36_500
MIN_KEPT_BYTES = 1024 * 1024 * 1024
"""Less than some segments would be pruned at once."""
MAX_KEPT_BYTES = 1 << 60
MAX_SILENCE_SECONDS = 30 * 24 * 3600

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})\Z")
MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """The ``[tls]`` table.

    ``first_use`` says what happens when a watched process maps a TLS library that nobody has looked into: ``declare``
    (it is hooked a moment later, and what passed before is declared as not read) or ``hold`` (the process is stopped
    for that moment). ``scan`` are the folders that are looked through when the probes are loaded.
    """

    first_use: str = "declare"
    scan: tuple[Path, ...] = (Path("/usr"), Path("/opt"))


@dataclass(frozen=True, slots=True)
class LogConfig:
    """The ``[log]`` table.

    ``disk_full``: ``wait`` (records wait in memory, then events in the ring, then losses are counted), ``hold`` (agents
    wait as well), ``drop-oldest`` (the oldest sealed segment that nobody holds makes room), ``stop`` (the recorder says
    so in the log and ends). ``keep_days``, ``keep_bytes``: what is older or more is pruned; 0: never.
    ``post_quantum``: checkpoints are signed with ML-DSA-44 as well. ``timestamp_url``: an RFC 3161 authority that
    stamps a checkpoint each hour; ``timestamp_roots``: PEM certificates to check its answers with.
    """

    disk_full: str = "wait"
    keep_days: int = 0
    keep_bytes: int = 0
    post_quantum: bool = False
    timestamp_url: str | None = None
    timestamp_roots: Path | None = None


@dataclass(frozen=True, slots=True)
class SecretsConfig:
    """The ``[secrets]`` table: what is recorded of values that are credentials by their syntax.

    ``policy``: ``hash`` (a keyed hash and the length), ``seal`` (that, and the original encrypted to
    ``auditor_key``, an X25519 public key of 32 bytes), ``keep`` (the original).
    """

    policy: str = "hash"
    auditor_key: bytes | None = None


@dataclass(frozen=True, slots=True)
class PushConfig:
    """The ``[push]`` table: the collector that checkpoints go to, and the records if ``records``.

    ``to`` is HOST:PORT, ``ca`` the PEM certificates that the collector's must come from, ``cert`` and ``key`` this
    host's. ``collector_key``: the vkey that the collector cosigns with.
    """

    to: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    collector_key: str | None = None
    records: bool = True


@dataclass(frozen=True, slots=True)
class CollectorConfig:
    """The ``[collector]`` table, on the host that collects.

    ``listen`` is ADDRESS:PORT; ``ca`` the PEM certificates that hosts' must come from; ``cert`` and ``key`` its own.
    Its own log is in ``log_dir``, hosts' logs are under ``hosts_dir``. A host that says nothing for ``silent_seconds``
    raises an alarm.
    """

    listen: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    hosts_dir: Path = Path("/var/lib/agentwatch/hosts")
    silent_seconds: int = 180


TABLES: dict[str, type] = {
    "tls": TlsConfig,
    "log": LogConfig,
    "secrets": SecretsConfig,
    "push": PushConfig,
    "collector": CollectorConfig,
}


class Check(NamedTuple):
    """What a key takes: ``read`` returns the value or raises ValueError; ``wanted`` says it in words."""

    wanted: str
    read: Callable[[Any], object]


def one_of(*names: str) -> Check:
    """Return the check for one of some names."""

    def read(value: object) -> object:
        if value not in names:
            raise ValueError
        return value

    return Check(f"one of {', '.join(names)}", read)


def number(least: int, most: int, *, or_zero: bool = False) -> Check:
    """Return the check for an integer in a range; ``or_zero``: or 0."""

    def read(value: object) -> object:
        if type(value) is not int or not (least <= value <= most or (or_zero and value == 0)):
            raise ValueError
        return value

    return Check(f"a number from {least} to {most}{' or 0' if or_zero else ''}", read)


def _path(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError
    return Path(os.path.normpath(value))


def _paths(value: object) -> tuple[Path, ...]:
    if not isinstance(value, list):
        raise ValueError  # noqa: TRY004 -- the caller makes the message
    return tuple(_path(item) for item in value)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004 -- as above
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or any(ch <= " " for ch in value):
        raise ValueError
    return value


def _url(value: object) -> str:
    if not _text(value).startswith(("http://", "https://")):
        raise ValueError
    return str(value)


def _address(value: object) -> str:
    match = _ADDRESS.match(_text(value))
    if match is None or not 0 <= int(match[2]) <= MAX_PORT:
        raise ValueError
    return match[0]


def _key(value: object) -> bytes:
    try:
        decoded = base64.b64decode(_text(value), validate=True)
    except binascii.Error as e:
        raise ValueError from e
    if len(decoded) != KEY_BYTES:
        raise ValueError
    return decoded


PATH = Check("an absolute path", _path)
BOOLEAN = Check("true or false", _boolean)
ADDRESS = Check("HOST:PORT", _address)

CHECKS: dict[str, dict[str, Check]] = {
    "tls": {"first_use": one_of(*FIRST_USE_POLICIES), "scan": Check("a list of absolute paths", _paths)},
    "log": {
        "disk_full": one_of(*DISK_FULL_POLICIES),
        "keep_days": number(1, MAX_DAYS, or_zero=True),
        "keep_bytes": number(MIN_KEPT_BYTES, MAX_KEPT_BYTES, or_zero=True),
        "post_quantum": BOOLEAN,
        "timestamp_url": Check("a URL that begins with http:// or https://", _url),
        "timestamp_roots": PATH,
    },
    "secrets": {
        "policy": one_of(*SECRETS_POLICIES),
        "auditor_key": Check("32 bytes in base64, as `agentwatch secrets keygen` prints them", _key),
    },
    "push": {
        "to": ADDRESS,
        "ca": PATH,
        "cert": PATH,
        "key": PATH,
        "collector_key": Check("a vkey, as the collector prints it", _text),
        "records": BOOLEAN,
    },
    "collector": {
        "listen": ADDRESS,
        "ca": PATH,
        "cert": PATH,
        "key": PATH,
        "hosts_dir": PATH,
        "silent_seconds": number(1, MAX_SILENCE_SECONDS),
    },
}


def read_table(path: Path, name: str, table: object) -> object:
    """Make the value of the table ``name``. Raises ConfigError, which names ``path``."""
    kind = TABLES[name]
    known = [field.name for field in fields(kind)]
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {name} is a table, written as [{name}], with {', '.join(map(repr, known))}")
    where = f"{path}: [{name}]"
    if unknown := set(table) - set(known):
        raise ConfigError(f"{where}: unknown key {min(unknown)!r}; known are: {', '.join(sorted(known))}")
    values = {}
    for key, value in table.items():
        check = CHECKS[name][key]
        try:
            values[key] = check.read(value)
        except (ValueError, TypeError) as e:
            raise ConfigError(f"{where}: {key} must be {check.wanted}, not {value!r}") from e
    result: object = kind(**values)
    _together(where, result)
    return result


def _together(where: str, value: object) -> None:
    """Refuse keys that make no sense without others."""
    if isinstance(value, SecretsConfig) and value.policy == "seal" and value.auditor_key is None:
        raise ConfigError(f"{where}: policy 'seal' needs auditor_key; make one with `agentwatch secrets keygen`")
    for kind, first in ((PushConfig, "to"), (CollectorConfig, "listen")):
        if isinstance(value, kind) and getattr(value, first) is not None:
            missing = [key for key in ("ca", "cert", "key") if getattr(value, key) is None]
            if missing:
                raise ConfigError(f"{where}: {first} needs {', '.join(missing)}: both sides prove who they are (mTLS)")
