"""Which agent a cgroup is: configuration and a cgroup's path in, agent and session's cgroup out.

A pattern is a path of globs (``*``, ``?``, ``[...]``, case matters) below ``cgroup_root``; each of its components
matches one whole component, so ``*`` never crosses a ``/``. A cgroup below the one that matches belongs to it:
one session is one life of the cgroup that matches, with everything inside. Where two agents match, the first
in the configuration is meant.
"""

from __future__ import annotations

import functools
import re
from fnmatch import translate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentwatch.config import AgentConfig

CACHED_PATTERNS = 1024
"""Compiled patterns that are kept: more than a configuration has; above it they are compiled again."""


def match(agents: Sequence[AgentConfig], cgroup: str) -> tuple[AgentConfig, str] | None:
    """Return the agent that a cgroup (relative to ``cgroup_root``) belongs to, and its session's cgroup."""
    components = cgroup.strip("/").split("/")
    for agent in agents:
        patterns = _compiled(agent.cgroup)
        if len(patterns) <= len(components) and all(
            pattern.match(component) for pattern, component in zip(patterns, components, strict=False)
        ):
            return agent, "/".join(components[: len(patterns)])
    return None


@functools.lru_cache(CACHED_PATTERNS)
def _compiled(pattern: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(translate(component)) for component in pattern.strip("/").split("/"))
