from __future__ import annotations
import os, sys, pytest
from tests.kernel.fix_bypass import Arena, PYTHON
pytestmark = pytest.mark.kernel

@pytest.fixture(scope="module")
def arena(watch, tls_postgres, attackers):
    return Arena(watch, tls_postgres, attackers)

WAYS = os.environ["WAYS"].split(",")
@pytest.mark.parametrize("way", WAYS)
def test_way(arena, way):
    script, _, way = way.partition(":")
    words = (PYTHON, arena.tool(script + ".py"), way) if not script.endswith("!") else (arena.tool(script[:-1]), way)
    state, attack = arena.sql(*words)
    print("\n====", way, state)
    print(attack.stdout)
    for r in attack.records:
        if r["kind"] in ("statement", "opaque", "gap", "divergence", "request", "connect", "probe_attach", "delegation","scm_rights"):
            print("   ", r["kind"], {k: v for k, v in r.items() if k in ("connection","db.query.text", "reason", "tls", "bytes_out", "bytes_in", "cause", "bytes", "outcome", "rows","peer", "final", "technique", "seen_by","file")})
