"""Invariant: any bytes in the file give a configuration with absolute paths, or ConfigError that names the file.

Run: python tests/fuzz/fuzz_config.py -max_total_time=300
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tomllib", "agentwatch"]):
    from agentwatch import config
    from agentwatch.errors import ConfigError

SEEDS = (
    b'log_dir = "/var/log/aw"\nring_bytes = 65536\n',
    b'watch = "agents.slice"\n[[agent]]\nname = "a"\ncgroup = "agents.slice/a*"\n',
)


def check(data: bytes) -> None:
    """Read one file of fuzzer bytes, after a key that every host lacks a default for."""
    PATH.write_bytes(b'cgroup_root = "/sys/fs/cgroup"\n' + data)
    try:
        read = config.load(PATH)
    except ConfigError as e:
        if str(PATH) not in str(e):
            raise AssertionError(f"the error does not name the file: {e}") from e
        return
    for directory in (read.log_dir, read.state_dir, read.run_dir, read.pin_dir, read.cgroup_root):
        if not directory.is_absolute():
            raise AssertionError(f"{directory} is not absolute")
    if ".." in read.watch.split("/") or any(".." in agent.cgroup.split("/") for agent in read.agents):
        raise AssertionError("a cgroup leaves the root")


with tempfile.TemporaryDirectory() as folder:
    PATH = Path(folder) / "fuzz.toml"
    for seed in SEEDS:
        check(seed)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
