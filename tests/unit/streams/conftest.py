from __future__ import annotations

from tests.unit.streams.fix_tls import certificate

__all__ = ["certificate"]
