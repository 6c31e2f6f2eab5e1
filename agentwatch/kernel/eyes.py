"""What is attached and pinned at this moment, as one value that can be compared with an earlier one.

``Eyes`` opens every pinned link and map once and holds them: a pin that is removed then detaches nothing, and can be
made again. What it cannot open is missing from the view.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.errors import KernelError, PrivilegeError
from agentwatch.kernel import bpf, hooks, pins

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentwatch.config import Config

_SLOT = struct.Struct("<I")


class Hook(NamedTuple):
    """One hook. Ids are the kernel's; 0: there is none."""

    program: str
    """Its name in probes/."""
    link_id: int
    link_program: int
    """Id of the program that is attached: for a tracepoint the line that calls the slot."""
    cgroup: int
    """Id of the cgroup that it is attached to; 0: detached, or no hook of a cgroup."""
    attach_type: int
    slot_program: int
    """Id of the program in its slot; 0: the slot is empty, or it has none."""

    @property
    def captures_with(self) -> int:
        """The id of the program that does the work."""
        return self.slot_program or self.link_program


class Folder(NamedTuple):
    """Who may change what is in a folder of pins."""

    uid: int
    mode: int


class View(NamedTuple):
    """What was found. Pins and folders are named by their path below the pin folder (``links/on_exec``)."""

    hooks: dict[str, Hook | None]
    """By the link's name, programs that others go on with by their own; None: the link is neither pinned nor held."""
    held: dict[str, int]
    """Pin -> id of the link or map that is held."""
    pinned: dict[str, int]
    """Pin -> id of what is pinned there now."""
    folders: dict[str, Folder]


class Eyes:
    """The pinned links and maps of this build's hooks, held open."""

    def __init__(self, config: Config, slots: dict[str, int]) -> None:
        self._config = config
        self._slots = slots
        self._links: dict[str, int] = {}
        self._maps: dict[str, int] = {}
        for hook in hooks.HOOKS:
            self._hold(self._links, hook.link, pins.links_dir(config) / hook.link)
        for name in hooks.MAPS:
            self._hold(self._maps, name, pins.maps_dir(config) / name)

    @staticmethod
    def _hold(held: dict[str, int], name: str, path: Path) -> None:
        try:
            held[name] = bpf.obj_get(path)
        except (KernelError, PrivilegeError):
            return  # the view shows that it is missing

    def close(self) -> None:
        """Let go of everything. What is not pinned then detaches."""
        for held in (self._links, self._maps):
            while held:
                os.close(held.popitem()[1])

    def look(self) -> View:
        """Return what is attached and pinned now."""
        held = {f"links/{name}": bpf.link_info(fd).id for name, fd in self._links.items()}
        held |= {f"maps/{name}": bpf.map_id(fd) for name, fd in self._maps.items()}
        pinned: dict[str, int] = {}
        for hook in hooks.HOOKS:
            self._look_at(pinned, f"links/{hook.link}", lambda fd: bpf.link_info(fd).id)
        for name in hooks.MAPS:
            self._look_at(pinned, f"maps/{name}", bpf.map_id)
        found: dict[str, Hook | None] = {hook.link: self._hook(hook) for hook in hooks.HOOKS}
        for program, (table, _, _) in hooks.CONTINUATIONS.items():
            found[program] = Hook(program, 0, 0, 0, 0, self._in_slot(table, 0))
        uprobes = hooks.DISPATCHED[hooks.ProgramType.KPROBE]
        for program in hooks.LIBRARY_PROGRAMS:
            found[program] = Hook(program, 0, 0, 0, 0, self._in_slot(uprobes, self._slots[program]))
        return View(found, held, pinned, self._folders())

    def restore(self, pin: str) -> bool:
        """Pin again what is held and was pinned there; whether that was possible."""
        folder, _, name = pin.partition("/")
        held = (self._links if folder == "links" else self._maps).get(name)
        if held is None:
            return False
        try:
            for directory in (self._config.pin_dir, self._config.pin_dir / folder):
                directory.mkdir(mode=0o700, exist_ok=True)
            bpf.obj_pin(held, self._config.pin_dir / pin)
        except (OSError, KernelError, PrivilegeError):
            return False
        return True

    def _look_at(self, pinned: dict[str, int], pin: str, identify: Callable[[int], int]) -> None:
        try:
            fd = bpf.obj_get(self._config.pin_dir / pin)
        except (KernelError, PrivilegeError):
            return
        try:
            pinned[pin] = identify(fd)
        finally:
            os.close(fd)

    def _hook(self, hook: hooks.Hook) -> Hook | None:
        fd = self._links.get(hook.link)
        if fd is None:
            return None
        link = bpf.link_info(fd)
        slot = 0
        if hook.type in hooks.DISPATCHED and hook.program in self._slots:
            slot = self._in_slot(hooks.DISPATCHED[hook.type], self._slots[hook.program])
        return Hook(hook.program, link.id, link.program, link.cgroup, link.attach_type, slot)

    def _in_slot(self, table: str, slot: int) -> int:
        fd = self._maps.get(table)
        value = None if fd is None else bpf.map_lookup(fd, _SLOT.pack(slot), _SLOT.size)
        return 0 if value is None else int(_SLOT.unpack(value)[0])

    def _folders(self) -> dict[str, Folder]:
        found = {}
        for name, path in (
            ("", self._config.pin_dir),
            ("links", pins.links_dir(self._config)),
            ("maps", pins.maps_dir(self._config)),
        ):
            try:
                status = path.stat()
            except OSError:
                continue
            found[name] = Folder(status.st_uid, status.st_mode & 0o7777)
        return found
