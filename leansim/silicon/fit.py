"""Fits free constants to measured rows of the fit split, and writes them into the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leansim.arrays import FloatArray
from leansim.errors import StoreError
from leansim.files.extras import pip_install
from leansim.files.strict_yaml import KeyPath, read
from leansim.files.writing import write_together
from leansim.files.yaml_edit import edited, short
from leansim.silicon.calibration import Calibration, FitRows
from leansim.silicon.evaluating import Model
from leansim.silicon.own import own_rows
from leansim.silicon.published import measured_rows
from leansim.silicon.rows import ROW_COLUMNS, in_hash_order, matching, of_split
from leansim.silicon.targets import Target, applies, in_harness, value_at
from leansim.specs import catalog
from leansim.specs.base import numbers, source_key
from leansim.sweeps.executors import cores

if TYPE_CHECKING:
    import pandas as pd

# Relative errors below this count as squares, larger ones as lengths: outliers do not steer the fit.
_F_SCALE = 0.05
# A constant is tried at a fiftieth of its range, or more, from where it stands: rounding of times
# and changes of what limits a schedule make smaller steps noisy.
_STEP = 0.02
_MOST_EVALUATIONS = 40
# A constant that is its whole range from where it usually is counts as a row that is 2% off.
_PULL = 0.02


@dataclass(frozen=True)
class Free:
    """A constant that a fit may change, how far, and where it begins.

    With several `starts` a fit is begun from the first of all constants, then from the second, and the
    nearest solution counts. What rows do not decide stays near `usual`, where that is given.
    """

    target: Target
    bounds: tuple[float, float]
    starts: tuple[float, ...]
    usual: float | None = None


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
    """Fitted constants, and the relative errors `[n]` of the fitted rows before and after.

    `by` says who fitted them, as sources of the constants do.
    """

    by: str
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
    config = calibration.config
    free = [
        Free(target, constant.bounds, (start,))
        for target, start, constant in zip(
            calibration.targets, calibration.starts, config.constants, strict=True
        )
    ]
    by, rows = f"leansim calibrate {config.name}", fit_rows(calibration, data)
    return fit_to(by, free, rows, jobs, progress, rows_per_constant=2)


def fit_to(
    by: str,
    free: Sequence[Free],
    rows: pd.DataFrame,
    jobs: int | None = None,
    progress: Callable[[int, float], None] = lambda _evaluations, _error: None,
    fixed: Mapping[Target, float] | None = None,
    rows_per_constant: int = 1,
) -> Fit:
    """Fit constants to rows, as `calibrate` does; those that are `fixed` have other values meanwhile.

    Where a latency is known to a tick, a replay is off by its distance from the times that it may have
    taken. Raises `StoreError` for fewer `rows_per_constant`, or where there is no SciPy.
    """
    least_squares = _least_squares()
    low, high = (np.array([one.bounds[i] for one in free]) for i in (0, 1))
    targets = [one.target for one in free]
    with Model(targets, rows, jobs or cores(), fixed) as model:
        usable = np.isfinite(model.seconds(None))
        measured_s = rows["measured_s"].to_numpy(dtype=float)
        with np.errstate(divide="ignore"):  # less than one tick may have been nothing
            least, most = (np.log(span[usable]) for span in model.harnesses.spans_s(measured_s))
        if usable.sum() < rows_per_constant * len(low):
            wanted = f"wanted at least {rows_per_constant} for each of {len(low)} constants"
            raise StoreError(f"found {usable.sum()} rows; {wanted}")

        def constants(scaled: FloatArray) -> FloatArray:
            inside: FloatArray = low + (scaled - 1.0) * (high - low)
            return inside

        def residuals(scaled: FloatArray) -> FloatArray:
            replay: FloatArray = np.log(model.replay_s(constants(scaled))[usable])
            found = replay - np.clip(replay, least, most)
            progress(model.evaluations, float(np.abs(np.expm1(found)).mean()))
            return np.concatenate([found, _PULL * (scaled[pulled] - usual)])

        pulled = [i for i, one in enumerate(free) if one.usual is not None]
        at = np.array([one.usual for one in free if one.usual is not None])
        usual = 1.0 + (at - low[pulled]) / (high - low)[pulled]
        # From 1 to 2 over the bounds, so that a relative step is a step of the range.
        begun = [
            1.0 + (np.array(start) - low) / (high - low)
            for start in zip(*(one.starts for one in free), strict=True)
        ]
        solutions = [
            least_squares(
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
            for start in begun
        ]
        solution = min(solutions, key=lambda one: one.cost)
        after = np.array([short(value) for value in constants(solution.x)]).clip(low, high)
        errors = [(model.seconds(at) / measured_s)[usable] - 1.0 for at in (None, after)]
        evaluations = model.evaluations
    spread = _spread(solution.jac[: len(least)], solution.cost, len(least)) * (high - low)
    fitted = [
        FittedConstant(one.target, value_at(one.target), float(value), one.bounds, float(error))
        for one, value, error in zip(free, after, spread, strict=True)
    ]
    return Fit(by, tuple(fitted), rows[usable], errors[0], errors[1], evaluations)


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


def edits(fit: Fit) -> dict[Path, str]:
    """The files that hold fitted constants, with their new values and sources, as text."""
    after = {constant.target: constant.after for constant in fit.constants}
    return edited_files(after, lambda target: f"fitted: {rests_on(fit, target)}")


def edited_files(values: Mapping[Target, float], source: Callable[[Target], str]) -> dict[Path, str]:
    """The files that constants stand in, with new values and the source of each, as text."""
    changes: dict[Path, dict[KeyPath, Any]] = {}
    for target, value in values.items():
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
        file[(*holder, *keys)] = value
        written = {str(way[-1]): text for way, text in file.items() if way[:-1] == (*holder, "sources")}
        said = tuple(key for key in keys if isinstance(key, str))
        key = _source_key(data, {**data.get("sources", {}), **written}, said)
        file[(*holder, "sources", key)] = source(target)
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


def rests_on(fit: Fit, target: Target) -> str:
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
        f"{fit.by}, {int(mine.sum()):,} rows to fit of "
        f"{files}, mean error {before:.1%} before and {after:.1%} after"
    )
