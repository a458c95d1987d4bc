"""Reads measurements of one's own into rows: points with a time, or what FlashInfer's benchmark writes.

A CSV of points has the columns of `predict` (`harness` too) and `measured_us`, as `leansim measure`
writes it. FlashInfer's is told by its columns; only plain paged decode of recorded lengths is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from leansim.errors import ConfigError, LeansimError, Problem
from leansim.files.csv import CsvRow, read_csv
from leansim.points.csv import HARNESS, CsvPoints, csv_points, outcomes, read_points
from leansim.points.point import POINT_KEYS, Point, point_from_row, resolve
from leansim.points.settings import setting_of
from leansim.silicon import rows as schema
from leansim.specs.harness import Calls
from leansim.sweeps.predict import OWN_TABLE, harness_of

if TYPE_CHECKING:
    import pandas as pd

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
# What a campaign on libraries writes beside a point: whose kernel it was, and what its batch was drawn
# from. Only the lengths that were drawn describe the point.
ORIGIN_COLUMNS = ("library", "adapter", "shape_id", "drawn_from")
# Columns of a CSV of points that are known beside those of a point.
_BESIDE = (HARNESS, *MEASUREMENT_COLUMNS, *ORIGIN_COLUMNS)
# What a shape is: a row's point without the kernel and the device.
_SHAPE = frozenset(POINT_KEYS) - {"device", "kernel", "partitioner", "num_splits", "num_sms"}
# Columns of the schema that a workload has under the same name.
_OF_WORKLOAD = (
    "batch_size", "num_q_heads", "num_kv_heads", "head_dim", "q_dtype", "kv_dtype", "cache", "launch",
    "kv_bytes",
)  # fmt: skip

# Columns by which FlashInfer's benchmark is known.
FLASHINFER_COLUMNS = frozenset(
    {"routine", "median_time", "backend", "batch_size", "s_qo", "s_kv", "num_qo_heads",
     "num_kv_heads", "head_dim_qk", "head_dim_vo", "q_dtype", "kv_dtype", "page_size"}
)  # fmt: skip
_ROUTINE = "BatchDecodeWithPagedKVCacheWrapper"
_BACKENDS = {
    "fa2": "flashinfer_decode",
    "fa2_tc": "flashinfer_tc_decode",
    "trtllm-gen": "trtllm_gen",
    "trtllm-native": "trtllm_gen",
    "trtllm-gen-native": "trtllm_gen",
}
_FIELDS = {
    "batch_size": "batch_size",
    "s_qo": "query_len",
    "s_kv": "context_len",
    "num_qo_heads": "num_q_heads",
    "num_kv_heads": "num_kv_heads",
    "head_dim_qk": "head_dim",
    "head_dim_vo": "head_dim_v",
    "page_size": "page_tokens",
}


class _Time(NamedTuple):
    """The column of a file that holds its times, their unit, and how many of it are a second."""

    column: str
    unit: str
    per_second: float


_OURS = _Time(MEASURED, "microseconds", 1e6)
_FLASHINFERS = _Time("median_time", "milliseconds", 1e3)


def own_rows(
    file: str | Path,
    device: str | None = None,
    settings: Sequence[str] = (),
    strict: bool = True,
    fit_every: int = schema.OWN_FIT_EVERY,
) -> pd.DataFrame:
    """Rows of a CSV of measurements, in its order: columns `rows.ROW_COLUMNS`, and what else it says.

    `device` is where points without one were measured: FlashInfer's benchmark does not say. `settings`
    are as in `read_points`; one shape in `fit_every` is for fitting, by a hash. `attrs["left_out"]`
    counts the rows left out, by reason. Raises `ConfigError` for files that are neither kind, and for
    rows that make no sense, all at once; unless `strict`, `attrs["refused"]` has those that make none,
    where some do.
    """
    import pandas as pd

    given, time, left_out = _read(str(file), device, settings)
    found = given.settled(
        outcomes(lambda row: _measured(row, given.source, time, fit_every), given.rows), strict=strict
    )
    others = [name for name in given.columns if name not in schema.ROW_COLUMNS]
    kept = [i for i, one in enumerate(found) if not isinstance(one, LeansimError)]
    said = pd.DataFrame([given.records[i] for i in kept], columns=others)
    rows = pd.DataFrame([found[i] for i in kept], columns=list(schema.ROW_COLUMNS)).join(said)
    rows.attrs["left_out"] = left_out
    rows.attrs["refused"] = schema.refused_rows(given, found)
    rows.attrs["time"] = (time.column, time.unit)
    return rows


def holds_points(file: str | Path) -> bool:
    """Whether a CSV is of measured points: others hold mechanisms, or the kernels of calls."""
    return {"device", MEASURED} <= set(read_csv(str(file))[0])


def read_measured(file: str | Path, settings: Sequence[str] = ()) -> CsvPoints:
    """Read a CSV of points, measured or to be measured, as it stands. Raises `ConfigError`.

    `settings` are as in `read_points`.
    """
    return read_points(file, also=_BESIDE, settings=settings)


def point_fields(row: Mapping[str, str]) -> CsvRow:
    """What of a row describes the point."""
    return {key: row[key] for key in row if key not in _BESIDE}


def shape_of(row: Mapping[str, str]) -> str:
    """A row's shape as text, the same under all kernels, so that it is fitted or tested under all."""
    cells = {key: row[key].strip() for key in sorted(row) if key in _SHAPE}
    return ",".join(f"{key}={value}" for key, value in cells.items() if value)


def _measured(row: CsvRow, source: str, time: _Time, fit_every: int) -> dict[str, Any]:
    """A row of the schema. Raises a `LeansimError` for what is no time, no point or no harness."""
    measured_s = _seconds(row[time.column], source, time)
    point = point_from_row(point_fields(row), source)
    load = resolve(point).workload
    schema.check_bytes(load.kv_bytes)
    calls = Calls.of(point.kernel, load)
    longest = max(load.context_lens)
    return {
        "table": Path(source).stem,
        "source": f"own measurements {source}",
        "harness": _harness((row.get(HARNESS) or "").strip(), point),
        "device": point.device,
        "kernel": point.policy,
        "kernel_source": "",
        **{name: getattr(load, name) for name in _OF_WORKLOAD},
        "context_len": longest,
        "window": load.window or 0,
        "step": longest,
        "query_bytes": calls.query_bytes,
        "kv_token_bytes": calls.kv_token_bytes,
        "fit": schema.is_for_fitting(shape_of(row), fit_every),
        "measured_s": measured_s,
        "point": point,
    }


def _harness(text: str, point: Point) -> str:
    """The table or timer whose harness a time contains, or nothing. Raises `UnknownNameError`."""
    if not text:
        return ""
    found = harness_of(text, point)
    return found.name if text == OWN_TABLE else text


def _seconds(text: str, source: str, time: _Time) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.0 < found < float("inf"):
        raise ConfigError(source, [Problem(time.column, repr(text), f"wanted a time in {time.unit}")])
    return found / time.per_second


def _read(
    source: str, device: str | None, settings: Sequence[str]
) -> tuple[CsvPoints, _Time, dict[str, int]]:
    """The file as points with a time, and how many rows were left out, by reason."""
    columns, numbered = read_csv(source)
    missing = sorted(FLASHINFER_COLUMNS - set(columns))
    if not missing:
        return _flashinfer_points(source, numbered, device, settings)
    if MEASURED in columns and "device" in columns:
        return csv_points(source, columns, numbered, _BESIDE, settings), _OURS, {}
    if len(missing) >= len(FLASHINFER_COLUMNS) / 2:  # nothing like FlashInfer's
        missing = sorted({MEASURED, "device"} - set(columns))
    wanted = (
        f"wanted points with {MEASURED} (columns of `predict`), or what FlashInfer's benchmark "
        f"writes; missing here: {', '.join(missing)}"
    )
    raise ConfigError(source, [Problem("header", ", ".join(columns[:8]), wanted, 1, 1)])


def _flashinfer_points(
    source: str, numbered: list[tuple[int, CsvRow]], device: str | None, settings: Sequence[str]
) -> tuple[CsvPoints, _Time, dict[str, int]]:
    """What FlashInfer's benchmark wrote, as points."""
    if device is None:
        wanted = "wanted --device: FlashInfer's benchmark does not say what it ran on"
        raise ConfigError(source, [Problem("--device", "nothing", wanted)])
    left_out: dict[str, int] = {}
    lines, rows = [], []
    for line, row in numbered:
        if reason := _unusable(row):
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        lines.append(line)
        rows.append({**_flashinfer_point(row, device), **dict(map(setting_of, settings))})
    if not rows:
        reasons = "; ".join(left_out)
        raise ConfigError(source, [Problem("file", reasons, "wanted rows of plain paged decode", 1, 1)])
    given = CsvPoints(source, tuple(rows[0]), tuple(lines), tuple(rows), tuple(rows))
    return given, _FLASHINFERS, left_out


def _backend(row: Mapping[str, str]) -> str:
    """The backend that ran: what `auto` became, where the file says."""
    resolved = row.get("resolved_backend") or row.get("backend_resolved") or ""
    return resolved if row["backend"] == "auto" and resolved else row["backend"]


def _unusable(row: Mapping[str, str]) -> str:
    """Why a row of FlashInfer's benchmark cannot be predicted, or nothing."""
    if row["routine"] != _ROUTINE:
        return f"routine {row['routine']}"
    if _backend(row) not in _BACKENDS:
        return f"backend {_backend(row)}"
    if row.get("random_actual_seq_len", "").lower() == "true":
        return "lengths drawn at random and not recorded"
    return ""


def _flashinfer_point(row: Mapping[str, str], device: str) -> CsvRow:
    """A row of FlashInfer's benchmark as a point and its time: L2 was flushed between calls."""
    return {
        "device": device,
        "kernel": _BACKENDS[_backend(row)],
        **{name: row[column] for column, name in _FIELDS.items()},
        "q_dtype": _dtype(row["q_dtype"]),
        "kv_dtype": _dtype(row["kv_dtype"]),
        "cache": "cold",
        "launch": "stream" if row.get("no_cuda_graph", "").lower() == "true" else "graph",
        _FLASHINFERS.column: row[_FLASHINFERS.column],
    }


def _dtype(name: str) -> str:
    plain = name.removeprefix("torch.")
    return "fp8" if plain.startswith(("float8", "fp8")) else plain
