"""The watchdog: is what the kernel has attached and pinned still what was loaded? Views in, reports out.

``differences`` is pure. A ``Watchdog`` holds the links and maps open (``kernel.eyes``), compares once a second, makes
removed pins again and remembers what was told, so that each change is told once: ``probe_detach`` when something is no
longer as it was, ``probe_attach`` when it is again. What it expects survives a restart of the recorder in a ``Memory``:
what was changed while no recorder ran is told by the next one.

``agentwatch probes upgrade`` changes all of this and is no attack: it holds the lock of ``pins.changing`` meanwhile,
and ``upgraded_at`` tells that the new state is the one to expect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from agentwatch.errors import KernelError, PrivilegeError, ProbesNotLoaded
from agentwatch.kernel import bpf, hooks, pins
from agentwatch.kernel.eyes import Eyes, View

if TYPE_CHECKING:
    from agentwatch.config import Config
    from agentwatch.kernel.pins import Loaded

MAX_SKIPPED = 60
"""Looks that are left out while somebody holds the lock; then it is looked all the same. An upgrade holds it for
milliseconds."""

PIN_DELETED, PIN_CHANGED = "pin-deleted", "pin-changed"
LINK_DETACHED, PROGRAM_REPLACED, MAP_REPLACED = "link-detached", "program-replaced", "map-replaced"
UNKNOWN = "unknown"
_NOTHING = -1
"""An id that nothing has: a slot that was empty when it was first looked at is not what is expected."""
_CGROUP_HOOKS = frozenset(hook.link for hook in hooks.HOOKS if not isinstance(hook.target, str))
_SLOTTED = (
    frozenset(hook.link for hook in hooks.HOOKS if hook.type in hooks.DISPATCHED)
    | set(hooks.CONTINUATIONS)
    | set(hooks.LIBRARY_PROGRAMS)
)
_PROGRAMS = {hook.link: hook.program for hook in hooks.HOOKS}
_LIBRARY = {f"programs/{program}": program for program in hooks.LIBRARY_PROGRAMS}
_CONTINUED = {f"maps/{table}": program for program, (table, _, _) in hooks.CONTINUATIONS.items()}


class Difference(NamedTuple):
    """What is no longer as it was loaded. ``capturing``: it is certain that nothing was missed by it."""

    what: str
    detail: str
    capturing: bool = False


class Report(NamedTuple):
    """A record that is due: its kind and its own fields."""

    kind: str
    fields: dict[str, Any]


class Memory(NamedTuple):
    """What a restarted recorder goes on with."""

    loaded_at: int
    upgraded_at: int
    expected: View
    looked_at: int
    """CLOCK_BOOTTIME, ns, of the last look."""


def baseline(view: View, cgroup_id: int) -> View:
    """Return what to expect from now on: what was found, but a hook that is not in order is expected to be."""
    expected = {}
    for link, hook in view.hooks.items():
        if hook is not None:
            cgroup = cgroup_id if link in _CGROUP_HOOKS else 0
            slot = hook.slot_program or (_NOTHING if link in _SLOTTED else 0)
            hook = hook._replace(cgroup=cgroup, slot_program=slot)  # noqa: PLW2901 -- the same hook, as it should be
        expected[link] = hook
    return view._replace(hooks=expected)


def differences(expected: View, found: View) -> dict[str, Difference]:
    """Return what differs, by the name of its pin (``links/on_exec``, ``maps/ring``, a folder)."""
    result: dict[str, Difference] = {}
    for name in (*(f"maps/{name}" for name in hooks.MAPS), *(f"links/{hook.link}" for hook in hooks.HOOKS)):
        if (difference := _pin_difference(name, expected, found)) is not None:
            result[name] = difference
    for link in expected.hooks:
        name = f"links/{link}"
        if link in hooks.CONTINUATIONS:
            name = f"maps/{hooks.CONTINUATIONS[link][0]}"
        elif link in hooks.LIBRARY_PROGRAMS:
            name = f"programs/{link}"
        if (difference := _hook_difference(link, expected, found)) is not None:
            result[name] = difference
    for name, folder in found.folders.items():
        before = expected.folders.get(name, folder)
        if folder != before:
            detail = f"owner {before.uid}, mode {before.mode:o} became owner {folder.uid}, mode {folder.mode:o}"
            result[name or "."] = Difference(PIN_CHANGED, detail, capturing=True)
    return result


def _pin_difference(name: str, expected: View, found: View) -> Difference | None:
    wanted, held, pinned = expected.held.get(name), found.held.get(name), found.pinned.get(name)
    if held is None:
        return Difference(PIN_DELETED, "it is not pinned, and the recorder does not hold it: load the probes again")
    if held != wanted:
        what = MAP_REPLACED if name.startswith("maps/") else PIN_CHANGED
        return Difference(what, f"id {wanted} became {held} while no recorder ran")
    if pinned is None:
        return Difference(PIN_DELETED, "the pin was removed; the recorder holds what was pinned", capturing=True)
    if pinned != wanted:
        if name.startswith("maps/"):
            return Difference(MAP_REPLACED, f"id {wanted} was pinned, now {pinned}")
        return Difference(PIN_CHANGED, f"id {wanted} was pinned, now {pinned}", capturing=True)
    return None


def _hook_difference(link: str, expected: View, found: View) -> Difference | None:
    wanted, hook = expected.hooks[link], found.hooks.get(link)
    if wanted is None or hook is None:
        return None  # the pin's difference says it
    if hook.cgroup != wanted.cgroup or hook.attach_type != wanted.attach_type:
        if not hook.cgroup:
            return Difference(LINK_DETACHED, f"it was attached to cgroup {wanted.cgroup}")
        return Difference(LINK_DETACHED, f"it is attached to cgroup {hook.cgroup}, not {wanted.cgroup}")
    if hook.slot_program != wanted.slot_program:
        became = f"has program {hook.slot_program}" if hook.slot_program else "is empty"
        return Difference(PROGRAM_REPLACED, f"its slot {became}, where program {wanted.slot_program} was")
    if hook.link_program != wanted.link_program:
        return Difference(PROGRAM_REPLACED, f"program {hook.link_program} is attached, where {wanted.link_program} was")
    return None


class Watchdog:
    """The comparison, second by second. ``begin`` once, then ``look`` as often as wanted."""

    def __init__(self, config: Config, loaded: Loaded, memory: Memory | None) -> None:
        self.loaded = loaded
        self._config = config
        self._eyes: Eyes | None = Eyes(config, loaded.slots)
        view = self._eyes.look()
        if memory is not None and (memory.loaded_at, memory.upgraded_at) == (loaded.loaded_at, loaded.upgraded_at):
            self._expected = memory.expected
            self._looked_at: int | None = memory.looked_at
        else:
            self._expected = baseline(view, loaded.cgroup_id)
            self._looked_at = None
        self._wrong: dict[str, Difference] = {}
        self._skipped = 0

    @property
    def detached(self) -> list[str]:
        """The pins that something is wrong with."""
        return sorted(self._wrong)

    @property
    def memory(self) -> Memory:
        """What a restarted recorder goes on with."""
        return Memory(self.loaded.loaded_at, self.loaded.upgraded_at, self._expected, self._looked_at or 0)

    def begin(self, now: int, loaded_at: int) -> list[Report]:
        """Return what the recorder says at its start (both times: CLOCK_BOOTTIME): ``probe_attach``, and what is wrong.

        What is wrong may be so since a recorder last looked, or since the probes were loaded.
        """
        if self._eyes is None:
            return []
        if self._looked_at is None:
            self._looked_at = loaded_at
        return self._adopted("start", self._eyes.look(), now)

    def look(self, now: int) -> list[Report]:
        """Compare; return what has changed since the last look. ``now``: CLOCK_BOOTTIME."""
        if self._eyes is None:
            return []
        try:
            with pins.changing(self._config, wait=False) as alone:
                if not alone and self._skipped < MAX_SKIPPED:
                    self._skipped += 1
                    return []
                self._skipped = 0
                return self._look(self._eyes, now)
        except (OSError, KernelError, PrivilegeError) as e:
            difference = Difference(UNKNOWN, f"cannot look: {e}")
            told, self._wrong["."] = self._wrong.get("."), difference
            return [] if told == difference else [_detach(".", difference, self._looked_at)]

    def close(self) -> None:
        """Let go of the links and maps."""
        if self._eyes is not None:
            self._eyes.close()
            self._eyes = None

    def _look(self, eyes: Eyes, now: int) -> list[Report]:
        try:
            loaded = pins.read_status(self._config)
        except ProbesNotLoaded as e:
            if not pins.links_dir(self._config).is_dir():
                return self._unloaded(now, "the probes were unloaded")
            extra = {pins.STATUS_FILE: Difference(PIN_CHANGED, str(e), capturing=True)}
            return self._compared(eyes.look(), now, extra)
        if loaded.loaded_at != self.loaded.loaded_at:
            return self._unloaded(now, "the probes were unloaded and loaded: restart the recorder")
        if loaded.upgraded_at == self.loaded.upgraded_at:
            return self._compared(eyes.look(), now, {})
        self.loaded = loaded
        self._eyes, before = Eyes(self._config, loaded.slots), eyes
        before.close()  # after the new ones are open: a map that nobody holds loses its programs
        view = self._eyes.look()
        self._expected = baseline(view, loaded.cgroup_id)
        return self._adopted("upgrade", view, now)

    def _adopted(self, reason: str, view: View, now: int) -> list[Report]:
        """Tell everything that is attached, then what is not. Ends whatever was told before."""
        self._wrong = {}
        wrong = self._compared(view, now, {})
        whole = {link for link in view.hooks if f"links/{link}" not in self._wrong}
        start = _attach(reason, sorted(f"links/{link}" for link in whole if link in _PROGRAMS), view)
        start.fields["probe_mode"] = self.loaded.probe_mode
        start.fields["source_sha256"] = self.loaded.source_sha256
        return [start, *wrong]

    def _compared(self, view: View, now: int, extra: dict[str, Difference]) -> list[Report]:
        found = differences(self._expected, view) | extra
        reports = [_detach(pin, d, self._looked_at) for pin, d in found.items() if self._wrong.get(pin) != d]
        again = [pin for pin, d in found.items() if d.what == PIN_DELETED and self._restored(pin)]
        if again:
            reports.append(_attach("pin-restored", again, view))
        right = [pin for pin in self._wrong if pin not in found]
        if right:
            reports.append(_attach("restored", right, view))
        self._wrong = {pin: d for pin, d in found.items() if pin not in again}
        self._looked_at = now
        return reports

    def _restored(self, pin: str) -> bool:
        return self._eyes is not None and self._eyes.restore(pin)

    def _unloaded(self, now: int, detail: str) -> list[Report]:
        gone = Difference(PIN_DELETED, detail)
        reports = [_detach(f"links/{hook.link}", gone, self._looked_at) for hook in hooks.HOOKS]
        self._wrong = dict.fromkeys((f"links/{hook.link}" for hook in hooks.HOOKS), gone)
        self._looked_at = now
        self.close()
        return reports


def _detach(pin: str, difference: Difference, since: int | None) -> Report:
    link = pin.removeprefix("links/") if pin.startswith("links/") else None
    hook = _PROGRAMS.get(link or "") or _CONTINUED.get(pin) or _LIBRARY.get(pin)
    fields = {"hook": hook, "link": link, "pin": pin, **difference._asdict()}
    return Report("probe_detach", fields if since is None else fields | {"since": since})


def _attach(reason: str, attached: list[str], view: View) -> Report:
    links = [pin.removeprefix("links/") for pin in attached if pin.startswith("links/")]
    found = {link: hook for link in links if (hook := view.hooks.get(link)) is not None}
    tags = {link: bpf.program_tag(hook.captures_with) for link, hook in found.items()}
    return Report("probe_attach", {"reason": reason, "hooks": links, "pins": attached, "tags": tags})
