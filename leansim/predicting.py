"""Predicts many points: the interface a planner or a serving simulator would use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from leansim.api import simulate
from leansim.executors import cores, process_pool
from leansim.metrics import limiting, time_shares
from leansim.points import Point, point_from_row
from leansim.points_csv import Outcome, Row, outcomes

PREDICTION_COLUMNS = (
    "latency_us",
    "makespan_us",
    "bound",
    "num_splits",
    "num_ctas",
    "sm_busy_fraction",
    "dram_bytes",
    "extrapolated",
)
_POINTS_PER_TASK = 256
# Below this, starting workers takes longer than the points do.
_WORTH_WORKERS = 1500


def predict(points: Iterable[Point], jobs: int | None = None) -> Iterator[Outcome]:
    """Yield a prediction per point, in order, or the error that stood in its way.

    Latencies in microseconds. `extrapolated` says that the point lies outside the range validated
    against silicon; nothing is validated yet, so it is always true. `jobs` is the number of
    processes: by default one per core when there are many points.
    """
    return _spread(_predicted, list(points), jobs)


def predict_rows(rows: Sequence[Row], source: str, jobs: int | None = None) -> Iterator[Outcome]:
    """Predict the points that rows of a CSV describe; workers read them too."""
    return _spread(partial(_predicted_rows, source=source), rows, jobs)


def _spread(
    work: Callable[[Sequence[Any]], list[Outcome]], items: Sequence[Any], jobs: int | None
) -> Iterator[Outcome]:
    jobs = jobs or (cores() if len(items) >= _WORTH_WORKERS else 1)
    if jobs == 1:
        yield from work(items)
        return
    # Workers keep the memory of one big schedule for the next instead of asking the system anew.
    kept = {"MALLOC_MMAP_THRESHOLD_": "268435456", "MALLOC_TRIM_THRESHOLD_": "268435456"}
    os.environ.update({key: os.environ.get(key, value) for key, value in kept.items()})
    parts = [items[at : at + _POINTS_PER_TASK] for at in range(0, len(items), _POINTS_PER_TASK)]
    with process_pool(jobs) as pool:
        for part in pool.map(work, parts):
            yield from part


def prediction(point: Point) -> dict[str, Any]:
    """Predict one point. Raises a `LeansimError` where it makes no sense."""
    simulation = simulate(point)
    result, schedule = simulation.result, simulation.schedule
    shares, dram_bytes = time_shares(result), result.program.dram_bytes
    return {
        "latency_us": round(result.latency_s * 1e6, 6),
        "makespan_us": round(result.makespan_s * 1e6, 6),
        "bound": limiting(shares, dram_bytes, result),
        "num_splits": schedule.num_splits,
        "num_ctas": schedule.num_ctas,
        "sm_busy_fraction": round(1.0 - shares["idle"] - shares["wait"], 6),
        "dram_bytes": round(dram_bytes),
        "extrapolated": True,
    }


def _predicted(points: Sequence[Point]) -> list[Outcome]:
    return list(outcomes(prediction, points))


def _predicted_rows(rows: Sequence[Row], source: str) -> list[Outcome]:
    return list(outcomes(lambda row: prediction(point_from_row(row, source)), rows))
