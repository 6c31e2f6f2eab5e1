"""Every error that agentwatch raises on purpose.

The tree, with the exit status of a command that ends with it (the numbers are those of sysexits.h)::

    AgentwatchError           70  something failed that should not have
    ├── ConfigError           78  the configuration file is missing, broken or contradicts itself
    ├── PrivilegeError        77  the caller may not do this (not root, a capability is missing)
    ├── NotFoundError         66  a session, a record or a file that was asked for does not exist
    ├── LogError              65  the log cannot be read or written as it is
    │   └── SegmentDamaged    65  bytes in a segment are not what was written
    │       └── RecordsPruned 65  nothing is damaged: the records were removed on purpose
    ├── StoreError            74  an input or output error below the log or the index (disk full, EIO)
    ├── BusyError             75  another process holds what is needed (a second recorder, a second indexer)
    └── KernelError           69  the kernel lacks or refuses something
        ├── ProbeLoadError    69  the probes did not compile, load or attach
        └── ProbesNotLoaded   69  a command needs pinned probes and there are none

A message says what was being done, to what, and what to do next. ``raise ... from`` keeps the cause.
Bad input from a *watched process* never raises: decoders keep it as an opaque value and count it.
"""

from __future__ import annotations


class AgentwatchError(Exception):
    """The base of the tree; ``str()`` of it is one line for a person."""

    exit_status = 70


class ConfigError(AgentwatchError):
    """The configuration file is missing, broken or contradicts itself."""

    exit_status = 78


class PrivilegeError(AgentwatchError):
    """The caller may not do this."""

    exit_status = 77


class NotFoundError(AgentwatchError):
    """What was asked for does not exist."""

    exit_status = 66


class LogError(AgentwatchError):
    """The log cannot be read or written as it is."""

    exit_status = 65


class SegmentDamaged(LogError):
    """Bytes in a segment are not what was written.

    Attributes: ``path`` (the segment), ``offset`` (of the first frame that cannot be trusted, bytes),
    ``seq`` (the first record that cannot be read).
    """

    def __init__(self, message: str, *, path: str, offset: int, seq: int) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset
        self.seq = seq


class RecordsPruned(SegmentDamaged):
    """Records were removed on purpose, as a ``prune`` record says: ``seq`` to ``next_seq - 1``."""

    def __init__(self, message: str, *, path: str, seq: int, next_seq: int) -> None:
        super().__init__(message, path=path, offset=0, seq=seq)
        self.next_seq = next_seq


class StoreError(AgentwatchError):
    """An input or output error below the log or the index."""

    exit_status = 74


class BusyError(AgentwatchError):
    """Another process holds what is needed."""

    exit_status = 75


class KernelError(AgentwatchError):
    """The kernel lacks or refuses something."""

    exit_status = 69


class ProbeLoadError(KernelError):
    """The probes did not compile, load or attach."""


class ProbesNotLoaded(KernelError):
    """A command needs pinned probes and there are none."""
