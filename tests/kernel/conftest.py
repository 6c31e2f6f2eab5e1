"""The fixtures of the tests that use the real kernel, real servers and real clients."""

from __future__ import annotations

from tests.kernel.fix_bypass import arena, attackers
from tests.kernel.fix_postgres import postgres
from tests.kernel.fix_tls import compiled, drivers, https_server, server, tls_client, tls_postgres
from tests.kernel.fix_watch import agent_python, agent_user, own_watch, watch

__all__ = [
    "agent_python",
    "agent_user",
    "arena",
    "attackers",
    "compiled",
    "drivers",
    "https_server",
    "own_watch",
    "postgres",
    "server",
    "tls_client",
    "tls_postgres",
    "watch",
]
