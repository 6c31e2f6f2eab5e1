"""Logs as the recorder writes them, made of records that a test asks for: real segments through the real LogWriter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentwatch.log.writer import LogWriter
from agentwatch.records.encoding import Record, encode

if TYPE_CHECKING:
    from pathlib import Path

T0 = 1_700_000_000_000_000_000
"""CLOCK_REALTIME of the first record: 2023-11-14T22:13:20Z."""
BOOT0 = 500_000_000_000
"""CLOCK_BOOTTIME of the first record."""
MS = 1_000_000
SECOND = 1_000_000_000
BOOT_ID = "6b8f6c3e-0f4a-4f0e-9d0a-1c2d3e4f5a6b"
SESSION = "018bd0a6-5a00-7abc-8def-0123456789ab"
OTHER_SESSION = "018bd0a6-5a01-7abc-8def-0123456789ab"


@dataclass
class LogBuilder:
    """Collects records; ``write`` appends them to the log. Each record is one millisecond after the one before."""

    log_dir: Path
    now_ns: int = 0
    boot_id: str = BOOT_ID
    session: str = SESSION
    agent: str = "agent-backfill"
    records: list[Record] = field(default_factory=list)
    exec_id: int = 0

    def add(self, kind: str, *, own: bool = True, **fields: Any) -> Record:
        """Add a record of any kind; ``own``: it belongs to the session."""
        self.now_ns += MS
        record: Record = {
            "kind": kind,
            "time": T0 + self.now_ns,
            "boottime": BOOT0 + self.now_ns,
            "host": "db-agent-1",
            "boot_id": self.boot_id,
        }
        if own:
            record |= {"session": self.session, "agent": self.agent}
        record |= {key.replace("__", "."): value for key, value in fields.items()}
        self.records.append(record)
        return record

    def observer_start(self, *, resumed: bool = False) -> Record:
        return self.add(
            "observer_start", own=False, version="0", config_sha256="00", probe_mode="tracepoint", resumed=resumed
        )

    def start(self, session: str = SESSION, agent: str = "agent-backfill", user: str = "alice") -> Record:
        self.session, self.agent = session, agent
        return self.add(
            "session_start",
            cgroup=f"agents.slice/{agent}-1",
            cgroup_id=4711,
            user=user,
            uid=1000,
            login_uid=None,
            argv=["/bin/sh", "backfill.sh"],
            origin="run",
            preexisting=False,
        )

    def end(self, status: int = 0) -> Record:
        return self.add("session_end", cgroup="agents.slice/agent-backfill-1", cgroup_id=4711, status=status)

    def exec(self, pid: int, *argv: str | bytes, ppid: int = 1, **fields: Any) -> Record:
        self.exec_id += 1
        return self.add(
            "exec",
            **{
                "pid": pid,
                "tid": pid,
                "exe": argv[0],
                "comm": "sh",
                "uid": 1000,
                "gid": 1000,
                "argv": list(argv),
                "argv_bytes": sum(map(len, argv)),
                "argv_captured": sum(map(len, argv)),
                "filename": argv[0],
                "device": 1,
                "inode": 2**64 - 1,
                "memfd": False,
                "deleted": False,
                "cwd": "/home/alice",
                "ppid": ppid,
                "exec_id": self.exec_id,
                **fields,
            },
        )

    def exec_failed(self, pid: int, *argv: str, filename: str | None = None) -> Record:
        return self.add(
            "exec_failed",
            pid=pid,
            exe="/bin/sh",
            uid=1000,
            filename=filename or argv[0],
            argv=list(argv),
            errno=2,
            error="No such file or directory",
        )

    def exit(self, execed: Record, status: int = 0, duration_ns: int = 5 * MS) -> Record:
        return self.add(
            "exit",
            pid=execed["pid"],
            exe=execed["exe"],
            status=status,
            code=status,
            signal=None,
            core=False,
            duration_ns=duration_ns,
            exec_id=execed["exec_id"],
        )

    def connect(self, connection: str = "c1", peer: str = "127.0.0.1:5432", errno: int = 0, pid: int = 100) -> Record:
        return self.add(
            "connect",
            pid=pid,
            exe="/usr/bin/psql",
            transport="unix" if peer.startswith("unix:") else "tcp",
            peer=peer,
            local=None,
            connection=connection,
            fd=3,
            errno=errno,
            error="Connection refused" if errno else None,
            latency_ns=40_000,
            source="kernel",
        )

    def statement(self, text: str | bytes | None, connection: str = "c1", **fields: Any) -> Record:
        own = fields.pop("own", True)
        return self.add(
            "statement",
            own=own,
            **{
                "pid": 100,
                "tid": 100,
                "exe": "/usr/bin/psql",
                "comm": "psql",
                "uid": 1000,
                "connection": connection,
                "transport": "tcp",
                "protocol": "postgresql",
                "peer": "127.0.0.1:5432",
                "seen_by": "wire",
                "db__system__name": "postgresql",
                "db__namespace": "shop",
                "db__user": "app",
                "db__query__text": text,
                "text_length": 0 if text is None else len(text),
                "truncated": False,
                "params": None,
                "outcome": "ok",
                "rows": 1,
                "command_tag": "SELECT 1",
                "db__response__status_code": None,
                "error": None,
                "duration_ns": 700_000,
                "offset": 99,
                "joined": False,
                "attributes": {"postgresql.transaction_status": "I"},
                **fields,
            },
        )

    def opaque(self, connection: str = "c9", *, final: bool = True, **fields: Any) -> Record:
        return self.add(
            "opaque",
            **{
                "connection": connection,
                "transport": "tcp",
                "peer": "203.0.113.5:443",
                "reason": "tls",
                "bytes_out": 1000,
                "bytes_in": 2000,
                "final": final,
                **fields,
            },
        )

    def delegation(self, channel: str = "docker", operation: str | None = "create", **fields: Any) -> Record:
        return self.add(
            "delegation",
            **{
                "pid": 100,
                "exe": "/usr/bin/docker",
                "channel": channel,
                "noticed": "message",
                "operation": operation,
                "command": ["/bin/echo", "two words"],
                "peer": "unix:/run/docker.sock",
                "connection": "c8",
                "detail": {"image": "alpine", "status": 201},
                **fields,
            },
        )

    def gap(self, *, own: bool = True, **fields: Any) -> Record:
        return self.add("gap", own=own, **{"cause": "tcp-hole", "count": None, "bytes": 77, **fields})

    def write(self) -> LogBuilder:
        """Append what was added since the last time to the log."""
        with LogWriter(self.log_dir) as writer:
            for record in self.records:
                writer.append(encode(record))
            writer.commit()
        self.records.clear()
        return self
