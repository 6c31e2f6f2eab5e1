"""What the kernel need not copy: verdicts of the recorder, written into the probes' maps.

A verdict saves work and nothing else: one that does not reach the kernel costs ring space, one that reaches it late
changes nothing of what is recorded. Nothing is reported when a map is full.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING

from agentwatch.errors import KernelError
from agentwatch.kernel import bpf, pins

if TYPE_CHECKING:
    from agentwatch.config import Config

ALL, COUNT, ROWS, TLS = 0, 1, 2, 3
"""``FLOW_`` modes of probes/maps.h; ALL is no entry."""
_MAX_ENTRIES = 65536
_TLS_COUNTED, _TLS_TIED = 1, 2
_KEY = struct.Struct("<Q")


class InterestMaps:
    """The maps ``flows`` (TCP, by socket cookie), ``unix_flows`` (by socket inode), ``tls_verdicts`` (by session)."""

    def __init__(self, config: Config) -> None:
        self._flows = pins.open_map(config, "flows")
        self._flow_bytes = bpf.map_value_bytes(self._flows)
        self._unix = pins.open_map(config, "unix_flows")
        self._tls = pins.open_map(config, "tls_verdicts")

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in (self._flows, self._unix, self._tls):
            os.close(descriptor)

    def set(self, transport: str, identity: int, mode: int) -> None:
        """Tell the kernel what to do with a connection (``transport``: tcp or unix; tls: a session of a library)."""
        if transport == "tls":
            flags = _TLS_TIED | (_TLS_COUNTED if mode == COUNT else 0)
            with contextlib.suppress(KernelError):
                bpf.map_update(self._tls, _KEY.pack(identity), struct.pack("<I", flags))
            return
        if transport == "unix":
            fd, value = self._unix, b"\1"
        else:
            fd, value = self._flows, struct.pack("<I", mode).ljust(self._flow_bytes, b"\0")
        key = _KEY.pack(identity)
        with contextlib.suppress(KernelError):
            if mode == ALL:
                bpf.map_delete(fd, key)
            elif mode == ROWS:  # the kernel may follow it already, and knows where it is
                bpf.map_insert(fd, key, value)
            else:
                bpf.map_update(fd, key, value)

    def clear(self) -> None:
        """Delete all entries: what a recorder whose state is gone has left."""
        for fd, size in ((self._flows, self._flow_bytes), (self._unix, 1), (self._tls, 4)):
            for key in [key for key, _ in bpf.map_items(fd, _KEY.size, size, _MAX_ENTRIES)]:
                bpf.map_delete(fd, key)
