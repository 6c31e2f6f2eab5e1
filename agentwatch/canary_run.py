"""The canary's child and sockets: started, let go, and waited for in steps that never block the recorder.

The order: start the child (it waits for a line), have the recorder save a state that names it, let it go, see it end,
wait until what was in the ring by then is read, judge. ``tick`` takes the next step that is possible.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentwatch.canary import SECONDS, Canary, Expected

if TYPE_CHECKING:
    from agentwatch.config import Config

_CHILD = Path(__file__).with_name("canary_child.py")
CHILD_SECONDS = 30
"""How long the child may take; on a busy host an interpreter alone may need seconds to start."""
SOCKET_FILE = "canary.sock"
MAX_PEERS = 8
"""Connections that are taken: the child makes two, but any process may connect to the port."""
_READ_BYTES = 4096
_TOKEN_BYTES = 16
_ERROR_BYTES = 4096
_SECOND = 1_000_000_000

Due = list[tuple[str, dict[str, Any]]]
"""Kind and fields of records."""


class CanaryRun:
    """At the most one child at a time."""

    def __init__(self, config: Config, canary: Canary) -> None:
        self._config = config
        self._canary = canary
        self._child: subprocess.Popen[bytes] | None = None
        self._listeners: list[socket.socket] = []
        self._peers: list[socket.socket] = []
        """The other ends of the child's connections. What is sent on a Unix socket is seen when it is read."""
        self._order: bytes | None = None
        """What the child waits for."""
        self._next = 0 if config.canary_seconds else None
        """When the next one begins, CLOCK_MONOTONIC, ns; None: never."""
        self._gone_at = 0
        self._ended: tuple[int, int] | None = None
        """When the child ended, and the end of the ring at that time."""
        self._detail: str | None = None

    @property
    def wants_save(self) -> bool:
        """Whether a child waits for a state that names it to be saved."""
        return self._order is not None

    def tick(self, now: int, position: int, produced: int) -> Due:
        """Take the next step (``now``: CLOCK_MONOTONIC; ring positions: read, written); return records to write."""
        if self._child is None:
            return self._start(now) if self._next is not None and now >= self._next else []
        if self._order is not None:
            return []
        self._serve()
        if self._ended is None:
            self._watch_child(now, produced)
        if self._ended is None:
            return []
        ended_at, until = self._ended
        if self._canary.absent and (position < until or now - ended_at < SECONDS * _SECOND):
            return []
        return self._judge(now)

    def saved(self) -> None:
        """Let the child go that waits for the state to be saved, which it is now."""
        if self._order is None or self._child is None or self._child.stdin is None:
            return
        order, self._order = self._order, None
        with contextlib.suppress(OSError):  # it has ended: nothing will be seen of it
            self._child.stdin.write(order)
            self._child.stdin.close()
        self._gone_at = time.monotonic_ns()
        self._canary.let_go()

    def close(self) -> None:
        """End the child that is under way, and begin no other."""
        self._next = None
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._forget_child()
        with contextlib.suppress(OSError):  # somebody is in it, or it was never made
            (self._config.cgroup_root / self._config.canary_cgroup).rmdir()

    def _start(self, now: int) -> Due:
        cgroup = self._config.cgroup_root / self._config.canary_cgroup
        path = self._config.run_dir / SOCKET_FILE
        tcp, unix = secrets.token_hex(_TOKEN_BYTES), secrets.token_hex(_TOKEN_BYTES)
        try:
            cgroup.mkdir(mode=0o755, exist_ok=True)
            port = self._listen(path)
            self._child = subprocess.Popen(  # noqa: S603 -- our own interpreter and file
                [sys.executable, "-I", "-S", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                env={},
            )
        except OSError as e:
            self._detail = f"the canary could not be started: {e}"
            self._canary.fail()
            return self._judge(now)
        order = {"cgroup": str(cgroup), "port": port, "path": str(path), "tcp": tcp, "unix": unix, "seconds": SECONDS}
        order["program"] = shutil.which("true") or "/bin/true"
        self._order = json.dumps(order).encode() + b"\n"
        self._canary.begin(Expected(self._child.pid, port, tcp.encode(), unix.encode()))
        return []

    def _listen(self, path: Path) -> int:
        """Listen for the child at a port of the loopback, which is returned, and at a path in run_dir."""
        tcp = socket.create_server(("127.0.0.1", 0))
        self._listeners.append(tcp)
        path.unlink(missing_ok=True)
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listeners.append(unix)
        unix.bind(str(path))
        unix.listen()
        for listener in self._listeners:
            listener.setblocking(False)  # noqa: FBT003 -- its only argument
        port: int = tcp.getsockname()[1]
        return port

    def _serve(self) -> None:
        """Read what the child has sent, without waiting for it."""
        for listener in self._listeners:
            if len(self._peers) < MAX_PEERS:
                with contextlib.suppress(OSError):
                    peer = listener.accept()[0]
                    peer.setblocking(False)  # noqa: FBT003 -- its only argument
                    self._peers.append(peer)
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.recv(_READ_BYTES)

    def _watch_child(self, now: int, produced: int) -> None:
        assert self._child is not None  # noqa: S101 -- tick asked
        status = self._child.poll()
        if status is None:
            if now - self._gone_at > CHILD_SECONDS * _SECOND:
                self._child.kill()
                self._detail = f"the canary did not end within {CHILD_SECONDS} s"
            return
        if status and self._detail is None:
            self._detail = f"the canary ended with {status}: {self._last_words()}"
        self._ended = now, produced

    def _last_words(self) -> str:
        assert self._child is not None  # noqa: S101 -- it has just ended
        assert self._child.stderr is not None  # noqa: S101 -- a pipe, see _start
        lines = self._child.stderr.read(_ERROR_BYTES).decode(errors="replace").splitlines()
        return lines[-1] if lines else "no message"

    def _judge(self, now: int) -> Due:
        detail, self._detail = self._detail, None
        self._forget_child()
        self._next = now + self._config.canary_seconds * _SECOND
        boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return self._canary.end(boottime, time.time_ns(), self._config.canary_seconds, detail)

    def _forget_child(self) -> None:
        if self._child is not None:
            for pipe in (self._child.stdin, self._child.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        for s in (*self._peers, *self._listeners):
            s.close()
        self._peers, self._listeners = [], []
        with contextlib.suppress(OSError):
            (self._config.run_dir / SOCKET_FILE).unlink(missing_ok=True)
        self._child = self._order = self._ended = None
