"""What commands share that run in the foreground until they are told to end."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def in_foreground() -> Callable[[], bool]:
    """Log to standard error, take SIGTERM and SIGINT as a request to end; return what tells whether one came."""
    logging.basicConfig(format="agentwatch: %(message)s", level=logging.INFO)
    stopping = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return lambda: stopping
