"""A host with a log, and the desk of its recorder; peers are real processes, of other users where that matters."""

from __future__ import annotations

import grp
import json
import os
import shutil
import socket
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentwatch.config import Config
from agentwatch.log.reader import LogReader
from agentwatch.log.writer import LogWriter
from agentwatch.records.encoding import decode, encode
from agentwatch.requests import wire
from agentwatch.requests.desk import Desk
from agentwatch.requests.place import prepare_run_dir, socket_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentwatch.records.encoding import Record

GROUP = grp.getgrgid(65534)
"""The readers' group in these tests."""
MEMBER, OTHER_MEMBER, STRANGER = 54321, 54322, 54323
"""Users without an entry anywhere."""
SESSION = "018bd0a6-5a00-7abc-8def-0123456789ab"
OTHER_SESSION = "018bd0a6-5a01-7abc-8def-0123456789ab"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming other users needs root")


class Child:
    """A forked process that calls a function, as another user if ``uid`` is given, and hands back what it returns."""

    def __init__(self, function: Callable[[], object], uid: int | None = None, *, reader: bool = True) -> None:
        self._pipe, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if uid is not None:
                    os.setgroups([GROUP.gr_gid] if reader else [])
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                os.write(write, json.dumps(function()).encode())
            except BaseException:  # noqa: BLE001 -- never back into the tests
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(write)
        self._status: int | None = None

    @property
    def ended(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def result(self) -> Any:
        """Wait for its end; what the function returned."""
        with os.fdopen(self._pipe, "rb") as pipe:
            content = pipe.read()
        if self._status is None:
            self._status = os.waitpid(self.pid, 0)[1]
        assert self._status == 0
        return json.loads(content)


class Host:
    """What a recorder does with its desk."""

    def __init__(self, config: Config) -> None:
        self.config = config
        prepare_run_dir(config.run_dir, config.reader_gid())
        self.writer = LogWriter(config.log_dir, reader_gid=config.reader_gid())
        self.desk = Desk(config, self._write)
        self.fault: str | None = None

    def _write(self, kind: str, fields: dict[str, Any]) -> int:
        return self.writer.append(encode({"kind": kind, "time": 1} | fields))

    def step(self) -> None:
        self.desk.take(self.fault)
        self.writer.commit()
        self.desk.answer(self.writer.durable_seq)

    def until(self, condition: Callable[[], bool]) -> None:
        """Go on until something is so; a minute is a failure on the slowest machine."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            self.step()

    def serve(self, function: Callable[[], object], uid: int | None = None, *, reader: bool = True) -> Any:
        """Have a child call a function, and serve until it ends."""
        child = Child(function, uid, reader=reader)
        self.until(lambda: child.ended)
        self.step()
        return child.result()

    def records(self) -> list[Record]:
        return [decode(payload) for _, payload in LogReader(self.config.log_dir).records()]

    def close(self) -> None:
        self.desk.close()
        self.writer.close()


def connected(config: Config) -> socket.socket:
    """Return a connection to the recorder; a test that waits for more than ten seconds has failed."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(10)
    with socket_address(config.run_dir) as address:
        connection.connect(address)
    return connection


def read_message(config: Config, *question: str) -> bytes:
    return wire.read_request(wire.log_identity(config.log_dir), "sessions", question)


def say(config: Config, message: bytes) -> dict[str, Any]:
    """Send bytes, return the answer."""
    with connected(config) as connection:
        connection.send(message)
        answer: dict[str, Any] = json.loads(connection.recv(65536))
        return answer


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a folder that every user may pass through; pytest's own may not."""
    folder = Path(tempfile.mkdtemp(prefix="agentwatch-requests-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def alone(place: Path) -> Config:
    """Give a configuration without a reader group."""
    return Config(
        log_dir=place / "log",
        state_dir=place / "state",
        run_dir=place / "run",
        pin_dir=place / "pins",
        cgroup_root=place / "cgroup",
    )


@pytest.fixture
def host(alone: Config) -> Iterator[Host]:
    """Give a host with a reader group, where there is somebody to be in it."""
    host = Host(replace(alone, reader_group=GROUP.gr_name) if os.geteuid() == 0 else alone)
    yield host
    host.close()
