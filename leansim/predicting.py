"""Predicts many points: the interface a planner or a serving simulator would use."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from leansim.api import simulate
from leansim.errors import LeansimError
from leansim.executors import cores
from leansim.points import Point
from leansim.points_csv import Outcome, outcomes

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


def predict(points: Iterable[Point | LeansimError], jobs: int | None = None) -> Iterator[Outcome]:
    """Yield a prediction per point, in order, or the error that stood in its way.

    Latencies in microseconds. `extrapolated` says that the point lies outside the range validated
    against silicon; nothing is validated yet, so it is always true. `jobs` is the number of
    processes: by default one per core when there are many points. Errors among the points pass through.
    """
    points = list(points)
    jobs = jobs or (cores() if len(points) >= _WORTH_WORKERS else 1)
    if jobs == 1:
        yield from _predicted(points)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for part in pool.map(_predicted, _batched(points)):
            yield from part


def prediction(point: Point) -> dict[str, Any]:
    """Predict one point. Raises a `LeansimError` where it makes no sense."""
    simulation = simulate(point)
    metrics, schedule = simulation.metrics, simulation.schedule
    return {
        "latency_us": round(metrics.latency_s * 1e6, 6),
        "makespan_us": round(metrics.makespan_s * 1e6, 6),
        "bound": metrics.bound,
        "num_splits": schedule.num_splits,
        "num_ctas": schedule.num_ctas,
        "sm_busy_fraction": round(metrics.sm_busy_fraction, 6),
        "dram_bytes": round(metrics.dram_bytes),
        "extrapolated": True,
    }


def _predicted(points: Sequence[Point | LeansimError]) -> list[Outcome]:
    return list(outcomes(prediction, points))


def _batched(points: list[Point | LeansimError]) -> Iterator[list[Point | LeansimError]]:
    remaining = iter(points)
    while part := list(itertools.islice(remaining, _POINTS_PER_TASK)):
        yield part
