"""What the canary does, as a program of its own: be seen, and end. Runs isolated, imports nothing of agentwatch.

Waits for one line of JSON on standard input (``cgroup port path tcp unix program``); without one nothing is done. Then
it moves itself into the watched cgroup, sends one token over TCP and one over a Unix socket, and executes ``program``.
"""

import json
import os
import socket
import sys
from pathlib import Path


def main() -> None:
    """Do what the line asks for. Whatever fails is missed by the recorder, and that is the alarm."""
    line = sys.stdin.readline()
    if not line:
        return
    order = json.loads(line)
    (Path(order["cgroup"]) / "cgroup.procs").write_text("0", encoding="ascii")
    with socket.create_connection(("127.0.0.1", order["port"]), timeout=order["seconds"]) as s:
        s.sendall(order["tcp"].encode())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(order["seconds"])
        s.connect(order["path"])
        s.sendall(order["unix"].encode())
    os.execv(order["program"], [order["program"]])  # noqa: S606 -- no shell is the point


if __name__ == "__main__":
    main()
