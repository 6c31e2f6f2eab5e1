"""What the recorder does about files that watched processes map to run them: find a TLS library, hook it.

Events of new files in, what was hooked out. A process that waits for it (``tls.first_use = "hold"``) goes on
afterwards, whatever came of it; one whose event was lost goes on after a second.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentwatch.errors import KernelError, PrivilegeError
from agentwatch.kernel import bpf, holding, pins, uprobes

if TYPE_CHECKING:
    from agentwatch.config import Config
    from agentwatch.kernel import abi

log = logging.getLogger(__name__)

OVERDUE_NS = 1_000_000_000
"""How long a process waits at most for an event of its that does not come."""
SETTING_HOLD = 1
"""As in probes/maps.h."""
_TGID, _TIME, _SETTING = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<I")


class Libraries:
    """Hooks what is mapped while the recorder runs."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._uprobes = uprobes.Uprobes(config)
        self._settings = pins.open_map(config, "settings")
        self._waiting = pins.open_map(config, "waiting")
        hold = config.tls.first_use == "hold"
        bpf.map_update(self._settings, _SETTING.pack(0), _SETTING.pack(SETTING_HOLD if hold else 0))

    def close(self) -> None:
        """Let everybody go on: nobody will look into files any more."""
        bpf.map_update(self._settings, _SETTING.pack(0), _SETTING.pack(0))
        holding.release(self._waiting)
        self._uprobes.close()
        for descriptor in (self._settings, self._waiting):
            os.close(descriptor)

    def mapped(self, e: abi.Mapped) -> dict[str, Any] | None:
        """Look into a file that a process has mapped; return the fields of a record if a TLS library was hooked."""
        try:
            library = self._look_into(e)
        except (OSError, KernelError, PrivilegeError) as error:
            log.warning("cannot look into %s: %s", os.fsdecode(e.path), error)
            self._uprobes.unmark(e.device, e.inode, e.generation)
            library = None
        finally:
            waited = self._go_on(e) if e.stopped else None
        if library is None:
            return None
        return {
            "reason": "library",
            "file": os.fsdecode(e.path),
            "device": library.device,
            "inode": library.inode,
            "functions": list(library.functions),
            "waited_ns": waited,
        }

    def release(self) -> None:
        """Let processes go on that wait for an event of theirs that was lost."""
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for key, since in list(bpf.map_items(self._waiting, _TGID.size, _TIME.size, holding.MAX_STOPPED)):
            if now - _TIME.unpack(since)[0] > OVERDUE_NS:
                holding.release_one(self._waiting, key)

    def restore(self) -> list[dict[str, Any]]:
        """Make pins again that somebody removed; return the fields of a record for each.

        Not while the probes are being unloaded or upgraded, and not afterwards.
        """
        with pins.changing(self._config, wait=False) as alone:
            if not alone or not pins.have_status(self._config):
                return []
            gone = self._uprobes.restore()
        detail = "the pin was removed; the recorder holds what was pinned"
        what = {"hook": None, "link": None, "what": "pin-deleted", "detail": detail, "capturing": True}
        return [what | {"pin": f"{pin.parent.name}/{pin.name}"} for pin in gone]

    def _look_into(self, e: abi.Mapped) -> uprobes.Library | None:
        path = uprobes.mapped_file(e.h.tgid, e.address)
        if path is not None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                return self._uprobes.look_into(path)
        # The process is gone, or has mapped something else: what has the name now, if it is the same file.
        path = os.fsdecode(e.path)
        if _is(path, e):
            return self._uprobes.look_into(path)
        self._uprobes.unmark(e.device, e.inode, e.generation)
        return None

    def _go_on(self, e: abi.Mapped) -> int:
        holding.release_one(self._waiting, _TGID.pack(e.h.tgid))
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - e.h.boottime


def _is(path: str, e: abi.Mapped) -> bool:
    try:
        status = Path(path).stat()
    except OSError:
        return False
    return (status.st_ino, uprobes.kernel_device(status.st_dev)) == (e.inode, e.device)
