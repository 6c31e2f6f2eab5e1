"""``agentwatch status``: is the recorder running, and does its account add up."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from agentwatch import recorder
from agentwatch.cli.common import pass_config
from agentwatch.cli.output import print_json
from agentwatch.errors import AgentwatchError
from agentwatch.index import store
from agentwatch.kernel import counters, pins

if TYPE_CHECKING:
    from agentwatch.config import Config

_COUNTERS = ("seen", "submitted", "lost", "held", "received", "undecodable", "unaccounted", "recorded", "signed")
_MORE = ("counted_bytes", "ring_position")


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@pass_config
def command(config: Config, *, as_json: bool) -> None:
    """Print the recorder's state and the counters of the way from kernel to index.

    seen = submitted + lost holds in the kernel at every moment; submitted = received + undecodable once the recorder
    has read everything; recorded counts records in the log (one event may make several or none), signed those that the
    newest checkpoint is for, indexed those that the index has. counted_bytes is payload that was counted and not
    copied, because nobody reads it; ring_position is how many bytes went through the ring.

    detached names what is no longer attached or pinned as it was loaded; canary tells whether the recorder saw what it
    last did to be seen.

    Exit status: 0 all is well, 1 no probes are loaded, the recorder does not run, something is detached, or the canary
    was missed.
    """
    status = _status(config)
    if as_json:
        print_json(status)
    else:
        for name, value in status.items():
            click.echo(f"{name:<14} {' '.join(value) or '-' if isinstance(value, list) else value}")
    working = status["recorder"] == "running" and status["probes"] == "loaded"
    raise SystemExit(1 if not working or status["detached"] or str(status["canary"]).startswith("missed") else 0)


def _status(config: Config) -> dict[str, object]:
    running = recorder.is_running(config.run_dir)
    last = recorder.last_status(config.run_dir)
    loaded = pins.is_loaded(config)
    status: dict[str, object] = {
        "recorder": "running" if running else "stopped",
        "probes": "loaded" if loaded else "not loaded",
        "probe_mode": pins.read_status(config).probe_mode if loaded else None,
        **{name: last.get(name, 0) for name in _COUNTERS},
        **{name: last.get(name, 0) for name in _MORE},
        "indexed": _indexed(config),
        "backlog_bytes": last.get("backlog_bytes", 0) if running else None,
        "pid": last.get("pid") if running else None,
        "fault": last.get("fault"),
        "timestamp": last.get("timestamp"),
        "timestamp_problem": last.get("timestamp_problem"),
        "detached": last.get("detached", []) if running else [],
        "canary": last.get("canary") if running else None,
        "watch": str(config.watch_path),
        "log_dir": str(config.log_dir),
    }
    if loaded:
        status.update(_of_kernel(config))
    return status


def _of_kernel(config: Config) -> dict[str, object]:
    """Return the kernel's part of the account as it is now: the recorder's own word is up to a second old."""
    descriptor = pins.open_map(config, "counters")
    try:
        total = counters.total(counters.read(descriptor))
    finally:
        os.close(descriptor)
    return {"seen": total.seen, "submitted": total.submitted, "lost": sum(total.lost), "held": total.held}


def _indexed(config: Config) -> int:
    """Return how many records the index has; 0 where there is no index yet or it cannot be read."""
    try:
        db = store.open_reader(config)
    except AgentwatchError:
        return 0
    try:
        return store.position(db).next_seq
    finally:
        db.close()
