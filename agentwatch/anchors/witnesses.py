"""What others said of a log's checkpoints, as far as they are known: cosigned and stamped checkpoints in ``anchors/``.

In: a log's folder, keys of cosigners, roots of timestamp authorities. Out: checkpoints that somebody else saw, to hold
the log against, and a line for each. What always holds: only what a known cosigner signed or a known authority stamped
comes out.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from agentwatch.anchors import store, timestamp
from agentwatch.log import note

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cryptography.x509 import Certificate

MAX_CHECKED = 64
"""The newest; each is one more checkpoint that the log has to go with."""


class Witnessed(NamedTuple):
    """Checkpoints that others saw; who and when, in words; and what is in the folder and no proof, in words."""

    checkpoints: list[note.Note]
    said: list[str]
    unfit: list[str]


def find(log_dir: Path, cosigners: Sequence[note.Key], roots: Path | None) -> Witnessed:
    """Return what the newest anchors prove. Raises ConfigError for the roots, and as ``store.read_anchors``."""
    authorities = timestamp.load_roots(roots) if roots is not None else []
    found = Witnessed([], [], [])
    if not cosigners and not authorities:
        return found
    for anchor in store.read_anchors(log_dir):
        if len(found.said) + len(found.unfit) >= MAX_CHECKED:
            break
        try:
            if isinstance(anchor, store.Unfit):
                raise note.NoteError(anchor.problem)  # noqa: TRY301 -- told with the others
            said = _check(anchor, cosigners, authorities)
        except (note.NoteError, timestamp.TimestampError) as e:
            found.unfit.append(f"no proof: {anchor.name}: {e}")
            continue
        if said is not None:
            found.checkpoints.append(note.parse(anchor.checkpoint))
            found.said.append(said)
    return found


def _check(anchor: store.Anchor, cosigners: Sequence[note.Key], roots: list[Certificate]) -> str | None:
    # None: nobody that we know.
    if anchor.response is not None:
        if not roots:
            return None
        moment = timestamp.verify(anchor.response, anchor.checkpoint, roots)
        return f"stamped: the first {anchor.size} records were there at {moment.isoformat()}"
    parsed = note.parse(anchor.checkpoint)
    for key in cosigners:
        line = next((s for s in parsed.signatures if (s.name, s.key_id) == (key.name, key.key_id)), None)
        if line is not None:
            note.verify(parsed, [key])
            return f"cosigned: {key.name} saw the first {anchor.size} records at {_when(note.moment_of(line))}"
    return None


def _when(moment_s: int) -> str:
    try:
        return datetime.fromtimestamp(moment_s, UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return f"{moment_s} seconds after 1970"
