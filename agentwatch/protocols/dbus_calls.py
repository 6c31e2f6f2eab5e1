"""What a D-Bus method call has somebody else do: one call in, what is delegated by it out.

The calls are those of systemd's manager and units, of machined, and the bus's own that start services. A call need not
name its interface, and a name like ``:1.3`` is as good a destination as a service's: members are looked at first.
Values of environment variables are not told, only their names. Sources: org.freedesktop.systemd1(5),
org.freedesktop.machine1(5), D-Bus Specification 0.42 "Message Bus Messages".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from agentwatch.protocols.base import Delegated, Detail, Instant
from agentwatch.protocols.dbus_values import Malformed, Values, types

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentwatch.protocols.dbus_frames import Call

MAX_NAMES = 256
"""Unit names, or names of variables, of one call that are told."""
MAX_NAME_BYTES = 1024
"""Bytes of a name that are told: a real one has at most 255."""

_MANAGER = b"org.freedesktop.systemd1.Manager"
_UNIT = b"org.freedesktop.systemd1.Unit"
_BUS = b"org.freedesktop.DBus"
_MACHINES = b"org.freedesktop.machine1.Manager"
_MACHINE = b"org.freedesktop.machine1.Machine"
_SHELL_SKIPS = {"sssasas": 2, "ssasas": 1}
"""How many values come before the path of the program in OpenMachineShell and in OpenShell: name and user, or user."""


class _Transient(NamedTuple):
    unit: str
    properties: dict[str, Any]


def delegated(call: Call, at: Instant) -> list[Delegated]:
    """Return what a call delegates, one for each command that it names; none if it is a call like any other."""
    found = _CALLS.get(call.member or b"")
    if found is None or call.interface not in (None, *found[0]):
        return []
    operation = (call.member or b"").decode("latin-1")
    detail = _where(call)
    if len(call.body) < call.body_length:
        detail["truncated"] = True
    return [
        Delegated("machined" if found[1] is _shell else "dbus", operation, command, detail | more, at, call.offset)
        for command, more in found[1](call)
    ]


def other(call: Call, at: Instant) -> Delegated:
    """Return a call that is like any other."""
    detail = _where(call)
    if call.member is not None:
        detail["member"] = text(call.member)
    if not call.readable:
        detail["truncated"] = True
    return Delegated("dbus", "call", None, detail, at, call.offset)


def text(value: bytes) -> str:
    r"""Return a name as text, what is not UTF-8 as ``\xNN``."""
    return value[:MAX_NAME_BYTES].decode(errors="backslashreplace")


def _where(call: Call) -> dict[str, Detail]:
    named = (("destination", call.destination), ("interface", call.interface), ("path", call.path))
    return {name: text(value) for name, value in named if value is not None}


_Asked = tuple[tuple[bytes, ...] | None, dict[str, Detail]]


def _values(call: Call) -> Iterator[Any]:
    """Yield the values of a body, as far as they can be read; strings and arrays of them are what matters."""
    reader = Values(call.body, little=call.little)
    try:
        for kind in types(call.signature):
            yield reader.read(kind)
    except Malformed:
        return


def _unit_names(call: Call) -> list[_Asked]:
    first = next(_values(call), None)
    names = first if isinstance(first, list) else [first]
    units = [text(name) for name in names[:MAX_NAMES] if isinstance(name, bytes)]
    return [(None, {"units": units} if units else {})]


def _variable_names(call: Call) -> list[_Asked]:
    first = next(_values(call), None)
    pairs = first if isinstance(first, list) else []
    return [(None, {"environment": _names([pair[0] if isinstance(pair, tuple) else pair for pair in pairs])})]


def _nothing(_call: Call) -> list[_Asked]:
    return [(None, {})]


def _shell(call: Call) -> list[_Asked]:
    values = list(_values(call))
    skips = _SHELL_SKIPS.get(call.signature)
    if skips is None or len(values) <= skips:
        return [(None, {"signature": call.signature})]
    told: dict[str, Detail] = {"user": text(values[skips - 1])}
    if skips > 1:
        told["machine"] = text(values[0])
    program, *rest = values[skips:]
    words = tuple(rest[0]) if rest else ()
    if len(rest) > 1:
        told["environment"] = _names(rest[1])
    if words and program:
        told["program"] = text(program)
    return [(words or ((program,) if program else None), told)]


def _names(assignments: list[Any]) -> list[str]:
    return [text(one.partition(b"=")[0]) for one in assignments[:MAX_NAMES] if isinstance(one, bytes)]


def _transient(call: Call) -> list[_Asked]:
    if call.signature != "ssa(sv)a(sa(sv))":
        return [(None, {"signature": call.signature})]
    return [asked for unit in _units(call) for asked in _of_unit(unit)] or [(None, {})]


def _units(call: Call) -> list[_Transient]:
    """Return the unit, and those that come with it (a timer's service), as far as they can be read."""
    reader = Values(call.body, little=call.little)
    units: list[_Transient] = []
    try:
        units.append(_Transient(text(reader.read("s")), {}))
        reader.read("s")
        _properties(reader.elements("(sv)"), units[0])
        for name, properties in reader.elements("(sa(sv))"):
            units.append(_Transient(text(name), {}))
            _properties(iter(properties), units[-1])
    except Malformed:
        pass  # cut, and said to be so, or no message that systemd would understand
    return units


def _properties(pairs: Iterator[Any], unit: _Transient) -> None:
    for name, value in pairs:
        key = text(name)
        if key.startswith("Exec") and isinstance(value, list):
            unit.properties.setdefault(key, []).extend(value)
        else:
            unit.properties[key] = value


def _of_unit(unit: _Transient) -> Iterator[_Asked]:
    told: dict[str, Detail] = {"unit": unit.unit}
    for name, key in _TOLD.items():
        value = unit.properties.get(name)
        if isinstance(value, bytes):
            told[key] = text(value)
    if isinstance(environment := unit.properties.get("Environment"), list):
        told["environment"] = _names(environment)
    if isinstance(pids := unit.properties.get("PIDs"), list):
        told["pids"] = [str(pid) for pid in pids[:MAX_NAMES]]
    commands = [
        (name, *command)
        for name, value in unit.properties.items()
        if name.startswith("Exec") and isinstance(value, list)
        for command in value
        if isinstance(command, tuple) and len(command) > 1 and isinstance(command[1], list)
    ]
    if not commands:
        yield None, told
    for name, program, argv, *_ in commands:
        more = {"program": text(program)} if isinstance(program, bytes) and argv[:1] != [program] else {}
        yield tuple(word for word in argv if isinstance(word, bytes)), told | {"property": name} | more


_TOLD = {
    "User": "user",
    "Group": "group",
    "WorkingDirectory": "working_directory",
    "RootDirectory": "root_directory",
    "Slice": "slice",
}
"""Properties of a transient unit that are told, and as what."""

_CALLS: dict[bytes, tuple[tuple[bytes, ...], Callable[[Call], list[_Asked]]]] = {
    b"StartTransientUnit": ((_MANAGER,), _transient),
    **dict.fromkeys(
        (
            b"StartUnit",
            b"StartUnitWithFlags",
            b"StartUnitReplace",
            b"StopUnit",
            b"ReloadUnit",
            b"RestartUnit",
            b"TryRestartUnit",
            b"ReloadOrRestartUnit",
            b"ReloadOrTryRestartUnit",
            b"EnqueueUnitJob",
            b"KillUnit",
            b"QueueSignalUnit",
            b"SetUnitProperties",
            b"AttachProcessesToUnit",
            b"EnableUnitFiles",
            b"EnableUnitFilesWithFlags",
            b"ReenableUnitFiles",
            b"DisableUnitFiles",
            b"DisableUnitFilesWithFlags",
            b"LinkUnitFiles",
            b"PresetUnitFiles",
            b"PresetUnitFilesWithMode",
            b"AddDependencyUnitFiles",
            b"MaskUnitFiles",
            b"UnmaskUnitFiles",
        ),
        ((_MANAGER,), _unit_names),
    ),
    **dict.fromkeys((b"SetEnvironment", b"UnsetAndSetEnvironment"), ((_MANAGER,), _variable_names)),
    # A unit's own methods: which unit, the object's path tells.
    **dict.fromkeys(
        (b"Start", b"Stop", b"Restart", b"TryRestart", b"ReloadOrRestart", b"ReloadOrTryRestart", b"Kill"),
        ((_UNIT,), _nothing),
    ),
    b"Reload": ((_UNIT, _MANAGER), _nothing),
    b"StartServiceByName": ((_BUS,), _unit_names),
    b"UpdateActivationEnvironment": ((_BUS,), _variable_names),
    b"OpenMachineShell": ((_MACHINES,), _shell),
    b"OpenShell": ((_MACHINE,), _shell),
}
"""Members, the interfaces that have them, and what tells what they ask for."""
