"""Loading, looking at and unloading the probes; what stays behind, and who maps what."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentwatch.kernel import hooks
from tests.kernel.fix_watch import SCANNED

if TYPE_CHECKING:
    from tests.kernel.fix_watch import Row, Watch

pytestmark = pytest.mark.kernel


def test_all_hooks_are_attached_and_the_account_adds_up(watch: Watch) -> None:
    watch.cli("run", "--agent", "agent-test", "--", "/bin/true")
    status = json.loads(watch.cli("probes", "status", "--json").stdout)
    assert status["attached"] == sorted(hook.link for hook in hooks.HOOKS)
    assert status["missing"] == []
    for name, c in status["programs"].items():
        assert c["seen"] == c["submitted"] + sum(c["lost"].values()), name
    assert status["programs"]["exec"]["submitted"] > 0


def hooked(watch: Watch) -> list[Row]:
    """Return the TLS libraries that ``probes status`` lists."""
    libraries: list[Row] = json.loads(watch.cli("probes", "status", "--json").stdout)["libraries"]
    return libraries


def test_libraries_that_are_hooked_are_listed_once_with_their_file(watch: Watch) -> None:
    libraries = hooked(watch)
    found = {library["path"]: (library["device"], library["inode"]) for library in libraries}
    assert len(set(found.values())) == len(libraries)
    status = (Path(SCANNED[0]) / "libssl.so.3").stat()
    assert found[f"{SCANNED[0]}/libssl.so.3"] == (status.st_dev, status.st_ino)
    assert f"TLS libraries hooked: {len(libraries)}" in watch.cli("probes", "status").stderr


def test_a_library_that_was_hooked_later_is_listed_without_its_path(watch: Watch) -> None:
    library = Path(shutil.copy(Path(SCANNED[0]) / "libssl.so.3", watch.root / "libnew.so"))
    watch.run("/usr/bin/python3", "-c", f"import ctypes; ctypes.CDLL({str(library)!r})")
    status = library.stat()
    assert {"device": status.st_dev, "inode": status.st_ino, "path": None} in hooked(watch)


def test_the_doctor_says_whether_libraries_can_be_hooked(watch: Watch) -> None:
    findings = {finding["name"]: finding for finding in watch.rows("doctor")}
    assert findings["uprobes"]["ok"] == bool(hooked(watch))


def test_a_second_load_is_refused_and_changes_nothing(watch: Watch) -> None:
    before = sorted(path.name for path in watch.pin_dir.rglob("*"))
    done = watch.cli("probes", "load", check=False)
    assert done.returncode == 75
    assert "unload" in done.stderr
    assert sorted(path.name for path in watch.pin_dir.rglob("*")) == before


def test_the_recorder_maps_neither_bcc_nor_llvm(watch: Watch) -> None:
    pid = json.loads(watch.cli("status", "--json").stdout)["pid"]
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "libbpf.so" in maps
    assert "libbcc" not in maps
    assert "LLVM" not in maps


def test_without_root_a_load_says_so(watch: Watch) -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *watch.command("probes", "load")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 77, done.stderr
    assert "root" in done.stderr


def test_unloading_leaves_nothing_and_ends_capture(own_watch: Watch) -> None:
    assert own_watch.signal_recorder() == 0
    own_watch.cli("probes", "unload")
    assert not own_watch.pin_dir.exists()
    done = own_watch.cli("probes", "status", check=False)
    assert done.returncode == 69
    assert "agentwatch probes load" in done.stderr
    assert own_watch.cli("record", check=False).returncode == 69
    assert own_watch.cli("run", "--agent", "agent-test", "--", "/bin/true", check=False).returncode == 69


def test_a_detached_hook_is_told(own_watch: Watch) -> None:
    own_watch.signal_recorder()  # it would make the pin again
    (own_watch.pin_dir / "links" / "on_egress").unlink()
    done = own_watch.cli("probes", "status", check=False)
    assert done.returncode == 1
    assert "not attached: on_egress" in done.stderr


def test_processes_that_were_there_before_are_watched(own_watch: Watch) -> None:
    assert own_watch.signal_recorder() == 0
    own_watch.cli("probes", "unload")
    cgroup = own_watch.cgroup / "agent-test-before"
    cgroup.mkdir(parents=True, exist_ok=True)
    shell = subprocess.Popen(["/bin/sh", "-c", "read line; /bin/echo $line"], stdin=subprocess.PIPE, text=True)
    (cgroup / "cgroup.procs").write_text(str(shell.pid))
    own_watch.cli("probes", "load")
    own_watch.start_recorder()
    shell.communicate("from before\n", timeout=30)
    own_watch.wait_drained()
    own_watch.cli("index")
    rows = own_watch.rows("commands")
    assert ["/bin/echo", "from", "before"] in [row["argv"] for row in rows]
    assert shell.pid in [row["pid"] for row in rows], "the process itself, from /proc"
    sessions = own_watch.rows("sessions")
    assert [row["agent"] for row in sessions] == ["agent-test"]
    cgroup.rmdir()


def test_a_pin_folder_that_is_not_bpffs_is_refused(own_watch: Watch) -> None:
    text = own_watch.config.read_text().replace(str(own_watch.pin_dir), str(own_watch.root / "pins"))
    other = own_watch.root / "other.toml"
    other.write_text(text)
    done = subprocess.run(
        [*own_watch.command("probes", "load"), "--config", str(other)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 69
    assert "bpf file system" in done.stderr


def test_the_pins_are_root_only(watch: Watch) -> None:
    for directory in (watch.pin_dir, watch.pin_dir / "maps", watch.pin_dir / "links"):
        status = os.stat(directory)  # noqa: PTH116 -- mode and owner
        assert (status.st_uid, status.st_mode & 0o777) == (0, 0o700)
