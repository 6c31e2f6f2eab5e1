"""Ways to have a program executed: commands.py WAY MARKER makes /bin/echo print the marker, or something does so."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import NoReturn

ECHO = "/bin/echo"
LOADER = "/lib64/ld-linux-x86-64.so.2"
_NEWNS, _NEWUSER = 0x20000, 0x10000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_PADDING = ["x" * 100_000] * 13

libc = ctypes.CDLL(None, use_errno=True)


def execute(program: str | int, words: list[str]) -> NoReturn:
    """Become a program, by its path or by a descriptor."""
    os.execve(program, words, os.environ)  # noqa: S606 (no shell is the point)


def daemon(marker: str) -> None:
    """Execute it from a daemon."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    time.sleep(0.3)
    execute(ECHO, [ECHO, marker])


def memfd(marker: str) -> None:
    """Execute a copy that has never had a name."""
    fd = os.memfd_create("harmless")
    os.write(fd, Path(ECHO).read_bytes())
    execute(fd, [ECHO, marker])


def deleted(marker: str) -> None:
    """Execute a copy whose name is gone."""
    folder = Path(tempfile.mkdtemp())
    copy = Path(shutil.copy(ECHO, folder / "harmless"))
    fd = os.open(copy, os.O_RDONLY)
    shutil.rmtree(folder)
    execute(fd, [ECHO, marker])


def loader(marker: str) -> None:
    """Let the dynamic loader run it."""
    execute(LOADER, [LOADER, ECHO, marker])


def script(marker: str) -> None:
    """Let a script's first line name it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "harmless")
        path.write_text(f"#!{ECHO} {marker}\n")
        path.chmod(0o755)
        subprocess.run([path], check=True)


def argv0(marker: str) -> None:
    """Give it another name."""
    execute(ECHO, ["harmless", marker])


def padding(marker: str) -> None:
    """Put more arguments before the one that counts than are kept."""
    execute(ECHO, [ECHO, *_PADDING, marker])


def short(marker: str) -> None:
    """Run 200 of them, one after the other."""
    for number in range(200):
        subprocess.run([ECHO, marker, str(number)], check=True)


def bind(marker: str) -> None:
    """Mount it over a harmless program, in a mount namespace of one's own."""
    if libc.unshare(_NEWUSER | _NEWNS) < 0 or libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) < 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if libc.mount(ECHO.encode(), b"/usr/bin/true", None, _MS_BIND, None) < 0:
        raise OSError(ctypes.get_errno(), "mount")
    execute("/usr/bin/true", ["/usr/bin/true", marker])


def hide_log(marker: str) -> None:
    """Mount something over the log and the pins, then execute."""
    if libc.unshare(_NEWUSER | _NEWNS) < 0 or libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) < 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for path in os.environ["HIDDEN"].split(":"):
        if libc.mount(b"/usr", path.encode(), None, _MS_BIND, None) < 0:
            raise OSError(ctypes.get_errno(), "mount")
    execute(ECHO, [ECHO, marker])


def _rename(path: str) -> None:
    Path(path).rename(path + "x")


def remove_pins(marker: str) -> None:
    """Try to remove the pins, then execute."""
    for path in os.environ["PINS"].split(":"):
        for attempt in (os.unlink, os.rmdir, _rename):
            try:
                attempt(path)
            except OSError:
                continue
            raise SystemExit(f"{path} is gone")
    execute(ECHO, [ECHO, marker])


def shell_input(_marker: str) -> None:
    """Tell a shell on its standard input what to do: a builtin, which is executed by nobody."""
    words = os.environ["SECRET"]
    subprocess.run(["/bin/sh"], input=f"echo {words}\n", text=True, check=True)


def quiet_terminal(_marker: str) -> None:
    """Tell a shell on a terminal that shows nothing."""
    master, slave = os.openpty()
    modes = termios.tcgetattr(slave)
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    os.write(master, f"echo {os.environ['SECRET']}\n\4".encode())
    subprocess.run(["/bin/sh"], stdin=slave, check=True)


def behind_data(_marker: str) -> None:
    """Tell a shell very much that does nothing, and then something."""
    words = ("#" * 999 + "\n") * 3000 + f"echo {os.environ['SECRET']}\n"
    subprocess.run(["/bin/sh"], input=words, text=True, check=True)


def renamed_shell(_marker: str) -> None:
    """Tell a copy of a shell that is not called one."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy("/bin/sh", Path(folder, "harmless"))
        subprocess.run([copy], input=f"echo {os.environ['SECRET']}\n", text=True, check=True)


def own_code(_marker: str) -> None:
    """Do it oneself, with code that is read from a file."""
    exec(Path(os.environ["CODE"]).read_text())  # noqa: S102 (that is the attack)


def ask_daemon(marker: str) -> None:
    """Ask a process outside the watch to run it, on the Unix socket DAEMON."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(os.environ["DAEMON"])
        s.sendall(f"{ECHO} {marker}\n".encode())
        s.recv(1)


def write_spool(marker: str) -> None:
    """Write what to run to SPOOL, where a process outside the watch finds it."""
    Path(os.environ["SPOOL"]).write_text(f"{ECHO} {marker}\n")


def push_input(_marker: str) -> None:
    """Push a command line into the terminal's input, for the shell that gets the terminal back."""
    for character in os.environ["LINE"] + "\n":
        fcntl.ioctl(0, termios.TIOCSTI, character.encode())


WAYS = {
    way.__name__: way
    for way in (
        daemon, memfd, deleted, loader, script, argv0, padding, short, bind, hide_log, remove_pins, shell_input,
        quiet_terminal, behind_data, renamed_shell, own_code, ask_daemon, write_spool, push_input,
    )
}  # fmt: skip

if __name__ == "__main__":
    WAYS[sys.argv[1]](sys.argv[2])
