"""``agentwatch run``: run a command as an agent, watched from its first instruction."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from agentwatch import foreground, launcher, locks
from agentwatch.cli.common import pass_config
from agentwatch.errors import NotFoundError, PrivilegeError
from agentwatch.identity import users
from agentwatch.kernel import pins
from agentwatch.log.folder import LOCK_NAME

if TYPE_CHECKING:
    from agentwatch.config import AgentConfig, Config

_EPILOG = """\
Exit status: the command's own; a command that a signal ends makes this one end by the same signal (a shell shows
128 + N). As in a shell 127 and 126 when the command was not found or cannot be executed. Nothing was run with: 2
usage, 66 no such agent or user, 69 probes not loaded or the kernel refused the cgroup, 74 the registration could not
be written, 75 the agent is running already, 77 not root, 78 the configuration.
"""


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog=_EPILOG,
    short_help="Run a command as an agent, watched.",
)
@click.option("--agent", "name", required=True, metavar="NAME", help="The agent, as the configuration names it.")
@click.option(
    "--user", metavar="USER", help="Run as this user (name or uid). Default: who called sudo, else the caller (root)."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARG]...")
@pass_config
def command(config: Config, name: str, user: str | None, command: tuple[str, ...]) -> None:
    """Run COMMAND as one session of an agent, in a cgroup of its own, without root's privileges.

    Standard input, output, error, working directory and umask are the caller's; other open files are not passed on. A
    terminal is replaced by one of the command's own, which shows and is told the same. Signals go through. The session
    lasts until the last process in its cgroup has ended.
    """
    if os.geteuid() != 0:
        raise PrivilegeError(f"running a session of {name} needs root, to make its cgroup and register it; use sudo")
    agent = _agent(config, name)
    pins.require(config)
    account = users.resolve(user) if user is not None else users.invoking()
    if account.uid == 0:
        _warn("the command runs as root, which can undo what watches it; name an unprivileged user with --user")
    if not locks.is_held(config.log_dir / LOCK_NAME):
        _warn("the recorder is not running; the kernel buffers what it sees until 'agentwatch record' starts")
    status = launcher.launch(config, agent, account, command)
    click.get_current_context().exit(foreground.die_like(status))


def _warn(message: str) -> None:
    click.echo(f"agentwatch: warning: {message}", err=True)


def _agent(config: Config, name: str) -> AgentConfig:
    for agent in config.agents:
        if agent.name == name:
            return agent
    known = ", ".join(agent.name for agent in config.agents) or "none; add an [[agent]] table"
    raise NotFoundError(f"there is no agent {name!r} in {config.path or 'the built-in configuration'}; known: {known}")
