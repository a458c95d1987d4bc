"""Architecture: imports go one way, from what is described, by what is decided, to what is shown."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "leansim"
ROOT = "leansim"

# From the bottom up, along the flow of data. A package, or a module beside the packages, imports from
# rows above its own line here only, never from its own row or a later one.
LAYERS: tuple[tuple[str, ...], ...] = (
    (ROOT, "errors", "arrays", "lazy", "plugins", "answers"),
    ("files", "engine"),
    ("specs",),
    ("schedule",),
    ("partitioners", "timing"),
    ("numerics", "results"),
    ("points",),
    ("sweeps", "steps"),
    ("study", "silicon", "testing"),
    ("gpu", "report", "checkout"),
    ("api",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}

# Three readings of a schedule. Deciding it, replaying its arithmetic and timing it know nothing of
# each other, but that a check of batch invariance asks a partitioner for schedules.
BRANCHES: tuple[frozenset[str], ...] = (
    frozenset({"partitioners"}),
    frozenset({"numerics"}),
    frozenset({"engine", "timing", "results"}),
)
ALLOWED = {("numerics", "partitioners")}

# Libraries that one part of the package is the only user of.
CONFINED = {
    "simpy": {"engine"},
    "numba": {"engine"},
    "matplotlib": {"report"},
    "typer": {"cli"},
    "rich": {"sweeps"},
    "sqlite3": {"sweeps"},
    "dask": {"sweeps"},
    "distributed": {"sweeps"},
    "scipy": {"silicon"},
    "sklearn": {"study"},
    "yaml": {"files"},
    "torch": {"gpu"},
    "triton": {"gpu"},
    "pytest": set(),
    "hypothesis": set(),
}
MOST_MODULES = 8  # beside the packages
MOST_LINES = 400
MOST_OPTIONAL_FIELDS = 12

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
            apart = branch is not other and importer in branch and target in other
            if apart and (importer, target) not in ALLOWED:
                return f"{importer} imports {target}, which it should know nothing of"
    return None


def test_each_module_has_one_place() -> None:
    assert len(RANK) == sum(len(row) for row in LAYERS), "a module stands in the table twice"
    assert set().union(*BRANCHES) <= set(RANK)
    missing = sorted({place(module) for module in MODULES} - set(RANK))
    assert not missing, f"place {', '.join(missing)} in LAYERS of {Path(__file__).name}"


def test_there_are_few_modules_beside_the_packages() -> None:
    beside = [path.name for path in PACKAGE.glob("*.py")]
    assert len(beside) <= MOST_MODULES, f"which package do they belong to? {', '.join(beside)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_answers_one_question(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{lines} lines"


def optional_fields(source: str) -> dict[str, list[str]]:
    """Fields with a default that each class of a file declares itself, those it inherits left out."""
    return {
        node.name: [
            line.target.id
            for line in node.body
            if isinstance(line, ast.AnnAssign)
            and isinstance(line.target, ast.Name)
            and line.value is not None
            and not ast.unparse(line.annotation).startswith("ClassVar")
            and not _is_required(line.value)
        ]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    }


def _is_required(value: ast.expr) -> bool:
    """Whether `Field(...)` is given no default: none in its place, nor by name."""
    if not (isinstance(value, ast.Call) and ast.unparse(value.func) == "Field"):
        return False
    return not value.args and not {"default", "default_factory"} & {word.arg for word in value.keywords}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_class_declares_few_optional_fields(path: Path) -> None:
    """More of them are several things that may be absent together: a class each, then composed."""
    for name, fields in optional_fields(path.read_text(encoding="utf-8")).items():
        assert len(fields) <= MOST_OPTIONAL_FIELDS, f"{name}: {', '.join(fields)}"


def test_the_reader_of_fields_knows_which_are_optional() -> None:
    source = """
class Point(Parts):
    kind: ClassVar[str] = "point"
    device: str = Field(description="needed")
    name: str
    model: str | None = Field(None, description="optional")
    overrides: dict = Field(default_factory=dict)
    seed: int = 0
"""
    assert optional_fields(source) == {"Point": ["model", "overrides", "seed"]}


@pytest.mark.parametrize("package", sorted({path.parent for path in FILES} - {PACKAGE}))
def test_a_folder_says_what_it_answers_and_where_to_begin(package: Path) -> None:
    """And no more: its `__init__` runs no code, so that importing one module loads no other."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    said = ast.get_docstring(tree)
    assert said is not None
    assert len(tree.body) == 1
    assert "Imports " in said
    assert "Begin with " in said


def test_the_map_in_the_docs_has_every_folder() -> None:
    page = (PACKAGE.parent / "docs" / "extending.md").read_text(encoding="utf-8")
    order = re.findall(r"^\| \[(\w+)\]\(\.\./leansim/\1\) \|", page, flags=re.MULTILINE)
    assert sorted(order) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    assert order == sorted(order, key=lambda name: RANK[name]), "those that it imports come first"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    importer = place(module)
    assert importer in RANK, f"place {importer} in LAYERS of {Path(__file__).name}"
    targets = {place(target) for target in own(imports_of(module))} & set(RANK)
    wrong = [text for target in sorted(targets) if (text := complaint(importer, target))]
    assert not wrong, f"{module}: " + "; ".join(wrong)


def test_nothing_imports_in_a_circle() -> None:
    """Inside the packages too, where the table does not look."""
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
import leansim.engine.program as p, numpy as np
from leansim import __version__, api
from leansim.engine.memory import Memory
from . import stream_k
from .. import errors
from ..schedule.tiling import TileGrid
if TYPE_CHECKING:
    from leansim.cli.main import main
def late():
    from leansim.report.plots import plot
"""
    known = frozenset({"leansim.api", "leansim.partitioners.stream_k", "leansim.errors"})
    assert imported(source, "leansim.partitioners", known) == {
        "leansim.engine.program",
        "numpy",
        "leansim",
        "leansim.api",
        "leansim.engine.memory",
        "leansim.partitioners.stream_k",
        "leansim.errors",
        "leansim.schedule.tiling",
        "leansim.cli.main",
        "leansim.report.plots",
    }


@pytest.mark.parametrize(
    ("importer", "target", "allowed"),
    [
        ("schedule", "specs", True),
        ("engine", "engine", True),
        ("specs", "schedule", False),
        ("engine", "specs", False),
        ("timing", "partitioners", False),
        ("results", "numerics", False),
        ("results", "partitioners", False),
        ("numerics", "timing", False),
        ("numerics", "schedule", True),
        ("numerics", "partitioners", True),
        ("cli", "report", True),
        ("api", "cli", False),
    ],
)
def test_the_rule_knows_right_from_wrong(importer: str, target: str, allowed: bool) -> None:
    assert (complaint(importer, target) is None) == allowed
