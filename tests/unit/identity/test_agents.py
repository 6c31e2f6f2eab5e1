from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwatch.config import AgentConfig
from agentwatch.identity import agents, naming

BACKFILL = AgentConfig("backfill", "agents.slice/agent-backfill*")
REPORTS = AgentConfig("reports", "agents.slice/teams/*/report-?")


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        ("agents.slice/agent-backfill", (BACKFILL, "agents.slice/agent-backfill")),
        ("agents.slice/agent-backfill-1", (BACKFILL, "agents.slice/agent-backfill-1")),
        ("agents.slice/agent-backfill-1/sub/deep", (BACKFILL, "agents.slice/agent-backfill-1")),
        ("/agents.slice/agent-backfill-1/", (BACKFILL, "agents.slice/agent-backfill-1")),
        ("agents.slice/teams/a/report-1/x", (REPORTS, "agents.slice/teams/a/report-1")),
        ("agents.slice/teams/a/b/report-1", None),
        ("agents.slice/teams/a/report-12", None),
        ("agents.slice", None),
        ("agents.slice/Agent-backfill", None),
        ("other/agents.slice/agent-backfill", None),
        ("", None),
    ],
)
def test_patterns_match_whole_components(cgroup: str, expected: object) -> None:
    assert agents.match((BACKFILL, REPORTS), cgroup) == expected


def test_first_agent_in_the_configuration_wins() -> None:
    everything = AgentConfig("all", "agents.slice/*")
    assert agents.match((everything, BACKFILL), "agents.slice/agent-backfill") == (
        everything,
        "agents.slice/agent-backfill",
    )


def test_newline_in_a_cgroup_name_does_not_end_the_match() -> None:
    assert agents.match((BACKFILL,), "agents.slice/agent-backfill\n") == (BACKFILL, "agents.slice/agent-backfill\n")


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("agents.slice/agent-backfill*", "agents.slice/agent-backfill-1f2e"),
        ("agents.slice/agent-*", "agents.slice/agent-1f2e"),
        ("agents.slice/*", "agents.slice/backfill-1f2e"),
        ("agents.slice/job*.service", "agents.slice/job-1f2e.service"),
        ("agents.slice/*/job*", "agents.slice/backfill/job-1f2e"),
        ("agents.slice/fixed", "agents.slice/fixed"),
        ("agents.slice/a*b*", "agents.slice/a-1f2eb"),
        ("agents.slice/[x]*", "agents.slice/x-1f2e"),
    ],
)
def test_name_is_the_pattern_with_a_suffix(pattern: str, name: str) -> None:
    assert naming.name_for(pattern, "backfill", "1f2e") == name


def test_class_that_matches_nothing_usable_gives_no_name() -> None:
    assert naming.name_for("agents.slice/[\x01]", "backfill", "1f2e") is None


@given(st.text("ab-[]!?*.^/", min_size=1, max_size=12), st.text("0123456789abcdef", min_size=1, max_size=4))
def test_every_name_that_is_made_matches_its_pattern(pattern: str, suffix: str) -> None:
    name = naming.name_for(pattern, "agent", suffix)
    if name is not None:
        agent = AgentConfig("agent", pattern)
        assert agents.match((agent,), name) == (agent, name)
        if "*" not in pattern and "?" not in pattern and "[" not in pattern:
            assert name == pattern
