"""Pins: published experiments give the numbers they were published with.

A change that moves them is a model change: regenerate with the experiment's `run.py`, and say why.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pandas as pd
import pytest

from leansim.points.grid import load
from leansim.points.point import Point
from leansim.points.simulate import simulate
from leansim.silicon.published import FILE_COLUMNS, RENAMED, table_rows
from leansim.silicon.rows import SHAPE
from leansim.silicon.validate import validate
from leansim.specs import catalog

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


def test_the_worst_rows_of_tables_are_predicted_as_published(tmp_path: Path) -> None:
    """Of `silicon`, whose tables are not here: its worst rows, written as the tables have them."""
    worst = pd.read_csv(FOLDER / "silicon" / "worst.csv")
    theirs = {ours: name for name, ours in RENAMED.items()}
    for name, rows in worst.groupby("table"):
        sources = {kernel.name: source for source, kernel in catalog.table(str(name)).kernels.items()}
        raw = rows.rename(columns=theirs).assign(latency=rows["measured_us"] / 1e3)
        raw["kernel_source"] = rows["kernel"].map(sources)
        raw[list(FILE_COLUMNS)].to_csv(tmp_path / f"{name}.csv", index=False)
    found = validate(table_rows((), "test", data=tmp_path), jobs=1)
    both = worst.merge(found, on=["table", "kernel", *SHAPE], validate="1:1")
    assert len(both) == len(worst) == 50
    predicted_us = (both["predicted_s"] * 1e6).to_numpy()
    assert predicted_us == pytest.approx(both["predicted_us"].to_numpy(), rel=1e-5)
