"""Prices a schedule on a device: Schedule -> Program. Vectorised; costs O(segments + CTAs)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from leansim.arrays import BoolArray, IntArray, Ints, where
from leansim.engine.program import PS_PER_S, FlowKind, Phase, Program, picoseconds, rounded_ps
from leansim.engine.sharing import sm_limits
from leansim.errors import PairingError
from leansim.schedule.schedule import IN_LAUNCH, Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device
from leansim.specs.instance import CombineNumbers, Instance, NoCombine
from leansim.specs.workload import Workload
from leansim.timing import ctas, memory, merges, segments
from leansim.timing.launches import (
    AT_ONCE,
    FIRST,
    KV,
    LAST,
    NONE,
    ON_CHIP,
    ROWS,
    STORE,
    Columns,
    Unfilled,
    program_of,
)
from leansim.timing.prices import Prices, paces_s
from leansim.timing.segments import SegmentCosts
from leansim.timing.select import select_launch

# Fewer bytes than this, 8 rows of 128, are issued and not waited for: a full wave of CTAs moves them in
# about half a microsecond even at DRAM's pace.
FEW_BYTES = 4096


@np.errstate(invalid="ignore", over="ignore")  # what overflows is refused at the end
def lower(schedule: Schedule, instance: Instance, device: Device) -> Program:
    """Price a schedule. Raises `PairingError` where it is not of the instance, or not for the device.

    Raises `OutOfRangeError` where a run could take longer than the clock can count.

    DRAM runs at the bandwidth that long reads reach, not at the datasheet's. Partials are
    merged from L2 (assumed: they fit). What a CTA reads and writes row by row moves at the end, at
    DRAM's pace where L2 does not keep it: 64 query rows more per CTA cost 27 us per 1,024 CTAs on A100,
    8 us on H100 and next to nothing on L40S, whose L2 holds 96 MB.
    """
    workload, grid = schedule.grid.workload, schedule.grid
    _check_of_one_instance(grid, instance)
    prices = Prices.of(grid, instance, device)
    gap_ps = picoseconds(merges.kernel_gap_s(device, workload.launch))
    planned = [_setup_launch(device, gap_ps) for _ in range(instance.ctas.setup_kernels)]
    if grid.asked.index_bytes:
        planned.append(select_launch(grid, device, gap_ps))
    costs = SegmentCosts.of(schedule, instance, device, prices)
    flows = _flows(schedule, device, prices, costs)
    planned.append(_main_launch(schedule, instance, device, costs, flows[LAST], gap_ps))
    if schedule.states is not None:
        of_rows = grid.states_of_rows(schedule.states)
        planned.append(_combine_launch(of_rows, grid.asked, instance, device))
    return program_of(
        planned,
        device,
        num_sms=grid.num_sms,
        launch_ps=gap_ps + picoseconds(memory.evicted_start_s(grid, device)),
        flows=flows,
        num_counters=grid.num_output_tiles if schedule.combine in IN_LAUNCH else 0,
        drift_ps=segments.drift_ps(grid, instance, device, prices),
    )


def lower_merge(parts: Sequence[Schedule], instance: Instance, device: Device) -> Program:
    """Price the kernel that merges what launches for shared prefixes and for the rest left of each row.

    It is the combine kernel of the instance, and reads a state of each launch that served the row.
    """
    grid, workload = parts[-1].grid, parts[-1].grid.asked
    left = [part.grid.states_of_rows(np.ones_like(part.segments_of_tile)) for part in parts]
    states = np.sum(left, axis=0)
    merge = _combine_launch(np.where(states > 1, states, 0), workload, instance, device)
    on_chip, rows = _plain_flows(device.sm_load_bytes_per_s, 0.0)
    return program_of([replace(merge, name="merge")], device, num_sms=grid.num_sms,
                    launch_ps=merge.gap_ps, flows=(on_chip, on_chip, rows))  # fmt: skip


def _check_of_one_instance(grid: TileGrid, instance: Instance) -> None:
    """Prices are those of the instance that the grid was tiled for, but on how many SMs it runs."""
    for name in ("kernel", "tile_rows", "tile_tokens", "packed", "tile_order", "shifted", "whole_pages"):
        found, wanted = getattr(grid, name), getattr(instance.shape, name)
        if found != wanted:
            raise PairingError(
                f"the schedule is of tiles with {name} {found!r}; wanted those of the instance that "
                f"prices it, {wanted!r}"
            )


def _flows(
    schedule: Schedule, device: Device, prices: Prices, costs: SegmentCosts
) -> tuple[FlowKind, ...]:
    """KV at the pace of the tile loop; partials between an SM and L2, rows of Q and O past L2.

    A CTA works through whole tiles, and loads the tokens that are not masked. The first that it waits
    for come at the pace of its SM's loads, which they offer memory at least, as their latency is over;
    where all ask at once memory brings all that they have asked for before any goes on.
    A byte worked through may stand for more that come, and no more than the loop's are in flight.
    What the worked bytes ask of DRAM, of L2 and of an SM that CTAs share is taken over the batch, so
    that it adds up: of a segment beside others that is the mean, its time alone is its own.
    """
    grid, work, tile = schedule.grid, prices.work, prices.tile
    taken, moving = costs.tiles * work.tile_bytes, float(costs.worked_bytes.sum())
    shared = taken if grid.ctas_per_sm > 1 else moving
    filled = grid.total_kv_tiles / costs.tiles  # full tiles in the time of one
    read = grid.loaded_tokens / grid.total_tokens  # bytes that come for one that is attended to
    first_bytes = read * costs.total_first_bytes(schedule.num_segments, tile.ahead)
    loaded = max(0.0, grid.loaded_tokens / grid.tile_tokens * work.tile_bytes - first_bytes) / moving
    in_flight = tile.offered_bytes_per_s / filled / PS_PER_S
    alone = max(tile.tile_s, tile.sm_s) / work.tile_bytes
    queued_s = paces_s(tile.tile_s / filled, tile.busy_s, grid.ctas_per_sm) if tile.busy_s else ()
    kv = FlowKind(
        "kv",
        max_bytes_per_ps=work.tile_bytes / tile.tile_s / PS_PER_S,
        sm_ps_per_byte=min(costs.busy_s / taken, alone) * PS_PER_S,
        dram_share=loaded * (1.0 - prices.hit_share),
        l2_share=loaded,
        offered_bytes_per_ps=in_flight / max(1.0, loaded),
        tensor_ps_per_byte=(work.qk_s + work.pv_s) * grid.total_kv_tiles * PS_PER_S / shared,
        waits_ps_per_byte=tuple(wait_s * filled * PS_PER_S / work.tile_bytes for wait_s in queued_s),
        carries_kv=True,
    )
    plain = _plain_flows(device.sm_load_bytes_per_s, 1.0 - memory.replay_hit_share(grid, device))
    dram_share = read * (1.0 - prices.hit_share)
    return (
        kv,
        *plain,
        *_first_flows(work.load_bytes_per_s, dram_share, read, in_flight, tile.ahead),
        replace(kv, name="last", dram_share=0.0, l2_share=0.0, carries_kv=False),
    )


@lru_cache(maxsize=1024)
def _first_flows(
    bytes_per_s: float, dram_share: float, l2_share: float, offered_bytes_per_ps: float, ahead: int
) -> tuple[FlowKind, FlowKind]:
    """What segments wait for first: one tile's, and where all ask at once, that of all they ask for."""
    like, _ = _plain_flows(bytes_per_s, 0.0)
    first = replace(
        like,
        name="first",
        dram_share=dram_share,
        l2_share=l2_share,
        offered_bytes_per_ps=max(offered_bytes_per_ps, like.max_bytes_per_ps),
        carries_kv=True,
    )
    at_once = replace(first, name="at_once", dram_share=dram_share * ahead, l2_share=l2_share * ahead)
    return first, at_once


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
    schedule: Schedule,
    instance: Instance,
    device: Device,
    costs: SegmentCosts,
    last: FlowKind,
    gap_ps: int,
) -> Unfilled:
    """LAUNCH per CTA; RAMP, STREAM, MERGE for a waiting host, and WRITE per segment.

    STREAM is two phases where the last of its work is behind all loads.
    """
    places = _Places.of(schedule, 1 if costs.last_bytes is None else 2)

    def fill(columns: Columns) -> None:
        def put(at: IntArray | slice, kind: Phase, **values: IntArray | int) -> None:
            columns["kind"][at] = kind
            for name, value in values.items():
                columns[name][at] = value

        arrival_ps = ctas.arrival_ps(schedule, instance, device)
        put(places.launch, Phase.LAUNCH, latency_ps=arrival_ps)
        if (empty_bytes := ctas.empty_cta_bytes(schedule, instance)) is not None:
            columns["bytes"][places.launch] = empty_bytes
            columns["latency_ps"][places.launch] += ctas.store_ps(empty_bytes, device)
        flow = where(costs.at_once, AT_ONCE, FIRST)
        put(places.ramp, Phase.RAMP, latency_ps=costs.ramp_ps, bytes=costs.first_bytes, flow=flow)
        put(places.stream, Phase.STREAM, bytes=costs.worked_bytes, flow=KV)
        if costs.last_bytes is not None:
            put(
                places.last,
                Phase.STREAM,
                **_last_work(costs.last_bytes, last, schedule.grid.ctas_per_sm),
            )
        idle = ctas.idle_partials(schedule, instance)
        if len(places.merge):
            put(places.merge, Phase.MERGE, **_merges(schedule, instance, device, idle))
        put(places.write, Phase.WRITE, **_writes(schedule, instance, device, idle))

    name = "prefix" if schedule.grid.level == "prefix" else "attention"
    return Unfilled(name, schedule.grid.ctas_per_sm, gap_ps, places.border, fill)


def _last_work(worked_bytes: IntArray, last: FlowKind, ctas_per_sm: int) -> dict[str, IntArray | int]:
    """What is left to do behind all loads: a fixed time where a CTA has its SM to itself."""
    if ctas_per_sm > 1:
        return {"bytes": worked_bytes, "flow": LAST}
    limits, _ = sm_limits((last,), 1)
    return {"latency_ps": np.ceil(worked_bytes / limits[1, 0]).astype(np.int64)}


def _merges(
    schedule: Schedule, instance: Instance, device: Device, idle: IntArray | None
) -> dict[str, IntArray | int]:
    """What hosts wait for, and what they read: a partial of each peer, and those of `idle` CTAs.

    Where CTAs share a merge each reads a part of every partial, its own too, which are the bytes of one.
    """
    merging, grid = schedule.merges, schedule.grid
    tile = schedule.output_tile[merging]
    rows = np.broadcast_to(schedule.rows, merging.shape)[merging]
    peers = schedule.segments_of_tile[tile] - 1
    partials = peers if idle is None else peers + idle[tile]
    read, moved = (partials + 1, 1) if instance.merge.shared else (partials, partials)
    return {
        "wait_counter": tile,
        "wait_target": peers,
        "latency_ps": merges.merge_ps(schedule, instance, device, read, rows, peers + 1),
        "bytes": rows * memory.partial_row_bytes(grid.workload, instance.partial_dtype) * moved,
        "flow": ON_CHIP,
    }


def _writes(
    schedule: Schedule, instance: Instance, device: Device, idle: IntArray | None
) -> dict[str, Ints]:
    """How segments end: with a partial that others wait for, or with rows of the output."""
    workload = schedule.grid.workload
    rows, query_row_bytes = schedule.rows, memory.query_row_bytes(workload)
    in_launch = schedule.combine in IN_LAUNCH
    way = merges.handover(device, instance.merge, schedule.num_splits)
    release_ps = picoseconds(way.release_s) if in_launch else 0
    output = _rows_moved(rows * (memory.output_row_bytes(workload) + query_row_bytes), 0, device)
    output["latency_ps"] = output["latency_ps"] + merges.lone_merge_ps(schedule, instance, device, idle)
    shared = schedule.grid.is_shared
    if schedule.combine == "none" and shared is None:
        return output
    published = schedule.is_partial & ~schedule.merges
    stored = published if shared is None else published | shared[schedule.output_tile]
    partial_row_bytes = memory.partial_row_bytes(workload, instance.partial_dtype)
    partials = _rows_moved(rows * (partial_row_bytes + query_row_bytes), release_ps, device)
    written: dict[str, Ints] = {name: np.where(stored, partials[name], output[name]) for name in output}
    if in_launch:
        written["signal_counter"] = np.where(published, schedule.output_tile, NONE)
    return written


def _rows_moved(size: Ints, release_ps: int, device: Device) -> dict[str, Ints]:
    """How a segment's rows of Q and O are moved: few in closed form, many as a flow."""
    few = size < FEW_BYTES
    latency_ps = release_ps + where(few, ctas.store_ps(size, device), 0)
    return {"bytes": size, "latency_ps": latency_ps, "flow": where(few, STORE, ROWS)}


@dataclass(frozen=True, eq=False)
class _Places:
    """Where the phases of each kind stand, and the borders of the CTAs."""

    launch: IntArray | slice
    ramp: IntArray | slice
    stream: IntArray | slice
    last: IntArray | slice
    merge: IntArray
    write: IntArray | slice
    border: IntArray

    @classmethod
    def of(cls, schedule: Schedule, streams: int) -> _Places:
        """Two phases per segment and its `streams`, one more where it merges, and one before per CTA."""
        merges: BoolArray = schedule.merges
        one_each = schedule.num_segments == schedule.num_ctas and not schedule.num_empty_ctas
        if one_each and not np.count_nonzero(merges):
            phases = 3 + streams
            border = np.arange(0, phases * schedule.num_ctas + 1, phases)
            steps = (0, 1, 2, 1 + streams, 2 + streams)
            launch, ramp, stream, last, write = (slice(first, None, phases) for first in steps)
            return cls(launch, ramp, stream, last, border[:0], write, border)
        per_segment = 2 + streams + merges.astype(np.int64)
        edges = np.zeros(schedule.num_segments + 1, dtype=np.int64)
        np.cumsum(per_segment, out=edges[1:])
        at = edges[:-1] + schedule.cta + 1
        launch_at = edges[schedule.segments_of_cta[:-1]] + np.arange(schedule.num_ctas)
        border = np.append(launch_at, edges[-1] + schedule.num_ctas)
        through = at + streams
        return cls(launch_at, at, at + 1, through, through[merges] + 1, at + per_segment - 1, border)


def _setup_launch(device: Device, gap_ps: int) -> Unfilled:
    """One CTA that comes and goes."""

    def fill(columns: Columns) -> None:
        columns["kind"][:] = Phase.LAUNCH
        columns["latency_ps"][:] = picoseconds(device.cta_launch_s)

    return Unfilled("setup", 1, gap_ps, np.array([0, 1]), fill)


def _combine_launch(
    states_of_rows: IntArray, workload: Workload, instance: Instance, device: Device
) -> Unfilled:
    """LAUNCH, COMBINE (read the partials of a few rows), WRITE per CTA of the combine kernel."""
    combine = instance.combine
    if isinstance(combine, NoCombine):
        raise PairingError(
            f"kernel {instance.kernel!r} has no combine kernel, and the schedule needs one: "
            "use a partitioner whose host CTAs merge, or a kernel such as fa2"
        )
    launches = combine.launches_for(int(states_of_rows.max()))
    gap_ps = picoseconds(merges.combine_gap_s(device, workload.launch, combine, launches))
    num_ctas = -(-workload.num_query_rows // combine.rows_per_cta)
    fill = partial(_fill_combine, states_of_rows, workload, instance, combine, device)
    return Unfilled("combine", combine.ctas_per_sm, gap_ps, np.arange(num_ctas + 1) * 3, fill)


def _fill_combine(
    splits_of_row: IntArray,
    workload: Workload,
    instance: Instance,
    combine: CombineNumbers,
    device: Device,
    columns: Columns,
) -> None:
    rows_per_cta = combine.rows_per_cta
    starts = np.arange(0, len(splits_of_row), rows_per_cta)
    most = np.maximum.reduceat(splits_of_row, starts)
    reads = np.add.reduceat(splits_of_row, starts)
    rows = np.minimum(len(splits_of_row) - starts, rows_per_cta)
    stored = np.where(most > 0, rows * memory.output_row_bytes(workload), 0)
    kind, latency_ps, size = columns["kind"], columns["latency_ps"], columns["bytes"]
    kind[0::3], kind[1::3], kind[2::3] = Phase.LAUNCH, Phase.COMBINE, Phase.WRITE
    latency_ps[0::3] = picoseconds(device.cta_launch_s)
    latency_ps[1::3] = rounded_ps(merges.combine_latency_s(device, combine, most))
    latency_ps[2::3] = ctas.store_ps(stored, device)
    size[1::3] = reads * memory.partial_row_bytes(workload, instance.partial_dtype)
    size[2::3] = stored
    columns["flow"][1::3] = ON_CHIP
