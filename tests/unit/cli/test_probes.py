"""What the commands about the probes say that needs no probes: which files the pins name, what a kernel lacks."""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING

from agentwatch.cli import doctor
from agentwatch.kernel import pins, uprobes
from agentwatch.kernel.btf import Btf
from agentwatch.kernel.uprobes import Hooked

if TYPE_CHECKING:
    from pathlib import Path

    from agentwatch.config import Config


def pin(config: Config, *names: str) -> None:
    pins.files_dir(config).mkdir(parents=True)
    for name in names:
        (pins.files_dir(config) / name).touch()


def loaded(config: Config, *libraries: Path) -> None:
    told = dict.fromkeys(pins.Loaded.__slots__) | {"libraries": [str(path) for path in libraries]}
    config.run_dir.mkdir()
    (config.run_dir / pins.STATUS_FILE).write_text(json.dumps(told))


def test_a_file_that_is_hooked_is_named_once_whatever_links_it_has(config: Config) -> None:
    pin(config, "8:1-30-return", "8:1-30-go-return", "8:1-30-enter", "8:1-4-enter", "0:45-7-enter", "8:1-5-return")
    expected = [(os.makedev(0, 45), 7), (os.makedev(8, 1), 4), (os.makedev(8, 1), 30)]
    assert uprobes.hooked(config) == [Hooked(device, inode, None) for device, inode in expected]


def test_a_file_has_the_path_that_it_was_found_at_while_it_is_there(config: Config, tmp_path: Path) -> None:
    here, gone = tmp_path / "here.so", tmp_path / "gone.so"
    here.touch()
    status = here.stat()
    place = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    pin(config, f"{place}-{status.st_ino}-enter", f"{place}-{status.st_ino + 1}-enter")
    loaded(config, here, gone)
    assert [library.path for library in uprobes.hooked(config)] == [str(here), None]


def test_without_pins_nothing_is_hooked(config: Config) -> None:
    assert uprobes.hooked(config) == []


def test_a_kernel_without_links_to_functions_is_a_finding_that_says_what_it_costs() -> None:
    empty = Btf(struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"\0")
    finding = doctor.uprobe_links(empty)
    assert not finding.ok
    assert "opaque" in finding.cost
