"""Fixtures of the derived side: a configuration under a temporary root and a log to fill."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agentwatch.config import Config
from tests.unit.log_builder import LogBuilder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        log_dir=tmp_path / "log",
        state_dir=tmp_path / "state",
        run_dir=tmp_path / "run",
        pin_dir=tmp_path / "pins",
        cgroup_root=tmp_path / "cgroup",
    )


@pytest.fixture
def log(config: Config) -> LogBuilder:
    return LogBuilder(config.log_dir)


@pytest.fixture
def config_file(config: Config, tmp_path: Path) -> Path:
    path = tmp_path / "agentwatch.toml"
    names = ("log_dir", "state_dir", "run_dir", "pin_dir", "cgroup_root")
    path.write_text("".join(f'{name} = "{getattr(config, name)}"\n' for name in names))
    return path
