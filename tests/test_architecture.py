"""Architecture: imports go one way, from what is described, by what is decided, to what is shown."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "leansim"
ROOT = "leansim"

# From the bottom up. A module imports from rows above its own line here only, never from its own
# row or a later one. `partitioners`, `engine` and `gpu` stand for all their modules: a new
# partitioner is one new file, and nothing else.
LAYERS: tuple[tuple[str, ...], ...] = (
    (ROOT, "errors"),
    ("strict_yaml", "spec", "allocator"),
    # what is described
    ("workload", "device", "kernel", "model"),
    ("occupancy", "measured_table"),
    ("tiling",),
    # what is decided
    ("schedule",),
    ("partitioners", "numerics", "pricing", "program"),
    # what happens
    ("tile_pricing", "result", "bounds"),
    ("segment_costs",),
    ("lowering",),
    ("engine", "metrics", "timeline", "packing_bound"),
    # what is asked: names, files and tasks
    ("checking", "catalog", "traces", "hf_config", "store", "keys", "yaml_edit"),
    ("points",),
    ("config", "simulating", "measurements", "calibration", "rules", "searching"),
    ("api", "testing", "points_csv"),
    ("executors", "trials", "reasons", "measured_points"),
    ("fitted_rows",),
    ("predicting", "fitting", "oracle", "spreading"),
    ("cluster", "own_measurements", "splits", "buckets", "invariance"),
    ("sweeps", "validation", "gpu"),
    ("merging",),
    # what is shown
    ("comparing", "tables", "progress"),
    ("explaining", "regret"),
    ("study_report",),
    ("sheet",),
    ("figures", "error_figures", "study_figures", "summary", "planning", "showing"),
    ("plots", "validation_report"),
    ("report", "cli_silicon", "cli_study", "cli_measure"),
    ("cli",),
    ("__main__",),
)
RANK = {module: rank for rank, row in enumerate(LAYERS) for module in row}

# Three readings of a schedule. Deciding it, replaying its arithmetic and timing it know nothing of
# each other, whatever their rows.
BRANCHES: tuple[frozenset[str], ...] = (
    frozenset({"partitioners"}),
    frozenset({"numerics"}),
    frozenset({"pricing", "tile_pricing", "program", "segment_costs", "lowering", "result"})
    | frozenset({"engine", "bounds", "metrics", "timeline"}),
)

# Libraries that one part of the package is the only user of.
CONFINED = {
    "simpy": {"engine"},
    "matplotlib": {"figures", "sheet", "error_figures", "study_figures"},
    "typer": {"cli", "cli_silicon", "cli_study", "cli_measure"},
    "rich": {"progress"},
    "sqlite3": {"store"},
    "dask": {"cluster"},
    "distributed": {"cluster"},
    "scipy": {"fitting"},
    "yaml": {"strict_yaml", "yaml_edit"},
    "torch": {"gpu"},
    "triton": {"gpu"},
    "pytest": set(),
    "hypothesis": set(),
}

FILES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """`leansim/engine/memory.py` -> `leansim.engine.memory`, a package for its `__init__`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in FILES}


def place(module: str) -> str:
    """Name under which a module stands in the table: `leansim.engine.memory` -> `engine`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ROOT


def imported(source: str, package: str, known: frozenset[str]) -> set[str]:
    """Absolute names of all modules that a file of `package` imports, inside functions too.

    `from leansim import api` is the module `leansim.api` where one of `known` is so named, and
    otherwise a name of `leansim` itself.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name in known}
            if names - known:
                found.add(base)
    return found


def imports_of(module: str) -> set[str]:
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return imported(path.read_text(encoding="utf-8"), package, frozenset(MODULES))


def own(modules: set[str]) -> set[str]:
    return {name for name in modules if name.split(".")[0] == ROOT}


def complaint(importer: str, target: str) -> str | None:
    """What is wrong with one module of the table importing another, if anything."""
    if importer == target:
        return None
    if RANK[target] >= RANK[importer]:
        return f"{importer} (row {RANK[importer]}) imports {target} (row {RANK[target]})"
    for branch in BRANCHES:
        for other in BRANCHES:
            if branch is not other and importer in branch and target in other:
                return f"{importer} imports {target}, which it should know nothing of"
    return None


def test_each_module_has_one_place() -> None:
    assert len(RANK) == sum(len(row) for row in LAYERS), "a module stands in the table twice"
    assert set().union(*BRANCHES) <= set(RANK)
    missing = sorted({place(module) for module in MODULES} - set(RANK))
    assert not missing, f"place {', '.join(missing)} in LAYERS of {Path(__file__).name}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    importer = place(module)
    assert importer in RANK, f"place {importer} in LAYERS of {Path(__file__).name}"
    targets = {place(target) for target in own(imports_of(module))} & set(RANK)
    wrong = [text for target in sorted(targets) if (text := complaint(importer, target))]
    assert not wrong, f"{module}: " + "; ".join(wrong)


def test_nothing_imports_in_a_circle() -> None:
    """Inside `partitioners` and `engine` too, where the table does not look."""
    graph = {module: own(imports_of(module)) - {module} for module in MODULES}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")
    assert set(MODULES) <= set(order)


@pytest.mark.parametrize("library", CONFINED)
def test_libraries_stay_where_they_belong(library: str) -> None:
    users = {
        place(module)
        for module in MODULES
        if library in {name.split(".")[0] for name in imports_of(module)}
    }
    assert users <= CONFINED[library]


def test_the_reader_of_imports_misses_none() -> None:
    source = """
import leansim.program as p, numpy as np
from leansim import __version__, api
from leansim.engine.memory import Memory
from . import stream_k
from .. import errors
from ..schedule import Schedule
if TYPE_CHECKING:
    from leansim.cli import main
def late():
    from leansim.plots import plot
"""
    known = frozenset({"leansim.api", "leansim.partitioners.stream_k", "leansim.errors"})
    assert imported(source, "leansim.partitioners", known) == {
        "leansim.program",
        "numpy",
        "leansim",
        "leansim.api",
        "leansim.engine.memory",
        "leansim.partitioners.stream_k",
        "leansim.errors",
        "leansim.schedule",
        "leansim.cli",
        "leansim.plots",
    }


@pytest.mark.parametrize(
    ("importer", "target", "allowed"),
    [
        ("tiling", "workload", True),
        ("engine", "engine", True),
        ("workload", "tiling", False),
        ("workload", "device", False),
        ("lowering", "partitioners", False),
        ("metrics", "numerics", False),
        ("numerics", "schedule", True),
        ("checking", "numerics", True),
        ("checking", "partitioners", True),
        ("cli", "report", True),
        ("api", "cli", False),
    ],
)
def test_the_rule_knows_right_from_wrong(importer: str, target: str, allowed: bool) -> None:
    assert (complaint(importer, target) is None) == allowed
