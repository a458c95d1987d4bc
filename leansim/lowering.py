"""Prices a schedule on a device: Schedule -> Program. Vectorised; costs O(segments + CTAs)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from leansim import pricing
from leansim.device import Device
from leansim.errors import OutOfRangeError, PairingError
from leansim.kernel import Kernel
from leansim.occupancy import occupancy
from leansim.program import MOST_PS, FloatArray, FlowKind, Launch, Phase, Program, picoseconds
from leansim.schedule import IN_LAUNCH, Schedule, changes
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
_COLUMNS = (
    "kind",
    "latency_ps",
    "bytes",
    "flow",
    "wait_counter",
    "wait_target",
    "signal_counter",
    "segment",
)
_NONE_AT_FIRST = ("wait_counter", "signal_counter", "segment")


@dataclass(frozen=True, eq=False)
class _Phases:
    """Phases of one launch, in execution order, and the borders of its CTAs."""

    columns: Mapping[str, IntArray]
    border: IntArray


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
    parts = [*(_setup_launch(device) for _ in range(kernel.setup_kernels)), *parts]
    fits = [*[("setup", 1)] * kernel.setup_kernels, *fits]
    ctas = np.cumsum([0, *(len(part.border) - 1 for part in parts)]).tolist()
    gaps = [0, *[gap_ps] * (len(parts) - 1)]
    if grid.starts_early and kernel.setup_kernels:
        gaps[kernel.setup_kernels] = picoseconds(pricing.combine_gap_s(device, workload.launch, "pdl"))
    if schedule.combine == "kernel":
        assert kernel.combine is not None
        gaps[-1] = picoseconds(pricing.combine_gap_s(device, workload.launch, kernel.combine.start))
    launches = [Launch(name, ctas[i], ctas[i + 1], fit, gaps[i]) for i, (name, fit) in enumerate(fits)]
    offsets = np.cumsum([0, *(len(part.columns["kind"]) for part in parts)])
    borders = [part.border[:-1] + offset for part, offset in zip(parts, offsets, strict=False)]
    peak = device.achievable_dram_bytes_per_s(workload.kv_bytes)
    program = Program(
        launches=tuple(launches),
        flows=_flows(grid, cost, hit_share, device),
        phase_of_cta=np.concatenate([*borders, offsets[-1:]]),
        **{name: _joined([part.columns[name] for part in parts]) for name in _COLUMNS},
        num_counters=grid.num_output_tiles if schedule.combine in IN_LAUNCH else 0,
        num_sms=grid.num_sms,
        dispatch_interval_ps=picoseconds(device.cta_dispatch_interval_s),
        launch_ps=gap_ps,
        dram_bytes_per_ps=peak / picoseconds(1.0),
        l2_bytes_per_ps=device.l2_bandwidth_bytes_per_s / picoseconds(1.0),
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
        raise OutOfRangeError("the numbers of this device and kernel make times no clock could count")
    return program


def _flows(
    grid: TileGrid, cost: pricing.TileCost, hit_share: float, device: Device
) -> tuple[FlowKind, ...]:
    """KV at the pace of the tile loop; partials between an SM and L2, rows of Q and O past it.

    A CTA works through whole tiles, and loads the tokens that are not masked. How many are is taken
    over the batch: a segment with a masked end is charged the mean, not its own.
    """
    loaded = grid.loaded_share
    on_chip_ps = picoseconds(1.0) / device.sm_load_bytes_per_s
    kv = FlowKind(
        "kv",
        max_bytes_per_ps=cost.max_bytes_per_s / picoseconds(1.0),
        sm_ps_per_byte=cost.sm_s * picoseconds(1.0) / cost.tile_bytes,
        dram_share=loaded * (1.0 - hit_share),
        l2_share=loaded,
        offered_bytes_per_ps=cost.offered_bytes_per_s / picoseconds(1.0),
    )
    on_chip = FlowKind(
        "on_chip",
        max_bytes_per_ps=1.0 / on_chip_ps,
        sm_ps_per_byte=on_chip_ps,
        dram_share=0.0,
        l2_share=1.0,
        offered_bytes_per_ps=1.0 / on_chip_ps,
    )
    return kv, on_chip, replace(on_chip, name="rows", dram_share=1.0)


def _main_launch(schedule: Schedule, kernel: Kernel, device: Device, cost: pricing.TileCost) -> _Phases:
    """LAUNCH per CTA; STREAM, then MERGE for a waiting host, then WRITE per segment."""
    peers = schedule.segments_of_tile[schedule.output_tile] - 1
    merges = schedule.merges
    per_segment = 2 + merges.astype(np.int64)
    before = np.cumsum(per_segment) - per_segment
    total = int(per_segment.sum()) + schedule.num_ctas
    stream_at = before + schedule.cta + 1
    edges = np.append(before, per_segment.sum())
    launch_at = edges[schedule.segments_of_cta[:-1]] + np.arange(schedule.num_ctas)
    columns = _blank(total)

    def put(at: IntArray, kind: Phase, **values: IntArray | int) -> None:
        columns["kind"][at] = kind
        for name, value in values.items():
            columns[name][at] = value

    empty_bytes = _empty_cta_bytes(schedule, kernel)
    put(
        launch_at,
        Phase.LAUNCH,
        latency_ps=_arrival_ps(schedule, kernel, device, cost) + _store_ps(empty_bytes, device),
        bytes=empty_bytes,
        flow=STORE,
    )
    tiles = schedule.stop - schedule.start
    every = np.arange(schedule.num_segments)
    put(
        stream_at,
        Phase.STREAM,
        latency_ps=_ramp_ps(schedule, kernel, device, cost),
        bytes=tiles * cost.tile_bytes,
        flow=KV,
        segment=every,
    )
    rows = schedule.grid.rows[schedule.output_tile]
    partial_bytes = rows * pricing.partial_row_bytes(schedule.grid.workload, kernel)
    put(
        stream_at[merges] + 1,
        Phase.MERGE,
        wait_counter=schedule.output_tile[merges],
        wait_target=peers[merges],
        latency_ps=_picoseconds(
            pricing.merge_latency_s(device, peers[merges], kernel.merge_splits_in_flight)
        ),
        bytes=(partial_bytes * peers)[merges],
        flow=ON_CHIP,
        segment=every[merges],
    )
    published = schedule.is_partial & ~merges
    signals = published & (schedule.combine in IN_LAUNCH)
    stored = np.where(published, partial_bytes, rows * _output_row_bytes(schedule))
    moved = stored + rows * pricing.query_row_bytes(schedule.grid.workload)
    few = moved < FEW_BYTES
    put(
        stream_at + per_segment - 1,
        Phase.WRITE,
        latency_ps=np.where(signals, picoseconds(pricing.release_s(device)), 0)
        + np.where(few, _store_ps(moved, device), 0),
        bytes=moved,
        flow=np.where(few, STORE, ROWS),
        signal_counter=np.where(signals, schedule.output_tile, _NONE),
        segment=every,
    )
    return _Phases(columns, np.append(launch_at, total))


def _ramp_ps(schedule: Schedule, kernel: Kernel, device: Device, cost: pricing.TileCost) -> IntArray:
    """Time of each segment before its tile loop runs at its pace, on the SM nearest to memory."""
    fixed = np.full(schedule.num_segments, pricing.prologue_s(schedule.grid, kernel, device))
    prefetched = schedule.dispatch == "queue" and kernel.prefetches_items
    fixed[schedule.cta < schedule.grid.slots if prefetched else slice(None)] += cost.fill_s
    if schedule.grid.starts_early and kernel.setup_kernels:
        fixed[schedule.cta < schedule.grid.slots] -= kernel.segment_overhead_s.get(device.arch, 0.0)
    return _picoseconds(np.maximum(fixed, 0.0) * (1.0 - device.latency_spread))


def _drift_ps(grid: TileGrid, kernel: Kernel, device: Device, cost: pricing.TileCost) -> IntArray:
    """What each SM adds to the ramp of a segment: up to twice `latency_spread` of it.

    CTAs that start together drift apart over the waves, and what one loads another computes meanwhile.
    There are a few classes of SMs, so that CTAs still move in groups and few events are needed.
    """
    ramp = max(0.0, pricing.prologue_s(grid, kernel, device) + cost.fill_s)
    distance = (np.arange(grid.num_sms) % DRIFT_CLASSES + 0.5) / DRIFT_CLASSES
    return _picoseconds(2.0 * device.latency_spread * ramp * distance)


def _arrival_ps(schedule: Schedule, kernel: Kernel, device: Device, cost: pricing.TileCost) -> IntArray:
    """How long each CTA takes to begin: a launch, or, for those fetched from a queue, finding them.

    That is an atomic, and a walk over the requests between this item and the last one of the same
    slot (about `slots` items back), `REQUESTS_PER_SCAN` at a time.
    """
    arrival = np.full(schedule.num_ctas, picoseconds(device.cta_launch_s))
    if (schedule.grid.empty_ctas or kernel.empty_ctas) == "compute" and schedule.num_empty_ctas:
        empty = np.diff(schedule.segments_of_cta) == 0
        arrival[empty] += picoseconds(pricing.prologue_s(schedule.grid, kernel, device) + cost.compute_s)
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


def _store_ps(size: IntArray, device: Device) -> IntArray:
    """Time to issue stores: their bytes at the SM's rate. Nobody waits for them to land."""
    return _picoseconds(size / device.sm_load_bytes_per_s)


def _empty_cta_bytes(schedule: Schedule, kernel: Kernel) -> IntArray:
    """What a CTA without KV tiles writes: a zero partial where a combine kernel will read it."""
    empty: IntArray = (np.diff(schedule.segments_of_cta) == 0).astype(np.int64)
    writes = (schedule.grid.empty_ctas or kernel.empty_ctas) != "return" and schedule.combine == "kernel"
    rows = int(schedule.grid.rows.max()) if writes else 0
    written: IntArray = empty * (rows * pricing.partial_row_bytes(schedule.grid.workload, kernel))
    return written


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
    launch_ps = np.full(n, picoseconds(device.cta_launch_s))
    row_bytes = pricing.partial_row_bytes(workload, kernel)
    blank, zero = np.full(n, _NONE), np.zeros(n, dtype=np.int64)
    stored = np.where(most > 0, rows * _output_row_bytes(schedule), 0)
    table = {
        "kind": (zero + Phase.LAUNCH, zero + Phase.COMBINE, zero + Phase.WRITE),
        "latency_ps": (
            launch_ps,
            _picoseconds(pricing.combine_latency_s(device, combine, most)),
            _store_ps(stored, device),
        ),
        "bytes": (zero, reads * row_bytes, stored),
        "flow": (zero + STORE, zero + ON_CHIP, zero + STORE),
        "wait_counter": (blank,) * 3,
        "wait_target": (zero,) * 3,
        "signal_counter": (blank,) * 3,
        "segment": (blank,) * 3,
    }
    columns = {name: np.stack(values, axis=1).ravel() for name, values in table.items()}
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
        name: np.full(size, _NONE, dtype=np.int64)
        if name in _NONE_AT_FIRST
        else np.zeros(size, np.int64)
        for name in _COLUMNS
    }


def _joined(arrays: list[IntArray]) -> IntArray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _picoseconds(seconds: FloatArray) -> IntArray:
    if not np.all(np.abs(seconds) < MOST_PS / picoseconds(1.0)):
        raise OutOfRangeError("the numbers of this device and kernel make times no clock could count")
    return np.rint(seconds * picoseconds(1.0)).astype(np.int64)
