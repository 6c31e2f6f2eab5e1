from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agentwatch.log.writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@pytest.fixture
def build_log(tmp_path: Path) -> Callable[..., Path]:
    """Write a log of the payloads into a folder of its own; one commit for each list in ``batches``."""

    def build(*batches: Sequence[bytes], segment_bytes: int = 1 << 20, name: str = "log") -> Path:
        log_dir = tmp_path / name
        with LogWriter(log_dir, segment_bytes=segment_bytes) as writer:
            for batch in batches:
                for payload in batch:
                    writer.append(payload)
                writer.commit()
        return log_dir

    return build
