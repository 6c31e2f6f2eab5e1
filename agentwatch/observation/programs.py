"""Programs that ask a daemon to run something: their names and arguments in, the channel and what they ask for out.

A program that only looks (``crontab -l``, ``systemctl status``) asks for nothing. What is to be run is in the arguments
of some; at and crontab read it from their input or from a file.
"""

from __future__ import annotations

import getopt
import ipaddress
import posixpath
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def asked(paths: tuple[str, ...], arguments: list[str], host: str) -> tuple[str, str] | None:
    """Return the channel and the operation of a program, None if it is none of these or only looks.

    ``paths``: what may tell its name, the most trustworthy first. ``host``: the name of this host.
    """
    names = [posixpath.basename(path) for path in paths]
    name = next((name for name in names if name in _PROGRAMS), None)
    if name is None:
        return None
    channel, tells = _PROGRAMS[name]
    operation = tells(name, arguments, host)
    return None if operation is None else (channel, operation)


def _always(name: str, _arguments: list[str], _host: str) -> str | None:
    return name


_AT_OPTIONS, _AT_LOOKS = "q:f:t:Mmu:bvlrdhVc", {"-l", "-c", "-r", "-d", "-V"}
_CRONTAB_OPTIONS, _CRONTAB_LOOKS = "u:lerisnTx:", {"-l", "-T"}


def _unless_looking(options: str, looks: set[str]) -> Callable[[str, list[str], str], str | None]:
    def tell(name: str, arguments: list[str], _host: str) -> str | None:
        try:
            given, _ = getopt.gnu_getopt(arguments, options)
        except getopt.GetoptError:
            return name
        return None if looks & {option for option, _ in given} else name

    return tell


_SYSTEMCTL_VERBS = frozenset(
    {
        "start", "stop", "restart", "reload", "try-restart", "condrestart", "reload-or-restart",
        "try-reload-or-restart", "reload-or-try-restart", "force-reload", "isolate", "kill", "enable", "disable",
        "reenable", "preset", "preset-all", "mask", "unmask", "link", "revert", "edit", "add-wants", "add-requires",
        "set-default",
        "set-property", "set-environment", "import-environment", "daemon-reload", "daemon-reexec", "bind",
        "mount-image", "default", "rescue", "emergency", "halt", "poweroff", "reboot", "kexec", "soft-reboot",
        "switch-root", "suspend", "hibernate", "hybrid-sleep", "suspend-then-hibernate", "exit",
    }
)  # fmt: skip
"""Verbs of systemctl that make something run, end or start later (systemctl(1), version 252)."""


def _systemctl(_name: str, arguments: list[str], _host: str) -> str | None:
    return next((word for word in arguments if word in _SYSTEMCTL_VERBS), None)


_SSH_OPTIONS = "1246ab:c:e:fgi:kl:m:no:p:qstvxAB:CD:E:F:GI:J:KL:MNO:P:Q:R:S:TVw:W:XYy"


def _ssh(name: str, arguments: list[str], host: str) -> str | None:
    try:
        given, words = getopt.getopt(arguments, _SSH_OPTIONS)
    except getopt.GetoptError:
        return None
    names = [
        value.partition("=")[2] for option, value in given if option == "-o" and value.lower().startswith("hostname=")
    ]
    names += words[:1]
    return name if any(_is_this_host(one, host) for one in names) else None


def _is_this_host(name: str, host: str) -> bool:
    if name.startswith("ssh://"):
        name = name.removeprefix("ssh://").partition("/")[0]
        name = name if name.endswith("]") else re.sub(r":[0-9]+$", "", name)
    name = name.rpartition("@")[2].strip("[]").rstrip(".").lower()
    if name in ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback", host.lower()):
        return True
    if name.endswith(".localhost") or name == host.lower().partition(".")[0]:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return re.fullmatch(r"127(?:\.[0-9]+){0,3}", name) is not None
    return address.is_loopback or address.is_unspecified


_MACHINECTL_VERBS = frozenset({"shell", "login", "start", "enable"})


def _machinectl(_name: str, arguments: list[str], _host: str) -> str | None:
    return next((word for word in arguments if word in _MACHINECTL_VERBS), None)


_PROGRAMS: dict[str, tuple[str, Callable[[str, list[str], str], str | None]]] = {
    "at": ("at", _unless_looking(_AT_OPTIONS, _AT_LOOKS)),
    "batch": ("at", _unless_looking(_AT_OPTIONS, _AT_LOOKS)),
    "crontab": ("cron", _unless_looking(_CRONTAB_OPTIONS, _CRONTAB_LOOKS)),
    "systemd-run": ("systemd", _always),
    "systemctl": ("systemd", _systemctl),
    "machinectl": ("machined", _machinectl),
    "ssh": ("ssh", _ssh),
}
"""Names, the channels that they use, and what tells the operation."""
