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
def modules_of(folder: Path, *names: str) -> Iterator[dict[str, ModuleType]]:
    """Modules of a folder by name, all by default; no other test finds them under these names."""
    every = [path.stem for path in sorted(folder.glob("*.py"))]
    with pytest.MonkeyPatch.context() as patch:
        for name in every:
            patch.delitem(sys.modules, name, raising=False)
        patch.syspath_prepend(str(folder))
        for name in names or every:
            importlib.import_module(name)
        yield {name: sys.modules[name] for name in every if name in sys.modules}
        for name in every:
            sys.modules.pop(name, None)
