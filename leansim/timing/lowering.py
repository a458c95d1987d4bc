"""Prices a schedule on a device: Schedule -> Program. Vectorised; costs O(segments + CTAs)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from leansim.arrays import BoolArray, IntArray
from leansim.engine.program import (
    MOST_PS,
    PS_PER_S,
    FlowKind,
    Launch,
    Phase,
    Program,
    out_of_range,
    picoseconds,
)
from leansim.errors import PairingError
from leansim.schedule.schedule import IN_LAUNCH, Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device
from leansim.specs.kernel import Combine, Kernel
from leansim.specs.occupancy import occupancy
from leansim.timing import pricing, tile_pricing
from leansim.timing import segments as costs

KV, ON_CHIP, ROWS, STORE = 0, 1, 2, -1
# Fewer bytes than this, 8 rows of 128, are issued and not waited for: a full wave of CTAs moves them in
# about half a microsecond even at DRAM's pace.
FEW_BYTES = 4096
_NONE = -1
# Columns of phases and what each holds where nothing is put: as narrow as they can be, there are many.
_COLUMNS: dict[str, tuple[type[np.signedinteger[Any]], int]] = {
    "kind": (np.int8, 0),
    "latency_ps": (np.int64, 0),
    "bytes": (np.int64, 0),
    "flow": (np.int8, STORE),
    "wait_counter": (np.int32, _NONE),
    "wait_target": (np.int32, 0),
    "signal_counter": (np.int32, _NONE),
}
_Columns = Mapping[str, IntArray]


@dataclass(frozen=True, eq=False)
class _Launch:
    """A launch whose CTAs have no numbers yet: the borders of their phases, and what fills those."""

    name: str
    ctas_per_sm: int
    gap_ps: int
    border: IntArray
    fill: Callable[[_Columns], None]


@np.errstate(invalid="ignore", over="ignore")  # what overflows is refused at the end
def lower(schedule: Schedule, kernel: Kernel, device: Device) -> Program:
    """Price a schedule. Raises `PairingError` where kernel and schedule do not fit the device.

    DRAM runs at the bandwidth it reaches for this footprint, not at the datasheet's. Partials are
    merged from L2 (assumed: they fit). What a CTA reads and writes row by row moves at the end, at
    DRAM's pace where L2 does not keep it: 64 query rows more per CTA cost 27 us per 1,024 CTAs on A100,
    8 us on H100 and next to nothing on L40S, whose L2 holds 96 MB.
    """
    workload, grid = schedule.grid.workload, schedule.grid
    hit_share = pricing.l2_hit_share(grid, device)
    cost = tile_pricing.tile_cost(grid, kernel, device, hit_share)
    prologue_s = pricing.prologue_s(grid, kernel, device, cost.fill_s)
    gap_ps = picoseconds(pricing.kernel_gap_s(device, workload.launch))
    planned = [_setup_launch(device, gap_ps) for _ in range(_setup_kernels(grid, kernel))]
    planned.append(_main_launch(schedule, kernel, device, cost, prologue_s, gap_ps))
    if schedule.combine == "kernel":
        planned.append(_combine_launch(schedule, kernel, device))
    ctas = accumulate((len(one.border) - 1 for one in planned), initial=0)
    launches = [
        Launch(one.name, first, last, one.ctas_per_sm, one.gap_ps if first else 0)
        for one, (first, last) in zip(planned, pairwise(ctas), strict=True)
    ]
    offsets = [*accumulate((int(one.border[-1]) for one in planned), initial=0)]
    columns = _blank(offsets[-1])
    for one, (first, last) in zip(planned, pairwise(offsets), strict=True):
        one.fill({name: column[first:last] for name, column in columns.items()})
    border = planned[0].border
    if len(planned) > 1:
        later = zip(planned[1:], offsets[1:], strict=False)
        border = np.concatenate([border, *(one.border[1:] + offset for one, offset in later)])
    peak = device.achievable_dram_bytes_per_s(workload.kv_bytes)
    program = Program(
        launches=tuple(launches),
        flows=_flows(schedule, kernel, cost, hit_share, device, prologue_s),
        phase_of_cta=border,
        **columns,
        num_counters=grid.num_output_tiles if schedule.combine in IN_LAUNCH else 0,
        num_sms=grid.num_sms,
        dispatch_interval_ps=picoseconds(device.cta_dispatch_interval_s),
        launch_ps=gap_ps,
        dram_bytes_per_ps=peak / PS_PER_S,
        l2_bytes_per_ps=device.l2_bandwidth_bytes_per_s / PS_PER_S,
        dram_saturation_exponent=device.dram_saturation_exponent,
        drift_ps=costs.drift_ps(grid, device, cost, prologue_s),
    )
    return _in_range(program)


def _in_range(program: Program) -> Program:
    """Refuse a program that could run longer than the clock can count. Raises `OutOfRangeError`."""
    paces = [flow.max_bytes_per_ps for flow in program.flows]
    slowest = min(*paces, program.dram_bytes_per_ps, program.l2_bytes_per_ps)
    rates_ok = 0.0 < slowest < MOST_PS and all(
        0.0 < flow.sm_ps_per_byte < MOST_PS for flow in program.flows
    )
    fixed = float(program.latency_ps.sum(dtype=np.float64))
    longest = fixed + float(program.bytes.sum()) * 100.0 / slowest if rates_ok else np.inf
    if not (program.latency_ps.min() >= 0 and longest < MOST_PS):
        raise out_of_range()
    return program


def _flows(
    schedule: Schedule,
    kernel: Kernel,
    cost: tile_pricing.TileCost,
    hit_share: float,
    device: Device,
    prologue_s: float,
) -> tuple[FlowKind, ...]:
    """KV at the pace of the tile loop; partials between an SM and L2, rows of Q and O past L2.

    A CTA works through whole tiles, and loads the tokens that are not masked. How many are is taken
    over the batch: a segment with a masked end is charged the mean, not its own.
    """
    loaded = schedule.grid.loaded_share
    tile_s = costs.tile_s(schedule, kernel, device, cost, prologue_s)
    kv = FlowKind(
        "kv",
        max_bytes_per_ps=cost.tile_bytes / tile_s / PS_PER_S,
        sm_ps_per_byte=cost.sm_s * PS_PER_S / cost.tile_bytes,
        dram_share=loaded * (1.0 - hit_share),
        l2_share=loaded,
        offered_bytes_per_ps=cost.offered_bytes_per_s / PS_PER_S,
        tensor_ps_per_byte=cost.tensor_s * PS_PER_S / cost.tile_bytes,
    )
    return kv, *_plain_flows(
        device.sm_load_bytes_per_s, 1.0 - pricing.replay_hit_share(schedule.grid, device)
    )


@lru_cache(maxsize=64)
def _plain_flows(bytes_per_s: float, rows_dram_share: float) -> tuple[FlowKind, FlowKind]:
    """Partials and rows, at the pace of an SM's loads."""
    ps_per_byte = PS_PER_S / bytes_per_s
    on_chip = FlowKind(
        "on_chip",
        max_bytes_per_ps=1.0 / ps_per_byte,
        sm_ps_per_byte=ps_per_byte,
        dram_share=0.0,
        l2_share=1.0,
        offered_bytes_per_ps=1.0 / ps_per_byte,
    )
    return on_chip, replace(on_chip, name="rows", dram_share=rows_dram_share)


def _main_launch(
    schedule: Schedule, kernel: Kernel, device: Device, cost: tile_pricing.TileCost, prologue_s: float,
    gap_ps: int,
) -> _Launch:  # fmt: skip
    """LAUNCH per CTA; STREAM, then MERGE for a waiting host, then WRITE per segment."""
    places = _Places.of(schedule)

    def fill(columns: _Columns) -> None:
        def put(at: IntArray | slice, kind: Phase, **values: IntArray | int) -> None:
            columns["kind"][at] = kind
            for name, value in values.items():
                columns[name][at] = value

        arrival_ps = costs.arrival_ps(schedule, kernel, device)
        put(places.launch, Phase.LAUNCH, latency_ps=arrival_ps)
        if (empty_bytes := costs.empty_cta_bytes(schedule, kernel)) is not None:
            columns["bytes"][places.launch] = empty_bytes
            columns["latency_ps"][places.launch] += costs.store_ps(empty_bytes, device)
        size = (schedule.stop - schedule.start) * cost.tile_bytes
        ramp_ps = costs.ramp_ps(schedule, kernel, device, cost, prologue_s)
        put(places.stream, Phase.STREAM, latency_ps=ramp_ps, bytes=size, flow=KV)
        idle = costs.idle_partials(schedule, kernel)
        if len(places.merge):
            put(places.merge, Phase.MERGE, **_merges(schedule, kernel, device, idle))
        put(places.write, Phase.WRITE, **_writes(schedule, kernel, device, idle))

    return _Launch("attention", schedule.grid.ctas_per_sm, gap_ps, places.border, fill)


def _merges(
    schedule: Schedule, kernel: Kernel, device: Device, idle: IntArray | None
) -> dict[str, IntArray | int]:
    """What hosts wait for, and what they read: a partial of each peer, and those of `idle` CTAs.

    Where CTAs share a merge each reads a part of every partial, its own too, which are the bytes of one.
    """
    merges, grid = schedule.merges, schedule.grid
    tile = schedule.output_tile[merges]
    rows = np.broadcast_to(schedule.rows, merges.shape)[merges]
    peers = schedule.segments_of_tile[tile] - 1
    partials = peers if idle is None else peers + idle[tile]
    read, moved = (partials + 1, 1) if kernel.shared_merge else (partials, partials)
    return {
        "wait_counter": tile,
        "wait_target": peers,
        "latency_ps": costs.merge_ps(schedule, kernel, device, read, rows, peers + 1),
        "bytes": rows * pricing.partial_row_bytes(grid.workload, kernel) * moved,
        "flow": ON_CHIP,
    }


def _writes(
    schedule: Schedule, kernel: Kernel, device: Device, idle: IntArray | None
) -> dict[str, IntArray]:
    """How segments end: with a partial that others wait for, or with rows of the output."""
    workload = schedule.grid.workload
    rows, query_row_bytes = schedule.rows, pricing.query_row_bytes(workload)
    in_launch = schedule.combine in IN_LAUNCH
    release_ps = picoseconds(pricing.release_s(device)) if in_launch else 0
    output = _rows_moved(rows * (pricing.output_row_bytes(workload) + query_row_bytes), 0, device)
    output["latency_ps"] = output["latency_ps"] + costs.lone_merge_ps(schedule, kernel, device, idle)
    if schedule.combine == "none":
        return output
    published = schedule.is_partial & ~schedule.merges
    partial_row_bytes = pricing.partial_row_bytes(workload, kernel)
    partials = _rows_moved(rows * (partial_row_bytes + query_row_bytes), release_ps, device)
    written = {name: np.where(published, partials[name], output[name]) for name in output}
    if in_launch:
        written["signal_counter"] = np.where(published, schedule.output_tile, _NONE)
    return written


def _rows_moved(size: IntArray, release_ps: int, device: Device) -> dict[str, IntArray]:
    """How a segment's rows of Q and O are moved: few in closed form, many as a flow."""
    few = size < FEW_BYTES
    latency_ps = release_ps + np.where(few, costs.store_ps(size, device), 0)
    return {"bytes": size, "latency_ps": latency_ps, "flow": np.where(few, STORE, ROWS)}


@dataclass(frozen=True, eq=False)
class _Places:
    """Where the phases of each kind stand, `total` in all, and the borders of the CTAs."""

    launch: IntArray | slice
    stream: IntArray | slice
    merge: IntArray
    write: IntArray | slice
    border: IntArray
    total: int

    @classmethod
    def of(cls, schedule: Schedule) -> _Places:
        """Two phases per segment, three where it merges, and one before them per CTA."""
        merges: BoolArray = schedule.merges
        one_each = schedule.num_segments == schedule.num_ctas and not schedule.num_empty_ctas
        if one_each and not merges.any():
            border = np.arange(0, 3 * schedule.num_ctas + 1, 3)
            launch, stream, write = (slice(first, None, 3) for first in range(3))
            return cls(launch, stream, border[:0], write, border, 3 * schedule.num_ctas)
        per_segment = 2 + merges.astype(np.int64)
        edges = np.zeros(schedule.num_segments + 1, dtype=np.int64)
        np.cumsum(per_segment, out=edges[1:])
        at = edges[:-1] + schedule.cta + 1
        launch_at = edges[schedule.segments_of_cta[:-1]] + np.arange(schedule.num_ctas)
        total = int(edges[-1]) + schedule.num_ctas
        return cls(
            launch_at, at, at[merges] + 1, at + per_segment - 1, np.append(launch_at, total), total
        )


def _setup_kernels(grid: TileGrid, kernel: Kernel) -> int:
    """Small launches before the instance that runs."""
    return 0 if grid.traits.self_contained else kernel.setup_kernels


def _setup_launch(device: Device, gap_ps: int) -> _Launch:
    """One CTA that comes and goes."""

    def fill(columns: _Columns) -> None:
        columns["kind"][:] = Phase.LAUNCH
        columns["latency_ps"][:] = picoseconds(device.cta_launch_s)

    return _Launch("setup", 1, gap_ps, np.array([0, 1]), fill)


def _combine_launch(schedule: Schedule, kernel: Kernel, device: Device) -> _Launch:
    """LAUNCH, COMBINE (read the partials of a few rows), WRITE per CTA of the combine kernel."""
    combine, grid = kernel.combine, schedule.grid
    if combine is None:
        raise PairingError(
            f"kernel {kernel.name!r} has no combine kernel, and the schedule is split for one: "
            "use a partitioner whose host CTAs merge, or a kernel such as fa2"
        )
    fit = occupancy(device, combine.threads, combine.registers_per_thread, combine.smem_bytes)
    if fit.ctas_per_sm == 0:
        raise PairingError(f"the combine kernel of {kernel.name!r} does not fit on {device.name!r}")
    start = grid.traits.combine_start or combine.start
    gap_ps = picoseconds(pricing.combine_gap_s(device, grid.workload.launch, start))
    num_ctas = -(-grid.workload.num_query_rows // combine.rows_for(grid.workload.value_dim))
    fill = partial(_fill_combine, schedule, kernel, combine, device)
    return _Launch("combine", fit.ctas_per_sm, gap_ps, np.arange(num_ctas + 1) * 3, fill)


def _fill_combine(
    schedule: Schedule, kernel: Kernel, combine: Combine, device: Device, columns: _Columns
) -> None:
    assert schedule.partials is not None
    workload = schedule.grid.workload
    splits_of_row = np.repeat(schedule.partials, schedule.grid.rows)
    rows_per_cta = combine.rows_for(workload.value_dim)
    starts = np.arange(0, len(splits_of_row), rows_per_cta)
    most = np.maximum.reduceat(splits_of_row, starts)
    reads = np.add.reduceat(splits_of_row, starts)
    rows = np.minimum(len(splits_of_row) - starts, rows_per_cta)
    stored = np.where(most > 0, rows * pricing.output_row_bytes(workload), 0)
    kind, latency_ps, size = columns["kind"], columns["latency_ps"], columns["bytes"]
    kind[0::3], kind[1::3], kind[2::3] = Phase.LAUNCH, Phase.COMBINE, Phase.WRITE
    latency_ps[0::3] = picoseconds(device.cta_launch_s)
    latency_ps[1::3] = costs.rounded_ps(pricing.combine_latency_s(device, combine, most))
    latency_ps[2::3] = costs.store_ps(stored, device)
    size[1::3] = reads * pricing.partial_row_bytes(workload, kernel)
    size[2::3] = stored
    columns["flow"][1::3] = ON_CHIP


def _blank(size: int) -> dict[str, IntArray]:
    """Columns for phases that do nothing yet."""
    return {
        name: np.full(size, blank, dtype) if blank else np.zeros(size, dtype)
        for name, (dtype, blank) in _COLUMNS.items()
    }
