"""Kernels of a call apart: from traces made by hand, and grids of recorded calls against the plans."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from leansim.errors import GpuError
from leansim.gpu.kernel_log import (
    KERNEL_COLUMNS,
    KernelRun,
    columns_of,
    contradiction,
    kernels_of,
    merge_start_of,
    planned_ctas,
)
from leansim.points.point import point_from_row, resolve
from leansim.silicon.own import point_fields

OWN_GPUS = Path(__file__).resolve().parent.parent / "experiments" / "own_gpus"
H200 = OWN_GPUS / "h200"


def event(name: str, start: float, duration: float, grid: tuple[int, ...] = (4, 1, 1)) -> dict[str, Any]:
    args = {"grid": list(grid), "block": [128, 1, 1], "registers per thread": 64, "shared memory": 1024}
    return {"cat": "kernel", "name": name, "ts": start, "dur": duration, "args": args}


def test_times_and_gaps_by_hand() -> None:
    """Three calls of two kernels: 10 us and then 2, 1 us apart; 3, 4 and then nothing to the next call.

    The second call's merge overlaps its attention by 2 us: gaps 1, -2, 1 and 3, 4: medians 1 and 3.5.
    """
    trace = {
        "traceEvents": [
            event("attention", 0.0, 10.0),
            event("combine", 11.0, 2.0),  # ends at 13
            event("attention", 16.0, 12.0),  # ends at 28
            event("combine", 26.0, 4.0),  # ends at 30
            event("attention", 34.0, 11.0),  # ends at 45
            event("combine", 46.0, 3.0),
            {"cat": "gpu_memset", "name": "Memset", "ts": 1.0, "dur": 1.0},
            {"ph": "M", "name": "process_name"},
        ]
    }
    first, second = kernels_of(trace, 3)
    assert (first.duration_us, first.gap_after_us, first.registers, first.ctas) == (11.0, 1.0, 64, 4)
    assert (second.duration_us, second.gap_after_us, second.smem_bytes) == (3.0, 3.5, 1024)
    assert (first.attends, second.attends, second.merges) == (True, False, True)
    (alone,) = kernels_of({"traceEvents": [event("attention", 0.0, 1.0)]}, 1)
    assert alone.gap_after_us is None


def test_a_trace_that_is_not_equal_calls_is_refused() -> None:
    events = [event("a", 0, 1), event("b", 2, 1), event("a", 4, 1)]
    with pytest.raises(GpuError, match="found 3 kernels in a trace of 2 calls"):
        kernels_of({"traceEvents": events}, 2)
    with pytest.raises(GpuError, match="found a and b as kernel 0 of calls"):
        kernels_of({"traceEvents": events[:2]}, 2)
    with pytest.raises(GpuError, match="found 0 kernels"):
        kernels_of({"traceEvents": []}, 2)
    other = event("a", 2, 1, (5, 1, 1))
    with pytest.raises(GpuError, match="wanted equal ones in each"):
        kernels_of({"traceEvents": [events[0], other]}, 2)


def recorded() -> list[tuple[dict[str, str], list[KernelRun]]]:
    """Calls whose kernels were recorded on the H200, and those kernels."""
    points = {}
    with (H200 / "libraries_cold.csv").open() as handle:
        for row in csv.DictReader(handle):
            points[row["shape_id"], row["kernel"]] = row
    runs = defaultdict(list)
    with (H200 / "kernel_durations_cold.csv").open() as handle:
        for row in csv.DictReader(handle):
            runs[row["shape_id"], row["kernel"]].append(
                KernelRun(
                    row["name"],
                    tuple(json.loads(row["grid"])),
                    tuple(json.loads(row["block"])),
                    int(row["regs"]),
                    int(row["smem"]),
                    float(row["dur_us"]),
                    float(row["gap_after_us"] or 0.0),
                    int(row["n"]),
                )
            )
    return [(points[key], kernels) for key, kernels in runs.items() if key in points]


def test_recorded_grids_are_the_planned_ones() -> None:
    """FlashAttention-2, FlashAttention-3 and FlashInfer launch what leansim plans for the same call."""
    calls = recorded()
    assert len(calls) > 90
    wrong = []
    for row, kernels in calls:
        schedule = resolve(point_from_row(point_fields(row), "recorded")).schedule
        if found := contradiction(kernels, schedule):
            wrong.append((row["kernel"], row["shape_id"], found))
    assert not wrong


def logged() -> list[list[dict[str, str]]]:
    """Rows of the file of kernels of the H100, those of each call together."""
    calls = defaultdict(list)
    with (OWN_GPUS / "h100" / "more_kernels_cold.csv").open() as handle:
        for row in csv.DictReader(handle):
            calls[tuple(row[key] for key in row if key not in KERNEL_COLUMNS)].append(row)
    return list(calls.values())


LOGGED = logged()


@pytest.mark.parametrize("adapter", sorted({rows[0]["adapter"] for rows in LOGGED}))
def test_a_file_of_kernels_says_what_is_planned(adapter: str) -> None:
    """The two columns of each row are what its kernel plans, and every grid is the planned one."""
    contradicted = 0
    calls = [rows for rows in LOGGED if rows[0]["adapter"] == adapter]
    for rows in calls:
        point = {key: value for key, value in rows[0].items() if key not in KERNEL_COLUMNS}
        item = resolve(point_from_row(point_fields(point), "logged"))
        kernels = [
            KernelRun(
                row["name"],
                tuple(json.loads(row["grid"])),
                tuple(json.loads(row["block"])),
                int(row["registers"]),
                int(row["smem_bytes"]),
                float(row["duration_us"]),
                float(row["gap_after_us"]),
                int(row["calls"]),
            )
            for row in rows
        ]
        planned = columns_of(kernels, item.schedule, merge_start_of(item.instance))
        for row, one in zip(rows, planned, strict=True):
            assert row == row | {key: str(value) for key, value in one.items()}
        contradicted += bool(planned[0]["contradicts"])
    assert (len(calls), contradicted) == (12 if adapter == "flashinfer_batch" else 14, 0)


def test_a_prefill_kernel_attends_and_a_fill_does_not() -> None:
    """FlashInfer's tensor-core decode runs its kernel for prefill."""

    def run(name: str) -> KernelRun:
        return KernelRun(name, (1, 1, 1), (32, 1, 1), 8, 0, 1.0, None, 1)

    assert run("flashinfer::BatchPrefillWithPagedKVCacheKernel<...>").attends
    assert not run("at::native::FillFunctor<float>").attends
    assert not run("fill_kernel").attends


def test_a_merge_behind_a_barrier_is_no_kernel_of_its_own() -> None:
    fields = {"device": "h100_sxm", "kernel": "flashinfer_batch", "batch_size": "2", "head_dim": "128",
              "context_len": "9000", "num_q_heads": "8", "num_kv_heads": "1"}  # fmt: skip
    item = resolve(point_from_row(fields, "by hand"))
    assert item.schedule.combine == "kernel"
    assert merge_start_of(item.instance) == "grid_sync"
    alone = KernelRun(
        "Persistent", (1, planned_ctas(item.schedule), 1), (128, 1, 1), 255, 0, 9.0, None, 1
    )
    merge = KernelRun("MergeStates", (1, 1, 1), (32, 1, 1), 8, 0, 1.0, None, 1)
    assert contradiction([alone], item.schedule, "grid_sync") == ""
    assert contradiction([alone], item.schedule) == "no kernel that merges, planned one"
    assert contradiction([alone, merge], item.schedule) == ""
    said = contradiction([alone, merge], item.schedule, "grid_sync")
    assert said == "a kernel that merges, planned none"


def test_a_grid_that_is_not_planned_is_told() -> None:
    row, kernels = next(pair for pair in recorded() if pair[0]["kernel"] == "flash_decoding")
    schedule = resolve(point_from_row(point_fields(row), "recorded")).schedule
    more = resolve(point_from_row({**point_fields(row), "batch_size": "1"}, "recorded")).schedule
    assert contradiction(kernels, schedule) == ""
    assert f"= {planned_ctas(schedule)} CTAs, planned {more.num_ctas}" in contradiction(kernels, more)
    merge = KernelRun("combine", (1, 1, 1), (32, 1, 1), 8, 0, 1.0, None, 1)
    others = [*kernels, merge] if schedule.combine == "none" else kernels[:1]
    assert "kernel that merges, planned" in contradiction(others, schedule)
    assert "no kernel that attends" in contradiction([merge], schedule)
    rows = columns_of(kernels, more)
    assert all(one["planned_ctas"] == more.num_ctas and one["contradicts"] for one in rows)
    assert json.loads(rows[0]["grid"]) == list(kernels[0].grid)
