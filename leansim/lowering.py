"""Prices a schedule on a device: Schedule -> Program. Vectorised; costs O(segments + CTAs)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from leansim import pricing
from leansim.device import Device
from leansim.errors import PairingError
from leansim.kernel import EmptyCtas, Kernel
from leansim.occupancy import occupancy
from leansim.program import (
    MOST_PS,
    PS_PER_S,
    FlowKind,
    Launch,
    Phase,
    Program,
    out_of_range,
    picoseconds,
)
from leansim.schedule import IN_LAUNCH, BoolArray, Schedule, changes
from leansim.spec import DTYPE_BYTES
from leansim.tiling import IntArray, TileGrid

KV, ON_CHIP, ROWS, STORE = 0, 1, 2, -1
# Fewer bytes than this, 8 rows of 128, are issued and not waited for: a full wave of CTAs moves them in
# about half a microsecond even at DRAM's pace.
FEW_BYTES = 4096
# FA3's scheduler looks at as many requests at a time as a warp has lanes, less one.
REQUESTS_PER_SCAN = 31
DRIFT_CLASSES = 8
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


@dataclass(frozen=True, eq=False)
class _Phases:
    """Phases of one launch, in execution order, and the borders of its CTAs."""

    columns: Mapping[str, IntArray]
    border: IntArray


@np.errstate(invalid="ignore", over="ignore")  # what overflows is refused at the end
def lower(schedule: Schedule, kernel: Kernel, device: Device) -> Program:
    """Price a schedule. Raises `PairingError` where kernel and schedule do not fit the device.

    DRAM runs at the bandwidth it reaches for this footprint, not at the datasheet's. Partials are
    merged from L2 (assumed: they fit). What a CTA reads and writes row by row moves at the end, at
    DRAM's pace: 64 query rows more per CTA cost 8 us per 1,024 CTAs on H100 and 27 us on A100.
    """
    workload, grid = schedule.grid.workload, schedule.grid
    hit_share = pricing.l2_hit_share(grid, device)
    cost = pricing.tile_cost(grid, kernel, device, hit_share)
    gap_ps = picoseconds(pricing.kernel_gap_s(device, workload.launch))
    parts = [_main_launch(schedule, kernel, device, cost)]
    fits = [("attention", grid.ctas_per_sm)]
    if schedule.combine == "kernel":
        parts.append(_combine_launch(schedule, kernel, device))
        fits.append(("combine", _combine_ctas_per_sm(kernel, device)))
    setups = _setup_kernels(grid, kernel)
    parts = [*(_setup_launch(device) for _ in range(setups)), *parts]
    fits = [*[("setup", 1)] * setups, *fits]
    ctas = [0, *accumulate(len(part.border) - 1 for part in parts)]
    gaps = [0, *[gap_ps] * (len(parts) - 1)]
    if schedule.combine == "kernel":
        assert kernel.combine is not None
        gaps[-1] = picoseconds(pricing.combine_gap_s(device, workload.launch, kernel.combine.start))
    launches = [Launch(name, ctas[i], ctas[i + 1], fit, gaps[i]) for i, (name, fit) in enumerate(fits)]
    offsets = [0, *accumulate(int(part.border[-1]) for part in parts)]
    borders = [part.border[1:] + offset for part, offset in zip(parts[1:], offsets[1:], strict=False)]
    peak = device.achievable_dram_bytes_per_s(workload.kv_bytes)
    program = Program(
        launches=tuple(launches),
        flows=_flows(grid, cost, hit_share, device, _loading_s(schedule, device)),
        phase_of_cta=_joined([parts[0].border, *borders]),
        **{name: _joined([part.columns[name] for part in parts]) for name in _COLUMNS},
        num_counters=grid.num_output_tiles if schedule.combine in IN_LAUNCH else 0,
        num_sms=grid.num_sms,
        dispatch_interval_ps=picoseconds(device.cta_dispatch_interval_s),
        launch_ps=gap_ps,
        dram_bytes_per_ps=peak / PS_PER_S,
        l2_bytes_per_ps=device.l2_bandwidth_bytes_per_s / PS_PER_S,
        dram_saturation_exponent=device.dram_saturation_exponent,
        drift_ps=_drift_ps(grid, kernel, device, cost),
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
    grid: TileGrid, cost: pricing.TileCost, hit_share: float, device: Device, loading_s: float
) -> tuple[FlowKind, ...]:
    """KV at the pace of the tile loop; partials between an SM and L2, rows of Q and O past it.

    A CTA works through whole tiles, and loads the tokens that are not masked. How many are is taken
    over the batch: a segment with a masked end is charged the mean, not its own. `loading_s` is added to
    each tile.
    """
    loaded = grid.loaded_share
    kv = FlowKind(
        "kv",
        max_bytes_per_ps=cost.tile_bytes / (cost.tile_s + loading_s) / PS_PER_S,
        sm_ps_per_byte=cost.sm_s * PS_PER_S / cost.tile_bytes,
        dram_share=loaded * (1.0 - hit_share),
        l2_share=loaded,
        offered_bytes_per_ps=cost.offered_bytes_per_s / PS_PER_S,
    )
    return kv, *_plain_flows(device.sm_load_bytes_per_s)


@lru_cache(maxsize=64)
def _plain_flows(bytes_per_s: float) -> tuple[FlowKind, FlowKind]:
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
    return on_chip, replace(on_chip, name="rows", dram_share=1.0)


def _loading_s(schedule: Schedule, device: Device) -> float:
    """What of a segment's fixed cost its loads go on beside, s a KV tile: the mean over segments.

    It bounds the pace of the segment, and is nothing before it.
    """
    tiles = float((schedule.stop - schedule.start).mean())
    return schedule.grid.traits.loading_s.get(device.arch, 0.0) / tiles


def _main_launch(schedule: Schedule, kernel: Kernel, device: Device, cost: pricing.TileCost) -> _Phases:
    """LAUNCH per CTA; STREAM, then MERGE for a waiting host, then WRITE per segment."""
    merges = schedule.merges
    places = _Places.of(schedule, merges)
    columns = _blank(places.total)

    def put(at: IntArray | slice, kind: Phase, **values: IntArray | int) -> None:
        columns["kind"][at] = kind
        for name, value in values.items():
            columns[name][at] = value

    put(places.launch, Phase.LAUNCH, latency_ps=_arrival_ps(schedule, kernel, device))
    if (empty_bytes := _empty_cta_bytes(schedule, kernel)) is not None:
        columns["bytes"][places.launch] = empty_bytes
        columns["latency_ps"][places.launch] += _store_ps(empty_bytes, device)
    put(
        places.stream,
        Phase.STREAM,
        latency_ps=_ramp_ps(schedule, kernel, device, cost),
        bytes=(schedule.stop - schedule.start) * cost.tile_bytes,
        flow=KV,
    )
    rows = schedule.rows
    partial_bytes = rows * pricing.partial_row_bytes(schedule.grid.workload, kernel)
    idle = _idle_partials(schedule, kernel)
    if len(places.merge):
        tile = schedule.output_tile[merges]
        peers = schedule.segments_of_tile[tile] - 1
        merged_rows = np.broadcast_to(rows, merges.shape)[merges]
        put(
            places.merge,
            Phase.MERGE,
            wait_counter=tile,
            wait_target=peers,
            latency_ps=_merge_ps(schedule, kernel, device, peers + idle[tile], merged_rows),
            bytes=np.broadcast_to(partial_bytes, merges.shape)[merges] * (peers + idle[tile]),
            flow=ON_CHIP,
        )
    published = schedule.is_partial & ~merges if schedule.combine != "none" else np.False_
    in_launch = schedule.combine in IN_LAUNCH
    release_ps = picoseconds(pricing.release_s(device)) if in_launch else 0
    query_bytes = rows * pricing.query_row_bytes(schedule.grid.workload)
    partial = _rows_moved(partial_bytes + query_bytes, release_ps, device)
    output = _rows_moved(rows * _output_row_bytes(schedule) + query_bytes, 0, device)
    written = {name: np.where(published, partial[name], output[name]) for name in output}
    if idle.any():  # whoever had a whole tile to itself comes last, and merges what the idle ones left
        alone = np.where(schedule.is_partial, 0, idle[schedule.output_tile])
        merge_ps = picoseconds(pricing.release_s(device)) + _merge_ps(
            schedule, kernel, device, alone, rows
        )
        written["latency_ps"] = written["latency_ps"] + np.where(alone > 0, merge_ps, 0)
    put(places.write, Phase.WRITE, **written)
    if in_launch:
        columns["signal_counter"][places.write] = np.where(published, schedule.output_tile, _NONE)
    return _Phases(columns, places.border)


def _idle_partials(schedule: Schedule, kernel: Kernel) -> IntArray:
    """Partials of each output tile by CTAs without KV tiles, `[output tiles]`.

    Those that prepare all the same leave one for the last CTA, which does not know them from others
    (TensorRT-LLM mha.cu); a grid launches as many CTAs for every tile.
    """
    counts = schedule.segments_of_tile
    prepares = _empty_ctas(schedule, kernel) == "prepare" and kernel.combine is None
    if not (prepares and schedule.num_empty_ctas):
        return np.zeros_like(counts)
    return schedule.num_ctas // schedule.grid.num_output_tiles - counts


def _merge_ps(
    schedule: Schedule, kernel: Kernel, device: Device, peers: IntArray, rows: IntArray
) -> IntArray:
    """Time from the last flag to merged, without the bytes."""
    computing_s = pricing.merge_computing_s(schedule.grid.traits.merging, peers, rows, device)
    in_flight = kernel.merge_splits_in_flight
    return _picoseconds(pricing.merge_latency_s(device, peers, in_flight, computing_s))


def _rows_moved(size: IntArray, release_ps: int, device: Device) -> dict[str, IntArray]:
    """How a segment's rows of Q and O are moved: few in closed form, many as a flow."""
    few = size < FEW_BYTES
    latency_ps = release_ps + np.where(few, _store_ps(size, device), 0)
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
    def of(cls, schedule: Schedule, merges: BoolArray) -> _Places:
        """Two phases per segment, three where it merges, and one before them per CTA."""
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


def _ramp_ps(
    schedule: Schedule, kernel: Kernel, device: Device, cost: pricing.TileCost
) -> IntArray | int:
    """Time of each segment before its tile loop runs at its pace, on the SM nearest to memory."""
    prologue_s = pricing.prologue_s(schedule.grid, kernel, device, cost.fill_s)
    prologue_s -= schedule.grid.traits.loading_s.get(device.arch, 0.0)
    near = 1.0 - device.latency_spread
    if issue_clk := schedule.grid.traits.issue_clk.get(device.arch):
        alone_s = max(0.0, prologue_s + cost.fill_s)
        rank = _rank(schedule, kernel)
        waits = pricing.queueing_s(
            device.cta_launch_s + alone_s, issue_clk * device.clk_s, schedule.grid.ctas_per_sm
        )
        queued_s = np.array(waits)[_beside(rank, schedule.grid)]
        return _picoseconds(alone_s * near + queued_s)
    if not (schedule.dispatch == "queue" and kernel.prefetches_items):
        return picoseconds(max(0.0, prologue_s + cost.fill_s) * near)
    # Behind the first, what a queue prefetches is there when a CTA is through.
    first = schedule.cta < schedule.grid.slots
    return _picoseconds(np.maximum(prologue_s + cost.fill_s * first, 0.0) * near)


def _beside(rank: IntArray, grid: TileGrid) -> IntArray:
    """How many others share the SM with a CTA of each rank, those of its wave being dealt evenly."""
    first = rank // grid.slots * grid.slots
    in_wave = np.minimum(int(rank[-1]) + 1 - first, grid.slots)
    beside: IntArray = -(-in_wave // grid.num_sms) - 1
    return beside


def _rank(schedule: Schedule, kernel: Kernel) -> IntArray:
    """Number of each segment's CTA, not counting those that return at once for want of KV tiles."""
    if not (schedule.num_empty_ctas and _empty_ctas(schedule, kernel) == "return"):
        return schedule.cta
    rank: IntArray = np.cumsum(changes(schedule.cta)) - 1
    return rank


def _drift_ps(grid: TileGrid, kernel: Kernel, device: Device, cost: pricing.TileCost) -> IntArray:
    """What each SM adds to the ramp of a segment: up to twice `latency_spread` of it.

    CTAs that start together drift apart over the waves, and what one loads another computes meanwhile.
    There are a few classes of SMs, so that CTAs still move in groups and few events are needed.
    """
    ramp_s = max(0.0, pricing.prologue_s(grid, kernel, device, cost.fill_s) + cost.fill_s)
    distance = (np.arange(DRIFT_CLASSES) + 0.5) / DRIFT_CLASSES
    drift_ps = _picoseconds(2.0 * device.latency_spread * ramp_s * distance)
    return drift_ps[np.arange(grid.num_sms) % DRIFT_CLASSES]


def _arrival_ps(schedule: Schedule, kernel: Kernel, device: Device) -> IntArray | int:
    """How long each CTA takes to begin: a launch, or, for those fetched from a queue, finding them.

    That is an atomic, and a walk over the requests between this item and the last one of the same
    slot (about `slots` items back), `REQUESTS_PER_SCAN` at a time.
    """
    idle_ps = picoseconds(_idle_s(schedule, kernel, device)) if schedule.num_empty_ctas else 0
    if not idle_ps and schedule.dispatch == "grid":
        return picoseconds(device.cta_launch_s)
    arrival = np.full(schedule.num_ctas, picoseconds(device.cta_launch_s))
    if idle_ps:
        arrival[np.diff(schedule.segments_of_cta) == 0] += idle_ps
    if schedule.dispatch == "queue":
        slots = schedule.grid.slots
        arrival[slots:] = picoseconds(device.atomic_s)
        request = schedule.grid.request[schedule.output_tile[changes(schedule.cta)]]
        scanned = (np.cumsum(changes(request)) - 1) // REQUESTS_PER_SCAN
        if scanned[-1] and len(scanned) == schedule.num_ctas:
            scanned[slots:] -= scanned[:-slots].copy()
            # A kernel built for splits looks up how many each request has as well.
            looks = 2 if schedule.combine == "kernel" else 1
            arrival += scanned * looks * picoseconds(kernel.batch_scan_s.get(device.arch, 0.0))
    return arrival


def _idle_s(schedule: Schedule, kernel: Kernel, device: Device) -> float:
    """What a CTA without KV tiles does beside coming and going, s."""
    own = schedule.grid.traits.idle_s.get(device.arch)
    if own is not None:
        return own
    prepares = _empty_ctas(schedule, kernel) == "prepare"
    return pricing.prologue_s(schedule.grid, kernel, device) if prepares else 0.0


def _store_ps(size: IntArray, device: Device) -> IntArray:
    """Time to issue stores: their bytes at the SM's rate. Nobody waits for them to land."""
    return _picoseconds(size / device.sm_load_bytes_per_s)


def _empty_ctas(schedule: Schedule, kernel: Kernel) -> EmptyCtas:
    """What CTAs without KV tiles do in the instance that runs."""
    return schedule.grid.traits.empty_ctas or kernel.empty_ctas


def _empty_cta_bytes(schedule: Schedule, kernel: Kernel) -> IntArray | None:
    """What a CTA without KV tiles writes: a zero partial where a combine kernel will read it."""
    writes = schedule.combine == "kernel" and _empty_ctas(schedule, kernel) != "return"
    if not (writes and schedule.num_empty_ctas):
        return None
    empty = np.diff(schedule.segments_of_cta) == 0
    row_bytes = pricing.partial_row_bytes(schedule.grid.workload, kernel)
    written: IntArray = empty * (int(schedule.grid.rows.max()) * row_bytes)
    return written


def _setup_kernels(grid: TileGrid, kernel: Kernel) -> int:
    """Small launches before the instance that runs."""
    return 0 if grid.traits.self_contained else kernel.setup_kernels


def _setup_launch(device: Device) -> _Phases:
    """One CTA that comes and goes."""
    columns = _blank(1)
    columns["kind"][:] = Phase.LAUNCH
    columns["latency_ps"][:] = picoseconds(device.cta_launch_s)
    return _Phases(columns, np.array([0, 1]))


def _combine_launch(schedule: Schedule, kernel: Kernel, device: Device) -> _Phases:
    """LAUNCH, COMBINE (read the partials of a few rows), WRITE per CTA of the combine kernel."""
    if kernel.combine is None:
        raise PairingError(
            f"kernel {kernel.name!r} has no combine kernel, and the schedule is split for one: "
            "use a partitioner whose host CTAs merge, or a kernel such as fa2"
        )
    combine = kernel.combine
    assert schedule.partials is not None
    grid, workload = schedule.grid, schedule.grid.workload
    splits_of_row = np.repeat(schedule.partials, grid.rows)
    rows_per_cta = combine.rows_for(workload.value_dim)
    starts = np.arange(0, len(splits_of_row), rows_per_cta)
    most = np.maximum.reduceat(splits_of_row, starts)
    reads = np.add.reduceat(splits_of_row, starts)
    rows = np.minimum(len(splits_of_row) - starts, rows_per_cta)
    n = len(starts)
    row_bytes = pricing.partial_row_bytes(workload, kernel)
    stored = np.where(most > 0, rows * _output_row_bytes(schedule), 0)
    columns = _blank(3 * n)
    kind, latency_ps, size = columns["kind"], columns["latency_ps"], columns["bytes"]
    kind[0::3], kind[1::3], kind[2::3] = Phase.LAUNCH, Phase.COMBINE, Phase.WRITE
    latency_ps[0::3] = picoseconds(device.cta_launch_s)
    latency_ps[1::3] = _picoseconds(pricing.combine_latency_s(device, combine, most))
    latency_ps[2::3] = _store_ps(stored, device)
    size[1::3], size[2::3] = reads * row_bytes, stored
    columns["flow"][1::3] = ON_CHIP
    return _Phases(columns, np.arange(n + 1) * 3)


def _combine_ctas_per_sm(kernel: Kernel, device: Device) -> int:
    combine = kernel.combine
    assert combine is not None
    fit = occupancy(device, combine.threads, combine.registers_per_thread, combine.smem_bytes)
    if fit.ctas_per_sm == 0:
        raise PairingError(f"the combine kernel of {kernel.name!r} does not fit on {device.name!r}")
    return fit.ctas_per_sm


def _output_row_bytes(schedule: Schedule) -> int:
    workload = schedule.grid.workload
    return workload.value_dim * DTYPE_BYTES[workload.q_dtype]


def _blank(size: int) -> dict[str, IntArray]:
    """Columns for phases that do nothing yet."""
    return {
        name: np.full(size, blank, dtype) if blank else np.zeros(size, dtype)
        for name, (dtype, blank) in _COLUMNS.items()
    }


def _joined(arrays: list[IntArray]) -> IntArray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _picoseconds(seconds: npt.NDArray[np.floating[Any]]) -> IntArray:
    """Round seconds to whole picoseconds; what no clock could count comes out negative."""
    rounded: IntArray = np.rint(seconds * PS_PER_S).astype(np.int64)
    return rounded
