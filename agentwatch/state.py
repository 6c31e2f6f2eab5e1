"""What a restarted recorder goes on with: the observer's state and how far the ring was read, in one file.

The file lies in run_dir: it has to outlive the process, not the boot, for the ring that it refers to does not outlive
the boot either. So it is written without fsync, as a whole, under another name first. It is a pickle: only root can
write there, and a file that is not root's own and private is not read.

A file of another build, another ring or another boot is not used; the caller declares what that loses.
"""

from __future__ import annotations

import os
import pickle
import stat
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from agentwatch import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from agentwatch.accounting import Ledger
    from agentwatch.canary import Canary
    from agentwatch.observation.observer import Observer
    from agentwatch.watchdog import Memory

FILE = "recorder.state"


@dataclass(frozen=True, slots=True)
class State:
    """A moment of the recorder.

    ``position``: ring bytes dealt with; ``seq``: no record before it is of an event at or after that position.
    """

    ring: str
    """Which ring the position is of: boot id and load time of the probes."""
    position: int
    seq: int
    ledger: Ledger
    observer: Observer
    canary: Canary
    memory: Memory
    """What the watchdog expects."""
    numbers: dict[str, int]
    """The next ``session_seq`` of each session."""


def save(run_dir: Path, state: State) -> None:
    """Write the state, replacing the last one."""
    temporary = run_dir / f"{FILE}.tmp"
    payload = pickle.dumps((__version__, state), protocol=pickle.HIGHEST_PROTOCOL)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.write(payload)
    temporary.replace(run_dir / FILE)


def load(run_dir: Path, ring: str) -> tuple[State | None, str | None]:
    """Return the state for this ring, or None and why there is none (None: there was no file)."""
    path = run_dir / FILE
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
                return None, f"{path} is not private to this user and was not read"
            version, state = pickle.load(file)  # noqa: S301 -- private to root, checked above
    except FileNotFoundError:
        return None, None
    except Exception as e:  # noqa: BLE001 -- a damaged pickle can raise anything; each is the same to the caller
        return None, f"{path} cannot be read: {type(e).__name__}: {e}"
    if version != __version__ or not isinstance(state, State) or not all(hasattr(state, f.name) for f in fields(State)):
        return None, f"{path} was written by another build of agentwatch ({version})"
    if state.ring != ring:
        return None, None  # of an earlier load of the probes: their events are not in this ring
    return state, None
