from __future__ import annotations

from tests.unit.fix_log import config, config_file, log

__all__ = ["config", "config_file", "log"]
