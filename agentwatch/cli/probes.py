"""``agentwatch probes load|status|unload``: the kernel side, which runs with no process of ours."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from agentwatch.cli.common import config_option, pass_config
from agentwatch.kernel import bpf, counters, holding, hooks, pins, uprobes

if TYPE_CHECKING:
    from agentwatch.config import Config


@click.group("probes")
@config_option
def command() -> None:
    """Load, inspect and unload the kernel probes.

    Loaded probes capture without any process: events wait in the pinned ring until the recorder reads them.
    """


@command.command("load")
@pass_config
def load(config: Config) -> None:
    """Compile, attach and pin the probes. Needs root and python3-bpfcc.

    Exit status: 0 loaded, 69 the kernel or the compiler refused, 75 loaded already, 77 not root.
    """
    from agentwatch.kernel import loader  # noqa: PLC0415 -- the other commands must not need the compiler

    loaded = loader.load(config)
    click.echo(f"loaded: {len(hooks.HOOKS)} hooks on {config.watch_path}, pinned at {config.pin_dir}")
    if loaded.scan_problem is not None:
        click.echo(f"agentwatch: a TLS library could not be hooked: {loaded.scan_problem}", err=True)
    click.echo(f"mode {loaded.probe_mode}, ring {loaded.ring_bytes >> 10} KiB", err=True)


@command.command("upgrade")
@pass_config
def upgrade(config: Config) -> None:
    """Replace the loaded probes by this version's, between two events: nothing is lost, the recorder goes on.

    Exit status: 0 replaced, 69 none are loaded or these cannot take their place (the message says what to do),
    77 not root.
    """
    from agentwatch.kernel import loader  # noqa: PLC0415 -- the other commands must not need the compiler

    loaded = loader.upgrade(config)
    click.echo(f"upgraded: {len(hooks.HOOKS)} hooks on {config.watch_path}, version {loaded.version}")


@command.command("unload")
@pass_config
def unload(config: Config) -> None:
    """Detach and unpin the probes. Events that nobody read are gone; processes that were held go on.

    Exit status: 0 unloaded (or nothing was loaded), 77 not root.
    """
    pins.is_loaded(config)  # says so when it may not look
    with holding.released_afterwards(config):
        links = pins.remove(config)
    click.echo(f"unloaded: {links} hooks")


@command.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@pass_config
def status(config: Config, *, as_json: bool) -> None:
    """Print which hooks are attached, what each program captured and lost, and how many TLS libraries are hooked.

    A library is a file, by device and inode; its path is told if it was found when the probes were loaded.

    Exit status: 0 all hooks are attached, 69 none are loaded, 1 some are missing.
    """
    pins.require(config)
    attached = _attached(config)
    missing = [hook.link for hook in hooks.HOOKS if hook.link not in attached]
    fd = pins.open_map(config, "counters")
    try:
        account = counters.read(fd)
    finally:
        os.close(fd)
    programs = {p.name.removeprefix("P_").lower(): counters.of_program(account, p) for p in counters.PROGRAMS}
    libraries = uprobes.hooked(config)
    if as_json:
        told = {"attached": sorted(attached), "missing": missing, "libraries": [one._asdict() for one in libraries]}
        click.echo(json.dumps(told | _as_json(programs)))
    else:
        click.echo(f"{'program':<12} {'seen':>10} {'submitted':>10} {'lost':>8}")
        for name, c in programs.items():
            click.echo(f"{name:<12} {c.seen:>10} {c.submitted:>10} {sum(c.lost):>8}")
        click.echo(f"{len(attached)} of {len(hooks.HOOKS)} hooks attached", err=True)
        click.echo(f"TLS libraries hooked: {len(libraries)}", err=True)
    for link in missing:
        click.echo(f"agentwatch: not attached: {link}", err=True)
    raise SystemExit(1 if missing else 0)


def _attached(config: Config) -> set[str]:
    """Return the names of links that are pinned and whose cgroup, where they have one, still exists."""
    result = set()
    for pin in pins.links_dir(config).iterdir():
        fd = bpf.obj_get(pin)
        try:
            link = bpf.link_info(fd)
        finally:
            os.close(fd)
        if link.kind != bpf.LINK_CGROUP or link.cgroup:
            result.add(pin.name)
    return result


def _as_json(programs: dict[str, counters.Counters]) -> dict[str, object]:
    return {
        "programs": {
            name: {
                "seen": c.seen,
                "submitted": c.submitted,
                "lost": dict(zip(counters.CAUSES, c.lost, strict=True)),
                "lost_bytes": dict(zip(counters.CAUSES, c.lost_bytes, strict=True)),
                "held": c.held,
                "counted_bytes": c.counted_bytes,
            }
            for name, c in programs.items()
        }
    }
