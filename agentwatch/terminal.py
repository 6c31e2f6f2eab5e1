"""A terminal of its own for a command, between it and the terminal of who started it.

What a command can do to its terminal (push input with TIOCSTI, change the modes, read ahead) it does to this one. As
sudo's ``use_pty``: the launcher keeps the caller's terminal and copies both ways; a monitor leads the new session, so
that job control works in it; the command has a process group of its own::

    launcher (the caller's session) - monitor (leads the new one) - command

Only standard streams that are a terminal become the new one; a pipe or a file stays what it is. In a pipeline the
others may use the caller's terminal (a pager), so it is left alone until the command reads from it or sets its modes,
which stops the command (SIGTTIN, SIGTTOU) and tells us. The window's size follows the caller's. The caller's modes
are restored before we stop and at the end, whatever happens, but for SIGKILL.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pty
import select
import signal
import socket
import struct
import termios
import tty
from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

MAX_WAITING_BYTES = 64 * 1024
"""Bytes on their way in one direction; when the other side does not take them, no more are read."""
PIECE_BYTES = 16 * 1024
_STREAMS = (0, 1, 2)
_GONE = select.POLLHUP | select.POLLERR
_SPECIAL = 6
"""Where the special characters stand in what tcgetattr gives."""
_JOB_STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_BACKGROUND_STOPS = {signal.SIGTTIN, signal.SIGTTOU}
_ANSWER = struct.Struct("<i")
_ORDER = struct.Struct("<ci")
_FOREGROUND, _BACKGROUND, _TO_PROCESS, _TO_GROUP = b"f", b"b", b"p", b"g"
_SIGNAL_INFO = struct.Struct("<IiiI112x")
"""The beginning of ``struct signalfd_siginfo``: number, errno, code, pid."""
_libc = ctypes.CDLL(None, use_errno=True)


def of_caller() -> int | None:
    """Open the controlling terminal; None if there is none."""
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None


class OwnTerminal:
    """A pseudo terminal, a command on it, and the caller's terminal. Use as a context; ``start``, then ``relay``."""

    def __init__(self, caller: int, uid: int) -> None:
        """Take over ``caller`` (a descriptor); the new terminal belongs to ``uid``. Raises OSError, termios.error."""
        self._caller = caller
        self._modes = termios.tcgetattr(caller)
        self._raw = False
        self._whole = all(map(os.isatty, _STREAMS[:2]))
        """Nothing else of a pipeline uses the terminal."""
        self._master, self._slave = pty.openpty()
        self._has_modes = False
        """Whether it has had the caller's modes. In the background they are those of whoever has the terminal now."""
        if self._is_foreground():
            self._copy_modes()
        os.fchown(self._slave, uid, -1)
        os.fchmod(self._slave, 0o620)
        os.set_blocking(self._master, False)
        self._copy_size()
        self._monitor = 0
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, _BACKGROUND_STOPS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cook()
        self._ours.close()
        self._theirs.close()
        if self._monitor:
            os.waitpid(self._monitor, 0)  # before the master is closed: nobody is left to be hung up
        for descriptor in (self._master, self._slave, self._caller):
            os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def start(self, command: Callable[[], NoReturn], report: int) -> None:
        """Fork the monitor, and it the command; ``report`` is a descriptor that only the command keeps."""
        foreground = self._whole and self._is_foreground()
        self._monitor = os.fork()
        if self._monitor == 0:
            try:
                self._lead(command, report, foreground=foreground)
            except Exception as e:  # noqa: BLE001 (whatever it is, the launcher tells it)
                with contextlib.suppress(OSError):
                    os.write(report, repr(e).encode(errors="replace"))
            finally:
                os._exit(1)  # never back into the launcher's code
        self._theirs.close()
        if foreground:
            self._uncook()

    # -- the monitor

    def _lead(self, command: Callable[[], NoReturn], report: int, *, foreground: bool) -> None:
        self._ours.close()
        os.setsid()
        fcntl.ioctl(self._slave, termios.TIOCSCTTY, 0)
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            if foreground:
                os.tcsetpgrp(self._slave, os.getpgrp())
            for stream in _STREAMS:
                if os.isatty(stream):
                    os.dup2(self._slave, stream)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
            command()
        with contextlib.suppress(OSError):  # it did so itself, and may be another program by now
            os.setpgid(child, child)
        for descriptor in (report, self._master, self._caller):
            os.close(descriptor)
        self._watch_over(child)

    def _watch_over(self, child: int) -> None:
        signals = _signal_descriptor({signal.SIGCHLD})
        while True:
            orders = self._theirs.fileno()
            ready, _, _ = select.select([signals, orders], [], [])
            if orders in ready:
                order = self._theirs.recv(_ORDER.size)
                if not order:  # the launcher is gone, and with it the terminal
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child, signal.SIGHUP)
                        os.killpg(child, signal.SIGCONT)
                    return
                self._obey(child, *_ORDER.unpack(order))
            if signals in ready:
                os.read(signals, _SIGNAL_INFO.size)
            pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if pid:
                self._hand_over(child, os.getpgrp())  # also at the end: who is left is not hung up
                with contextlib.suppress(OSError):
                    self._theirs.send(_ANSWER.pack(status))
                if not os.WIFSTOPPED(status):
                    os._exit(0)

    def _obey(self, child: int, what: bytes, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if what == _TO_PROCESS:
                os.kill(child, number)
            elif what == _TO_GROUP:
                os.killpg(child, number)
            else:
                if what == _FOREGROUND:
                    self._hand_over(os.getpgrp(), child)
                else:
                    self._hand_over(child, os.getpgrp())
                os.killpg(child, signal.SIGCONT)

    def _hand_over(self, before: int, after: int) -> None:
        """Change the foreground process group, if it is ``before``: a shell may have given it to a job of its own."""
        with contextlib.suppress(OSError):
            if os.tcgetpgrp(self._slave) == before:
                os.tcsetpgrp(self._slave, after)

    # -- the launcher

    def relay(self, waited: set[signal.Signals]) -> int:
        """Copy both ways and pass signals on until the command has ended; return its wait status."""
        signals = _signal_descriptor(waited)
        try:
            return self._relay(signals)
        finally:
            os.close(signals)

    def _relay(self, signals: int) -> int:
        typed, shown = bytearray(), bytearray()
        poller = select.poll()
        poller.register(signals, select.POLLIN)
        poller.register(self._ours, select.POLLIN)
        while True:
            reads_caller = self._raw and len(typed) < MAX_WAITING_BYTES
            _interest(poller, self._caller, reads=reads_caller, writes=bool(shown))
            _interest(poller, self._master, reads=len(shown) < MAX_WAITING_BYTES, writes=bool(typed))
            ready = dict(poller.poll())
            caller, master = ready.get(self._caller, 0), ready.get(self._master, 0)
            if caller & ~select.POLLOUT and reads_caller:
                self._read_caller(typed, gone=bool(caller & _GONE))
            if master & select.POLLIN:
                _take(self._master, shown)
            _give(self._caller, shown)
            _give(self._master, typed)
            if signals in ready:
                self._on_signal(*_SIGNAL_INFO.unpack(os.read(signals, _SIGNAL_INFO.size)))
            if self._ours.fileno() in ready:
                answer = self._ours.recv(_ANSWER.size)
                (status,) = _ANSWER.unpack(answer) if answer else (signal.SIGKILL,)  # somebody killed the monitor
                self._drain(shown)
                if not os.WIFSTOPPED(status):
                    return int(status)
                self._on_stop(os.WSTOPSIG(status))

    def _read_caller(self, typed: bytearray, *, gone: bool) -> None:
        if not _take(self._caller, typed) and (gone or not self._is_foreground()):
            self._cook()

    def _drain(self, shown: bytearray) -> None:
        """Show what the command has written until now."""
        while _take(self._master, shown) or shown:
            if not _give(self._caller, shown):
                select.select([], [self._caller], [], 1)

    def _on_signal(self, number: int, _errno: int, code: int, _pid: int) -> None:
        if number == signal.SIGWINCH:
            self._copy_size()
        elif number == signal.SIGCONT:
            self._resume()
        elif number != signal.SIGCHLD:
            # The kernel speaks to a whole process group, a process to the one it names.
            self._order(_TO_GROUP if code > 0 else _TO_PROCESS, number)

    def _on_stop(self, number: int) -> None:
        if number not in _JOB_STOPS:
            return  # a SIGSTOP for the command alone may be followed by a SIGCONT for it alone
        if number in _BACKGROUND_STOPS and not self._raw and self._is_foreground():
            self._whole = True  # it wants the terminal, and may have it
        elif not self._stop() and number in _BACKGROUND_STOPS:
            # Nobody will ever put us into the foreground: it gets an end of file, where a terminal would give EIO.
            self._order(_FOREGROUND)
            _give(self._master, bytearray(termios.tcgetattr(self._slave)[_SPECIAL][termios.VEOF]))
            return
        self._resume()

    def _stop(self) -> bool:
        """Stop, and with us who shares our keyboard, if it is ours; whether somebody continued us."""
        group = self._raw  # else the terminal has told them itself
        self._cook()
        before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
        (os.killpg if group else os.kill)(os.getpgrp() if group else os.getpid(), signal.SIGTSTP)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return signal.SIGCONT in signal.sigpending()  # without job control the kernel stops nobody

    def _resume(self) -> None:
        if self._whole and self._is_foreground():
            self._copy_size()
            self._copy_modes()
            self._uncook()
            self._order(_FOREGROUND)
        else:
            self._order(_BACKGROUND)

    def _order(self, what: bytes, number: int = 0) -> None:
        with contextlib.suppress(OSError):
            self._ours.send(_ORDER.pack(what, number))

    def _is_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._caller) == os.getpgrp()
        except OSError:
            return False  # hung up

    def _copy_modes(self) -> None:
        if not self._has_modes:
            self._has_modes = True
            termios.tcsetattr(self._slave, termios.TCSANOW, termios.tcgetattr(self._caller))

    def _copy_size(self) -> None:
        with contextlib.suppress(OSError):
            termios.tcsetwinsize(self._master, termios.tcgetwinsize(self._caller))

    def _uncook(self) -> None:
        """Leave the meaning of keys to the new terminal."""
        if not self._raw:
            with contextlib.suppress(termios.error):
                self._modes = termios.tcgetattr(self._caller)
                tty.setraw(self._caller, termios.TCSADRAIN)
                self._raw = True

    def _cook(self) -> None:
        if self._raw:
            self._raw = False
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._caller, termios.TCSADRAIN, self._modes)


def _interest(poller: select.poll, descriptor: int, *, reads: bool, writes: bool) -> None:
    events = (select.POLLIN if reads else 0) | (select.POLLOUT if writes else 0)
    if events:
        poller.register(descriptor, events)
    else:
        with contextlib.suppress(KeyError):  # poll would tell a hang-up again and again
            poller.unregister(descriptor)


def _take(descriptor: int, into: bytearray) -> bool:
    """Read what is there; whether there was something, or may be later."""
    try:
        data = os.read(descriptor, PIECE_BYTES)
    except BlockingIOError:
        return False
    except OSError:
        return False
    into += data
    return bool(data)


def _give(descriptor: int, data: bytearray) -> bool:
    """Write what is taken; what nobody can take any more is dropped. Whether something was."""
    if not data:
        return False
    try:
        done = os.write(descriptor, data)
    except BlockingIOError:
        return False
    except OSError:
        done = len(data)
    del data[:done]
    return True


def _signal_descriptor(numbers: set[signal.Signals]) -> int:
    """Return a descriptor that gives signals which are blocked (signalfd(2), which Python does not have)."""
    mask = (ctypes.c_uint64 * 16)(sum(1 << (number - 1) for number in numbers))
    descriptor: int = _libc.signalfd(-1, ctypes.byref(mask), os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return descriptor
