"""Measurements of one's own, held against predictions: points with a time, or FlashInfer's benchmark.

A CSV of points has the columns of `predict` (`harness` too) and `measured_us`, as `leansim measure`
writes it. What FlashInfer's benchmark writes is told by its columns; only plain paged decode of
recorded lengths is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leansim.errors import ConfigError, LeansimError, Problem
from leansim.files.csv import read_csv
from leansim.points.csv import HARNESS, Outcome, PointTable, Row
from leansim.points.point import point_from_row, resolve
from leansim.silicon.measured_points import (
    MEASURED,
    is_for_fitting,
    point_cells,
    read_measured,
    times_us,
)
from leansim.sweeps.predict import predict_rows

if TYPE_CHECKING:
    import pandas as pd

# Columns by which FlashInfer's benchmark is known; times are in milliseconds.
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


def measured_points(
    file: str | Path,
    device: str | None = None,
    jobs: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> pd.DataFrame:
    """Predict a CSV of measured points; columns as `validation.validate` makes them.

    `device` is where points without one were measured: FlashInfer's benchmark does not say. Raises
    `ConfigError` for files that are neither kind, and for rows that make no sense, all at once.
    """
    import pandas as pd

    table, left_out = _points_of(str(file), device)
    measured = times_us(table)
    rows = [point_cells(row) for row in table.rows]
    found: list[Outcome] = []
    progress(0, len(rows))
    predictions = predict_rows(rows, table.source, jobs)
    for done, (row, outcome, measured_us) in enumerate(
        zip(rows, predictions, measured, strict=True), start=1
    ):
        found.append(
            outcome
            if isinstance(outcome, LeansimError)
            else _record(row, table.source, outcome, measured_us)
        )
        progress(done, len(rows))
    records = table.joined(found, list(next((f for f in found if isinstance(f, dict)), {})))
    frame = pd.DataFrame(records).assign(table=Path(file).stem)
    frame.attrs["left_out"] = {Path(file).stem: left_out}
    return frame


def _points_of(source: str, device: str | None) -> tuple[PointTable, dict[str, int]]:
    """The file as points with `measured_us`, and how many rows were left out, by reason."""
    columns, numbered = read_csv(source)
    if columns_missing := sorted(FLASHINFER_COLUMNS - set(columns)):
        if MEASURED in columns and "device" in columns:
            return read_measured(source), {}
        near_flashinfer = len(columns_missing) < len(FLASHINFER_COLUMNS) / 2
        missing = columns_missing if near_flashinfer else sorted({MEASURED, "device"} - set(columns))
        wanted = (
            f"wanted points with {MEASURED} (columns of `predict`), or what FlashInfer's benchmark "
            f"writes; missing here: {', '.join(missing)}"
        )
        raise ConfigError(source, [Problem("header", ", ".join(columns[:8]), wanted, 1, 1)])
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
        rows.append(_flashinfer_point(row, device))
    if not rows:
        reasons = "; ".join(left_out)
        raise ConfigError(source, [Problem("file", reasons, "wanted rows of plain paged decode", 1, 1)])
    return PointTable(source, tuple(rows[0]), tuple(lines), tuple(rows), tuple(rows)), left_out


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


def _flashinfer_point(row: Mapping[str, str], device: str) -> Row:
    """A row of FlashInfer's benchmark as a point: L2 flushed between calls, times in ms."""
    launch = "stream" if row.get("no_cuda_graph", "").lower() == "true" else "graph"
    try:
        measured_us = str(float(row["median_time"]) * 1e3)
    except ValueError:
        measured_us = row["median_time"]
    return {
        "device": device,
        "kernel": _BACKENDS[_backend(row)],
        **{name: row[column] for column, name in _FIELDS.items()},
        "q_dtype": _dtype(row["q_dtype"]),
        "kv_dtype": _dtype(row["kv_dtype"]),
        "cache": "cold",
        "launch": launch,
        MEASURED: measured_us,
    }


def _dtype(name: str) -> str:
    plain = name.removeprefix("torch.")
    return "fp8" if plain.startswith(("float8", "fp8")) else plain


def _record(row: Row, source: str, outcome: Mapping[str, Any], measured_us: float) -> dict[str, Any]:
    """A row as a validation has it, from its point and prediction."""
    point = point_from_row({key: value for key, value in row.items() if key != HARNESS}, source)
    workload = resolve(point).workload
    latency_s, harness_s = outcome["latency_us"] / 1e6, outcome["harness_us"] / 1e6
    return {
        "device": point.device,
        "kernel": point.policy,
        "batch_size": workload.batch_size,
        "context_len": max(workload.context_lens),
        "step": max(workload.context_lens),
        "num_q_heads": workload.num_q_heads,
        "num_kv_heads": workload.num_kv_heads,
        "head_dim": workload.head_dim,
        "window": workload.window or 0,
        "q_dtype": workload.q_dtype,
        "kv_dtype": workload.kv_dtype,
        "cache": workload.cache,
        "kv_bytes": workload.kv_bytes,
        "fit": is_for_fitting(row),
        "refused": "",
        "measured_s": measured_us / 1e6,
        "kernel_s": latency_s - harness_s,
        "harness_s": harness_s,
        "predicted_s": latency_s,
        "error": latency_s / (measured_us / 1e6) - 1.0,
        **{name: outcome[name] for name in ("num_splits", "num_ctas", "bound", "sm_busy_fraction")},
    }
