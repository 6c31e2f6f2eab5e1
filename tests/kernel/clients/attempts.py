"""What the agent's user tries on the record, the recorder, the probes and its own cgroup.

Prints one JSON object: for each attempt 'done', or the name of the error that refused it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_BPF_PROG_GET_NEXT_ID, _BPF_MAP_GET_NEXT_ID, _BPF_OBJ_GET = 11, 12, 7


def _bpf(command: int, attributes: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    if libc.syscall(_SYS_BPF, command, buffer, 128) < 0:
        raise OSError(ctypes.get_errno(), "bpf")


def _obj_get(path: Path) -> None:
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_BPF_OBJ_GET, ctypes.addressof(name).to_bytes(8, sys.byteorder))


def _overwrite(path: Path) -> None:
    with path.open("r+b") as f:
        f.write(b"forged")


def _append(path: Path) -> None:
    with path.open("ab") as f:
        f.write(b"forged")


def main() -> None:
    """Try everything that the arguments name, as a JSON object."""
    where = json.loads(sys.argv[1])
    log, segment = Path(where["log"]), Path(where["segment"])
    pins, pin = Path(where["pins"]), Path(where["pin"])
    config, recorder = Path(where["config"]), int(where["recorder"])
    attempts: dict[str, Callable[[], object]] = {
        "list the log": lambda: list(log.iterdir()),
        "read a segment": segment.read_bytes,
        "write a segment": lambda: _overwrite(segment),
        "append to a segment": lambda: _append(segment),
        "truncate a segment": lambda: os.truncate(segment, 0),
        "rename a segment": lambda: segment.rename(segment.with_name("other")),
        "remove a segment": segment.unlink,
        "make a file in the log": (log / "forged").touch,
        "rename the log": lambda: log.rename(log.with_name("other")),
        "change the log's mode": lambda: log.chmod(0o777),
        "write the configuration": lambda: _append(config),
        "register a session": (Path(where["sessions"]) / "forged.json").touch,
        "read the registrations": lambda: [p.read_bytes() for p in Path(where["sessions"]).iterdir()],
        "kill the recorder": lambda: os.kill(recorder, signal.SIGKILL),
        "stop the recorder": lambda: os.kill(recorder, signal.SIGSTOP),
        "read the recorder's memory": lambda: Path(f"/proc/{recorder}/mem").open("rb").close(),
        "list the pins": lambda: list(pins.iterdir()),
        "remove a pin": pin.unlink,
        "open a pin": lambda: _obj_get(pin),
        "list the kernel's programs": lambda: _bpf(_BPF_PROG_GET_NEXT_ID, b""),
        "list the kernel's maps": lambda: _bpf(_BPF_MAP_GET_NEXT_ID, b""),
        "leave its cgroup": lambda: Path(where["elsewhere"]).write_text(str(os.getpid())),
    }
    result = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError as e:
            result[name] = errno.errorcode.get(e.errno or 0, str(e))
        else:
            result[name] = "done"
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
