"""A CSV of measured points: the columns of `predict` and `measured_us`, as `leansim measure` writes it.

Which of them constants may be fitted to is settled here, by a hash of the shape.
"""

from __future__ import annotations

from pathlib import Path

from leansim.errors import ConfigError, Problem
from leansim.points.csv import HARNESS, PointTable, Row, read_points
from leansim.points.point import POINT_KEYS
from leansim.silicon.tables import FIT_EVERY, digest

MEASURED = "measured_us"
# What `leansim measure` writes beside a point: its time and spread, how it was checked, what the
# compiled kernel takes, and the machine. None is called as an option of a partitioner.
MACHINE_COLUMNS = (
    "gpu", "driver", "cuda", "torch", "triton", "leansim", "commit",
    "sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w",
)  # fmt: skip
MEASUREMENT_COLUMNS = (
    MEASURED, "spread_us", "min_us", "samples", "calls", "buffers", "row_error", "input_seed",
    "scheduled_splits", "scheduled_ctas", "registers", "spills", "smem_bytes", "resident_ctas_per_sm",
    *MACHINE_COLUMNS,
)  # fmt: skip
# What a shape is: a row's point without the kernel and the device.
_SHAPE = frozenset(POINT_KEYS) - {"device", "kernel", "partitioner", "num_sms"}


def read_measured(file: str | Path) -> PointTable:
    """Read a CSV of measured points. Raises `ConfigError`."""
    return read_points(file, also=(HARNESS, *MEASUREMENT_COLUMNS))


def point_cells(row: Row) -> Row:
    """What of a row describes the point, its harness included."""
    return {key: value for key, value in row.items() if key not in MEASUREMENT_COLUMNS}


def is_for_fitting(row: Row) -> bool:
    """Whether a point is of the fifth that constants may be fitted to: by hash of its shape.

    So a shape is fitted, or tested, under all kernels alike.
    """
    cells = {key: row[key].strip() for key in sorted(row) if key in _SHAPE}
    shape = ",".join(f"{key}={value}" for key, value in cells.items() if value)
    return digest(shape) % FIT_EVERY == 0


def times_us(table: PointTable) -> list[float]:
    """`measured_us` of each row. Raises `ConfigError` for what is no time."""
    times, problems = [], []
    for line, row in zip(table.lines, table.rows, strict=True):
        text = row.get(MEASURED, "")
        try:
            time_us = float(text)
        except ValueError:
            time_us = 0.0
        if not 0.0 < time_us < float("inf"):
            problems.append(Problem(MEASURED, repr(text), "wanted a time in microseconds", line, 1))
        times.append(time_us)
    if problems:
        raise ConfigError(table.source, problems)
    return times
