"""leansim: what an attention-decode schedule does on a GPU, simulated.

The verbs of the command line are functions here, with the same names. Names load on first use, so
that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "run": "leansim.api",
    "plan": "leansim.api",
    "verify": "leansim.api",
    "simulate": "leansim.api",
    "list": "leansim.api",
    "show": "leansim.api",
    "schema": "leansim.api",
    "predict": "leansim.sweeps.predict",
    "sweep": "leansim.sweeps.sweep",
    "merge": "leansim.sweeps.merging",
    "plot": "leansim.report.plots",
    "point": "leansim.points.point",
    "Point": "leansim.points.point",
    "Workload": "leansim.specs.workload",
    "Device": "leansim.specs.device",
    "Kernel": "leansim.specs.kernel",
    "Model": "leansim.specs.model",
    "Schedule": "leansim.schedule.schedule",
    "TileGrid": "leansim.schedule.tiling",
    "Program": "leansim.engine.program",
    "Result": "leansim.engine.result",
    "Metrics": "leansim.results.metrics",
    "LeansimError": "leansim.errors",
}
__all__ = ["__version__", *_HOME]  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'leansim' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
