"""What interpreters are told on their standard input, compared line by line with what their drivers wrote."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.kernel.fix_watch import AGENT, SETTLE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agentwatch.records.encoding import Record
    from tests.kernel.fix_postgres import PostgresServer
    from tests.kernel.fix_watch import Watch

pytestmark = pytest.mark.kernel

PROMPT_SECONDS = 60
PROMPT = "ready> "
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "HOME": "/nonexistent",
    "INPUTRC": "/dev/null",
    "PS1": PROMPT,
    "PSQL_PAGER": "cat",
}


class Session(NamedTuple):
    """One run of an agent and the lines that were recorded of it."""

    lines: list[Record]

    @property
    def texts(self) -> list[str]:
        """Return all lines in the order of the log."""
        return [record["text"] for record in self.lines]

    @property
    def told(self) -> list[str]:
        """Return the lines of the input that was read first: the shell's own, without here-documents and files."""
        return [record["text"] for record in self.lines if record["input"] == self.lines[0]["input"]]


@contextmanager
def recorded(watch: Watch) -> Iterator[list[Session]]:
    """Give the session that runs inside, once it is over and recorded."""
    before = {row["session"] for row in watch.rows("sessions")}
    result: list[Session] = []
    yield result
    session = watch.ended_session(before)
    result.append(Session([r for r in watch.records("command_input") if r["session"] == session]))


def words(watch: Watch, *command: str) -> list[str]:
    return watch.command("run", "--agent", AGENT, "--user", watch.user, "--", *command)


def pipe_to(watch: Watch, *command: str, data: bytes) -> tuple[Session, bytes]:
    """Write data to a command's standard input; return what was recorded and what it printed."""
    with recorded(watch) as found:
        done = subprocess.run(
            words(watch, *command),
            input=data,
            stdout=subprocess.PIPE,
            cwd=watch.root,
            env=ENVIRONMENT,
            timeout=PROMPT_SECONDS,
            check=True,
        )
    return found[0], done.stdout


class Terminal:
    """A command on a pseudo terminal, driven as an agent does: a line for each prompt."""

    def __init__(self, watch: Watch, *command: str, prompt: str) -> None:
        self.prompt = prompt.encode()
        self.master, slave = os.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *words(watch, *command)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=watch.root,
            env=ENVIRONMENT,
        )
        os.close(slave)
        self.printed = b""

    def say(self, line: str) -> None:
        """Wait for the prompt and answer it."""
        self.await_(self.prompt)
        os.write(self.master, f"{line}\n".encode())

    def await_(self, text: bytes) -> None:
        """Wait until a text was printed since it was last waited for."""
        os.set_blocking(self.master, False)
        deadline = time.monotonic() + PROMPT_SECONDS
        while text not in self.printed:
            assert time.monotonic() < deadline, self.printed
            with suppress(BlockingIOError):
                self.printed += os.read(self.master, 65536)
            time.sleep(0.01)
        self.printed = self.printed.partition(text)[2]

    def end(self) -> int:
        """Read until the command has ended; return its status."""
        os.set_blocking(self.master, True)
        with suppress(OSError):  # EIO: nobody has the terminal any more
            while os.read(self.master, 65536):
                pass
        os.close(self.master)
        return self.process.wait(PROMPT_SECONDS)


def type_into(watch: Watch, *command: str, lines: Sequence[str], prompt: str = PROMPT) -> Session:
    """Type lines on a terminal, one for each prompt; the last one ends the command."""
    with recorded(watch) as found:
        terminal = Terminal(watch, *command, prompt=prompt)
        try:
            for line in lines:
                terminal.say(line)
            assert terminal.end() == 0
        finally:
            terminal.process.kill()
            terminal.process.wait()
    return found[0]


def await_records(watch: Watch, condition: Callable[[list[Record]], object]) -> list[Record]:
    """Return the lines in the log once they meet a condition."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not condition(found := watch.records("command_input")):
        assert time.monotonic() < deadline, found
        watch.check_recorder()
        time.sleep(0.05)
    return found


SCRIPT = """\
cd /tmp && umask 077
quoted='a b  c'	# a tab, and ümläuts
while read line; do echo "read $line"; done <<END
first of a here-document
	second
END
while read line; do echo "$line"; done < LINES
printf 'after a redirection %s\\n' "$quoted"

/bin/true; exec 7>/dev/null
echo done
"""


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_a_shell_on_a_pipe(watch: Watch, shell: str) -> None:
    file = watch.root / f"lines-{shell}"
    file.write_text("x\ny\n")
    script = SCRIPT.replace("LINES", str(file))
    session, printed = pipe_to(watch, shell, data=script.encode())
    assert printed.decode().splitlines() == [
        "read first of a here-document",
        "read second",
        "x",
        "y",
        "after a redirection a b  c",
        "done",
    ]
    assert session.told == script.splitlines()
    assert {(record["source"], record["ended_by"]) for record in session.lines if record["text"] not in ("x", "y")} == {
        ("pipe", "newline")
    }
    assert {record["exe"] for record in session.lines} == {f"/usr/bin/{shell}"}
    others = [record for record in session.lines if record["input"] != session.lines[0]["input"]]
    assert [record["text"] for record in others if record["source"] == "file"] == ["x", "y"]
    assert [record["text"] for record in others if record["source"] == "pipe"] == SCRIPT.splitlines()[3:5]


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_a_script_on_standard_input(watch: Watch, shell: str) -> None:
    script = watch.root / f"script-{shell}"
    lines = [f"/bin/true {n}; cd /usr" for n in range(40)]
    script.write_text("\n".join(lines))  # no newline at the end
    session, _ = pipe_to(watch, "/bin/sh", "-c", f"exec {shell} < {script}", data=b"")
    assert session.texts == lines
    assert {record["source"] for record in session.lines} == {"file"}
    assert [record["ended_by"] for record in session.lines] == ["newline"] * 39 + ["eof"]
    assert {record["input"] for record in session.lines} == {script.stat().st_ino}


@pytest.mark.parametrize(
    "command", [("bash", "--norc", "--noprofile", "-i"), ("dash", "-i")], ids=lambda command: command[0]
)
def test_a_shell_on_a_terminal(watch: Watch, command: tuple[str, ...]) -> None:
    lines = ["cd /tmp", "x='one  two'", "echo $x ü", "(read y) < /dev/null", "/bin/true", "exit 0"]
    session = type_into(watch, *command, lines=lines)
    assert session.texts == lines
    assert {record["source"] for record in session.lines} == {"tty"}


def test_python_on_a_pipe_and_on_a_terminal(watch: Watch) -> None:
    lines = ["import os", "x = os.getpid() and 6 * 7", "os.chdir('/tmp')", "raise SystemExit(0)"]
    session, _ = pipe_to(watch, "/usr/bin/python3", data="\n".join(lines).encode())
    assert session.texts == lines
    assert type_into(watch, "/usr/bin/python3", lines=lines, prompt=">>> ").texts == lines


def test_psql_on_a_pipe_and_on_a_terminal(watch: Watch, postgres: PostgresServer) -> None:
    command = ["psql", "-X", "-h", str(postgres.root), "-p", str(postgres.port), "-U", postgres.user, postgres.database]
    lines = ["\\set n 3", "SELECT :n", "  + 1 AS typed;", "\\echo told", "\\q"]
    session, printed = pipe_to(watch, *command, data="\n".join([*lines, ""]).encode())
    assert session.texts == lines
    assert b"told\n" in printed
    options = ["-v", f"PROMPT1={PROMPT}", "-v", f"PROMPT2={PROMPT}"]
    assert type_into(watch, *command, *options, lines=lines).texts == lines


@pytest.mark.skipif(shutil.which("node", path=ENVIRONMENT["PATH"]) is None, reason="needs node")
def test_node_opens_the_terminal_anew(watch: Watch) -> None:
    lines = ["1 + 1", "process.chdir('/tmp')", ".exit"]
    session, _ = pipe_to(watch, "node", "-", data=b"process.chdir('/tmp')\n1 + 1\n")
    assert session.texts == lines[1::-1]
    assert type_into(watch, "node", lines=lines, prompt="> ").texts == lines


DRIVER = """
import socket, subprocess
ours, theirs = socket.socketpair()
shell = subprocess.Popen(["bash"], stdin=theirs)
theirs.close()
ours.sendall(b"cd /tmp\\necho over a socket\\n")
ours.close()
raise SystemExit(shell.wait())
"""


def test_a_shell_whose_driver_gave_it_a_socket(watch: Watch) -> None:
    session, printed = pipe_to(watch, "/usr/bin/python3", "-c", DRIVER, data=b"")
    assert printed == b"over a socket\n"
    assert session.texts == ["cd /tmp", "echo over a socket"]
    assert {record["source"] for record in session.lines} == {"socket"}


def test_what_other_programs_read_is_not_recorded(watch: Watch) -> None:
    session, printed = pipe_to(watch, "/bin/cat", data=b"not a command\n")
    assert (session.lines, printed) == ([], b"not a command\n")
    session, printed = pipe_to(watch, "/bin/sh", "-c", "shuf < /etc/hostname; python3 -c pass", data=b"data\n")
    assert session.lines == []


def test_bytes_that_are_no_text_survive(watch: Watch) -> None:
    session, _ = pipe_to(watch, "/bin/sh", data=b": \xff\xfe\x1b[2J\n: end\n")
    assert session.texts == [b": \xff\xfe\x1b[2J", ": end"]


def test_a_password_is_counted_and_not_kept(watch: Watch) -> None:
    lines = ["stty -echo", "read secret", "hunter2-on-a-terminal", "stty echo", "exit 0"]
    with recorded(watch) as found:
        terminal = Terminal(watch, "dash", "-i", prompt=PROMPT)
        try:
            for line in lines[:2]:
                terminal.say(line)
            os.write(terminal.master, f"{lines[2]}\n".encode())
            for line in lines[3:]:
                terminal.say(line)
            assert terminal.end() == 0
        finally:
            terminal.process.kill()
            terminal.process.wait()
    (session,) = found
    shown = [record["text"] for record in session.lines if record["text"] is not None]
    hidden = [record for record in session.lines if record["text"] is None]
    assert shown == [lines[0], lines[4]]
    assert {(record["reason"], record["truncated"]) for record in hidden} == {("echo-off", True)}
    assert sum(record["length"] for record in hidden) == sum(len(line) + 1 for line in lines[1:4])
    assert "hunter2" not in repr(watch.records("command_input"))


def test_a_data_set_that_goes_through_an_interpreter_is_counted(watch: Watch) -> None:
    size = 8 << 20
    row = b"%07d" % 1
    data = (row + b"\n") * (size // 8)
    session, printed = pipe_to(
        watch, "/usr/bin/python3", "-c", "import sys; print(len(sys.stdin.buffer.read()))", data=data
    )
    assert int(printed) == size
    kept = [record for record in session.lines if record["text"] is not None]
    rest = [record for record in session.lines if record["text"] is None]
    assert {record["reason"] for record in rest} == {"limit"}
    newlines = sum(record["ended_by"] == "newline" for record in kept)
    assert sum(record["length"] for record in session.lines) + newlines == size
    assert {record["text"] for record in kept if not record["truncated"]} == {row.decode()}
    assert 1 << 20 <= sum(record["length"] + 1 for record in kept) < size // 2
    assert not watch.records("gap")


def test_a_line_without_an_end_and_a_recorder_that_is_killed(own_watch: Watch) -> None:
    watch = own_watch
    with subprocess.Popen(
        words(watch, "dash"), stdin=subprocess.PIPE, cwd=watch.root, env=ENVIRONMENT, bufsize=0
    ) as shell:
        assert shell.stdin is not None
        try:
            shell.stdin.write(b"echo half")
            await_records(watch, lambda found: found)
            watch.wait_drained()
            time.sleep(1)  # its state is saved a moment after the record
            watch.signal_recorder(signal.SIGKILL)
            shell.stdin.write(b" and half\n")
            watch.start_recorder()
            found = await_records(watch, lambda found: len(found) > 1)
            shell.stdin.close()
            assert shell.wait(PROMPT_SECONDS) == 0
        finally:
            shell.kill()
    watch.wait_drained()
    found = watch.records("command_input")
    assert [(r["text"], r["ended_by"]) for r in found] == [("echo half", "idle"), (" and half", "newline")]


def test_show_and_replay_tell_the_lines(watch: Watch) -> None:
    session, _ = pipe_to(watch, "bash", data=b"cd /tmp # shown\n")
    uuid = session.lines[0]["session"]
    assert "cd /tmp # shown" in watch.cli("show", uuid).stdout
    assert "command_input cd /tmp # shown" in watch.cli("replay", uuid, "--no-wait").stdout
    assert [line["text"] for line in watch.rows("show", uuid)[0]["input"]] == ["cd /tmp # shown"]
