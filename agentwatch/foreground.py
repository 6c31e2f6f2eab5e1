"""Stand in for one child process towards whoever started us: signals through, stops with it, its status.

The child stays in our process group, as under sudo: the terminal's own signals (interrupt, quit, suspend, a new
window size, a hang-up) reach it directly, the shell's job control works on both, and ``run ... | less`` keeps its
terminal. So only signals that a process sent to us are passed on. A child that makes process groups of its own (an
interactive shell) takes the terminal as it would without us.

Everything is received by sigwaitinfo with the signals blocked (``held``): no handler runs, nothing is lost between two
steps, and what we do after the child's end (status, clean-up) is not cut off by a signal.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGTSTP,
    signal.SIGCONT,
)
_JOB_STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_INTERPRETER_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)
"""Python ignores these in itself; a command must not inherit that."""


@contextlib.contextmanager
def held() -> Iterator[set[signal.Signals]]:
    """Block what ``wait`` receives; yield the set for it. Fork inside, ``released`` in the child."""
    passed = {number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN}
    child_handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, children would leave no status
    waited = passed | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    try:
        yield waited
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGCHLD, child_handler)


def released(waited: set[signal.Signals]) -> None:
    """In the child: give signals the dispositions and the mask that the command expects."""
    for number in (*waited, *_INTERPRETER_IGNORES):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, waited)


def wait(child: int, waited: set[signal.Signals]) -> int:
    """Return the wait status of ``child`` once it ended; pass signals on until then."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if pid and not os.WIFSTOPPED(status):
            return status
        if pid and os.WSTOPSIG(status) in _JOB_STOPS:
            # Only job control's stops: a SIGSTOP for the child alone may be followed by a SIGCONT for it alone.
            os.kill(os.getpid(), signal.SIGSTOP)
            continue
        info = signal.sigwaitinfo(waited)
        if info.si_signo != signal.SIGCHLD and _is_for_us_alone(info, child):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, info.si_signo)


def _is_for_us_alone(info: signal.struct_siginfo, child: int) -> bool:
    # si_code > 0 is the kernel speaking to the whole foreground group. The child itself: its kill(0) reached itself.
    return info.si_code <= 0 and info.si_pid != child


def exit_status(wait_status: int) -> int:
    """Return the exit code, or 128 + N for a death by signal N, as shells print it."""
    return 128 + os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else os.WEXITSTATUS(wait_status)


def die_like(wait_status: int) -> int:
    """End by the signal that ended the child; return the exit status where it ended in another way.

    As env (which becomes the command) and sudo do: a shell prints 128 + N, and a service manager or a waiting
    program sees the signal itself instead of a status that only looks like one. No second core is dumped.
    """
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    return exit_status(wait_status)  # also for the init of a pid namespace, which its own signals do not end
