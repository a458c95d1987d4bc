"""Pins: published experiments give the numbers they were published with.

A change that moves them is a model change: regenerate with the experiment's `run.py`, and say why.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from leansim.points.grid import load
from leansim.points.simulate import simulate

FOLDER = Path(__file__).resolve().parent.parent / "experiments"
# Those that are a sweep; others pin what their own tests compute again.
EXPERIMENTS = [
    path for path in sorted(FOLDER.glob("*/expected.csv")) if (path.parent / "sweep.yaml").exists()
]
EVERY = 50


@pytest.mark.parametrize("pins", EXPERIMENTS, ids=lambda path: path.parent.name)
def test_pinned_latencies(pins: Path) -> None:
    rows = list(csv.DictReader(pins.read_text().splitlines()))
    points = load(pins.parent / "sweep.yaml").points()
    assert len(rows) == len(points)
    for row, point in list(zip(rows, points, strict=True))[7::EVERY]:
        assert (row["device"], row["policy"], row["context_len"]) == (
            point.device,
            point.policy,
            str(point.context_len),
        )
        assert simulate(point).result.latency_s * 1e9 == pytest.approx(
            float(row["latency_ns"]), abs=2e-3
        )
