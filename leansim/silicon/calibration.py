"""What a calibration may change: free constants of kernels, devices and harnesses, by name.

A constant is a time, a rate or a share. What decides a schedule or what fits on an SM is refused:
a fit keeps its schedules, and a kernel's resources are facts. Files live in `configs/calibrations`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from leansim.errors import ConfigError, Problem, UnknownNameError
from leansim.files.strict_yaml import Document, KeyPath, read
from leansim.specs import catalog
from leansim.specs.base import Count, SourcedSpec, Spec, sourced_anew
from leansim.specs.catalog import Kind
from leansim.specs.device import Device
from leansim.specs.harness import HarnessTerm, MeasuredTable
from leansim.specs.kernel import Kernel

MOST_CONSTANTS = 12
MOST_PER_PAIR = 8
_CLASSES: dict[str, type[SourcedSpec]] = {"kernel": Kernel, "device": Device, "table": MeasuredTable}
# Lists of points that are fitted as one number.
_FLAT = {"dram_efficiency"}


class Constant(Spec):
    """A free number: `kernel.fa2.mma_efficiency.sm_80`, where to start, how far it may go.

    `start` is by default what the file says now.
    """

    target: str
    start: float | None = None
    bounds: tuple[float, float]

    @model_validator(mode="after")
    def _start_inside(self) -> Constant:
        low, high = self.bounds
        if not low < high:
            raise ValueError("wanted bounds [low, high] with low below high")
        if self.start is not None and not low <= self.start <= high:
            raise ValueError(f"wanted start inside the bounds [{low:g}, {high:g}]")
        return self


class FitRows(Spec):
    """Rows to fit: those of the fit split, `sample` of them by hash, some kernels.

    They are of a measured table, or of `points`, a CSV of one's own measured points, on a `device` and
    under `kernels` that are then named. `where` keeps rows by column: one value, or `[first, last]`.
    """

    table: str | None = None
    points: str | None = None
    device: str | None = None
    kernels: tuple[str, ...] | None = None
    sample: Count | None = None
    where: dict[str, int | str | tuple[int, int]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_one_kind(self) -> FitRows:
        if (self.table is None) == (self.points is None):
            raise ValueError("wanted table, or points with device and kernels")
        if (self.points is None) != (self.device is None) or (self.points and not self.kernels):
            raise ValueError("wanted device and kernels beside points, and no device beside a table")
        return self


class CalibrationConfig(Spec):
    """Rows and the constants to fit to them."""

    name: str
    description: str = ""
    rows: Annotated[tuple[FitRows, ...], Field(min_length=1)]
    constants: Annotated[tuple[Constant, ...], Field(min_length=1, max_length=MOST_CONSTANTS)]


@dataclass(frozen=True)
class Target:
    """A constant's place: `kind` and `name` of the file that holds it, and the keys in it."""

    kind: str
    name: str
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join((self.kind, self.name, *self.keys))

    @property
    def flat(self) -> bool:
        """Whether the number stands for a list of points."""
        return self.keys[0] in _FLAT


@dataclass(frozen=True)
class Calibration:
    """A calibration that makes sense: each constant has a place and changes some of the rows.

    `tables` are those of the rows, None for points.
    """

    config: CalibrationConfig
    tables: tuple[MeasuredTable | None, ...]
    targets: tuple[Target, ...]

    @property
    def starts(self) -> list[float]:
        """Where each constant starts."""
        low_high = [constant.bounds for constant in self.config.constants]
        now = [value_at(target) for target in self.targets]
        return [
            constant.start if constant.start is not None else min(max(value or low, low), high)
            for constant, value, (low, high) in zip(self.config.constants, now, low_high, strict=True)
        ]


def read_calibration(path: str | Path) -> Calibration:
    """Read a calibration file. Raises `ConfigError` naming everything wrong with it."""
    document = read(catalog.find_config(str(path)))
    config = catalog.validate(CalibrationConfig, document)
    problems: list[Problem] = []
    tables = tuple(None if rows.table is None else catalog.table(rows.table) for rows in config.rows)
    targets = []
    for i, constant in enumerate(config.constants):
        try:
            targets.append(target_of(constant.target))
        except UnknownNameError as error:
            place: KeyPath = ("constants", i, "target")
            problems.append(document.problem(place, repr(constant.target), str(error)))
    problems += list(_problems(document, config, tables, targets))
    if problems:
        raise ConfigError(document.source, problems)
    return Calibration(config, tables, tuple(targets))


def target_of(text: str) -> Target:
    """Find the place of a constant: where a kernel's or table's chain of `base` files defines it.

    A device's is its own, whatever file it is based on. Raises `UnknownNameError` for what does not
    exist, is no constant, or decides schedules.
    """
    kind, _, rest = text.partition(".")
    name, *keys = rest.split(".")
    if kind not in _CLASSES:
        raise UnknownNameError("kind of constant", kind, _CLASSES)
    spec = _load(kind, name)
    if not keys:
        raise UnknownNameError(f"constant of {name}", "", type(spec).model_fields)
    if kind == "table":
        _check_term(spec, keys)
        return Target(kind, defining_table(name, keys[1], keys[2]), tuple(keys))
    _check_constant(type(spec), keys, text)
    home = defining(name, keys[0]) or name if kind == "kernel" else name
    return Target(kind, home, tuple(keys))


def chain(kernel: str) -> list[str]:
    """A kernel and the kernels it is based on, nearest first."""
    names = [kernel]
    while (base := _file("kernel", names[-1]).get("base")) is not None:
        names.append(str(base))
    return names


def defining(kernel: str, field: str) -> str | None:
    """The kernel of a chain whose file says what a field is, or None."""
    for name in chain(kernel):
        if field in _file("kernel", name):
            return name
    return None


def defining_table(table: str, term: str, field: str) -> str:
    """The table whose file says a number of a harness term, or else the nearest that has the term."""
    named: list[str] = []
    waiting = [table]
    while waiting:
        data = _file("table", name := waiting.pop(0))
        own = next((item for item in data.get("harness", ()) if item["name"] == term), None)
        if own is not None:
            named.append(name)
            if field in own:
                return name
        bases = [item["base"] for item in (own or {}, data) if "base" in item]
        waiting = [*map(str, bases), *waiting]
    return named[0]


def _file(kind: Kind, name: str) -> dict[str, Any]:
    """What a kernel's or table's own file says."""
    path = catalog.spec_path(kind, name)
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, _modified: int) -> dict[str, Any]:
    data: dict[str, Any] = read(path).data
    return data


def applies(target: Target, kernel: str, device: str) -> bool:
    """Whether a constant of a kernel or device changes what a kernel takes on a device."""
    if target.kind == "device":
        return target.name == device
    if target.kind != "kernel" or target.name not in chain(kernel):
        return False
    archs = {catalog.device(name).arch for name in catalog.names("device")}
    other_arch = target.keys[-1] in archs - {catalog.device(device).arch}
    return not other_arch and defining(kernel, target.keys[0]) in (target.name, None)


def in_harness(target: Target, table: str) -> bool:
    """Whether a constant is a number of a table's harness, in its own file or in one it is based on."""
    if target.kind != "table" or table not in catalog.names("table"):
        return False
    _, term, field = target.keys
    known = {item.name for item in catalog.table(table).harness}
    return term in known and defining_table(table, term, field) == target.name


def changed(spec: Any, changes: Mapping[Target, float]) -> Any:
    """A kernel, device or table with constants replaced. Raises `ConfigError` for impossible values."""
    data = spec.model_dump(mode="python", exclude_unset=True)
    for target, value in changes.items():
        place, key = _place(data, target)
        place[key] = [[1.0, value]] if target.flat else value
        holder = data
        if target.kind == "table":
            holder = next(term for term in data["harness"] if term["name"] == target.keys[1])
        field = ".".join(target.keys[2:] if target.kind == "table" else target.keys)
        holder["sources"] = sourced_anew(holder.get("sources", {}), field, "fitted: this calibration")
    return catalog.validate(type(spec), Document(f"{spec.name} under calibration", data, {}))


def value_at(target: Target) -> float | None:
    """What a file says now, None where it says nothing. A list of points is its last value."""
    data = _load(target.kind, target.name).model_dump(mode="python")
    place, key = _place(data, target)
    value = place.get(key)
    return value[-1][1] if target.flat and value is not None else value


def _place(data: dict[str, Any], target: Target) -> tuple[dict[str, Any], str]:
    """The mapping that holds a target's number in a dumped spec, and its key there."""
    *way, key = target.keys
    if target.kind == "table":
        _, term, _ = target.keys
        return next(item for item in data["harness"] if item["name"] == term), key
    for part in way:
        data[part] = dict(data.get(part) or {})
        data = data[part]
    return data, key


def _load(kind: str, name: str) -> SourcedSpec:
    loaders: dict[str, Any] = {
        "kernel": catalog.kernel, "device": catalog.device, "table": catalog.table,
    }  # fmt: skip
    spec: SourcedSpec = loaders[kind](name)
    return spec


def _check_term(table: Any, keys: Sequence[str]) -> None:
    terms = {term.name: term for term in table.harness}
    if len(keys) != 3 or keys[0] != "harness":
        raise UnknownNameError("constant of a table", ".".join(keys), ["harness.<term>.<field>"])
    if keys[1] not in terms:
        raise UnknownNameError("harness term", keys[1], terms)
    known = set(HarnessTerm.model_fields) - HarnessTerm.unsourced()
    if keys[2] not in known:
        raise UnknownNameError("number of a harness term", keys[2], known)


def _check_constant(cls: type[BaseModel], keys: Sequence[str], text: str) -> None:
    """Refuse whole numbers and structure: they say what runs where, not how long it takes."""
    field = cls.model_fields.get(keys[0])
    if field is None:
        raise UnknownNameError(f"{cls.__name__.lower()} number", keys[0], _constants(cls))
    if keys[0] in _FLAT and len(keys) == 1:
        return
    kind = _plain(field.annotation)
    if isinstance(kind, type) and issubclass(kind, BaseModel) and len(keys) > 1:
        _check_constant(kind, keys[1:], text)
        return
    depth = 2 if typing.get_origin(kind) is dict else 1
    leaf = _plain(typing.get_args(kind)[1]) if depth == 2 else kind
    if leaf is not float or len(keys) != depth:
        raise UnknownNameError(
            "time constant (others decide schedules, or what fits on an SM)", text, _constants(cls)
        )


def _constants(cls: type[BaseModel]) -> Iterator[str]:
    """Names of the fields that may be fitted, as far as they are plain."""
    for name, field in cls.model_fields.items():
        kind = _plain(field.annotation)
        if typing.get_origin(kind) is dict:
            kind = _plain(typing.get_args(kind)[1])
        if kind is float or name in _FLAT:
            yield name


def _plain(annotation: Any) -> Any:
    """A type without its limits, and without None."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _plain(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return _plain(next(arg for arg in typing.get_args(annotation) if arg is not type(None)))
    return annotation


def _unknown_names(document: Document, i: int, rows: FitRows) -> Iterator[Problem]:
    """Names of a choice of points that nothing answers to."""
    named: list[tuple[Kind, str]] = [("device", str(rows.device))]
    named += [("kernel", kernel) for kernel in rows.kernels or ()]
    for kind, name in named:
        if name not in catalog.names(kind):
            place = ("rows", i, "device" if kind == "device" else "kernels")
            yield document.problem(
                place, repr(name), str(UnknownNameError(kind, name, catalog.names(kind)))
            )


def _problems(
    document: Document,
    config: CalibrationConfig,
    tables: Sequence[MeasuredTable | None],
    targets: Sequence[Target],
) -> Iterator[Problem]:
    pairs = []
    for i, (rows, table) in enumerate(zip(config.rows, tables, strict=True)):
        if table is None:
            unknown = list(_unknown_names(document, i, rows))
            yield from unknown
            pairs += [(kernel, str(rows.device)) for kernel in rows.kernels or () if not unknown]
            continue
        known = {source: kernel.name for source, kernel in table.kernels.items()}
        for kernel in rows.kernels or known.values():
            pairs.append((kernel, table.device))
            if kernel not in known.values():
                wanted = f"wanted one of {', '.join(known.values())}"
                yield document.problem(("rows", i, "kernels"), repr(kernel), wanted)
        only_tests = sorted(
            source
            for source, kernel in table.kernels.items()
            if not kernel.fits and (rows.kernels is None or kernel.name in rows.kernels)
        )
        if any(target.kind != "table" for target in targets) and only_tests:
            found = f"{rows.table} ({', '.join(only_tests)})"
            wanted = (
                "wanted rows that may fit kernels and devices; these fit their harness only: see docs"
            )
            yield document.problem(("rows", i), found, wanted)
    named = {rows.table for rows in config.rows}
    for i, target in enumerate(targets):
        table_of_another = target.kind == "table" and target.name not in named
        changes_none = target.kind != "table" and not any(applies(target, *pair) for pair in pairs)
        if table_of_another or changes_none:
            wanted = "wanted a constant that changes one of these rows"
            yield document.problem(("constants", i, "target"), str(target), wanted)
    for pair in dict.fromkeys(pairs):
        count = sum(applies(target, *pair) for target in targets)
        if count > MOST_PER_PAIR:
            wanted = f"wanted at most {MOST_PER_PAIR}"
            yield document.problem(("constants",), f"{count} constants of {' on '.join(pair)}", wanted)
    if len(set(targets)) < len(targets):
        yield document.problem(("constants",), "a constant twice", "wanted each once")
