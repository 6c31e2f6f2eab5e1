"""Python files that are in no package, by their paths: workers, fuzz targets."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

FUZZ = Path(__file__).parents[1] / "fuzz"


def load(path: Path) -> ModuleType:
    """Return the module that a file makes."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
