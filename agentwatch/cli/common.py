"""What every command shares: ``--config``, which works before and after the command's name.

``config_option`` adds the option, ``pass_config`` adds it and gives the command a loaded ``Config`` as its first
argument. The option that is nearest to the command wins; without one ``$AGENTWATCH_CONFIG`` and the default path count.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import click

from agentwatch import config
from agentwatch.query import times

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")
_META_KEY = "agentwatch.cli.config"


def _remember(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.meta[_META_KEY] = value  # shared by the nested contexts; the inner one is parsed last


config_option = click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    expose_value=False,
    callback=_remember,
    help=f"The configuration. Default: ${config.ENVIRONMENT_VARIABLE}, else {config.DEFAULT_PATH}.",
)


def load_config() -> config.Config:
    """Load the configuration that the running command was given. Raises ConfigError."""
    path: Path | None = click.get_current_context().meta.get(_META_KEY)
    return config.load(path)


def pass_config(function: Callable[Concatenate[config.Config, P], R]) -> Callable[P, R]:
    """Give a command ``--config`` and, as its first argument, the configuration."""

    @config_option
    @functools.wraps(function)
    def with_config(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(load_config(), *args, **kwargs)

    return with_config


def moment(_ctx: click.Context, _param: click.Parameter, typed: str | None) -> int | None:
    """Return the time that an option names, CLOCK_REALTIME in nanoseconds: a callback of click."""
    try:
        return None if typed is None else times.parse(typed, time.time_ns())
    except ValueError as e:
        raise click.BadParameter(str(e)) from e
