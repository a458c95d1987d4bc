"""Predicts many points: the interface a planner or a serving simulator would use."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

from leansim.errors import UnknownNameError
from leansim.points.csv import HARNESS, Outcome, Row, outcomes
from leansim.points.point import Point, Resolved, point_from_row
from leansim.points.simulate import Simulation, attempted, simulate, simulate_each
from leansim.results.metrics import limiting, time_shares
from leansim.specs import catalog
from leansim.specs.harness import Calls, MeasuredTable
from leansim.sweeps.executors import cores, process_pool

PREDICTION_COLUMNS = (
    "latency_us",
    "makespan_us",
    "bound",
    "num_splits",
    "num_ctas",
    "sm_busy_fraction",
    "dram_bytes",
    "harness_us",
    "extrapolated",
)
# Value of a row's harness for the measured table of the point's kernel and device.
OWN_TABLE = "table"
_POINTS_PER_TASK = 256
# Below this, starting workers takes longer than the points do.
_WORTH_WORKERS = 1500


def predict(points: Iterable[Point], jobs: int | None = None, harness: str = "") -> Iterator[Outcome]:
    """Yield a prediction per point, in order, or the error that stood in its way.

    Latencies in microseconds: of the kernel alone, or with what a measured latency contains beside
    it (`harness_us` of it) where `harness` is the name of a measured table, or `table` for that of
    the point's kernel and device. `extrapolated` says that the point lies outside the range in which
    that kernel was held against silicon on that device. `jobs` is the number of processes: by
    default one per core when there are many points.
    """
    return _spread(partial(_predicted, harness=harness), list(points), jobs)


def predict_rows(rows: Sequence[Row], source: str, jobs: int | None = None) -> Iterator[Outcome]:
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


def prediction(point: Point, harness: str = "") -> dict[str, Any]:
    """Predict one point. Raises a `LeansimError` where it, or its harness, makes no sense."""
    return _prediction(simulate(point), harness)


def _prediction(simulation: Simulation, harness: str) -> dict[str, Any]:
    point = simulation.point
    kernel = point.kernel.partition("+")[0]
    harness_s = 0.0
    if harness:
        table = _harness_table(harness, kernel, point.device, _configs())
        harness_s = float(table.harness_s(Calls.of(kernel, simulation.resolved.workload)))
    result, schedule = simulation.result, simulation.schedule
    shares, dram_bytes = time_shares(result), result.program.dram_bytes
    return {
        "latency_us": round((result.latency_s + harness_s) * 1e6, 6),
        "makespan_us": round(result.makespan_s * 1e6, 6),
        "bound": limiting(shares, dram_bytes, result),
        "num_splits": schedule.num_splits,
        "num_ctas": schedule.num_ctas,
        "sm_busy_fraction": round(1.0 - shares["idle"] - shares["wait"], 6),
        "dram_bytes": round(dram_bytes),
        "harness_us": round(harness_s * 1e6, 6),
        "extrapolated": not _is_covered(simulation.resolved),
    }


def _is_covered(resolved: Resolved) -> bool:
    """Whether a point as it stands in the files was held against silicon: in range, nothing changed."""
    point = resolved.point
    if point.partitioner is not None or point.overrides or point.num_sms is not None:
        return False
    tables = _tables_of(point.kernel, point.device, _configs())
    return any(table.validated[point.kernel].covers(resolved.workload) for table in tables)


def _configs() -> str:
    """Where files are looked for: what was found there holds as long as this does."""
    return os.environ.get("LEANSIM_CONFIGS", "")


@lru_cache(maxsize=1024)
def _tables_of(kernel: str, device: str, _configs: str) -> tuple[MeasuredTable, ...]:
    """Measured tables of a kernel on a device that say what range they cover."""
    tables = map(catalog.table, catalog.names("table"))
    return tuple(table for table in tables if table.device == device and kernel in table.validated)


@lru_cache(maxsize=1024)
def _harness_table(harness: str, kernel: str, device: str, _configs: str) -> MeasuredTable:
    """The table that a harness names. Raises `UnknownNameError` saying which there are."""
    if harness != OWN_TABLE:
        return catalog.table(harness)
    tables = {name: catalog.table(name) for name in catalog.names("table")}
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


def _predicted_rows(rows: Sequence[Row], source: str) -> list[Outcome]:
    points = attempted(partial(_point_of, source=source), rows)
    return _outcomes(points, ((row.get(HARNESS) or "").strip() for row in rows))


def _point_of(row: Row, source: str) -> Point:
    fields = {key: value for key, value in row.items() if key != HARNESS} if HARNESS in row else row
    return point_from_row(fields, source)


def _outcomes(points: Sequence[Point | Exception], harnesses: Iterable[str]) -> list[Outcome]:
    def describe(found: tuple[Simulation | Exception, str]) -> dict[str, Any]:
        simulation, harness = found
        if isinstance(simulation, Exception):
            raise simulation
        return _prediction(simulation, harness)

    return list(outcomes(describe, zip(simulate_each(points), harnesses, strict=False)))
