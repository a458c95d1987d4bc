"""Loads the modules of an experiment, which stand in a folder that is on no path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"


@contextmanager
def modules_of(folder: Path) -> Iterator[dict[str, ModuleType]]:
    """Every module of a folder by name; no other test finds them under these names."""
    names = [path.stem for path in sorted(folder.glob("*.py"))]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        patch.syspath_prepend(str(folder))
        yield {name: importlib.import_module(name) for name in names}
        for name in names:
            sys.modules.pop(name, None)
