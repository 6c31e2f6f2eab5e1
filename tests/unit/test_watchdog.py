"""What differs between what was loaded and what is there, from views alone."""

from __future__ import annotations

import pytest

from agentwatch.kernel import hooks
from agentwatch.kernel.eyes import Folder, Hook, View
from agentwatch.watchdog import Difference, baseline, differences

CGROUP = 4711
EGRESS = "links/on_egress"
EXEC_LINK = "on_exec-sched_process_exec"
EXEC = f"links/{EXEC_LINK}"


def view() -> View:
    """Return what a fresh load looks like."""
    found: dict[str, Hook | None] = {}
    for number, hook in enumerate(hooks.HOOKS):
        of_cgroup = not isinstance(hook.target, str)
        slot = 300 + number if hook.type in hooks.DISPATCHED else 0
        attach_type = 0 if isinstance(hook.target, str) else int(hook.target)
        found[hook.link] = Hook(hook.program, 100 + number, 200 + number, CGROUP * of_cgroup, attach_type, slot)
    found |= {name: Hook(name, 0, 0, 0, 0, 400 + number) for number, name in enumerate(hooks.CONTINUATIONS)}
    ids = {f"links/{link}": hook.link_id for link, hook in found.items() if hook is not None and hook.link_id}
    ids |= {f"maps/{name}": 500 + number for number, name in enumerate(hooks.MAPS)}
    return View(found, ids, dict(ids), {"": Folder(0, 0o700), "links": Folder(0, 0o700), "maps": Folder(0, 0o700)})


def changed(link: str, **values: int) -> View:
    """Return a view in which one hook is another."""
    fresh = view()
    hook = fresh.hooks[link]
    assert hook is not None
    return fresh._replace(hooks=fresh.hooks | {link: Hook(**(hook._asdict() | values))})


def without_pin(pin: str) -> View:
    fresh = view()
    return fresh._replace(pinned={name: number for name, number in fresh.pinned.items() if name != pin})


EXPECTED = baseline(view(), CGROUP)


def test_what_was_loaded_does_not_differ_from_itself() -> None:
    assert view() == EXPECTED
    assert differences(EXPECTED, view()) == {}


@pytest.mark.parametrize(
    ("found", "pin", "what", "capturing"),
    [
        (changed("on_egress", cgroup=0), EGRESS, "link-detached", False),
        (changed("on_egress", cgroup=4712), EGRESS, "link-detached", False),
        (changed("on_egress", attach_type=9), EGRESS, "link-detached", False),
        (changed("on_egress", link_program=9), EGRESS, "program-replaced", False),
        (changed(EXEC_LINK, slot_program=0), EXEC, "program-replaced", False),
        (changed(EXEC_LINK, slot_program=9), EXEC, "program-replaced", False),
        (changed("on_more_pieces", slot_program=0), "maps/continuation", "program-replaced", False),
        (changed("on_rows", slot_program=9), "maps/followers", "program-replaced", False),
        (without_pin(EXEC), EXEC, "pin-deleted", True),
        (without_pin("maps/ring"), "maps/ring", "pin-deleted", True),
        (view()._replace(pinned=view().pinned | {EGRESS: 9}), EGRESS, "pin-changed", True),
        (view()._replace(pinned=view().pinned | {"maps/ring": 9}), "maps/ring", "map-replaced", False),
        (view()._replace(held=view().held | {EGRESS: 9}), EGRESS, "pin-changed", False),
        (view()._replace(held=view().held | {"maps/tags": 9}), "maps/tags", "map-replaced", False),
        (view()._replace(folders=view().folders | {"": Folder(0, 0o755)}), ".", "pin-changed", True),
        (view()._replace(folders=view().folders | {"maps": Folder(1, 0o700)}), "maps", "pin-changed", True),
    ],
)
def test_each_change_is_named(found: View, pin: str, what: str, capturing: bool) -> None:  # noqa: FBT001 -- a table
    result = differences(EXPECTED, found)
    assert {name: (d.what, d.capturing) for name, d in result.items()} == {pin: (what, capturing)}


def test_a_hook_that_misses_events_is_not_excused_by_its_pin() -> None:
    found = changed("on_egress", cgroup=0)
    found.pinned.pop(EGRESS)
    assert differences(EXPECTED, found) == {EGRESS: Difference("link-detached", f"it was attached to cgroup {CGROUP}")}


def test_what_is_broken_when_it_is_first_looked_at_is_not_taken_for_what_is_expected() -> None:
    found = view()
    found.hooks["on_egress"] = changed("on_egress", cgroup=0).hooks["on_egress"]
    found.hooks[EXEC_LINK] = changed(EXEC_LINK, slot_program=0).hooks[EXEC_LINK]
    found.hooks["on_ingress"] = None
    for ids in (found.held, found.pinned):
        del ids["links/on_ingress"]
        del ids["maps/tags"]
    result = differences(baseline(found, CGROUP), found)
    assert {pin: d.what for pin, d in result.items()} == {
        EGRESS: "link-detached",
        EXEC: "program-replaced",
        "links/on_ingress": "pin-deleted",
        "maps/tags": "pin-deleted",
    }
    assert not any(d.capturing for d in result.values())
