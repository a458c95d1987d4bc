"""What a calibration fits to what: free constants of kernels, devices and harnesses, and rows.

Files live in `configs/calibrations`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from leansim.errors import ConfigError, Problem, UnknownNameError
from leansim.files.strict_yaml import Document, KeyPath, read
from leansim.silicon.targets import Target, applies, target_of, value_at
from leansim.specs import catalog
from leansim.specs.base import Count, Number, Spec, Whole
from leansim.specs.catalog import Kind
from leansim.specs.harness import MeasuredTable

MOST_CONSTANTS = 12
MOST_PER_PAIR = 8


class Constant(Spec):
    """A free number: `kernel.fa2.compute.mma_efficiency.sm_80`, where to start, how far it may go.

    `start` is by default what the file says now.
    """

    target: str
    start: Number | None = None
    bounds: tuple[Number, Number]

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
    where: dict[str, Whole | str | tuple[Whole, Whole]] = Field(default_factory=dict)

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
    """Read a calibration file, or the shipped one of a name.

    Raises `ConfigError` naming everything wrong with it.
    """
    document = read(catalog.find_config(str(path), "calibrations"))
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
