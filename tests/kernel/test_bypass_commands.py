"""Programs executed in disguise, and by somebody else on the agent's behalf; see docs/bypasses.md."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from tests.kernel.fix_bypass import COVERED, DECLARED, NEEDS_PTRACE, PYTHON, Arena, Attack, Unseen, not_silent, seen

pytestmark = pytest.mark.kernel

ECHO = "/bin/echo"
WAIT_SECONDS = 20
TIOCSTI_ALLOWED = Path("/proc/sys/dev/tty/legacy_tiocsti")


@pytest.fixture
def marker() -> str:
    return f"bypass-{uuid.uuid4()}"


def run(arena: Arena, way: str, marker: str, **environment: str) -> Attack:
    """Have /bin/echo print the marker."""
    return arena.run(
        PYTHON, arena.tool("commands.py"), way, marker, env=environment, known=lambda a: a.ran(ECHO, marker)
    )


def echoed(attack: Attack, marker: str) -> bool:
    """Tell whether the program printed the marker, as it says itself, and its exec is recorded as a plain one."""
    assert attack.stdout.split()[-1] == marker
    return attack.ran(ECHO, marker)


def wait_for(path: Path) -> str:
    """Return the content of a file once there is some."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if path.exists() and (content := path.read_text()).endswith("\n"):
            return content
        time.sleep(0.02)
    pytest.fail(f"nothing came to {path}")


def test_command_of_a_daemon(arena: Arena, marker: str) -> None:
    attack = run(arena, "daemon", marker)
    assert seen(echoed(attack, marker), attack) == COVERED


def test_exec_by_int_0x80(arena: Arena, marker: str) -> None:
    attack = arena.run(arena.tool("compat"), "exec", ECHO, marker, known=lambda a: a.ran(ECHO, marker))
    assert seen(echoed(attack, marker), attack) == COVERED


@pytest.mark.xfail(strict=True, raises=Unseen, reason="the tracepoints of system calls leave 32-bit ones out")
def test_failed_exec_by_int_0x80(arena: Arena, marker: str) -> None:
    attack = arena.run(arena.tool("compat"), "exec", f"/nonexistent/{marker}")
    assert attack.stdout == "No such file or directory\n"
    not_silent(seen(attack.of("exec_failed"), attack))


def test_exec_from_another_thread(arena: Arena, marker: str) -> None:
    attack = arena.run(arena.tool("threads"), "exec", ECHO, marker, known=lambda a: a.ran(ECHO, marker))
    assert seen(echoed(attack, marker), attack) == COVERED


def test_memfd(arena: Arena, marker: str) -> None:
    attack = run(arena, "memfd", marker)
    assert seen(echoed(attack, marker), attack) == COVERED
    assert [record["memfd"] for record in attack.of("exec")][-1]


def test_deleted_binary(arena: Arena, marker: str) -> None:
    attack = run(arena, "deleted", marker)
    assert seen(echoed(attack, marker), attack) == COVERED
    assert [record["deleted"] for record in attack.of("exec")][-1]


def test_dynamic_loader(arena: Arena, marker: str) -> None:
    attack = run(arena, "loader", marker)
    assert attack.stdout.split() == [marker]
    assert seen(attack.ran("/lib64/ld-linux-x86-64.so.2", ECHO, marker), attack) == COVERED


def test_script(arena: Arena, marker: str) -> None:
    attack = run(arena, "script", marker)
    assert attack.stdout.split()[0] == marker
    record = attack.of("exec")[-1]
    assert (record["exe"], record["argv"][:2]) == (f"/usr{ECHO}", [ECHO, marker])
    assert record["filename"].endswith("/harmless")
    assert seen(record, attack) == COVERED


def test_spoofed_argv0(arena: Arena, marker: str) -> None:
    attack = run(arena, "argv0", marker)
    assert attack.stdout.split() == [marker]
    record = attack.of("exec")[-1]
    assert (record["exe"], record["argv"]) == (f"/usr{ECHO}", ["harmless", marker])
    assert seen(record, attack) == COVERED


def test_argument_padding(arena: Arena, marker: str) -> None:
    attack = run(arena, "padding", marker)
    assert attack.stdout.split()[-1] == marker
    record = attack.of("exec")[-1]
    assert marker not in record["argv"]
    assert record["argv_captured"] < record["argv_bytes"]
    assert seen(None, attack) == DECLARED


def test_short_lived_programs(arena: Arena, marker: str) -> None:
    attack = run(arena, "short", marker)
    assert len(attack.stdout.splitlines()) == 200
    assert seen(all(attack.ran(ECHO, marker, str(number)) for number in range(200)), attack) == COVERED


def test_program_mounted_over_another(arena: Arena, marker: str) -> None:
    attack = run(arena, "bind", marker)
    assert attack.stdout.split() == [marker]
    record = attack.of("exec")[-1]
    assert record["inode"] == Path(ECHO).stat().st_ino  # what is left of the truth
    assert seen(record["exe"] == f"/usr{ECHO}", attack) == DECLARED
    assert record["other_mounts"]


def told(attack: Attack, marker: str) -> bool:
    """Tell whether it is recorded that a shell was told to print the marker, which it did."""
    assert attack.stdout.split() == [marker]
    return f"echo {marker}" in [record["text"] for record in attack.of("command_input")]


def test_builtin_of_a_shell_that_reads_commands(arena: Arena, marker: str) -> None:
    attack = run(arena, "shell_input", "", SECRET=marker)
    assert seen(told(attack, marker), attack) == COVERED


def test_commands_on_a_terminal_without_echo(arena: Arena, marker: str) -> None:
    attack = run(arena, "quiet_terminal", "", SECRET=marker)
    assert seen(told(attack, marker), attack) == DECLARED
    assert [record["reason"] for record in attack.of("command_input")] == ["echo-off"]


def test_commands_behind_a_data_set(arena: Arena, marker: str) -> None:
    attack = run(arena, "behind_data", "", SECRET=marker)
    assert seen(told(attack, marker), attack) == DECLARED
    assert attack.of("command_input")[-1]["reason"] == "limit"


@pytest.mark.xfail(strict=True, raises=Unseen, reason="interpreters are known by the name of their file")
def test_shell_under_another_name(arena: Arena, marker: str) -> None:
    attack = run(arena, "renamed_shell", "", SECRET=marker)
    not_silent(seen(told(attack, marker), attack))


@pytest.mark.xfail(strict=True, raises=Unseen, reason="only programs that are executed are recorded")
def test_code_of_an_interpreter(arena: Arena, marker: str) -> None:
    code = arena.watch.root / f"{marker}.py"
    code.write_text("import os\nos.write(1, b'done\\n')\n")
    attack = run(arena, "own_code", "", CODE=str(code))
    assert attack.stdout == "done\n"
    not_silent(seen(marker in repr(attack.records), attack))


@pytest.mark.xfail(strict=True, raises=Unseen, reason="what the server does is not observed, only the statement")
def test_program_run_by_the_database(arena: Arena, marker: str) -> None:
    target = arena.postgres.root / marker
    text = f"COPY (SELECT '{marker}') TO PROGRAM '/bin/cat > {target}'"
    _, attack = arena.sql(arena.tool("plain"), text=text)
    assert target.read_text() == f"{marker}\n"
    assert len(attack.said(text)) == 1
    not_silent(seen(attack.ran("/bin/sh", "-c", f"/bin/cat > {target}"), attack))


def test_request_to_a_daemon(arena: Arena, marker: str) -> None:
    path = arena.watch.root / "daemon"
    printed: list[str] = []
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.settimeout(WAIT_SECONDS)
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen()
        daemon = threading.Thread(target=obey, args=(listener, printed))
        daemon.start()
        attack = run(arena, "ask_daemon", marker, DAEMON=str(path))
        daemon.join()
    assert printed == [f"{marker}\n"]
    assert seen(attack.ran(ECHO, marker), attack) == DECLARED
    assert {record["peer"] for record in attack.of("opaque")} == {f"unix:{path}"}


def obey(listener: socket.socket, printed: list[str]) -> None:
    connection, _ = listener.accept()
    with connection:
        words = connection.recv(4096).decode().split()
        printed.append(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        connection.sendall(b"x")


@pytest.mark.xfail(strict=True, raises=Unseen, reason="writing to files is not recorded, nor what others read there")
def test_file_for_somebody_else_to_run(arena: Arena, marker: str) -> None:
    spool = arena.watch.root / "spool"
    spool.mkdir()
    spool.chmod(0o777)
    attack = run(arena, "write_spool", marker, SPOOL=str(spool / marker))
    words = wait_for(spool / marker).split()
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == f"{marker}\n"
    not_silent(seen(attack.ran(ECHO, marker), attack))


@NEEDS_PTRACE
def test_ptrace_and_process_vm_writev(arena: Arena, marker: str) -> None:
    out = arena.watch.root / marker
    out.touch()
    out.chmod(0o666)
    command = f"{ECHO} {marker} > {out}"
    with subprocess.Popen(["/bin/sleep", "60"], **arena.as_agent_user()) as victim:
        try:
            attack = arena.run(arena.tool("inject"), str(victim.pid), command)
            assert wait_for(out) == f"{marker}\n"
        finally:
            victim.kill()
    assert seen(attack.ran("/bin/sh", "-c", command), attack) == DECLARED
    assert {record["target_pid"] for record in attack.of("divergence")} == {victim.pid}


def test_tiocsti(arena: Arena, marker: str) -> None:
    if not TIOCSTI_ALLOWED.exists() or TIOCSTI_ALLOWED.read_text() == "0\n":
        pytest.skip("TIOCSTI is off in this kernel (dev.tty.legacy_tiocsti)")
    out = arena.watch.root / marker
    words = arena.watch.command("run", "--agent", "agent-test", "--user", arena.watch.user, "--")
    attacker = " ".join(map(repr, [*words, PYTHON, arena.tool("commands.py"), "push_input", ""]))
    start = arena.position()
    assert pushed(f"{PYTHON} {arena.tool('commands.py')} push_input ''", out, marker) == [marker, "next"]
    assert seen(pushed(attacker, out, marker) == ["next"], arena.collect(start)) == COVERED


def pushed(attacker: str, out: Path, marker: str) -> list[str]:
    """Have root's shell in a terminal run an attacker and then another command; return what they wrote to out."""
    out.unlink(missing_ok=True)
    master, slave = os.openpty()
    try:
        with subprocess.Popen(
            ["setsid", "--ctty", "/bin/sh"],
            stdin=slave,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", "LINE": f"{ECHO} {marker} >> {out}"},
        ) as shell:
            os.write(master, f"{attacker}; {ECHO} $? > {out}.status\n".encode())
            try:
                assert wait_for(Path(f"{out}.status")) == "0\n"
                os.write(master, f"{ECHO} next >> {out}; exit\n".encode())
                shell.wait(WAIT_SECONDS)
            finally:
                shell.kill()
    finally:
        os.close(master)
        os.close(slave)
    Path(f"{out}.status").unlink()
    return out.read_text().split()
