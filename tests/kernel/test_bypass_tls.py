"""Statements under TLS that no probe sees, or that it sees otherwise than they are sent; see docs/bypasses.md."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.kernel.fix_bypass import COVERED, DECLARED, NEEDS_STATIC_LIBSSL, PYTHON, Arena, Unseen, not_silent, seen
from tests.kernel.fix_postgres import free_port
from tests.kernel.fix_tls import TlsPostgresServer, self_signed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.kernel.fix_bypass import Attack, State
    from tests.kernel.fix_tls import HttpsServer
    from tests.kernel.fix_watch import Watch

pytestmark = pytest.mark.kernel

ROUNDS = 200
WAIT_SECONDS = 30
NO_LIBRARY, SURPLUS = {"no-library"}, {"surplus"}


@pytest.fixture(scope="module")
def arena(watch: Watch, tls_postgres: TlsPostgresServer, attackers: Path) -> Arena:
    """An arena whose database is reached over TLS."""
    return Arena(watch, tls_postgres, attackers)


def script(arena: Arena, name: str, way: str, **environment: str) -> tuple[State, Attack]:
    """Let a script have a statement executed."""
    return arena.sql(PYTHON, arena.tool(name), way, env=environment)


def unread(attack: Attack) -> set[str]:
    """Return why bytes that left under TLS were not read."""
    return {r["tls"]["cause"] for r in attack.of("opaque") if r["reason"] == "tls" and r["bytes_out"]}


def test_plain_statement(arena: Arena) -> None:
    state, attack = script(arena, "tls_unseen.py", "plain")
    assert state == COVERED
    assert {record["seen_by"] for record in attack.of("statement")} == {"tls-uprobe"}
    assert attack.declared() == []  # or every attack would seem to be declared


# Libraries of one's own


def test_private_copy_of_the_library(arena: Arena) -> None:
    state, attack = script(arena, "tls_copies.py", "private")
    assert state == COVERED
    assert attack.declared() == []
    hooked = {name for record in attack.of("probe_attach") for name in record["functions"]}
    assert hooked >= {"SSL_write", "SSL_read", "BIO_write"}


def test_stripped_or_renamed_symbols(arena: Arena) -> None:
    state, attack = script(arena, "tls_copies.py", "renamed")
    assert state == DECLARED
    assert unread(attack) == NO_LIBRARY


def test_mprotect_to_execute(arena: Arena) -> None:
    state, attack = script(arena, "tls_copies.py", "made_executable")
    assert state == DECLARED
    assert unread(attack) == NO_LIBRARY


def test_library_overwritten_in_place(arena: Arena) -> None:
    state, attack = script(arena, "tls_copies.py", "overwritten")
    assert state == DECLARED
    assert unread(attack) == NO_LIBRARY


@NEEDS_STATIC_LIBSSL
def test_static_binary_without_symbols(arena: Arena) -> None:
    state, attack = arena.sql(arena.tool("tls_static"))
    assert state == DECLARED
    assert unread(attack) == NO_LIBRARY


# Past the probes


@pytest.mark.parametrize("way", ["bio", "bio_only"])
def test_bio_of_type_ssl(arena: Arena, way: str) -> None:
    state, attack = script(arena, "tls_unseen.py", way)
    assert state == DECLARED
    assert unread(attack) == SURPLUS


@pytest.mark.parametrize("way", ["jump", "jump_only"])
def test_jump_past_the_probe(arena: Arena, way: str) -> None:
    state, attack = script(arena, "tls_unseen.py", way)
    assert state == DECLARED
    assert unread(attack) == SURPLUS


@pytest.mark.parametrize("way", ["unhooked", "unhooked_only"])
def test_breakpoint_overwritten(arena: Arena, way: str) -> None:
    state, attack = script(arena, "tls_unseen.py", way)
    assert state == DECLARED
    assert unread(attack) == SURPLUS


def test_long_jump_out_of_the_call(arena: Arena) -> None:
    state, _ = arena.sql(arena.tool("tls_jump"))
    assert state == COVERED


# In what TLS says for itself


def test_statement_in_trifles(arena: Arena) -> None:
    state, attack = script(arena, "tls_slack.py", "trifles")
    assert state == DECLARED
    assert unread(attack) == SURPLUS


def test_end_of_a_statement_as_an_alert(arena: Arena) -> None:
    text = arena.statement()
    state, attack = arena.sql(PYTHON, arena.tool("tls_slack.py"), "alert", text=text)
    assert state == DECLARED
    assert [r["db.query.text"] for r in attack.of("statement") if r["truncated"]] == [text[:-1]]


def test_padding_of_cbc(arena: Arena) -> None:
    state, attack = script(arena, "tls_slack.py", "cbc")
    assert state == DECLARED
    assert unread(attack) == SURPLUS


def test_statement_as_a_padded_handshake(arena: Arena) -> None:
    state, attack = script(arena, "tls_slack.py", "padded")
    assert state == DECLARED
    assert unread(attack) == SURPLUS


@pytest.mark.xfail(strict=True, raises=Unseen, reason="what a client certificate may need is excused")
def test_statement_as_a_client_certificate(arena: Arena) -> None:
    with asking_for_certificates(arena):
        state, _ = script(arena, "tls_slack.py", "padded")
    not_silent(state)


@contextlib.contextmanager
def asking_for_certificates(arena: Arena) -> Iterator[None]:
    """Let the server ask its clients for a certificate, which they need not have."""
    set_authority(arena, "server.crt")
    try:
        yield
    finally:
        set_authority(arena, "")


def set_authority(arena: Arena, file: str) -> None:
    arena.postgres.execute(f"ALTER SYSTEM SET ssl_ca_file = '{file}'", "SELECT pg_reload_conf()")
    wait_for(lambda: shown(arena, "ssl_ca_file") == file)


def shown(arena: Arena, setting: str) -> str:
    with arena.postgres.connect() as connection:
        ((value,),) = connection.execute(f"SHOW {setting}".encode()).fetchall()
    return str(value)


def test_statement_behind_early_data_that_is_dropped(arena: Arena) -> None:
    state, attack = script(arena, "tls_early.py", "rejected")
    assert state == DECLARED
    assert unread(attack) == SURPLUS


def test_connection_that_is_never_quiet(arena: Arena) -> None:
    state, attack = script(arena, "tls_slack.py", "busy")
    assert state == DECLARED
    assert unread(attack) == SURPLUS
    assert not all(record["final"] for record in attack.of("opaque"))  # not only when it was over


# Lies


@pytest.mark.xfail(strict=True, raises=Unseen, reason="the buffer is read when the call returns")
@pytest.mark.parametrize("way", ["rewritten", "race"])
def test_buffer_rewritten_during_ssl_write(arena: Arena, way: str) -> None:
    if way == "rewritten":
        state, _ = script(arena, "tls_lies.py", way)
    else:
        state = raced(arena)
    not_silent(state)


def raced(arena: Arena) -> State:
    """Let a second thread try it many times; return what is known of the statements that were not recorded."""
    position = arena.postgres.log_position()
    environment = arena.postgres.environment("tcp")
    attack = arena.run(PYTHON, arena.tool("tls_lies.py"), "race", arena.statement(), env=environment)
    executed = [entry.text for entries in arena.postgres.logged_since(position).values() for entry in entries]
    recorded = {record["db.query.text"] for record in attack.of("statement")}
    wrong = [text for text in executed if text not in recorded]
    print(f"{len(wrong)} of {len(executed)} were recorded as something else")  # noqa: T201 -- a figure, with pytest -s
    assert len(attack.of("statement")) == len(executed)
    return seen(not wrong, attack)


@pytest.mark.xfail(strict=True, raises=Unseen, reason="a library says what its owner likes")
def test_forged_library(arena: Arena) -> None:
    state, attack = arena.sql(arena.tool("tls_forged"))
    assert [record["file"] for record in attack.of("probe_attach")] == [arena.tool("tls_forged")]
    not_silent(state)


@pytest.mark.xfail(strict=True, raises=Unseen, reason="what is sent within a call is believed to be what it was given")
def test_records_exchanged_by_a_bio(arena: Arena) -> None:
    state, attack = script(arena, "tls_lies.py", "exchanged")
    assert attack.of("probe_attach") == []
    not_silent(state)


# Other ways to speak


def test_tls_early_data(arena: Arena, tmp_path: Path) -> None:
    text = arena.statement()
    command = (PYTHON, arena.tool("tls_early.py"), "accepted", text)
    with taking_early_data(tmp_path) as port:
        environment = {**arena.postgres.environment("tcp"), "EARLY_PORT": str(port)}
        attack = arena.run(*command, env=environment)
    output = (tmp_path / "output").read_bytes()
    assert b"Early data received:" in output
    assert text.encode() in output  # nothing else was sent
    assert [record["seen_by"] for record in attack.said(text)] == ["tls-uprobe"]
    assert seen(attack.said(text), attack) == COVERED
    assert unread(attack) == SURPLUS  # a server may drop it


@contextlib.contextmanager
def taking_early_data(folder: Path) -> Iterator[int]:
    """Run a server that writes what it gets into a file; yield its port."""
    self_signed(folder)
    port, output = free_port(), folder / "output"
    words = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", "server.crt", "-key", "server.key"]
    words += ["-tls1_3", "-early_data", "-no_anti_replay"]
    with (
        output.open("wb") as f,
        subprocess.Popen(words, cwd=folder, stdin=subprocess.PIPE, stdout=f, stderr=f) as server,
    ):
        try:
            wait_for(lambda: b"ACCEPT" in output.read_bytes())
            yield port
        finally:
            server.kill()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("it did not happen")
        time.sleep(0.02)


@pytest.mark.parametrize("way", ["freed", "cleared"])
def test_tls_object_reused(arena: Arena, way: str) -> None:
    state, attack = script(arena, "tls_sessions.py", way)
    assert state == COVERED
    assert ports_told(attack) == ROUNDS
    assert way != "freed" or int(attack.stdout) < ROUNDS  # some objects lay where others had been


def ports_told(attack: Attack) -> int:
    """Check that statements that name a port are on the connection from there; return how many ports that are."""
    ports = {record["connection"]: record["local"].rpartition(":")[2] for record in attack.of("connect")}
    named = [record for record in attack.of("statement") if record["db.query.text"].startswith("SELECT 'port ")]
    told = [record["db.query.text"].rstrip("'").split()[2] for record in named]
    assert told == [ports[record["connection"]] for record in named]
    return len(set(told))


def test_tls_object_that_was_only_counted(arena: Arena, https_server: HttpsServer) -> None:
    state, attack = script(arena, "tls_sessions.py", "counted", HTTPS_PORT=str(https_server.port))
    assert state == COVERED
    assert attack.of("statement")[0]["peer"] == f"127.0.0.1:{arena.postgres.port}"


def test_fork_under_tls(arena: Arena) -> None:
    state, attack = script(arena, "tls_sessions.py", "fork")
    assert state == COVERED
    assert ports_told(attack) == 1
    before, said = attack.of("statement")
    assert before["connection"] == said["connection"]
    assert before["pid"] != said["pid"]


def test_tls_over_a_socketpair(arena: Arena) -> None:
    state, attack = script(arena, "tls_sessions.py", "relayed")
    assert state == COVERED
    assert {record["transport"] for record in attack.of("statement")} == {"unix"}  # where the library spoke


def test_tls_in_tls(arena: Arena, tmp_path: Path) -> None:
    with proxy(arena.postgres.port, tmp_path) as port:
        state, attack = script(arena, "tls_sessions.py", "chain", PROXY_PORT=str(port))
    assert state == DECLARED
    assert {r["peer"] for r in attack.of("opaque") if r["reason"] == "tls" and r["bytes_out"]} == {f"127.0.0.1:{port}"}


@contextlib.contextmanager
def proxy(to: int, folder: Path) -> Iterator[int]:
    """Pass on to a port what is said under TLS, outside the watch; yield where."""
    self_signed(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_SECONDS)
        server = threading.Thread(target=serve, args=(listener, context, to))
        server.start()
        yield listener.getsockname()[1]
        server.join()


def serve(listener: socket.socket, context: ssl.SSLContext, to: int) -> None:
    accepted, _ = listener.accept()
    with context.wrap_socket(accepted, server_side=True) as client, socket.create_connection(("127.0.0.1", to)) as s:
        answers = threading.Thread(target=pass_on, args=(s, client))
        answers.start()
        pass_on(client, s)
        answers.join()


def pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
