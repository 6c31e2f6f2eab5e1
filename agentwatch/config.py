"""The configuration file: TOML in, one immutable value out.

Everything that agentwatch writes lies where this file says, so that any number of instances can run side
by side under temporary roots. Unknown keys are errors: a misspelt key must not silently watch nothing.
"""

from __future__ import annotations

import grp
import os
import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from agentwatch.config_tables import (
    TABLES,
    CollectorConfig,
    LogConfig,
    PushConfig,
    SecretsConfig,
    TlsConfig,
    read_table,
)
from agentwatch.errors import ConfigError

DEFAULT_PATH = Path("/etc/agentwatch/agentwatch.toml")
ENVIRONMENT_VARIABLE = "AGENTWATCH_CONFIG"

MIN_RING_BYTES = 64 * 1024
"""Below this a single large payload event would not fit."""
MAX_RING_BYTES = 1024 * 1024 * 1024
MAX_CANARY_SECONDS = 24 * 60 * 60
OVERFLOW_POLICIES = ("count", "hold")
CANARY_AGENT = "agentwatch-canary"
"""The agent, and below ``watch`` the cgroup, of what the recorder runs to see whether it sees it."""
_AGENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def find_cgroup2_mount(mounts: Path = Path("/proc/self/mounts")) -> Path:
    """Return where cgroup v2 is mounted on this host, also on a hybrid mount.

    Raises ConfigError where there is none.
    """
    try:
        lines = mounts.read_text().splitlines()
    except OSError as e:
        raise ConfigError(f"cannot read {mounts} to find the cgroup2 mount ({e.strerror}); set cgroup_root") from e
    for line in lines:
        _, directory, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(directory)
    raise ConfigError("no cgroup2 file system is mounted; mount one (mount -t cgroup2 none DIR) and set cgroup_root")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One ``[[agent]]`` table: a name and the cgroups (relative to ``cgroup_root``, globs) that are it.

    ``overflow`` says what happens when the ring is full: ``count`` (go on, and declare what is missing) or ``hold``
    (refuse packets and stop processes until there is room).
    """

    name: str
    cgroup: str
    overflow: str = "count"


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration. Paths are absolute; ``watch`` is relative to ``cgroup_root``."""

    log_dir: Path = Path("/var/log/agentwatch")
    state_dir: Path = Path("/var/lib/agentwatch")
    run_dir: Path = Path("/run/agentwatch")
    pin_dir: Path = Path("/sys/fs/bpf/agentwatch")
    cgroup_root: Path = field(default_factory=find_cgroup2_mount)
    watch: str = "agents.slice"
    ring_bytes: int = 64 * 1024 * 1024
    reader_group: str | None = None
    canary_seconds: int = 60
    """How often the recorder has something of its own observed, to see that it sees it; 0: never."""
    key_dir: Path | None = None
    """Where the keys of the log are; None: ``keys`` in ``state_dir``. Root alone."""
    tls: TlsConfig = field(default_factory=TlsConfig)
    log: LogConfig = field(default_factory=LogConfig)
    secrets: SecretsConfig = field(default_factory=SecretsConfig)
    push: PushConfig = field(default_factory=PushConfig)
    collector: CollectorConfig = field(default_factory=CollectorConfig)
    agents: tuple[AgentConfig, ...] = ()
    path: Path | None = None
    """The file this was read from; None for the defaults."""

    @property
    def watch_path(self) -> Path:
        """The watch root as a directory."""
        return self.cgroup_root / self.watch

    @property
    def keys_path(self) -> Path:
        """The folder of the keys."""
        return self.key_dir or self.state_dir / "keys"

    @property
    def canary_cgroup(self) -> str:
        """The canary's cgroup, relative to ``cgroup_root``."""
        return f"{self.watch}/{CANARY_AGENT}"

    def reader_gid(self) -> int | None:
        """Return the gid of the reader group, None without one. Raises ConfigError if the host does not know it."""
        if self.reader_group is None:
            return None
        try:
            return grp.getgrnam(self.reader_group).gr_gid
        except KeyError as e:
            raise ConfigError(
                f"reader_group: this host has no group {self.reader_group!r}; create it (groupadd) or correct it"
            ) from e


def load(path: Path | None = None) -> Config:
    """Read the configuration from ``path``, else from ``$AGENTWATCH_CONFIG``, else from the default path.

    A default path that does not exist gives the built-in defaults (no agents); a path that was named and does
    not exist is a ConfigError, as is everything in the file that is not understood.
    """
    named = path
    if named is None and os.environ.get(ENVIRONMENT_VARIABLE):
        named = Path(os.environ[ENVIRONMENT_VARIABLE])
    if named is None:
        if not DEFAULT_PATH.exists():
            return Config()
        named = DEFAULT_PATH
    try:
        text = named.read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"cannot read the configuration {named}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"the configuration {named} is not UTF-8 (byte {e.start}); save it as UTF-8") from e
    return parse(text, named)


def parse(text: str, path: Path) -> Config:
    """Make a Config of TOML text; ``path`` is named in errors. Raises ConfigError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path}: not valid TOML: {e}") from e
    except RecursionError as e:
        raise ConfigError(f"{path}: nested too deeply") from e
    values: dict[str, Any] = {"path": path}
    agents = table.pop("agent", [])
    for name in TABLES:
        values[name] = read_table(path, name, table.pop(name, {}))
    known = {f.name for f in fields(Config)} - {"path", "agents", *TABLES}
    for key, value in table.items():
        if key not in known:
            names, tables = ", ".join(sorted(known)), ", ".join(f"[{name}]" for name in TABLES)
            raise ConfigError(f"{path}: unknown key {key!r}; known are: {names}, {tables} and [[agent]]")
        values[key] = _value(path, key, value)
    values["agents"] = _agents(path, agents)
    return Config(**values)


def _value(path: Path, key: str, value: object) -> object:
    if key == "ring_bytes":
        if type(value) is not int or value & (value - 1) or not MIN_RING_BYTES <= value <= MAX_RING_BYTES:
            raise ConfigError(
                f"{path}: ring_bytes must be a power of two from {MIN_RING_BYTES} to {MAX_RING_BYTES}, not {value!r}"
            )
        return value
    if key == "canary_seconds":
        if type(value) is not int or not 0 <= value <= MAX_CANARY_SECONDS:
            raise ConfigError(f"{path}: canary_seconds must be from 0 (off) to {MAX_CANARY_SECONDS}, not {value!r}")
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(f"{path}: {key} must be a text that is not empty, not {value!r}")
    if key == "reader_group":
        return value
    if key == "watch":
        return _relative_cgroup(path, key, value)
    if not value.startswith("/"):
        raise ConfigError(f"{path}: {key} must be an absolute path, not {value!r}")
    return Path(os.path.normpath(value))


def _relative_cgroup(path: Path, key: str, value: str) -> str:
    parts = value.strip("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"{path}: {key} must be a cgroup below cgroup_root (no '..', not the root), not {value!r}")
    return "/".join(parts)


def _agents(path: Path, agents: object) -> tuple[AgentConfig, ...]:
    if not isinstance(agents, list) or not all(isinstance(a, dict) for a in agents):
        raise ConfigError(f"{path}: agents are written as [[agent]] tables with 'name' and 'cgroup'")
    result: list[AgentConfig] = []
    for number, agent in enumerate(agents, 1):
        where = f"{path}: [[agent]] number {number}"
        if unknown := set(agent) - {"name", "cgroup", "overflow"}:
            raise ConfigError(f"{where}: unknown key {min(unknown)!r}; known are: cgroup, name, overflow")
        name, cgroup, overflow = agent.get("name"), agent.get("cgroup"), agent.get("overflow", "count")
        if not isinstance(name, str) or not _AGENT_NAME.match(name):
            raise ConfigError(f"{where}: name must be 1 to 64 letters, digits, '.', '_' or '-', not {name!r}")
        if name == CANARY_AGENT:
            raise ConfigError(f"{where}: the name {name!r} is the recorder's own canary's; choose another")
        if not isinstance(cgroup, str) or not cgroup or "\0" in cgroup:
            raise ConfigError(f"{where}: cgroup must be a glob like 'agents.slice/{name}*', not {cgroup!r}")
        if overflow not in OVERFLOW_POLICIES:
            raise ConfigError(f"{where}: overflow must be one of {', '.join(OVERFLOW_POLICIES)}, not {overflow!r}")
        if any(name == other.name for other in result):
            raise ConfigError(f"{where}: the name {name!r} is used twice; give each agent one table")
        result.append(AgentConfig(name, _relative_cgroup(path, "cgroup", cgroup), overflow))
    return tuple(result)
