"""``agentwatch record``: the recorder, in the foreground."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import click

from agentwatch.cli.common import pass_config
from agentwatch.cli.service import in_foreground

if TYPE_CHECKING:
    from agentwatch.config import Config


@click.command("record")
@pass_config
def command(config: Config) -> None:
    """Run the recorder in the foreground until SIGTERM or SIGINT.

    Prints "ready" on standard output (and notifies systemd) once it records; from then on everything that the
    probes captured since they were loaded ends up in the log, also what was captured while no recorder ran.

    Exit status: 0 stopped by a signal, 69 no probes are loaded, 74 the log cannot be written (a full
    disk only with disk_full = "stop"), 75 another recorder runs, 77 not root.
    """
    from agentwatch.recorder import Recorder  # noqa: PLC0415 -- --help must not map the decoders

    stopping = in_foreground()
    recorder = Recorder(config)
    try:
        recorder.run(stopping, _ready)
    finally:
        recorder.close()


def _ready() -> None:
    click.echo("ready")
    _notify(b"READY=1")


def _notify(message: bytes) -> None:
    """Tell systemd (sd_notify(3)); does nothing where it did not start us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.connect("\0" + address[1:] if address.startswith("@") else address)
        s.sendall(message)
