"""Run and sweep files: a grid of points, written as one mapping whose lists are axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, create_model
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from leansim.errors import ConfigError, Problem, UnknownNameError, suggestion
from leansim.files.strict_yaml import Document, read
from leansim.partitioners.registry import hint_of, partitioners
from leansim.points.batch import MOST_REQUESTS
from leansim.points.point import POINT_KEYS, Point
from leansim.points.policy import PolicyFields
from leansim.points.settings import apply_settings
from leansim.points.shape import ShapeFields, kinds_of_layers
from leansim.specs import catalog
from leansim.specs.base import Positive, Spec

CURVE_AXES = {"context_scale", "batch_size"}
MOST_ON_A_CURVE = 1000
# Of a grid that is expanded: some gigabytes, a quarter of an hour on a laptop.
MOST_POINTS = 2**20
_OF_KINDS = {"model", "hf_config", "layers"}


class _OneOrMany:
    """Shows an axis in the JSON Schema as a value or a list of values."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core)
        return {"anyOf": [schema.get("items", {}), schema]}


def _as_axis(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _as_axis_of_lists(value: Any) -> Any:
    nested = isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple)
    return value if nested else [value]


class PointGrid(Spec):
    """A grid of points: what a run or sweep file says beside its axes, and what they expand to."""

    name: str = Field(description="names the results")
    description: str = Field("", description="one line for people")
    baseline: str | None = Field(None, description="kernel that speedups are measured against")
    zip: list[list[str]] = Field(
        default_factory=list, description="groups of axes that advance together"
    )
    curve: dict[str, Annotated[list[Positive], Field(max_length=MOST_ON_A_CURVE)]] = Field(
        default_factory=dict,
        description="for `run`: values of the axis of the speedup curve it also draws",
    )

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Values of each field that is given, in the order of `Point`."""
        values = {name: getattr(self, name) for name in Point.model_fields}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def varied(self) -> list[str]:
        """Axes with more than one value."""
        return [name for name, values in self.axes.items() if len(values) > 1]

    def with_baseline(self, name: str) -> PointGrid:
        """The same grid, with speedups measured against another kernel. Raises `ConfigError`."""
        grid = self.model_copy(update={"baseline": name})
        if problems := _baseline_problems(grid, Document("arguments", {}, {})):
            raise ConfigError("arguments", problems)
        return grid

    @property
    def size(self) -> int:
        """How many points there are. Raises `ConfigError`."""
        return math.prod(map(len, self._rows))

    @property
    def policies(self) -> list[str]:
        """Kernels with their partitioners, as points call them. Raises `ConfigError`."""
        deciding = [rows for rows in self._rows if {"kernel", "partitioner"} & rows[0].keys()]
        merged = (_merged(parts) for parts in itertools.product(*deciding))
        chosen = (PolicyFields.model_construct(**{"partitioner": None, **fields}) for fields in merged)
        return sorted({one.policy for one in chosen})

    def points(self, part: slice = slice(None)) -> list[Point]:
        """Expand the grid, or a part of it: the product of the axes, zipped ones together.

        Raises `ConfigError`, also for more points than a process could hold.
        """
        positions = range(self.size)[part]
        if len(positions) > MOST_POINTS:
            wanted = f"wanted at most {MOST_POINTS:,}: `leansim sweep --shard i/n` takes a part"
            raise ConfigError(self.name, [Problem("axes", f"{len(positions):,} points", wanted)])
        return [self.at(position) for position in positions]

    def at(self, position: int) -> Point:
        """The point at a position; the last axis advances first."""
        parts = []
        for rows in reversed(self._rows):
            position, place = divmod(position, len(rows))
            parts.append(rows[place])
        return Point.model_validate(_by_alias(_merged(reversed(parts))))

    @cached_property
    def _rows(self) -> list[list[dict[str, Any]]]:
        """The values of axes that advance together, for each group of them."""
        axes = self.axes
        return _with_kinds([list(_rows(axes, group)) for group in self._groups(axes)])

    def _groups(self, axes: Mapping[str, Sequence[Any]]) -> list[list[str]]:
        problems, zipped = [], set[str]()
        groups = [[POINT_KEYS.get(key, key) for key in group] for group in self.zip]
        for position, group in enumerate(groups):
            where = f"zip[{position}]"
            names = {name: self.zip[position][i] for i, name in enumerate(group)}
            if not group:
                problems.append(Problem(where, "nothing", "wanted axes of this file"))
            if unknown := [name for name in group if name not in axes]:
                hint = suggestion(
                    names[unknown[0]], [k for k, name in POINT_KEYS.items() if name in axes]
                )
                wanted = f"wanted an axis of this file{hint}"
                problems.append(Problem(where, repr(names[unknown[0]]), wanted))
            elif len({len(axes[name]) for name in group}) > 1:
                sizes = ", ".join(f"{names[name]} has {len(axes[name])}" for name in group)
                problems.append(Problem(where, sizes, "wanted axes of equal length"))
            if twice := sorted(zipped & set(group)) or len(group) > len(names):
                found = f"{twice[0]} again" if isinstance(twice, list) else "an axis twice"
                problems.append(Problem(where, found, "wanted each axis in one group, once"))
            zipped |= set(group)
        if problems:
            raise ConfigError(self.name, problems)
        return [*groups, *([name] for name in axes if name not in zipped)]


def _axis_fields() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, info in Point.model_fields.items():
        wrap = _as_axis_of_lists if name == "context_lens" else _as_axis
        element = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        axis = Annotated[
            tuple[element, ...],  # type: ignore[valid-type]
            Field(min_length=1),
            BeforeValidator(wrap),
            _OneOrMany(),
        ]
        default = Field(None, alias=info.alias, description=info.description)
        fields[name] = (axis | None, default)
    return fields


GridFile = create_model("GridFile", __base__=PointGrid, **_axis_fields())
GridFile.__doc__ = "A run or sweep file. Every field of a point is an axis: a value, or a list of them."


def _merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for part in parts:
        fields |= part
    return fields


def schema() -> dict[str, Any]:
    """JSON Schema of run and sweep files, for editors."""
    return GridFile.model_json_schema(by_alias=True)


def _rows(axes: Mapping[str, Sequence[Any]], group: Sequence[str]) -> Iterator[dict[str, Any]]:
    for values in zip(*(axes[name] for name in group), strict=True):
        yield dict(zip(group, values, strict=True))


def _with_kinds(groups: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """The groups with a row for each kind of layers that is meant: all of a model's, if none is said.

    What decides that stands in one group then, in the place of the last.
    """
    deciding = [i for i, rows in enumerate(groups) if _OF_KINDS & rows[0].keys()]
    if not deciding:
        return groups
    rows = []
    for parts in itertools.product(*(groups[i] for i in deciding)):
        fields = _merged(parts)
        asked = {name: fields[name] for name in _OF_KINDS & fields.keys()}
        for kind in kinds_of_layers(ShapeFields.model_construct(**asked)):
            rows.append(fields if kind == fields.get("layers") else {**fields, "layers": kind})
    others = {i: group for i, group in enumerate(groups) if i not in deciding}
    return [group for _, group in sorted({**others, deciding[-1]: rows}.items())]


def _by_alias(fields: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in fields.items() if value is not None}
    return {Point.model_fields[name].alias or name: value for name, value in given.items()}


def load(path: str | Path, settings: Sequence[str] = ()) -> PointGrid:
    """Read a run or sweep file, or the shipped one of a name, with `key=value` settings laid over it.

    Raises `ConfigError`.
    """
    document = read(catalog.find_config(str(path), "runs", "sweeps"))
    return build(document, settings)


def build(document: Document, settings: Sequence[str] = ()) -> PointGrid:
    """Validate a parsed file: its shape, and the names it uses, all problems together.

    Kernels that are typed replace the file's, and with them a baseline that was one of those.
    """
    data = document.data
    if settings and isinstance(data, dict):
        data = apply_settings(dict(data), settings)
        typed = {setting.partition("=")[0].strip().replace("-", "_") for setting in settings}
        marks = {path: mark for path, mark in document.marks.items() if not typed & set(path[:1])}
        document = replace(document, marks=marks, typed=frozenset(typed))
        if "kernel" in typed and "baseline" not in typed and not _has_baseline(data):
            data = {key: value for key, value in data.items() if key != "baseline"}
    laid = replace(document, data=data)
    problems = _name_problems(laid) if isinstance(data, dict) else []
    try:
        grid: PointGrid = catalog.validate(GridFile, laid)
    except ConfigError as error:
        raise ConfigError(error.source, [*error.problems, *problems]) from None
    problems = problems or _baseline_problems(grid, laid)
    if problems:
        raise ConfigError(document.source, problems)
    return grid


def _baseline_problems(grid: PointGrid, document: Document) -> list[Problem]:
    """A baseline that is none of the grid's kernels, and parts of batch sizes."""
    problems = []
    policies = grid.policies if grid.baseline else []
    if grid.baseline and grid.baseline not in policies:
        wanted = f"wanted one of {', '.join(policies)}{suggestion(grid.baseline, policies)}"
        problems.append(document.problem(("baseline",), repr(grid.baseline), wanted))
    for position, size in enumerate(grid.curve.get("batch_size", [])):
        if size != int(size) or size > MOST_REQUESTS:
            path = ("curve", "batch_size", position)
            wanted = f"wanted a whole number of requests, at most {MOST_REQUESTS:,}"
            problems.append(document.problem(path, repr(size), wanted))
    return problems


def _name_problems(document: Document) -> list[Problem]:
    """Names that nothing answers to, and keys without which there is nothing to run."""
    data, problems = document.data, []
    for axis in ("device", "kernel", "model", "node"):
        if data.get(axis) is None:
            if axis in ("device", "kernel"):
                problems.append(document.problem((axis,), "nothing", "wanted this key"))
            continue
        names = catalog.names(axis)
        for position, value in enumerate(_as_axis(data[axis])):
            name = str(value).partition("+")[0]
            if value is None or name in names or name.endswith((".yaml", ".yml")):
                continue
            path = (axis, position) if (axis, position) in document.marks else (axis,)
            wanted = f"wanted a {axis}{suggestion(name, names)}; known: {', '.join(names)}"
            wanted += f"; {hint}" if (hint := catalog.hint(axis, name)) else ""
            problems.append(document.problem(path, repr(name), wanted))
    problems += _partitioner_problems(document)
    if not _has_baseline(data):
        baseline, kernels = data["baseline"], [str(name) for name in _as_axis(data.get("kernel"))]
        wanted = f"wanted one of this file's kernels{suggestion(str(baseline), kernels)}"
        problems.append(document.problem(("baseline",), repr(baseline), wanted))
    curve = data.get("curve")
    for key in sorted(set(curve) - CURVE_AXES) if isinstance(curve, dict) else ():
        wanted = f"wanted {' or '.join(sorted(CURVE_AXES))}{suggestion(key, CURVE_AXES)}"
        problems.append(document.problem(("curve", key), "an unknown key", wanted))
    return problems


def _has_baseline(data: Mapping[str, Any]) -> bool:
    """Whether the baseline, if there is one, is among the kernels."""
    kernels = {str(name).partition("+")[0] for name in _as_axis(data.get("kernel"))}
    baseline = data.get("baseline")
    return baseline is None or str(baseline).partition("+")[0] in kernels


def _partitioner_problems(document: Document) -> list[Problem]:
    """Partitioners that do not exist, in `kernel+partitioner` and by themselves."""
    problems = []
    for axis in ("kernel", "partitioner"):
        given = document.data.get(axis)
        for position, value in enumerate(_as_axis(given)):
            named = value.get("name") if isinstance(value, dict) else value
            name = str(named).partition("+")[2] if axis == "kernel" else named
            if not name or not isinstance(name, str) or name in partitioners():
                continue
            path = (axis, position) if (axis, position) in document.marks else (axis,)
            error = UnknownNameError("partitioner", name, partitioners(), hint_of(name))
            problems.append(document.problem(path, repr(name), f"wanted a partitioner{error.wanted}"))
    return problems
