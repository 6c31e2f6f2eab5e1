"""Statements under TLS that a library's probes do not see, or see otherwise than they are; see docs/bypasses.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel.fix_bypass import (
    COVERED,
    PYTHON,
    Arena,
    Unseen,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.fix_bypass import Attack, State
    from tests.kernel.fix_tls import TlsPostgresServer
    from tests.kernel.fix_watch import Watch

pytestmark = pytest.mark.kernel

OPEN = pytest.mark.xfail(strict=True, raises=Unseen, reason="see docs/bypasses.md")
NO_LIBRARY, SURPLUS = "no-library", "surplus"
ROUNDS = 200


@pytest.fixture(scope="module")
def arena(watch: Watch, tls_postgres: TlsPostgresServer, attackers: Path) -> Arena:
    """An arena whose database is reached over TLS."""
    return Arena(watch, tls_postgres, attackers)


def unread(attack: Attack) -> set[str]:
    """Return why bytes under TLS were not read, as the last record about each connection says."""
    last = {record["connection"]: record for record in attack.of("opaque") if record["reason"] == "tls"}
    return {record["tls"]["cause"] for record in last.values() if record["bytes_out"]}


def test_plain_statement(arena: Arena) -> None:
    state, attack = arena.sql(arena.tool("tls_plain"))
    assert state == COVERED
    assert {record["seen_by"] for record in attack.of("statement")} == {"tls-uprobe"}
    assert attack.declared() == []  # or every attack would seem to be declared


# Copies of a library


def copies(arena: Arena, way: str) -> tuple[State, Attack]:
    return arena.sql(PYTHON, arena.tool("tls_copies.py"), way)
