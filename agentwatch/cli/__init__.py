"""The command line, one file per command.

``main`` is the click group. The table below is literal and names each command's module and one-line summary: the
module is imported only when its command is used, so that a query starts quickly and never imports the kernel side.
Each module exports ``command``.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import NoReturn

import click

from agentwatch import __version__
from agentwatch.cli.common import config_option
from agentwatch.cli.safe import printable
from agentwatch.errors import AgentwatchError, StoreError

COMMANDS = {
    "sessions": ("agentwatch.cli.sessions", "List sessions, for example those that touched a table."),
    "statements": ("agentwatch.cli.statements", "List statements, verbatim and in order."),
    "commands": ("agentwatch.cli.commands", "List the programs that agents executed."),
    "show": ("agentwatch.cli.show", "Show one session: processes, connections, tables, gaps."),
    "replay": ("agentwatch.cli.replay", "Replay one session in order, at its own pace."),
    "tail": ("agentwatch.cli.tail", "Print the last records of the log, and follow it."),
    "verify": ("agentwatch.cli.verify", "Check that the log is what was written."),
    "checkpoint": ("agentwatch.cli.checkpoint", "Print the newest checkpoint, to be kept elsewhere."),
    "evidence": ("agentwatch.cli.evidence", "Write a session's records with what proves them."),
    "hold": ("agentwatch.cli.hold", "Keep a session's records, however old they get."),
    "secrets": ("agentwatch.cli.secrets", "Make an auditor's key, open sealed credentials."),
    "index": ("agentwatch.cli.index", "Bring the index up to the end of the log."),
    "run": ("agentwatch.cli.run", "Run a command as an agent, watched."),
    "record": ("agentwatch.cli.record", "Run the recorder in the foreground."),
    "push": ("agentwatch.cli.push", "Keep a collector on another host at the log's newest checkpoint."),
    "collector": ("agentwatch.cli.collector", "Keep the logs of other hosts."),
    "probes": ("agentwatch.cli.probes", "Load, inspect and unload the kernel probes."),
    "status": ("agentwatch.cli.status", "Print the recorder's state and counters."),
    "doctor": ("agentwatch.cli.doctor", "Say what this host lacks and what it costs."),
}

EXIT_BROKEN_PIPE = 141
"""128 + SIGPIPE: what a shell shows for a program whose reader went away."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT."""

_EPILOG = """\
Exit status: 0 done, 2 usage, 65 the log cannot be read, 66 not found, 69 the kernel lacks something, 70 internal,
74 input or output error, 75 busy, 77 not permitted, 78 configuration, 130 interrupted, 141 the reader of the output
went away. Queries also use 1 (no) and 3 (cannot say); each command's help says so.
"""


class LazyGroup(click.Group):
    """The group of COMMANDS, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the table's order."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return its ``command``."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table into the help without importing any command."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; errors become one line and an exit status, never a traceback."""
        try:
            result: object = super().invoke(ctx)
            sys.stdout.flush()
        except AgentwatchError as e:
            _fail(ctx, e)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except OSError as e:
            if e.errno == errno.EPIPE:
                _leave_broken_pipe(ctx)
            _fail(ctx, StoreError(_describe(e)))
        return result


def _fail(ctx: click.Context, error: AgentwatchError) -> NoReturn:
    click.echo(f"agentwatch: {printable(str(error))}", err=True)
    ctx.exit(error.exit_status)


def _leave_broken_pipe(ctx: click.Context) -> NoReturn:
    # The interpreter flushes stdout once more at its end; that must not fail as well.
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.close(sink)
    ctx.exit(EXIT_BROKEN_PIPE)


def _describe(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"input or output failed: {error.strerror or error}{where}"


@click.group(cls=LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="agentwatch")
@config_option
def main() -> None:
    """Record what AI agents do to databases and hosts, and answer questions about it."""
