"""leansim: what an attention-decode schedule does on a GPU, simulated.

The verbs of the command line are functions here, with the same names. Names load on first use, so
that importing the package costs nothing; `__init__.pyi` tells editors and type checkers what they are.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    # Verbs, as the command line has them.
    "run": "leansim.sweeps.run",
    "sweep": "leansim.sweeps.sweep",
    "merge": "leansim.sweeps.merging",
    "plan": "leansim.api.plan",
    "predict": "leansim.api.predict",
    "verify": "leansim.api.verify",
    "step": "leansim.api.step",
    "plot": "leansim.report.plots",
    "list": "leansim.points.names",
    "show": "leansim.points.names",
    "schema": "leansim.points.grid",
    "validate": "leansim.api.silicon",
    "calibrate": "leansim.api.silicon",
    "certify": "leansim.silicon.certify",
    "measure": "leansim.gpu.measure",
    "oracle": "leansim.api.study",
    "splits": "leansim.api.study",
    "explain": "leansim.api.study",
    "regret": "leansim.study.regret",
    "buckets": "leansim.api.study",
    "invariance": "leansim.api.study",
    "experiment": "leansim.checkout.running",
    "experiments": "leansim.checkout.experiments",
    "tune": "leansim.api.study",
    # What they take, and one point.
    "point": "leansim.points.point",
    "simulate": "leansim.points.simulate",
    "load": "leansim.points.grid",
    # Types.
    "Point": "leansim.points.point",
    "PointGrid": "leansim.points.grid",
    "Workload": "leansim.specs.workload",
    "Device": "leansim.specs.device",
    "Node": "leansim.specs.node",
    "Kernel": "leansim.specs.kernel",
    "Model": "leansim.specs.model",
    "Schedule": "leansim.schedule.schedule",
    "TileGrid": "leansim.schedule.tiling",
    "Program": "leansim.engine.program",
    "Result": "leansim.engine.result",
    "Metrics": "leansim.results.metrics",
    "Simulation": "leansim.points.simulate",
    "Run": "leansim.sweeps.run",
    "Sweep": "leansim.sweeps.sweep",
    "LeansimError": "leansim.errors",
}
__all__ = ["__version__", *_HOME]  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'leansim' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
