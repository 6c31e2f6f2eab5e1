"""Record the kernel's events of one command, for tests/golden/test_observer_golden.py.

Needs root and loaded probes without a recorder: record_events.py CONFIG OUTPUT AGENT COMMAND...
Writes a msgpack list of (ring position, bytes of the event).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgpack

from agentwatch import config as configuration
from agentwatch.kernel import pins
from agentwatch.kernel.ring import Ring

SETTLE_SECONDS = 0.5
"""The last packets of a connection come after its process has ended."""


def main(config_file: str, output: str, agent: str, *command: str) -> None:
    """Run the command under ``agentwatch run`` and keep what the ring got."""
    config = configuration.load(Path(config_file))
    descriptor = pins.open_map(config, "ring")
    ring = Ring(descriptor)
    ring.position += ring.backlog
    ring.release(ring.position)
    program = str(Path(sys.executable).with_name("agentwatch"))
    subprocess.run([program, "--config", config_file, "run", "--agent", agent, "--", *command], check=False)
    time.sleep(SETTLE_SECONDS)
    batch = ring.read(ring.size)
    ring.release(batch.end)
    Path(output).write_bytes(msgpack.packb([list(event) for event in batch.events]))
    ring.close()
    os.close(descriptor)


main(*sys.argv[1:])
