"""Measures time per KV tile against CTAs on an SM: long contexts, of two lengths, less each other.

What starts and ends a call is the same for both lengths and goes out. A plan counts if it deals each CTA
as many tiles as every other, and fills SMs alike; so kernels that split have fewer points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leansim.errors import GpuError, LeansimError
from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.registry import installed
from leansim.gpu.libraries.running import ADAPTER, LibraryRunner
from leansim.gpu.measuring import Executed, Measurer, Runner, TritonRunner, is_own
from leansim.gpu.toolkit import Toolkit
from leansim.points.point import Resolved, point_from_row, resolve
from leansim.schedule.schedule import Schedule
from leansim.silicon.own import MACHINE_COLUMNS, MEASURED, point_fields
from leansim.silicon.pace import PacePoint, fit_pace
from leansim.specs import catalog
from leansim.specs.device import Device

COLUMNS = (
    "device", "kernel", ADAPTER, "head_dim", "group_size", "reads", "ctas_per_sm", "sms", "tile_tokens",
    "tile_bytes", "short_tokens", "long_tokens", "short_us", "long_us", "tile_us", *MACHINE_COLUMNS,
)  # fmt: skip
LENGTHS = (2048, 6144)
# How KV lies: all CTAs read the same, which L2 has, or each its own, out of DRAM.
SHARED, APART = "shared", "apart"
_HEAD_DIMS, _GROUPS = (64, 128), (4, 1)


@dataclass(frozen=True)
class Curve:
    """Points of a kernel for one head shape: rows of `COLUMNS`, and what became of the others."""

    kernel: str
    rows: tuple[dict[str, Any], ...]
    refused: tuple[str, ...]


class SharedPages:
    """A runner all of whose requests read the pages of the first: equal lengths only."""

    def __init__(self, runner: Runner) -> None:
        """Of the kernels that `runner` runs."""
        self.runner = runner

    @property
    def unread(self) -> float:
        """As of the runner."""
        return self.runner.unread

    @property
    def copies(self) -> int:
        """As of the runner."""
        return self.runner.copies

    def check(self, item: Resolved, row: Mapping[str, str]) -> None:
        """As the runner does."""
        self.runner.check(item, row)

    def execute(
        self, tools: Toolkit, item: Resolved, row: Mapping[str, str], inputs: Inputs
    ) -> Executed:
        """Execute on a page table whose rows are all the first."""
        table = inputs.page_table[:, :1].expand_as(inputs.page_table).contiguous()
        return self.runner.execute(tools, item, row, replace(inputs, page_table=table, _expected={}))


def evenly(schedule: Schedule) -> tuple[int, int, int] | None:
    """CTAs on each SM, SMs and tiles of each CTA, where all have alike; None where they do not."""
    grid, counts = schedule.grid, schedule.stop - schedule.start
    busy, tiles = np.unique(schedule.cta), np.bincount(schedule.cta, weights=counts)
    tiles = tiles[busy]
    ctas = len(busy)
    if len(set(tiles.tolist())) > 1 or ctas > grid.num_sms * grid.ctas_per_sm:
        return None
    if ctas > grid.num_sms and ctas % grid.num_sms:
        return None
    return -(-ctas // grid.num_sms), min(ctas, grid.num_sms), int(tiles[0])


def calls(device: Device, kernel: str, head_dim: int, group: int) -> Iterator[dict[str, str]]:
    """Rows of one length for a kernel: one request, and as many as 1, 2, ... CTAs on each SM."""
    row = {
        "device": device.name,
        "kernel": kernel,
        "num_q_heads": str(group),
        "num_kv_heads": "1",
        "head_dim": str(head_dim),
        "context_len": str(LENGTHS[0]),
    }
    first = resolve(point_from_row({**row, "batch_size": "1"}, "pace"))
    most = first.schedule.grid.ctas_per_sm
    for batch in (1, *(k * device.num_sms for k in range(1, most + 1))):
        yield {**row, "batch_size": str(batch)}


def curve(
    measurers: Mapping[str, Measurer], device: Device, kernel: str, more: Mapping[str, str], shape: Any
) -> Curve:
    """Measure a kernel's calls; `measurers` are those of `SHARED` and `APART`, `more` a row says too."""
    rows, refused, seen = list[dict[str, Any]](), list[str](), set[tuple[int, int]]()
    try:
        asked = list(calls(device, kernel, *shape))
    except LeansimError as error:
        return Curve(kernel, (), (f"{kernel}: {' '.join(str(error).split())}",))
    for row in asked:
        plans = [_plan({**row, "context_len": str(length)}) for length in LENGTHS]
        short, long = (evenly(item.schedule) for item in plans)
        if short is None or long is None or short[:2] != long[:2]:
            refused.append(f"{kernel}: a batch of {row['batch_size']} is not dealt evenly")
            continue
        if short[:2] in seen:
            continue
        seen.add(short[:2])
        for reads, measurer in measurers.items():
            full = row | dict(more) | {"cache": "warm" if reads == SHARED else "cold"}
            try:
                times = [
                    measurer.measure({**full, "context_len": str(length)}, "pace") for length in LENGTHS
                ]
            except LeansimError as error:
                refused.append(f"{kernel}, {reads}: {' '.join(str(error).split())}")
                continue
            rows.append(_row(full, plans[0], (short, long), reads, times))
    return Curve(kernel, tuple(rows), tuple(refused))


def _plan(row: Mapping[str, str]) -> Resolved:
    return resolve(point_from_row(point_fields(row), "pace"))


def _row(
    row: Mapping[str, str],
    item: Resolved,
    dealt: Sequence[tuple[int, int, int]],
    reads: str,
    times: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    grid, load = item.schedule.grid, item.workload
    short_us, long_us = (float(one[MEASURED]) for one in times)
    tile_us = (long_us - short_us) / (dealt[1][2] - dealt[0][2])
    return {
        "device": row["device"],
        "kernel": row["kernel"],
        ADAPTER: row.get(ADAPTER, ""),
        "head_dim": load.head_dim,
        "group_size": load.group_size,
        "reads": reads,
        "ctas_per_sm": dealt[0][0],
        "sms": dealt[0][1],
        "tile_tokens": grid.tile_tokens,
        "tile_bytes": grid.tile_tokens * load.kv_bytes_per_token,
        "short_tokens": LENGTHS[0],
        "long_tokens": LENGTHS[1],
        "short_us": short_us,
        "long_us": long_us,
        "tile_us": round(tile_us, 5),
        **{name: times[1][name] for name in MACHINE_COLUMNS},
    }


def curves(
    tools: Toolkit, device: Device, only: Sequence[str], seed: int | None = None
) -> Iterator[Curve]:
    """Curves of leansim's own kernels or of libraries, by name. Raises as `installed`, and `GpuError`.

    The interpreter has no times, and is refused.
    """
    if tools.interpreted:
        raise GpuError("pace is measured on a GPU; the interpreter has no time to show")
    ours = {name for name in catalog.names("kernel") if is_own(name)}
    found = installed([name for name in only if name not in ours]) if set(only) - ours else None
    for name in only:
        runner: Runner
        if name in ours:
            kernel, runner, more = name, TritonRunner(), dict[str, str]()
        else:
            assert found is not None
            if name not in found.libraries:
                raise GpuError(f"{name} is not here: {found.absent[name]}")
            kernel, runner = found.libraries[name].kernel, LibraryRunner(found.libraries)
            more = {ADAPTER: name}
        measurers = {
            SHARED: Measurer(tools, seed, SharedPages(runner)),
            APART: Measurer(tools, seed, runner),
        }
        for head_dim in _HEAD_DIMS:
            for group in _GROUPS:
                yield curve(measurers, device, kernel, more, (head_dim, group))


def points_of(rows: Sequence[Mapping[str, Any]]) -> list[PacePoint]:
    """Measured rows as points of a fit."""
    return [
        PacePoint(
            int(row["ctas_per_sm"]),
            int(row["sms"]),
            int(row["tile_bytes"]),
            row["reads"] == APART,
            float(row["tile_us"]) * 1e-6,
        )
        for row in rows
    ]


def told(one: Curve, device: Device) -> list[str]:
    """Sentences: what the points of a curve come to, beside what the kernel's file says."""
    said = list(one.refused)
    if not one.rows:
        return said
    row = one.rows[0]
    shape = f"{one.kernel}, head dim {row['head_dim']}, groups of {row['group_size']}"
    try:
        pace = fit_pace(points_of(one.rows))
    except LeansimError as error:
        return [*said, f"{shape}: {error}"]
    found = [f"chain_s {pace.chain_s:.3e}", f"busy_s {pace.busy_s:.3e}"]
    if pace.bytes_per_s is not None:
        share = pace.bytes_per_s / device.dram_bandwidth_bytes_per_s
        found.append(f"{pace.bytes_per_s:.3e} B/s of DRAM ({share:.0%} of its peak)")
    numbers = {
        key: value for key, value in _numbers(one, device).items() if key in ("chain_s", "busy_s")
    }
    has = ", ".join(f"{key} {value:.3e}" for key, value in numbers.items()) or "none of these"
    return [*said, f"{shape}: {', '.join(found)}, mean error {pace.error:.1%}; the file has {has}"]


def _numbers(one: Curve, device: Device) -> dict[str, float]:
    """Numbers of the instance's tile loop."""
    row = one.rows[0]
    call = next(calls(device, one.kernel, int(row["head_dim"]), int(row["group_size"])))
    return dict(_plan(call).instance.loop.numbers)
