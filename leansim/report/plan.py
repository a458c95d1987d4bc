"""What `plan` and `predict` write: schedules in rows, and a CSV of points turned into another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from leansim.errors import LeansimError
from leansim.files.writing import write_whole
from leansim.points.csv import HARNESS, outcomes, read_points
from leansim.points.point import PLAN_COLUMNS, Resolved, plan_row, point_from_row, resolve
from leansim.report.text import render
from leansim.sweeps.predict import Prediction, predict_rows

# What `predict` adds to a row of points. Times are in microseconds.
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


def planned_rows(item: Resolved) -> list[dict[str, Any]]:
    """Describe a point's schedule in one row."""
    schedule, point = item.schedule, item.point
    per_request = schedule.splits_of_request.tolist()
    few = len(set(per_request)) == 1
    return [
        {
            "device": point.device,
            "kernel": point.policy,
            "partitioner": repr(item.partitioner),
            "tile": f"{schedule.grid.tile_rows}x{schedule.grid.tile_tokens}",
            "output_tiles": schedule.grid.num_output_tiles,
            "kv_tiles": schedule.grid.total_kv_tiles,
            "slots": schedule.grid.slots,
            **plan_row(item),
            "wave_efficiency": round(schedule.wave_efficiency, 4),
            "empty_ctas": schedule.num_empty_ctas,
            "segments": schedule.num_segments,
            "tiles_per_cta": f"{schedule.tiles_of_cta.min()}-{schedule.tiles_of_cta.max()}",
            "combine": schedule.combine,
            "splits_of_request": str(per_request[0]) if few else " ".join(map(str, per_request)),
        }
    ]


def segment_rows(item: Resolved) -> list[dict[str, Any]]:
    """Describe each segment of a point's schedule."""
    return [
        {"device": item.point.device, "kernel": item.point.policy, **segment._asdict()}
        for segment in item.schedule.segments()
    ]


def plan_csv(file: str, out: Path | None, form: str) -> None:
    """Plan every row of a CSV, printed or into `out`.

    Nothing is written unless every row makes sense. Raises `ConfigError` naming all that do not.
    """
    table = read_points(file)
    planned = outcomes(lambda row: plan_row(resolve(point_from_row(row, table.source))), table.rows)
    _tell(table.joined(planned, PLAN_COLUMNS), out, form, "planned")


def predict_csv(file: str, out: Path | None, form: str, jobs: int | None) -> None:
    """Predict every row of a CSV, printed or into `out`; all or nothing, as `plan_csv`.

    A column `harness` says what latencies contain beside the kernel; see `predict`. How many rows
    lie outside what was held against silicon, a note on standard error says once.
    """
    table = read_points(file, also=(HARNESS,))
    found = predict_rows(table.rows, table.source, jobs)
    cells = (each if isinstance(each, LeansimError) else prediction_cells(each) for each in found)
    rows = table.joined(cells, PREDICTION_COLUMNS)
    if outside := sum(bool(row["extrapolated"]) for row in rows):
        note = "outside what was held against silicon for their kernel and device (extrapolated)"
        print(f"note: {outside} of {len(rows)} points lie {note}", file=sys.stderr)
    _tell(rows, out, form, "predicted")


def prediction_cells(prediction: Prediction) -> dict[str, Any]:
    """A prediction as the cells of a row, `PREDICTION_COLUMNS`."""
    cells = {
        **vars(prediction),
        "latency_us": round(prediction.latency_s * 1e6, 6),
        "makespan_us": round(prediction.makespan_s * 1e6, 6),
        "sm_busy_fraction": round(prediction.sm_busy_fraction, 6),
        "dram_bytes": round(prediction.dram_bytes),
        "harness_us": round(prediction.harness_s * 1e6, 6),
    }
    return {name: cells[name] for name in PREDICTION_COLUMNS}


def _tell(rows: list[dict[str, Any]], out: Path | None, form: str, done: str) -> None:
    text = render(rows, form)
    if out is None:
        print(text)
    else:
        write_whole(out, text + "\n")
        print(f"{done} {len(rows)} points into {out}", file=sys.stderr)
