"""Fits free constants to measured rows of the fit split, and writes them into the files.

Schedules are made once: constants do not change them. Each evaluation lowers and executes them
again, except where only a harness has changed, which costs an addition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leansim.arrays import FloatArray
from leansim.engine.execute import execute
from leansim.errors import LeansimError, StoreError
from leansim.files.extras import pip_install
from leansim.files.strict_yaml import KeyPath, read
from leansim.files.writing import write_together
from leansim.files.yaml_edit import edited, short
from leansim.points.point import Point, Resolved, resolve
from leansim.silicon.calibration import Calibration, FitRows
from leansim.silicon.own import own_rows
from leansim.silicon.published import measured_rows
from leansim.silicon.rows import ROW_COLUMNS, Harnesses, in_hash_order, matching, of_split
from leansim.silicon.targets import Target, applies, changed, in_harness, value_at
from leansim.specs import catalog
from leansim.specs.base import numbers, source_key
from leansim.specs.device import Device
from leansim.specs.harness import MeasuredTable
from leansim.specs.instance import instance_of
from leansim.specs.kernel import Kernel
from leansim.sweeps.executors import cores, process_pool
from leansim.timing.lowering import lower

if TYPE_CHECKING:
    import pandas as pd

Specs = dict[tuple[str, str], Any]
# Relative errors below this count as squares, larger ones as lengths: outliers do not steer the fit.
_F_SCALE = 0.05
# A constant is tried at a fiftieth of its range, or more, from where it stands: rounding of times
# and changes of what limits a schedule make smaller steps noisy.
_STEP = 0.02
_MOST_EVALUATIONS = 40
_KEPT = 64


@dataclass(frozen=True)
class Part:
    """Points whose schedules one worker keeps; equal if their tokens are."""

    token: str
    points: tuple[Point, ...] = field(compare=False)


@dataclass(frozen=True)
class FittedConstant:
    """One constant before and after; `spread` is one standard error as the fit's slopes have it."""

    target: Target
    before: float | None
    after: float
    bounds: tuple[float, float]
    spread: float

    @property
    def at_bound(self) -> bool:
        """Whether the fit wanted to go further than it may."""
        low, high = self.bounds
        return min(self.after - low, high - self.after) < 1e-3 * (high - low)


@dataclass(frozen=True)
class Fit:
    """Fitted constants, and the relative errors `[n]` of the fitted rows before and after."""

    calibration: Calibration
    constants: tuple[FittedConstant, ...]
    rows: pd.DataFrame
    before: FloatArray
    after: FloatArray
    evaluations: int


def calibrate(
    calibration: Calibration,
    data: Path | None = None,
    jobs: int | None = None,
    progress: Callable[[int, float], None] = lambda _evaluations, _error: None,
) -> Fit:
    """Fit a calibration's constants to log(predicted / measured) of its rows.

    Bounded least squares with a soft L1 loss. `progress` is told evaluations of the model and mean
    relative error. Raises `StoreError` for missing tables or SciPy.
    """
    least_squares = _least_squares()
    rows = fit_rows(calibration, data)
    low, high = (np.array([c.bounds[i] for c in calibration.config.constants]) for i in (0, 1))
    with _Model(calibration, rows, jobs or cores()) as model:
        usable = np.isfinite(model.seconds(None))
        measured = np.log(rows["measured_s"].to_numpy(dtype=float)[usable])
        if usable.sum() < 2 * len(low):
            raise StoreError(f"found {usable.sum()} rows; wanted at least twice the constants")

        def constants(scaled: FloatArray) -> FloatArray:
            inside: FloatArray = low + (scaled - 1.0) * (high - low)
            return inside

        def residuals(scaled: FloatArray) -> FloatArray:
            found: FloatArray = np.log(model.seconds(constants(scaled))[usable]) - measured
            progress(model.evaluations, float(np.abs(np.expm1(found)).mean()))
            return found

        # From 1 to 2 over the bounds, so that a relative step is a step of the range.
        start = 1.0 + (np.array(calibration.starts) - low) / (high - low)
        solution = least_squares(
            residuals,
            start,
            bounds=(np.ones(len(low)), np.full(len(low), 2.0)),
            loss="soft_l1",
            f_scale=_F_SCALE,
            diff_step=_STEP,
            xtol=1e-4,
            ftol=1e-4,
            max_nfev=_MOST_EVALUATIONS,
        )
        after = np.array([short(value) for value in constants(solution.x)]).clip(low, high)
        errors = [model.seconds(at)[usable] / np.exp(measured) - 1.0 for at in (None, after)]
        evaluations = model.evaluations
    spread = _spread(solution.jac, solution.cost, len(measured)) * (high - low)
    fitted = [
        FittedConstant(target, value_at(target), float(value), constant.bounds, float(error))
        for target, value, constant, error in zip(
            calibration.targets, after, calibration.config.constants, spread, strict=True
        )
    ]
    return Fit(calibration, tuple(fitted), rows[usable], errors[0], errors[1], evaluations)


def fit_rows(calibration: Calibration, data: Path | None = None) -> pd.DataFrame:
    """The rows that a calibration is fitted to: of the fit split, and of nothing else.

    Of tables, and of files of one's own those on the device named. Raises `StoreError` for none.
    """
    import pandas as pd

    parts = [
        _chosen(_own_rows(choice) if table is None else measured_rows(table, "fit", data=data), choice)
        for choice, table in zip(calibration.config.rows, calibration.tables, strict=True)
    ]
    found = pd.concat(parts, ignore_index=True)
    assert found["fit"].all(), "a test row among the rows to fit"
    if found.empty:
        raise StoreError(f"{calibration.config.name}: found no rows to fit")
    return found


def _own_rows(choice: FitRows) -> pd.DataFrame:
    """The fit half of a file of one's own on one device, in the order of a hash."""
    rows = of_split(own_rows(str(choice.points))[list(ROW_COLUMNS)], "fit")
    rows = rows[rows["device"] == choice.device]
    return in_hash_order(rows, [point.model_dump_json() for point in rows["point"]])


def _chosen(rows: pd.DataFrame, choice: FitRows) -> pd.DataFrame:
    if choice.kernels is not None:
        rows = rows[rows["kernel"].isin(choice.kernels)]
    return rows[matching(rows, choice.where)].iloc[: choice.sample]


def _least_squares() -> Any:
    try:
        from scipy.optimize import least_squares
    except ModuleNotFoundError:
        raise StoreError(
            f"found no SciPy; wanted the extra that fits: {pip_install('silicon')}"
        ) from None
    return least_squares


def _spread(jacobian: FloatArray, cost: float, rows: int) -> FloatArray:
    """One standard error of each scaled constant, infinite where no row depends on it."""
    freedom = max(1, rows - jacobian.shape[1])
    inverse = np.linalg.pinv(jacobian.T @ jacobian)
    error: FloatArray = np.sqrt(np.clip(np.diag(inverse), 0, None) * 2.0 * cost / freedom)
    return np.where((jacobian != 0).any(axis=0), error, np.inf)


class _Model:
    """Predicted seconds of rows for values of the constants. Use as a context manager."""

    def __init__(self, calibration: Calibration, rows: pd.DataFrame, jobs: int) -> None:
        self.calibration = calibration
        self.points = tuple(rows["point"])
        self.harnesses = Harnesses(rows)
        self.pairs = sorted(set(zip(rows["kernel"], rows["device"], strict=True)))
        self.jobs = min(jobs, len(self.points))
        self.parts = [_part(self.points[at :: self.jobs]) for at in range(self.jobs)]
        self.pools: list[ProcessPoolExecutor] = []
        self.kernels: dict[tuple[float | None, ...], FloatArray] = {}
        self.evaluations = 0
        self.stack = ExitStack()

    def __enter__(self) -> _Model:
        # A pool of one each: a part's schedules stay with the worker that made them.
        if self.jobs > 1:
            self.pools = [self.stack.enter_context(process_pool(1)) for _ in self.parts]
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def seconds(self, values: Sequence[float] | FloatArray | None) -> FloatArray:
        """Predicted latencies `[n]`, s, harness included; with None, as the files have it."""
        changes = dict(zip(self.calibration.targets, values, strict=True)) if values is not None else {}
        simulated = {target: value for target, value in changes.items() if target.kind != "table"}
        key = tuple(simulated.values())
        if key not in self.kernels:
            if len(self.kernels) >= _KEPT:
                del self.kernels[next(iter(self.kernels))]
            self.kernels[key] = self._executed(simulated)
        tables = _tables(changes, self.harnesses.places)
        kernels: FloatArray = self.kernels[key]
        found: FloatArray = kernels + self.harnesses.seconds(kernels, tables)
        return found

    def _executed(self, changes: dict[Target, float]) -> FloatArray:
        specs: Specs = {}
        for kernel, device in self.pairs:
            mine = {t: v for t, v in changes.items() if applies(t, kernel, device)}
            kinds = {
                kind: {t: v for t, v in mine.items() if t.kind == kind} for kind in ("kernel", "device")
            }
            specs["kernel", kernel] = _with(catalog.kernel(kernel), kinds["kernel"])
            specs["device", device] = _with(catalog.device(device), kinds["device"])
        self.evaluations += 1
        if self.pools:
            futures = [
                pool.submit(latencies, part, specs)
                for pool, part in zip(self.pools, self.parts, strict=True)
            ]
            found = [future.result() for future in futures]
        else:
            found = [latencies(part, specs) for part in self.parts]
        seconds = np.empty(len(self.points))
        for at, part in enumerate(found):
            seconds[at :: self.jobs] = part
        return seconds


def _tables(changes: Mapping[Target, float], names: Iterable[str]) -> dict[str, MeasuredTable]:
    """Those of the measured tables whose constants are among the changed, so changed."""
    mine = {name: {t: v for t, v in changes.items() if in_harness(t, name)} for name in names}
    return {name: changed(catalog.table(name), new) for name, new in mine.items() if new}


def _with(spec: Any, changes: dict[Target, float]) -> Any:
    return changed(spec, changes) if changes else spec


def _part(points: Sequence[Point]) -> Part:
    hashed = hashlib.sha256("\n".join(point.model_dump_json() for point in points).encode())
    return Part(hashed.hexdigest(), tuple(points))


@lru_cache(maxsize=1)
def _scheduled(part: Part) -> tuple[Resolved | None, ...]:
    """A part's points with their schedules, kept for the next evaluation; None where there is none."""
    found: list[Resolved | None] = []
    for point in part.points:
        try:
            item = resolve(point)
            lower(item.schedule, item.instance, item.device)  # makes the schedule, which it keeps
        except LeansimError:
            found.append(None)
        else:
            found.append(item)
    return tuple(found)


def latencies(part: Part, specs: Specs) -> FloatArray:
    """Latencies of a part's schedules `[n]`, s, under other constants: what a worker does.

    NaN where a kernel does not take the point.
    """
    found = []
    for item in _scheduled(part):
        if item is None:
            found.append(np.nan)
            continue
        kernel: Kernel = specs["kernel", item.kernel.name]
        device: Device = specs["device", item.device.name]
        instance = instance_of(kernel, device, item.workload, item.is_split)
        found.append(execute(lower(item.schedule, instance, device)).latency_s)
    return np.array(found)


def edits(fit: Fit) -> dict[Path, str]:
    """The files that hold fitted constants, with their new values and sources, as text."""
    changes: dict[Path, dict[KeyPath, Any]] = {}
    for constant in fit.constants:
        target = constant.target
        path = catalog.spec_path(target.kind, target.name)  # type: ignore[arg-type]
        keys: KeyPath = tuple(int(key) if key.isdigit() else key for key in target.keys)
        holder: KeyPath = ()
        data = read(path).data
        if target.kind == "table":
            terms = [term["name"] for term in data["harness"]]
            _, term, name = target.keys
            keys, holder = (name,), ("harness", terms.index(term))
            data = data["harness"][terms.index(term)]
        file = changes.setdefault(path, {})
        file[(*holder, *keys)] = constant.after
        written = {str(way[-1]): text for way, text in file.items() if way[:-1] == (*holder, "sources")}
        said = tuple(key for key in keys if isinstance(key, str))
        key = _source_key(data, {**data.get("sources", {}), **written}, said)
        file[(*holder, "sources", key)] = f"fitted: {_how(fit, target)}"
    return {path: edited(path.read_text(encoding="utf-8"), mine) for path, mine in changes.items()}


def _source_key(data: dict[str, Any], sources: dict[str, str], keys: tuple[str, ...]) -> str:
    """Key of a number's source in its file: one that answers for it alone, or else its own path."""
    said = {key: value for key, value in data.items() if key != "sources"}
    own = source_key(sources, keys)
    others = [path for path, _ in numbers(said) if path != keys and source_key(sources, path) == own]
    return ".".join(keys) if own is None or others else own


def files_of(calibration: Calibration) -> list[Path]:
    """The files that a calibration's constants stand in. Raises `UnknownNameError`."""
    places = {(target.kind, target.name) for target in calibration.targets}
    return [catalog.spec_path(kind, name) for kind, name in sorted(places)]  # type: ignore[arg-type]


def write(fit: Fit) -> list[Path]:
    """Write fitted constants into their files, all or none, and return the files."""
    files = edits(fit)
    write_together(files)
    return list(files)


def _how(fit: Fit, target: Target) -> str:
    """What a constant rests on: the fitted rows that it changes, and their errors."""
    rows = fit.rows.reset_index(drop=True)
    if target.kind == "table":
        theirs = {name for name in dict.fromkeys(rows["harness"]) if in_harness(target, name)}
        mine = rows["harness"].isin(theirs).to_numpy()
    else:
        pairs = list(zip(rows["kernel"], rows["device"], strict=True))
        changes = {pair: applies(target, *pair) for pair in set(pairs)}
        mine = np.array([changes[pair] for pair in pairs])
    files = ", ".join(dict.fromkeys(rows.loc[mine, "source"])).replace(", own measurements ", ", ")
    before, after = (float(np.abs(errors[mine]).mean()) for errors in (fit.before, fit.after))
    return (
        f"leansim calibrate {fit.calibration.config.name}, {int(mine.sum()):,} rows to fit of "
        f"{files}, mean error {before:.1%} before and {after:.1%} after"
    )
