"""Run a command as one session of an agent: the session's cgroup, its registration, the command in it.

In: configuration, agent, user, argv. Out: the command's wait status. What always holds: the cgroup and its
registration (``identity.sessions``) exist before the command's process enters the cgroup, and it enters before it
gives up its privileges and runs its first instruction. The session lasts as long as its cgroup has processes: if
the command leaves some behind, the cgroup stays and the recorder removes it later.

The kernel's record does not depend on this process: if it is killed the command goes on, watched, and only its
exit status is missing from the session's end. That is why no parent-death signal is set. Only a command on a terminal
is hung up then, as always when a terminal goes away: it has one of its own (``terminal``), which we keep.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from agentwatch import foreground, terminal
from agentwatch.errors import BusyError, ConfigError, KernelError, ProbesNotLoaded, StoreError
from agentwatch.identity import agents, cgroups, naming, sessions, users
from agentwatch.kernel import holding

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator, Sequence

    from agentwatch.config import AgentConfig, Config
    from agentwatch.identity.users import User

NAME_ATTEMPTS = 64
"""Names that are tried for a session's cgroup; a suffix has 32 random bits, so one is nearly always enough."""
SUFFIX_DIGITS = 8
MAX_SETUP_MESSAGE_BYTES = 4096
"""What the child says about a failed set-up, in one write to a pipe (PIPE_BUF)."""

EXIT_NOT_FOUND = 127
EXIT_NOT_EXECUTABLE = 126
_UNSET_LOGIN_UID = 0xFFFF_FFFF
_STANDARD_STREAMS = 3


class _Place(NamedTuple):
    """The cgroup of a session that is about to begin."""

    session: str
    cgroup: str
    path: Path
    cgroup_id: int


def launch(config: Config, agent: AgentConfig, user: User, argv: Sequence[str]) -> int:
    """Run ``argv`` as ``user`` in a new session of ``agent``; return its wait status (``os.WIFEXITED`` ...).

    A command that cannot be executed gives 127 (not found) or 126, as in a shell, with a line on stderr. Raises
    ConfigError, BusyError, StoreError, KernelError; then nothing ran.
    """
    with foreground.held() as waited, _place(config, agent) as place:
        _register(config, agent, user, argv, place)
        if agent.overflow == "hold":
            _hold(config, place)
        status = _run(place, user, argv, waited)
        try:
            sessions.set_status(config.run_dir, place.cgroup_id, foreground.exit_status(status))
        except StoreError as e:  # the command has run: its status is the answer, whatever becomes of ours
            sys.stderr.write(f"agentwatch: {e}; the session's end will be recorded without an exit status\n")
        return status


def _hold(config: Config, place: _Place) -> None:
    """Have the kernel hold the session from its first packet on; without probes nothing is recorded anyway."""
    with contextlib.suppress(ProbesNotLoaded):
        holding.hold(config, place.cgroup_id)


@contextlib.contextmanager
def _place(config: Config, agent: AgentConfig) -> Iterator[_Place]:
    """Make the session's cgroup, hold it locked, remove it at the end if nothing lives in it."""
    try:
        place, lock = _make(config, agent)
    except OSError as e:
        raise KernelError(
            f"cannot make a cgroup for {agent.name} below {config.watch_path}: {e.strerror} ({e.filename})"
        ) from e
    try:
        yield place
    finally:
        with contextlib.suppress(OSError):  # it stays, which hides nothing
            cgroups.remove(place.path)
        os.close(lock)


def _make(config: Config, agent: AgentConfig) -> tuple[_Place, int]:
    fixed = naming.is_fixed(agent.cgroup)
    for _ in range(NAME_ATTEMPTS):
        session = sessions.new_session_id()
        name = _name(config, agent, session[-SUFFIX_DIGITS:])
        path = config.cgroup_root / name
        if fixed:
            _clear(path, agent)
        with contextlib.suppress(FileExistsError):
            cgroup_id = cgroups.make(path)
            lock = _lock(path)
            if lock is not None:
                return _Place(session, name, path, cgroup_id), lock
        if fixed:
            raise _busy(agent, path)
    raise BusyError(
        f"no free cgroup name for {agent.name} in {NAME_ATTEMPTS} attempts; end old sessions or give its pattern "
        f"{agent.cgroup!r} a '*'"
    )


def _name(config: Config, agent: AgentConfig, suffix: str) -> str:
    name = naming.name_for(agent.cgroup, agent.name, suffix)
    if name is None:
        raise ConfigError(
            f"no cgroup name can be made for the pattern {agent.cgroup!r} of {agent.name}; end it with '*'"
        )
    if not name.startswith(config.watch + "/"):
        raise ConfigError(
            f"the pattern {agent.cgroup!r} of {agent.name} does not lie under watch = {config.watch!r}: "
            f"nothing would be recorded; write '{config.watch}/{agent.name}*'"
        )
    found = agents.match(config.agents, name)
    if found != (agent, name):
        other = found[0].name if found else "nobody"
        raise ConfigError(
            f"the cgroup {name!r}, made for {agent.name}, belongs to {other}, whose pattern comes first; "
            f"put {agent.name} before it or make the patterns differ"
        )
    return name


def _clear(path: Path, agent: AgentConfig) -> None:
    """Remove what an earlier session left at a fixed name, so that this one gets an identifier of its own."""
    lock = _lock(path) if path.exists() else None
    if lock is None:
        if path.exists():
            raise _busy(agent, path)
        return
    try:
        if not cgroups.remove(path):
            raise _busy(agent, path)
    finally:
        os.close(lock)


def _lock(path: Path) -> int | None:
    """Hold a cgroup's directory; None if another launcher has it or removed it."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == cgroups.cgroup_id(path):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


def _busy(agent: AgentConfig, path: Path) -> BusyError:
    return BusyError(
        f"{agent.name} is running already in {path}; wait for it, or end its pattern with '*' to allow several"
    )


def _register(config: Config, agent: AgentConfig, user: User, argv: Sequence[str], place: _Place) -> None:
    mine = sessions.Registration(
        session=place.session,
        agent=agent.name,
        cgroup=place.cgroup,
        cgroup_id=place.cgroup_id,
        user=user.name,
        uid=user.uid,
        login_uid=login_uid(),
        argv=list(argv),
        origin="run",
        boottime=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    )
    present = sessions.claim(config.run_dir, mine)
    if present is not mine:  # the recorder saw the cgroup first: its session it is, with what we know of it
        sessions.write(config.run_dir, dataclasses.replace(mine, session=present.session))


def login_uid() -> int | None:
    """Return who logged in (loginuid of the audit system); None where that is not known."""
    try:
        value = int(Path("/proc/self/loginuid").read_text())
    except (OSError, ValueError):
        return None
    return None if value == _UNSET_LOGIN_UID else value


def _run(place: _Place, user: User, argv: Sequence[str], waited: set[signal.Signals]) -> int:
    """Fork; return the command's wait status. Raises KernelError if the child could not be set up."""
    sys.stdout.flush()
    sys.stderr.flush()
    failure, report = os.pipe2(os.O_CLOEXEC)
    with contextlib.ExitStack() as stack:
        own = _own_terminal(user, stack)
        child = 0
        if own is not None:
            own.start(lambda: _child(place, user, argv, waited, report), report)
        else:
            child = os.fork()
            if child == 0:
                _child(place, user, argv, waited, report)
        os.close(report)
        with os.fdopen(failure, "rb") as pipe:
            message = pipe.read(MAX_SETUP_MESSAGE_BYTES)  # ends when the command is executed, or the child is gone
        if message:
            if child:
                os.waitpid(child, 0)
            reason = message.decode(errors="replace")
            raise KernelError(f"starting a session of {place.cgroup}: {reason}; nothing was run")
        return foreground.wait(child, waited) if own is None else own.relay(waited)


def _own_terminal(user: User, stack: contextlib.ExitStack) -> terminal.OwnTerminal | None:
    """Make a terminal for the command if we have one: on ours it could type commands for our caller (TIOCSTI)."""
    caller = terminal.of_caller()
    if caller is None:
        return None
    try:
        return stack.enter_context(terminal.OwnTerminal(caller, user.uid))
    except (OSError, termios.error) as e:
        os.close(caller)
        raise KernelError(f"cannot make a terminal for the command: {e.args[-1]}; nothing was run") from e


def _child(place: _Place, user: User, argv: Sequence[str], waited: set[signal.Signals], report: int) -> NoReturn:
    status = EXIT_NOT_EXECUTABLE
    try:
        cgroups.place(place.path)
        users.become(user)
        _close_all_but(report)
        environment = users.environment(user, os.environ)
        foreground.released(waited)
        status = _execute(argv, environment)
    except Exception as e:  # noqa: BLE001 (whatever it is, the parent tells it)
        os.write(report, (str(e) or repr(e)).encode(errors="replace")[:MAX_SETUP_MESSAGE_BYTES])
    finally:
        os._exit(status)  # never back into the parent's code


def _close_all_but(kept: int) -> None:
    # Ours are close-on-exec anyway; this is for those that the caller opened as root, as sudo does.
    for path in Path("/proc/self/fd").iterdir():
        fd = int(path.name)
        if fd >= _STANDARD_STREAMS and fd != kept:
            with contextlib.suppress(OSError):
                os.close(fd)


def _execute(argv: Sequence[str], environment: dict[str, str]) -> int:
    """Become the command; return the exit status of a shell that could not, after saying why."""
    command = argv[0]
    folders = [""] if "/" in command else environment.get("PATH", os.defpath).split(os.pathsep)
    refused: OSError | None = None
    for folder in folders if command else []:
        program = str(Path(folder) / command)
        try:
            _execve(program, argv, environment)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as e:
            if not folder or os.access(program, os.F_OK):  # else a folder of the PATH that this user may not enter
                refused = refused or e
    if refused is not None:
        reason, status = refused.strerror, EXIT_NOT_EXECUTABLE
    else:
        reason, status = "No such file or directory" if "/" in command else "command not found", EXIT_NOT_FOUND
    os.write(2, os.fsencode(f"agentwatch: {command}: {reason}\n"))
    return status


def _execve(program: str, argv: Sequence[str], environment: dict[str, str]) -> NoReturn:
    try:
        os.execve(program, list(argv), environment)  # noqa: S606 (no shell is the point)
    except OSError as e:
        if e.errno != errno.ENOEXEC:
            raise
        # A script without "#!", as execvp(3) does.
        os.execve("/bin/sh", ["/bin/sh", program, *argv[1:]], environment)  # noqa: S606 (the shell is the interpreter)
