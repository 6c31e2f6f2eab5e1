from __future__ import annotations

from tests.unit.requests.fix_host import alone, host, place

__all__ = ["alone", "host", "place"]
