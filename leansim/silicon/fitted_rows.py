"""The rows that a calibration is fitted to: of measured tables, or of one's own measured points.

Of both only the fit fifth, which a hash settles.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from leansim.errors import ConfigError, Problem, StoreError
from leansim.points.csv import HARNESS
from leansim.points.point import Point, point_from_row, workload_of
from leansim.silicon.calibration import Calibration, FitRows
from leansim.silicon.measured_points import is_for_fitting, point_cells, read_measured, times_us
from leansim.silicon.tables import digest, matching, measured_rows, points_of

if TYPE_CHECKING:
    import pandas as pd

_OWN_COLUMNS = (
    "batch_size", "num_q_heads", "num_kv_heads", "head_dim", "q_dtype", "kv_dtype", "cache", "launch",
)  # fmt: skip
_ROW = (
    *_OWN_COLUMNS, "context_len", "window", "table", "device", "kernel", "fit", "measured_s", "point",
)  # fmt: skip


def fit_rows(calibration: Calibration, data: Path | None = None) -> pd.DataFrame:
    """The rows that a calibration is fitted to: of the fit split, and of nothing else."""
    import pandas as pd

    parts = [
        _chosen(_own_rows(rows) if table is None else measured_rows(table, "fit", data=data), rows)
        for rows, table in zip(calibration.config.rows, calibration.tables, strict=True)
    ]
    found = pd.concat(parts, ignore_index=True)
    assert found["fit"].all(), "a test row among the rows to fit"
    if found.empty:
        raise StoreError(f"{calibration.config.name}: found no rows to fit")
    return found


def _own_rows(choice: FitRows) -> pd.DataFrame:
    """The fit fifth of a CSV of measured points on one device: `point` and the columns of its row.

    In the order of a hash, so that a larger sample holds the smaller ones. Raises `ConfigError`.
    """
    import pandas as pd

    table = read_measured(str(choice.points))
    found = []
    for row, time_us in zip(table.rows, times_us(table), strict=True):
        if row["device"].strip() != choice.device or not is_for_fitting(row):
            continue
        if row.get(HARNESS, "").strip():
            problem = Problem(HARNESS, repr(row[HARNESS]), "wanted points of the kernel alone to fit")
            raise ConfigError(table.source, [problem])
        point = point_from_row({k: v for k, v in point_cells(row).items() if k != HARNESS}, table.source)
        load = workload_of(point)
        found.append(
            {
                **{name: getattr(load, name) for name in _OWN_COLUMNS},
                "context_len": max(load.context_lens), "window": load.window or 0,
                "table": table.source, "device": point.device, "kernel": point.policy,
                "fit": True, "measured_s": time_us / 1e6, "point": point,
            }
        )  # fmt: skip
    rows = pd.DataFrame(found, columns=_ROW)
    order = [digest(f"sample,{point.model_dump_json()}") for point in rows["point"]]
    return rows.iloc[sorted(range(len(order)), key=order.__getitem__)]


def row_points(rows: pd.DataFrame) -> tuple[Point, ...]:
    """The point of each row: its own, or that of a table's row."""
    if "point" not in rows:
        return tuple(points_of(rows))
    of_tables = points_of(rows[rows["point"].isna()].drop(columns="point"))
    return tuple(point if isinstance(point, Point) else next(of_tables) for point in rows["point"])


def _chosen(rows: pd.DataFrame, choice: FitRows) -> pd.DataFrame:
    if choice.kernels is not None:
        rows = rows[rows["kernel"].isin(choice.kernels)]
    rows = rows[matching(rows, choice.where)]
    return rows.iloc[: choice.sample]
