"""``agentwatch run`` on real cgroups, users, terminals and signals. Truth: what the command itself sees in /proc.

No probes are loaded: an entry in the folder of pins stands for them, because only its presence is looked at.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentwatch import launcher
from agentwatch.config import AgentConfig, Config, find_cgroup2_mount
from agentwatch.errors import BusyError, ConfigError
from agentwatch.identity import cgroups, processes, sessions, users
from agentwatch.log.writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes cgroups and changes users: needs root"),
]

AGENT = "backfill"
USER = "nobody"
WAIT_SECONDS = 20
MAIN = [sys.executable, "-c", "from agentwatch.cli import main; main()"]


class Host:
    """A configuration under a temporary root with a watch root of its own."""

    def __init__(self, root: Path) -> None:
        self.watch = f"agents-test-{os.getpid()}-{uuid.uuid4().hex[:6]}.slice"
        self.run_dir = root / "run"
        self.pin_dir = root / "pins"
        self.path = root / "agentwatch.toml"
        links = self.pin_dir / "links"
        links.mkdir(parents=True)
        (links / "on_exec").touch()
        self.slice = find_cgroup2_mount() / self.watch
        self.configure(f"{self.watch}/{AGENT}*")

    def configure(self, pattern: str, *more: AgentConfig) -> None:
        self.agent = AgentConfig(AGENT, pattern)
        self.config = Config(run_dir=self.run_dir, watch=self.watch, agents=(*more, self.agent))
        tables = "".join(f'[[agent]]\nname = "{a.name}"\ncgroup = "{a.cgroup}"\n' for a in self.config.agents)
        self.path.write_text(
            f'log_dir = "{self.run_dir}/log"\nrun_dir = "{self.run_dir}"\npin_dir = "{self.pin_dir}"\n'
            f'watch = "{self.watch}"\n{tables}'
        )

    def words(self, *command: str, user: str | None = USER, agent: str = AGENT) -> list[str]:
        account = [] if user is None else ["--user", user]
        return [*MAIN, "--config", str(self.path), "run", "--agent", agent, *account, "--", *command]

    def run(self, *command: str, user: str | None = USER, **options: Any) -> subprocess.CompletedProcess[str]:
        options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
        words = self.words(*command, user=user)
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, **options)

    def registrations(self) -> list[sessions.Registration]:
        return sessions.load_all(self.run_dir)

    def close(self) -> None:
        for pid in cgroups.processes(self.slice):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: cgroups.remove(self.slice))


@pytest.fixture
def host() -> Iterator[Host]:
    root = Path(tempfile.mkdtemp(prefix="agentwatch-run-"))
    root.chmod(0o755)
    instance = Host(root)
    try:
        yield instance
    finally:
        instance.close()
        shutil.rmtree(root)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("timed out")
        time.sleep(0.01)


def running(host: Host, words: list[str], program: str, **options: Any) -> tuple[subprocess.Popen[str], int]:
    """Start a run; return it and the command's tgid once it executes ``program``."""
    process = subprocess.Popen(words, text=True, **options)
    found: list[int] = []

    def started() -> bool:
        found[:] = [p.pid for p in processes.snapshot(host.slice) if p.argv and p.argv[0] == program]
        return bool(found)

    wait_until(started)
    return process, found[0]


# --- what the command is ------------------------------------------------------------------------------------


def test_command_is_in_its_cgroup_from_its_first_instruction(host: Host) -> None:
    done = host.run("/bin/cat", "/proc/self/cgroup")
    line = next(line for line in done.stdout.splitlines() if line.startswith("0:"))
    assert line.startswith(f"0::/{host.watch}/{AGENT}-")
    (registration,) = host.registrations()
    assert line == f"0::/{registration.cgroup}"
    assert registration.agent == AGENT
    assert registration.argv == ["/bin/cat", "/proc/self/cgroup"]
    assert (registration.user, registration.uid) == (USER, pwd.getpwnam(USER).pw_uid)
    assert (registration.origin, registration.status) == ("run", 0)
    assert not (host.slice / registration.cgroup.rpartition("/")[2]).exists()


def test_registration_exists_before_the_command_runs(host: Host) -> None:
    script = f"/bin/cat {host.run_dir}/sessions/*.json; stat -c %i $1/$(grep ^0: /proc/self/cgroup | cut -d: -f3)"
    done = host.run("/bin/sh", "-c", script, "sh", str(host.config.cgroup_root), user="root")
    table, inode = done.stdout.rsplit("}", 1)
    registration = json.loads(table + "}")
    assert registration["cgroup_id"] == int(inode)
    assert registration["status"] is None


def test_no_privilege_is_left(host: Host) -> None:
    done = host.run("/bin/cat", "/proc/self/status", "/proc/self/loginuid")
    status = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    account = pwd.getpwnam(USER)
    assert status["Uid"].split() == [str(account.pw_uid)] * 4
    assert status["Gid"].split() == [str(account.pw_gid)] * 4
    assert sorted(status["Groups"].split()) == sorted(map(str, os.getgrouplist(USER, account.pw_gid)))
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[name], 16) == 0, name


def test_inheritable_capabilities_of_the_caller_are_not_passed_on(host: Host) -> None:
    words = [
        "/sbin/setpriv",
        "--inh-caps",
        "+net_admin",
        "--ambient-caps",
        "+net_admin",
        *host.words("/bin/cat", "/proc/self/status"),
    ]
    if not Path(words[0]).exists():
        words[0] = "/usr/bin/setpriv"
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    status = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    assert (int(status["CapInh"], 16), int(status["CapAmb"], 16), int(status["CapPrm"], 16)) == (0, 0, 0)


def test_command_may_not_leave_its_cgroup_nor_read_registrations(host: Host) -> None:
    script = f"echo $$ > {host.config.cgroup_root}/cgroup.procs; ls {host.run_dir}/sessions"
    done = host.run("/bin/sh", "-c", script)
    assert done.returncode != 0
    assert done.stderr.count("ermission denied") == 2


def test_environment_says_who_the_command_is(host: Host) -> None:
    done = host.run("/usr/bin/env", env={**os.environ, "HOME": "/root", "USER": "root", "KEPT": "yes"})
    environment = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    account = pwd.getpwnam(USER)
    assert (environment["HOME"], environment["SHELL"]) == (account.pw_dir, account.pw_shell)
    assert (environment["USER"], environment["LOGNAME"], environment["KEPT"]) == (USER, USER, "yes")


def test_umask_and_working_directory_are_the_callers(host: Host) -> None:
    done = host.run("/bin/sh", "-c", "umask; pwd", cwd="/usr/lib", umask=0o037)
    assert done.stdout.split() == ["0037", "/usr/lib"]


def test_only_the_standard_streams_are_open(host: Host) -> None:
    with Path("/etc/passwd").open() as f:
        os.set_inheritable(f.fileno(), True)  # noqa: FBT003 (its only signature)
        done = host.run("/bin/sh", "-c", "ls /proc/$$/fd", pass_fds=[f.fileno()])
    assert done.stdout.split() == ["0", "1", "2"]


def ignored(status: dict[str, str]) -> int:
    """Return the mask of ignored signals without 32 and 33: glibc's posix_spawn (make) ignores them, and keeps them."""
    return int(status["SigIgn"], 16) & ~(0b11 << 31)


def test_signals_are_as_a_fresh_program_expects(host: Host) -> None:
    done = host.run("/bin/cat", "/proc/self/status")
    status = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    assert (int(status["SigBlk"], 16), ignored(status)) == (0, 0)


def test_ignored_hangup_stays_ignored(host: Host) -> None:
    done = subprocess.run(
        ["/usr/bin/nohup", *host.words("/bin/cat", "/proc/self/status")], capture_output=True, text=True, check=True
    )
    status = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    assert ignored(status) == 1 << (signal.SIGHUP - 1)


def test_without_a_user_the_one_who_called_sudo_is_meant(host: Host) -> None:
    uid = pwd.getpwnam(USER).pw_uid
    assert host.run("/usr/bin/id", "-u", user=None, env={**os.environ, "SUDO_UID": str(uid)}).stdout == f"{uid}\n"
    plain = {name: value for name, value in os.environ.items() if name != "SUDO_UID"}
    done = host.run("/usr/bin/id", "-u", user=None, env=plain)
    assert done.stdout == "0\n"
    assert "runs as root" in done.stderr


def test_uid_without_an_account_works(host: Host) -> None:
    done = host.run("/usr/bin/id", user="54321")
    assert done.stdout.split()[0] == "uid=54321"
    assert "gid=54321" in done.stdout


# --- streams, statuses, signals --------------------------------------------------------------------------------


def test_standard_streams_are_untouched(host: Host) -> None:
    data = "x" * 1_000_000
    done = host.run("/bin/sh", "-c", "cat; echo wrong >&2", input=data)
    assert done.stdout == data
    assert done.stderr.endswith("wrong\n")


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_exit_status_is_the_commands(host: Host, status: int) -> None:
    assert host.run("/bin/sh", "-c", f"exit {status}").returncode == status
    assert host.registrations()[0].status == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1])
def test_death_by_a_signal_is_passed_on_as_that_signal(host: Host, number: signal.Signals) -> None:
    assert host.run("/bin/sh", "-c", f"kill -{number.value} $$").returncode == -number
    assert host.registrations()[0].status == 128 + number
    shell = subprocess.run(
        ["/bin/sh", "-c", '"$@"; echo $?', "sh", *host.words("/bin/sh", "-c", f"kill -{number.value} $$")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shell.stdout == f"{128 + number}\n"


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("no-such-command", 127, "no-such-command: command not found"),
        ("", 127, "command not found"),
        ("/no/such/file", 127, "/no/such/file: No such file"),
        ("/etc/passwd", 126, "/etc/passwd: Permission denied"),
        ("/etc", 126, "/etc: Permission denied"),
    ],
)
def test_command_that_cannot_be_executed_ends_as_in_a_shell(
    host: Host, command: str, status: int, message: str
) -> None:
    done = host.run(command)
    assert done.returncode == status
    assert message in done.stderr
    assert host.registrations()[0].status == status


def test_script_without_an_interpreter_line_runs_in_the_shell(host: Host) -> None:
    script = host.path.with_name("script")
    script.write_text("echo $0 $1\n")
    script.chmod(0o755)
    assert host.run(str(script), "argument").stdout == f"{script} argument\n"


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH", "CONT"])
def test_signal_reaches_the_command_once(host: Host, name: str) -> None:
    code = (
        "import signal, sys, time\n"
        "got = []\n"
        f"signal.signal(signal.SIG{name}, lambda *_: (print('got it', flush=True), got.append(1)))\n"
        "print('ready', flush=True)\n"
        "while not got: time.sleep(0.02)\n"
        "time.sleep(0.3)\n"
    )
    process = subprocess.Popen(
        host.words("/usr/bin/python3", "-c", code), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.Signals[f"SIG{name}"])
    output, _ = process.communicate(timeout=WAIT_SECONDS)
    assert output == "got it\n"
    assert process.returncode == 0


def test_stop_and_continue_pass_through(host: Host) -> None:
    process, pid = running(host, host.words("/bin/sleep", "60"), "/bin/sleep", stderr=subprocess.DEVNULL)

    def state(of: int) -> str:
        return Path(f"/proc/{of}/stat").read_text().rpartition(")")[2].split()[0]

    process.send_signal(signal.SIGTSTP)
    wait_until(lambda: state(pid) == "T" and state(process.pid) == "T")
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: state(pid) == "S" and state(process.pid) == "S")
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_SECONDS) == -signal.SIGTERM


def test_killed_launcher_leaves_the_command_running_in_its_cgroup(host: Host) -> None:
    words = host.words("/bin/sleep", "60")
    process, pid = running(host, words, "/bin/sleep", stderr=subprocess.DEVNULL, start_new_session=True)
    process.kill()
    process.wait(WAIT_SECONDS)
    assert cgroups.processes(host.slice) == [pid]
    assert host.registrations()[0].status is None


def in_terminal(words: list[str]) -> tuple[int, int]:
    """Start a program on a terminal of its own; return its pid and the terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(words[0], words)  # noqa: S606 (a real program on a real terminal)
    settings = termios.tcgetattr(terminal)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, settings)
    return pid, terminal


def read_until(terminal: int, *texts: str) -> str:
    """Read until the texts have come, one after the other."""
    output = b""
    at = 0
    for text in texts:
        while (found := output.find(text.encode(), at)) < 0:
            try:
                output += os.read(terminal, 4096)
            except OSError:
                pytest.fail(f"the terminal closed before {text!r}: {output.decode()}")
        at = found + len(text)
    return output.decode()


def test_command_on_a_terminal_is_in_the_foreground(host: Host) -> None:
    code = (
        "import os, sys\n"
        "print('tty', os.isatty(0), os.tcgetpgrp(0) == os.getpgrp(), flush=True)\n"
        "try:\n  print('read', sys.stdin.readline().strip(), flush=True); sys.stdin.readline()\n"
        "except KeyboardInterrupt:\n  print('interrupted', flush=True); sys.exit(3)\n"
    )
    pid, terminal = in_terminal(host.words("/usr/bin/python3", "-c", code))
    read_until(terminal, "tty True True")
    os.write(terminal, b"hello\n")
    read_until(terminal, "read hello")
    os.write(terminal, b"\x03")
    output = read_until(terminal, "interrupted")
    assert output.count("interrupted") == 1
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 3


def test_job_control_of_a_shell_stops_and_continues_the_session(host: Host) -> None:
    pid, terminal = in_terminal(["/bin/bash", "--norc", "--noprofile", "-i"])
    words = " ".join(f"'{word}'" for word in host.words("/bin/cat"))
    os.write(terminal, f"PS1=prompt:; {words}\n".encode())
    wait_until(lambda: any(p.argv == ["/bin/cat"] for p in processes.snapshot(host.slice)))
    os.write(terminal, b"\x1a")
    read_until(terminal, "Stopped")
    os.write(terminal, b"fg\n")
    os.write(terminal, b"again\n")
    read_until(terminal, "again")
    os.write(terminal, b"\x04")
    read_until(terminal, "prompt:")
    os.write(terminal, b"echo status:$?; exit\n")
    read_until(terminal, "status:0")
    os.waitpid(pid, 0)
    os.close(terminal)


# --- a terminal of the command's own --------------------------------------------------------------------------


def shell_in_terminal() -> tuple[int, int]:
    """Start an interactive shell with job control; its prompt is ``prompt:``."""
    pid, terminal = in_terminal(["/bin/bash", "--norc", "--noprofile", "-i"])
    os.write(terminal, b"PS1=prom''pt:; bind 'set enable-bracketed-paste off'\n")
    read_until(terminal, "prompt:")
    return pid, terminal


def modes(terminal: int) -> list[Any]:
    return termios.tcgetattr(terminal)


TELL = """
import os, signal, sys, time
def tell(*_):
    size = os.get_terminal_size(0)
    print('size', size.columns, size.lines, flush=True)
signal.signal(signal.SIGWINCH, tell)
print('is', os.ttyname(0), os.stat(os.ttyname(0)).st_uid == os.getuid(), os.getsid(0) != int(sys.argv[1]), flush=True)
tell()
sys.stdin.readline()
sys.exit(5)
"""


def test_command_has_a_terminal_of_its_own_that_follows_the_callers(host: Host) -> None:
    words = shlex.join(host.words("/usr/bin/python3", "-c", TELL))
    pid, terminal = in_terminal(["/bin/sh", "-c", f"echo of:$(tty):; {words} $$; exit $?"])
    termios.tcsetwinsize(terminal, (31, 101))
    before = modes(terminal)
    output = read_until(terminal, "size 101 31")
    callers, own = output.split("of:")[1].split(":")[0], output.split("\nis ")[1].split()[0]
    assert f"\nis {own} True True" in output
    assert own != callers
    assert not modes(terminal)[3] & (termios.ICANON | termios.ISIG)
    termios.tcsetwinsize(terminal, (32, 102))
    read_until(terminal, "size 102 32")
    os.write(terminal, b"\r")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 5
    assert modes(terminal) == before
    os.close(terminal)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_death_on_a_terminal_is_passed_on_and_the_modes_restored(host: Host, number: signal.Signals) -> None:
    pid, terminal = in_terminal(host.words("/bin/sh", "-c", f"echo re''ady; kill -{int(number)} $$"))
    before = modes(terminal)
    read_until(terminal, "ready")
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == number
    assert modes(terminal) == before
    os.close(terminal)


def test_signal_to_the_launcher_on_a_terminal_reaches_the_command_once(host: Host) -> None:
    code = "trap 'echo got it' USR1; echo re''ady; while :; do sleep 0.1; done"
    pid, terminal = in_terminal(host.words("/bin/sh", "-c", code))
    read_until(terminal, "ready")
    os.kill(pid, signal.SIGUSR1)
    read_until(terminal, "got it")
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    os.close(terminal)


def test_much_output_on_a_terminal_is_complete(host: Host) -> None:
    pid, terminal = in_terminal(host.words("/usr/bin/seq", "200000"))
    output = read_until(terminal, "\n200000\r\n")
    assert output.split()[-200000:] == [str(n) for n in range(1, 200001)]
    os.waitpid(pid, 0)
    os.close(terminal)


def test_pager_behind_a_pipe_keeps_the_callers_terminal(host: Host) -> None:
    pid, terminal = shell_in_terminal()
    read = "exec 3</dev/tty; echo asks; read x <&3; echo pager:$x; cat >/dev/null"
    os.write(terminal, f"{shlex.join(host.words('/bin/sh', '-c', 'echo out; sleep 0.5'))} | sh -c '{read}'\n".encode())
    read_until(terminal, "asks\r")
    os.write(terminal, b"key\n")
    read_until(terminal, "pager:key", "prompt:")
    os.write(terminal, b"exit\n")
    os.waitpid(pid, 0)
    os.close(terminal)


def test_command_in_a_pipeline_gets_the_terminal_when_it_reads(host: Host) -> None:
    pid, terminal = shell_in_terminal()
    os.write(
        terminal, f"{shlex.join(host.words('/bin/sh', '-c', 'echo asks >&2; read x; echo told:$x'))} | cat\n".encode()
    )
    read_until(terminal, "asks\r")
    os.write(terminal, b"key\n")
    read_until(terminal, "told:key", "prompt:")
    os.write(terminal, b"exit\n")
    os.waitpid(pid, 0)
    os.close(terminal)


def test_command_in_the_background_stops_when_it_reads(host: Host) -> None:
    pid, terminal = shell_in_terminal()
    words = shlex.join(host.words("/bin/sh", "-c", "read x; echo told:$x"))
    os.write(terminal, f"{words} &\n".encode())
    wait_until(lambda: any(p.argv and p.argv[0] == "/bin/sh" for p in processes.snapshot(host.slice)))
    os.write(terminal, b"sleep 1; jobs\n")
    read_until(terminal, "Stopped")
    os.write(terminal, b"fg\n")
    os.write(terminal, b"key\n")
    read_until(terminal, "told:key", "prompt:")
    os.write(terminal, b"exit\n")
    os.waitpid(pid, 0)
    os.close(terminal)


def test_command_that_nobody_can_bring_to_the_foreground_reads_an_end(host: Host, tmp_path: Path) -> None:
    pid, terminal = shell_in_terminal()
    out = tmp_path / "out"
    words = shlex.join(host.words("/bin/sh", "-c", "read x; echo status:$?"))
    os.write(terminal, f"({words} > {out} </dev/tty &)\n".encode())
    wait_until(lambda: out.exists() and out.read_text() == "status:1\n")
    os.write(terminal, b"exit\n")
    os.waitpid(pid, 0)
    os.close(terminal)


def test_what_a_command_leaves_behind_is_not_hung_up(host: Host) -> None:
    pid, terminal = in_terminal(host.words("/bin/sh", "-c", "sleep 60 & echo left:$!:"))
    left = int(read_until(terminal, ":\r\n").split("left:")[1].split(":")[0])
    os.waitpid(pid, 0)
    os.close(terminal)
    time.sleep(0.2)
    (registration,) = host.registrations()
    path = host.config.cgroup_root / registration.cgroup
    assert cgroups.processes(path) == [left]
    os.kill(left, signal.SIGKILL)
    wait_until(lambda: cgroups.remove(path))


# --- the session's life ---------------------------------------------------------------------------------------


def test_background_child_outlives_the_command_in_the_session(host: Host) -> None:
    done = host.run("/bin/sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!")
    assert done.returncode == 0
    (registration,) = host.registrations()
    path = host.config.cgroup_root / registration.cgroup
    assert cgroups.processes(path) == [int(done.stdout)]
    assert registration.status == 0
    os.kill(int(done.stdout), signal.SIGKILL)
    wait_until(lambda: cgroups.remove(path))


def test_runs_at_the_same_time_have_sessions_of_their_own(host: Host) -> None:
    def one(number: int) -> str:
        argv = ["/bin/sh", "-c", f"grep ^0: /proc/self/cgroup; exit {number}"]
        code = (
            "import os, pathlib, sys\nfrom agentwatch import config, launcher\nfrom agentwatch.identity import users\n"
            "c = config.load(pathlib.Path(sys.argv[1]))\n"
            "status = launcher.launch(c, c.agents[0], users.resolve('nobody'), sys.argv[2:])\n"
            "os._exit(os.waitstatus_to_exitcode(status))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(host.path), *argv], capture_output=True, text=True, check=False
        )
        assert done.returncode == number, done.stderr
        return done.stdout.strip()

    with ThreadPoolExecutor(10) as pool:
        seen = list(pool.map(one, range(100)))
    assert len(set(seen)) == 100
    registered = host.registrations()
    assert len({r.session for r in registered}) == 100
    assert {f"0::/{r.cgroup}" for r in registered} == set(seen)
    assert sorted(r.status for r in registered if r.status is not None) == list(range(100))
    assert [path for path in host.slice.iterdir() if path.is_dir()] == []


def test_fixed_cgroup_holds_one_session_at_a_time(host: Host) -> None:
    host.configure(f"{host.watch}/{AGENT}")
    process, _ = running(
        host, host.words("/bin/sleep", "60"), "/bin/sleep", stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    second = host.run("/bin/true")
    assert second.returncode == BusyError.exit_status
    assert "is running already" in second.stderr
    process.terminate()
    process.wait(WAIT_SECONDS)
    assert host.run("/bin/true").returncode == 0
    assert len(host.registrations()) == 2


def test_fixed_cgroup_that_was_left_empty_gets_a_new_session(host: Host) -> None:
    host.configure(f"{host.watch}/{AGENT}")
    old = cgroups.make(host.slice / AGENT)
    assert host.run("/bin/true").returncode == 0
    assert [r.cgroup_id for r in host.registrations()] != [old]


def test_fixed_cgroup_with_a_process_left_behind_is_busy(host: Host) -> None:
    host.configure(f"{host.watch}/{AGENT}")
    host.run("/bin/sh", "-c", "sleep 60 >/dev/null 2>&1 &")
    assert host.run("/bin/true").returncode == BusyError.exit_status


def test_session_that_the_recorder_saw_first_keeps_its_identifier(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder's claim is made at the moment in which it can happen: after mkdir, before ours."""
    made: list[sessions.Registration] = []
    ours = sessions.claim

    def claim(run_dir: Path, registration: sessions.Registration) -> sessions.Registration:
        other = sessions.Registration(
            session=sessions.new_session_id(),
            agent=registration.agent,
            cgroup=registration.cgroup,
            cgroup_id=registration.cgroup_id,
            user=None,
            uid=None,
            login_uid=None,
            argv=None,
            origin="cgroup",
            boottime=1,
        )
        made.append(ours(run_dir, other))
        return ours(run_dir, registration)

    monkeypatch.setattr(sessions, "claim", claim)
    assert launcher.launch(host.config, host.agent, users.resolve(USER), ["/bin/true"]) == 0
    (registration,) = host.registrations()
    assert registration.session == made[0].session
    assert (registration.argv, registration.origin) == (["/bin/true"], "run")


def test_status_that_cannot_be_written_does_not_change_the_result(host: Host) -> None:
    script = f"rm -r {host.run_dir}; touch {host.run_dir}; exit 5"
    done = host.run("/bin/sh", "-c", script, user="root")
    assert done.returncode == 5
    assert "without an exit status" in done.stderr


def test_warning_is_given_only_while_no_recorder_holds_the_log(host: Host) -> None:
    assert "recorder is not running" in host.run("/bin/true").stderr
    writer = LogWriter(host.run_dir / "log")
    try:
        assert host.run("/bin/true").stderr == ""
    finally:
        writer.close()
    assert "recorder is not running" in host.run("/bin/true").stderr


# --- what is refused -----------------------------------------------------------------------------------------


def test_unknown_agent_names_the_known_ones(host: Host) -> None:
    done = subprocess.run(host.words("/bin/true", agent="other"), capture_output=True, text=True, check=False)
    assert done.returncode == 66
    assert done.stderr == f"agentwatch: there is no agent 'other' in {host.path}; known: {AGENT}\n"


def test_unknown_user_is_one_clear_line(host: Host) -> None:
    done = host.run("/bin/true", user="no-such-user")
    assert (done.returncode, done.stderr.count("\n")) == (66, 1)


def test_without_probes_nothing_runs(host: Host) -> None:
    (host.pin_dir / "links" / "on_exec").unlink()
    done = host.run("/bin/echo", "ran")
    assert (done.returncode, done.stdout) == (69, "")
    assert "agentwatch probes load" in done.stderr
    assert host.registrations() == []


def test_without_root_nothing_runs(host: Host) -> None:
    code = "import os, sys; os.setresuid(65534, 65534, 65534); from agentwatch.cli.run import command; command()"
    words = [sys.executable, "-c", code, "--config", str(host.path), "--agent", AGENT, "--", "/bin/echo", "ran"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert "needs root" in done.stderr


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("elsewhere.slice/backfill*", "does not lie under watch"), ("{watch}/x/[\u0001]", "no cgroup name can be made")],
)
def test_pattern_that_cannot_be_watched_is_refused(host: Host, pattern: str, message: str) -> None:
    agent = AgentConfig(AGENT, pattern.format(watch=host.watch))
    config = Config(run_dir=host.run_dir, watch=host.watch, agents=(agent,))
    with pytest.raises(ConfigError, match=message):
        launcher.launch(config, agent, users.resolve(USER), ["/bin/true"])


def test_name_that_an_earlier_agent_claims_is_refused(host: Host) -> None:
    host.configure(f"{host.watch}/{AGENT}*", AgentConfig("all", f"{host.watch}/*"))
    with pytest.raises(ConfigError, match="belongs to all"):
        launcher.launch(host.config, host.agent, users.resolve(USER), ["/bin/true"])
    assert not host.slice.exists() or not any(p.is_dir() for p in host.slice.iterdir())


def test_patterns_with_other_wildcards_get_a_name_that_matches(host: Host) -> None:
    host.configure(f"{host.watch}/*/job-[ab]?.service")
    done = host.run("/bin/cat", "/proc/self/cgroup")
    assert f"0::/{host.watch}/{AGENT}/job-" in done.stdout
    assert done.returncode == 0
