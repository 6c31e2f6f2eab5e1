"""Becoming an ordinary user for good: a name in, a process without any of root's privileges out.

``resolve`` looks the user up (in the parent, where name services may be asked), ``become`` gives the privileges of the
calling process up: supplementary groups, all gids and uids, every capability set, root's session keyring. What an
ordinary login leaves as it is stays: umask, limits, priority, working directory, setuid programs (no
no_new_privs: the command must run as it would without agentwatch).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import pwd
import struct
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_UID = 0xFFFF_FFFE
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_KEYCTL_SYSCALL = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_libc = ctypes.CDLL(None, use_errno=True)


class User(NamedTuple):
    """An account: what a process needs to be it. ``name`` is None for a uid without an entry."""

    name: str | None
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


def resolve(name: str) -> User:
    """Return the account with this name or decimal uid. Raises NotFoundError."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        if not name.isdecimal() or int(name) > _MAX_UID:
            raise NotFoundError(f"there is no user {name!r} on this host; name one of getent passwd") from None
        return _of_uid(int(name))
    return _of_entry(entry)


def invoking() -> User:
    """Return who asked: the user who called sudo, else the caller."""
    sudo_uid = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and sudo_uid.isdecimal() and int(sudo_uid) <= _MAX_UID:
        return _of_uid(int(sudo_uid))
    return _of_uid(os.getuid())


def environment(user: User, base: Mapping[str, str]) -> dict[str, str]:
    """Return ``base`` with the variables that say who one is, as runuser(1) sets them."""
    name = user.name or str(user.uid)
    return {**base, "HOME": user.home, "SHELL": user.shell, "USER": name, "LOGNAME": name}


def become(user: User) -> None:
    """Make the calling process an ordinary process of ``user``. Raises OSError, and then must not go on.

    For uid 0 the ids change and the capabilities stay.
    """
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    if user.uid != 0:
        _prctl(_PR_SET_SECUREBITS, 0)  # a caller's keep-caps or no-setuid-fixup must not outlive this
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    if user.uid != 0:
        _drop_capabilities()
        _leave_session_keyring()
    if os.getresuid() != (user.uid,) * 3 or os.getresgid() != (user.gid,) * 3:
        raise PermissionError(f"the kernel did not change the ids to {user.uid}:{user.gid}")


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {argument}): {os.strerror(ctypes.get_errno())}")


def _drop_capabilities() -> None:
    # setresuid leaves the inheritable set, which programs with file capabilities would turn into real ones.
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), f"capset: {os.strerror(ctypes.get_errno())}")


def _leave_session_keyring() -> None:
    # Whoever has root's session keyring possesses root's keys, whatever the uid. The new one is this user's. Kernels
    # without keys have nothing to leave; a full quota is the user's own affair but must not keep root's keyring.
    number = _KEYCTL_SYSCALL.get(platform.machine())
    if number is not None and _libc.syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        error = ctypes.get_errno()
        if error != errno.ENOSYS:
            raise OSError(error, f"joining a new session keyring: {os.strerror(error)}")


def _of_entry(entry: pwd.struct_passwd) -> User:
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    shell = entry.pw_shell or "/bin/sh"
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir or "/", shell)


def _of_uid(uid: int) -> User:
    try:
        return _of_entry(pwd.getpwuid(uid))
    except KeyError:
        return User(None, uid, uid, (uid,), "/", "/bin/sh")
