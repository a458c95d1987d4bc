"""Predicts many points: the interface a planner or a serving simulator would use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from leansim.errors import ConfigError, LeansimError, SetupError, UnknownNameError
from leansim.files.csv import CsvRow
from leansim.points.csv import HARNESS, outcomes
from leansim.points.point import Point, point_from_row
from leansim.points.simulate import Simulation, attempted, simulate, simulate_each
from leansim.results.metrics import limiting, time_shares
from leansim.specs import catalog
from leansim.specs.evidence import Evidence
from leansim.specs.harness import Calls, MeasuredTable
from leansim.specs.timer import Timer
from leansim.sweeps.executors import cores, process_pool

# Value of a row's harness for the measured table of the point's kernel and device.
OWN_TABLE = "table"
_POINTS_PER_TASK = 256
# Below this, starting workers takes longer than the points do.
_WORTH_WORKERS = 1500


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a point comes to. Times in seconds.

    `latency_s` is the kernel's, with `harness_s` of what a measured latency contains beside it.
    `evidence`, `extrapolated` and `expected_error` say what the times rest on: see `Grounds`.
    """

    latency_s: float
    makespan_s: float
    bound: str
    num_splits: int | None
    num_ctas: int
    sm_busy_fraction: float
    dram_bytes: float
    harness_s: float
    evidence: Evidence
    extrapolated: bool
    expected_error: float


Outcome = Prediction | LeansimError


def predict(points: Iterable[Point], jobs: int | None = None, harness: str = "") -> Iterator[Outcome]:
    """Yield a prediction per point, in order, or the error that stood in its way.

    Of the kernel alone, or with a harness where `harness` is the name of a measured table or of a timer,
    or `table` for the table of the point's kernel and device. `jobs` is the number of processes: by
    default one per core when there are many points.
    """
    return _spread(partial(_predicted, harness=harness), list(points), jobs)


def predict_rows(rows: Sequence[CsvRow], source: str, jobs: int | None = None) -> Iterator[Outcome]:
    """Predict the points that rows of a CSV describe; workers read them too.

    A row's `harness` is as in `predict`.
    """
    return _spread(partial(_predicted_rows, source=source), rows, jobs)


def _spread(
    work: Callable[[Sequence[Any]], list[Outcome]], items: Sequence[Any], jobs: int | None
) -> Iterator[Outcome]:
    jobs = jobs or (cores() if len(items) >= _WORTH_WORKERS else 1)
    parts = [items[at : at + _POINTS_PER_TASK] for at in range(0, len(items), _POINTS_PER_TASK)]
    if jobs == 1:
        for part in parts:
            yield from work(part)
        return
    with process_pool(jobs) as pool:
        for part in pool.map(work, parts):
            yield from part


def prediction(point: Point, harness: str = "") -> Prediction:
    """Predict one point. Raises a `LeansimError` where it, or its harness, makes no sense."""
    return _prediction(simulate(point), harness)


def _prediction(simulation: Simulation, harness: str) -> Prediction:
    point = simulation.point
    result, schedule = simulation.result, simulation.schedule
    harness_s = 0.0
    if harness:
        calls = Calls.of(point.kernel.partition("+")[0], simulation.resolved.workload)
        harness_s = float(harness_of(harness, point).harness_s(calls, result.latency_s))
    shares, dram_bytes = time_shares(result), result.dram_bytes
    grounds = simulation.grounds
    return Prediction(
        latency_s=result.latency_s + harness_s,
        makespan_s=result.makespan_s,
        bound=limiting(shares, dram_bytes, result),
        num_splits=schedule.num_splits,
        num_ctas=schedule.num_ctas,
        sm_busy_fraction=1.0 - shares["idle"] - shares["wait"],
        dram_bytes=dram_bytes,
        harness_s=harness_s,
        evidence=grounds.evidence,
        extrapolated=grounds.extrapolated,
        expected_error=grounds.expected_error,
    )


def harness_of(harness: str, point: Point) -> MeasuredTable | Timer:
    """The table or timer that a point's harness names.

    Raises `UnknownNameError` saying which there are, `SetupError` where one of all is broken.
    """
    return _harness_of(harness, point.kernel.partition("+")[0], point.device, catalog.search_path())


@lru_cache(maxsize=1024)
def _harness_of(harness: str, kernel: str, device: str, _configs: str) -> MeasuredTable | Timer:
    if harness != OWN_TABLE:
        return catalog.harness(harness)
    try:
        tables = {name: catalog.table(name) for name in catalog.names("table")}
    except ConfigError as error:  # of a table that the point may have nothing to do with
        raise SetupError(str(error)) from None
    runs = {
        f"{source.name} on {table.device}": table
        for table in tables.values()
        for source in table.kernels.values()
    }
    if (wanted := f"{kernel} on {device}") not in runs:
        raise UnknownNameError("measured table of", wanted, runs)
    return runs[wanted]


def _predicted(points: Sequence[Point], harness: str) -> list[Outcome]:
    return _outcomes(points, itertools.repeat(harness))


def _predicted_rows(rows: Sequence[CsvRow], source: str) -> list[Outcome]:
    points = attempted(partial(_point_of, source=source), rows)
    return _outcomes(points, ((row.get(HARNESS) or "").strip() for row in rows))


def _point_of(row: CsvRow, source: str) -> Point:
    fields = {key: value for key, value in row.items() if key != HARNESS} if HARNESS in row else row
    return point_from_row(fields, source)


def _outcomes(points: Sequence[Point | Exception], harnesses: Iterable[str]) -> list[Outcome]:
    def describe(found: tuple[Simulation | Exception, str]) -> Prediction:
        simulation, harness = found
        if isinstance(simulation, Exception):
            raise simulation
        return _prediction(simulation, harness)

    return list(outcomes(describe, zip(simulate_each(points), harnesses, strict=False)))
