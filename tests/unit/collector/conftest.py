from __future__ import annotations

from tests.unit.collector.fix_collector import authority, collector, host, quiet, stopped_collector

__all__ = ["authority", "collector", "host", "quiet", "stopped_collector"]
