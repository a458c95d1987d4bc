"""Pins: published experiments give the numbers they were published with.

A change that moves them is a model change: regenerate with the experiment's `run.py`, and say why.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from leansim.points.grid import load
from leansim.points.point import Point
from leansim.points.simulate import simulate

FOLDER = Path(__file__).resolve().parent.parent / "experiments"
# Those that are a sweep; others pin what their own tests compute again.
SWEEPS = [path.parent for path in sorted(FOLDER.glob("*/sweep.yaml"))]
TIME = "latency_ns"


@pytest.mark.parametrize("folder", SWEEPS, ids=lambda path: path.name)
def test_pinned_latencies(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "expected.csv").read_text().splitlines()))
    columns = [column for column in rows[0] if column != TIME]

    def key(point: Point) -> tuple[str, ...]:
        return tuple(str(getattr(point, column)) for column in columns)

    points = {key(point): point for point in load(folder / "sweep.yaml").points()}
    pinned = {tuple(row[column] for column in columns): float(row[TIME]) for row in rows}
    assert pinned.keys() <= points.keys()
    assert len(pinned) == len(rows) > 200
    for one, latency_ns in list(pinned.items())[7 :: math.isqrt(len(rows))]:
        assert simulate(points[one]).result.latency_s * 1e9 == pytest.approx(latency_ns, abs=2e-3), one
