"""The verbs that put several parts together: a point, several, a grid or a file in; typed answers out.

Nothing is printed. Verbs that are one part's work are where that part is; `__init__.pyi` lists all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from leansim.answers import Answers, Shown
from leansim.engine.execute import Engine
from leansim.errors import ConfigError, LeansimError, Problem
from leansim.files.csv import CsvRow
from leansim.numerics.attention import Precision
from leansim.numerics.verify import DEFAULT_PRECISIONS
from leansim.points.csv import HARNESS, outcomes, read_points
from leansim.points.grid import PointGrid, load
from leansim.points.plan import Plan, Plans, made
from leansim.points.point import PLAN_COLUMNS, Point, point_from_row, resolve
from leansim.steps.step import Step, Steps, steps_of
from leansim.study import buckets as freezing
from leansim.study import explain as explaining
from leansim.study import invariance as changing
from leansim.study import oracle as searching
from leansim.study import splits as cutting
from leansim.study import tuning
from leansim.study.buckets import BucketStudy
from leansim.study.explain import Explanation
from leansim.study.invariance import InvarianceStudy
from leansim.study.oracle import Oracle
from leansim.study.splits import SplitCurve
from leansim.study.surrogates import SurrogateName
from leansim.study.tuning import Tuned
from leansim.study.verify import Verified, verified
from leansim.sweeps.executors import using
from leansim.sweeps.predict import predict as predict_points
from leansim.sweeps.predict import predict_rows
from leansim.sweeps.predictions import PREDICTION_COLUMNS, Predictions, prediction_row

if TYPE_CHECKING:
    import pandas as pd

    from leansim.silicon.calibration import Calibration
    from leansim.silicon.fit import Fit
    from leansim.silicon.rows import Split

# A point, several, a grid, or a file: a run or sweep file (YAML), or a CSV of points.
Points: TypeAlias = Point | Iterable[Point] | PointGrid | str | Path
Names: TypeAlias = str | Sequence[str]
Progress: TypeAlias = Callable[[int, int], None]
_WANTED = "wanted a point, several, a grid or a file"


def _points(points: Points, settings: Sequence[str] = ()) -> list[Point]:
    """Every point that is meant, in order. Raises `ConfigError` for what makes no sense."""
    if isinstance(points, str | Path):
        return _points_of_csv(str(points)) if _is_csv(points) else load(points, settings).points()
    if settings:
        raise ConfigError("arguments", [Problem("settings", ", ".join(settings), "wanted a file")])
    if isinstance(points, PointGrid):
        return points.points()
    several = [points] if isinstance(points, Point) else list(points)
    for position, one in enumerate(several):
        if not isinstance(one, Point):
            problem = Problem(f"points[{position}]", type(one).__name__, _WANTED)
            raise ConfigError("arguments", [problem])
    return several


def _points_of_csv(file: str) -> list[Point]:
    given = read_points(file)
    return given.checked(outcomes(lambda row: point_from_row(row, given.source), given.rows))


def _is_csv(points: Points) -> bool:
    return isinstance(points, str | Path) and str(points).lower().endswith(".csv")


def _names(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


# -- schedules ---------------------------------------------------------------------------------


def plan(points: Points, settings: Sequence[str] = (), strict: bool = False) -> Plans:
    """Make the schedule of each point without simulating.

    `settings` are `key=value` texts laid over a file. Raises a `LeansimError` where a point makes no
    sense. In a CSV such a row has the reason in a column `refused`; where all rows are like that, or
    `strict`ly any, one `ConfigError` names them.
    """
    if not _is_csv(points):
        return Plans(tuple(made(resolve(point)) for point in _points(points, settings)))
    given = read_points(str(points), settings=settings)

    def planned(row: CsvRow) -> Plan:
        return made(resolve(point_from_row(row, given.source))).released()

    found = given.settled(outcomes(planned, given.rows), strict)
    rows = given.joined((one.row if isinstance(one, Plan) else one for one in found), PLAN_COLUMNS)
    plans = tuple(one for one in found if isinstance(one, Plan))
    return Plans(plans, tuple(rows), tuple(given.refusals(found)))


def verify(
    points: Points, precisions: Sequence[Precision] = DEFAULT_PRECISIONS, input_seed: int = 0
) -> Answers[Verified]:
    """Replay each point's schedule in NumPy against reference attention, and check batch invariance.

    Finding fault is no error: see `Verified.passed`. `input_seed` is that of the random inputs. Raises
    a `LeansimError` where a point makes no sense, `UnknownNameError` for a precision.
    """
    return Answers(tuple(verified(point, precisions, input_seed) for point in _points(points)))


# -- latencies ---------------------------------------------------------------------------------


def predict(
    points: Points,
    jobs: int | None = None,
    harness: str = "",
    engine: Engine = "auto",
    settings: Sequence[str] = (),
    strict: bool = False,
) -> Predictions:
    """Predict the latency of every point, in microseconds.

    Of the kernel alone, or with what a measured latency contains beside it (`harness_us` of it) where
    `harness` names a measured table or a timer (`do_bench`), or is `table` for the table of the point's
    kernel and device; in a CSV of points a column `harness` does, and `harness` stands in for its empty
    cells. `evidence` says what a time rests on, `extrapolated` that no measurement covers the point, and
    `expected_error` how far off it may be (docs/accuracy.md).
    `jobs` processes: by default one per core when there are many points. `settings` are `key=value`
    texts laid over a file.

    A point that makes no sense has its error in place of a prediction, and in a column `refused`. In a
    CSV where all rows are like that, or `strict`ly any, one `ConfigError` names them.
    `leansim.sweeps.predict.predict` yields predictions as they are made.
    """
    with using(engine):
        if not _is_csv(points):
            chosen = _points(points, settings)
            asked = [p.model_dump(mode="json", by_alias=True, exclude_unset=True) for p in chosen]
            return Predictions(tuple(predict_points(chosen, jobs, harness)), tuple(asked))
        given = read_points(str(points), also=(HARNESS,), settings=settings)
        rows = [{**row, HARNESS: row.get(HARNESS) or harness} if harness else row for row in given.rows]
        found = tuple(predict_rows(rows, given.source, jobs))
        described = (one if isinstance(one, LeansimError) else prediction_row(one) for one in found)
        rows = given.joined(described, PREDICTION_COLUMNS, strict)
        return Predictions(found, tuple(rows), tuple(given.refusals(found)))


def step(points: Points, weight_dtype: str = "bfloat16", settings: Sequence[str] = ()) -> Steps:
    """A whole decode step of each point's model: attention of all layers, and all that is around it.

    Matrices, norms and experts by a roofline, all-reduces from the node's tables; tokens/s, energy per
    token between two bounds, and bytes on a GPU. `weight_dtype` is the weights'; `settings` are
    `key=value` texts laid over a file. A point that cannot be a step is told in `refused`. Raises the
    `LeansimError` of the first where all are.
    """
    found = list(steps_of(_points(points, settings), weight_dtype))
    steps = tuple(one for _, one in found if isinstance(one, Step))
    errors = [(point, one) for point, one in found if isinstance(one, Exception)]
    if errors and not steps:
        raise errors[0][1]
    return Steps(steps, tuple(f"{point.policy} on {point.device}: {one}" for point, one in errors))


# -- studies -----------------------------------------------------------------------------------


def oracle(
    points: Points,
    rules: Names = (),
    max_splits: int | None = None,
    budget: int = searching.BUDGET,
    engine: Engine = "auto",
) -> Answers[Oracle]:
    """Search the best split counts of each point, and run split rules beside them.

    `rules` names partitioners, or kernels whose rule is meant (none: every known one); the point's own
    is always run. `max_splits` limits what the search tries, `budget` its simulations of ragged
    batches. Raises a `LeansimError` where a kernel cannot run the workload.
    """
    return Answers(
        tuple(
            searching.oracle(point, _names(rules), max_splits, budget, engine)
            for point in _points(points)
        )
    )


def splits(
    points: Points, rules: Names = (), counts: Sequence[int] = (), engine: Engine = "auto"
) -> Answers[SplitCurve]:
    """Latency of each point against the number of splits, its knee, and what each split rule picks.

    `counts` are tried as given; by default enough to find the best. `rules` and errors as in `oracle`.
    """
    return Answers(
        tuple(cutting.split_curve(point, _names(rules), counts, engine) for point in _points(points))
    )


def explain(
    points: Points, rules: Names = (), budget: int = searching.BUDGET, engine: Engine = "auto"
) -> Answers[Explanation]:
    """Say in words where the time of each point goes and what would help; see `Explanation.text`.

    `rules`, `budget` and errors as in `oracle`.
    """
    return Answers(
        tuple(explaining.explain(point, _names(rules), budget, engine) for point in _points(points))
    )


def buckets(
    points: Points,
    sizes: Sequence[int] = freezing.SIZES,
    batches: int = freezing.BATCHES,
    counts: Sequence[int] = freezing.COUNTS,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Answers[BucketStudy]:
    """Which split count to freeze into each captured CUDA graph, over the batches of a trace.

    Each point names device, kernel, shape and trace. Graphs are captured for batches of `sizes`
    requests, `batches` of each are drawn, and `counts` are what may be frozen. `jobs` processes (None:
    one per core); `progress` is told batches done and of all. Raises `WorkloadError` without a trace,
    `PartitionerError` for a kernel that takes no count.
    """
    chosen = _points(points)

    def of_all(position: int) -> Progress | None:
        if progress is None:
            return None
        return lambda done, total: progress(position * total + done, len(chosen) * total)

    return Answers(
        tuple(
            freezing.buckets(point, sizes, batches, counts, jobs, of_all(position))
            for position, point in enumerate(chosen)
        )
    )


def invariance(
    points: Points, rules: Names = (), seeds: int = changing.SEEDS, engine: Engine = "auto"
) -> Answers[InvarianceStudy]:
    """Which split rules are batch-invariant on each point's kernel, and what invariance costs.

    `seeds` is how many times nine batches are tried. `rules` and errors as in `oracle`.
    """
    return Answers(
        tuple(
            changing.invariance(point, _names(rules), seeds, engine=engine) for point in _points(points)
        )
    )


def tune(
    points: Points,
    options: Names = (),
    surrogate: SurrogateName = "gp",
    memory: int = tuning.MEMORY,
    budget: int = tuning.BUDGET,
    search_seed: int = 0,
    engine: Engine = "auto",
) -> Answers[Tuned]:
    """Search the options of each point's partitioner, such as its number of CTAs, for the least latency.

    `options` names those that are tuned (none: all that are whole numbers). `surrogate` is `gp` (a
    Gaussian process; the extra `tune`) or `random`. With a `memory` of m, the search is confined to
    between the m best settings, again and again; 0 forgets nothing. `budget` is simulations. Raises
    `UnknownNameError`, `PartitionerError` where nothing can be tuned, and `StoreError` without
    scikit-learn. Where options do no more than set a split count, `oracle` needs fewer simulations.
    """
    return Answers(
        tuple(
            tuning.tune(point, _names(options), surrogate, memory, budget, search_seed, engine)
            for point in _points(points)
        )
    )


# -- silicon -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Validation(Shown):
    """Measured rows and their predictions, in seconds; `error` is predicted over measured, less one."""

    table: pd.DataFrame

    @property
    def errors(self) -> pd.DataFrame:
        """Errors per table and kernel: over all rows, and by each regime of several values."""
        from leansim.silicon.validate import error_table

        return error_table(self.table)

    def worst(self, most: int = 15) -> pd.DataFrame:
        """The rows that the model is furthest from, by ratio."""
        from leansim.silicon.validate import worst_rows

        return worst_rows(self.table, most)

    def rows(self) -> list[dict[str, Any]]:
        """Errors per table and kernel, over all rows."""
        every = self.errors
        return [
            {
                "table": row["table"],
                "kernel": row["kernel"],
                "rows": row["rows"],
                **{name: f"{row[name]:.1%}" for name in ("bias", "mean", "median", "p90", "within_10")},
            }
            for row in every[every["regime"] == "all"].to_dict("records")
        ]

    def notes(self) -> list[str]:
        """Rows left out of the tables, and rows without a prediction."""
        from leansim.silicon.validate import refusals

        return list(refusals(self.table))


def validate(
    tables: Names = (),
    sample: int | None = None,
    split: Split | None = None,
    points: str | Path | None = None,
    device: str | None = None,
    data: Path | None = None,
    jobs: int | None = None,
    progress: Progress = lambda _done, _total: None,
    settings: Sequence[str] = (),
    strict: bool = False,
) -> Validation:
    """Hold predictions against measured latencies: of `tables` (none: all), or of your own `points`.

    `sample` rows of each table are taken by hash. `split` is `test` (never fitted), `fit` or `all`: of
    tables `test` by default, of points `all`. `data` is a folder of <table>.csv instead of the
    installed tables; `device` is where FlashInfer's benchmark ran, whose CSV does not say. `jobs`
    processes, `progress` as in `sweep`. `settings` are `key=value` texts laid over every point. A row
    that makes no sense has the reason in a column `refused`, or, with `strict`, is a `ConfigError`.
    Raises that too where all are, `UnknownNameError`, and `StoreError` for missing tables.
    """
    from leansim.silicon import validate as validation
    from leansim.silicon.published import table_rows

    names = _names(tables)
    if points is None:
        rows = table_rows(names, split or "test", sample, data, strict)
        return Validation(validation.validate(rows, jobs, progress, settings))
    if names or sample or data:
        problem = Problem("points", "tables, a sample or data too", "wanted one of the two")
        raise ConfigError("validate", [problem])
    chosen = split or "all"
    return Validation(
        validation.validate_points(points, device, jobs, progress, chosen, settings, strict)
    )


def calibrate(
    config: str | Path | Calibration,
    data: Path | None = None,
    jobs: int | None = None,
    progress: Callable[[int, float], None] = lambda _evaluations, _error: None,
) -> Fit:
    """Fit the free constants of a file of configs/calibrations to measurements; write nothing.

    `leansim.silicon.fit.write` puts a fit into the files. `data` as in `validate`; `progress` is told
    evaluations of the model and mean relative error. Raises `ConfigError` for a calibration that makes
    no sense, `StoreError` for missing tables or SciPy.
    """
    from leansim.silicon import fit
    from leansim.silicon.calibration import read_calibration

    chosen = read_calibration(config) if isinstance(config, str | Path) else config
    return fit.calibrate(chosen, data, jobs, progress)
