"""What CTAs and segments of a schedule cost beside their KV tiles, in picoseconds and bytes.

Arrays per segment, per CTA or per output tile, or one number where all have the same. `pricing` says
what a thing costs; here is how often, and to whom.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from leansim.arrays import BoolArray, IntArray
from leansim.engine.program import PS_PER_S, picoseconds
from leansim.schedule.schedule import Schedule, changes
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device
from leansim.specs.kernel import EmptyCtas, Kernel
from leansim.timing import pricing, tile_pricing

# FA3's scheduler looks at as many requests at a time as a warp has lanes, less one.
REQUESTS_PER_SCAN = 31
DRIFT_CLASSES = 8
_DISTANCES = (np.arange(DRIFT_CLASSES) + 0.5) / DRIFT_CLASSES


def rounded_ps(seconds: npt.NDArray[np.floating[Any]]) -> IntArray:
    """Round seconds to whole picoseconds; what no clock could count comes out negative."""
    rounded: IntArray = np.rint(seconds * PS_PER_S).astype(np.int64)
    return rounded


def ramp_ps(
    schedule: Schedule, kernel: Kernel, device: Device, cost: tile_pricing.TileCost, prologue_s: float
) -> IntArray | int:
    """Time of each segment before its tile loop runs at its pace, on the SM nearest to memory."""
    grid, traits = schedule.grid, schedule.grid.traits
    near = 1.0 - device.latency_spread
    prologue_s -= traits.loading_s.get(device.arch, 0.0)
    if schedule.combine == "kernel":
        prologue_s += traits.split_clk * device.clk_s
    alone_s = max(0.0, prologue_s + cost.fill_s)
    if schedule.dispatch == "queue" and kernel.prefetches_items:
        # Behind the first, what a queue prefetches is there when a CTA is through.
        first = schedule.cta < grid.slots
        return rounded_ps(np.maximum(prologue_s + cost.fill_s * first, 0.0) * near)
    if issue_clk := traits.issue_clk.get(device.arch):
        with_launch_s = device.cta_launch_s + alone_s
        waits = pricing.queueing_s(with_launch_s, (issue_clk * device.clk_s,), grid.ctas_per_sm)
        return rounded_ps(alone_s * near + np.array(waits)[_beside(schedule, kernel)])
    if traits.computed_tokens:
        at_once = max(1, traits.computed_tokens // grid.tile_tokens)
        masked = (schedule.start - schedule.stop) % at_once
        return rounded_ps(alone_s * near + masked * cost.compute_s)
    return picoseconds(alone_s * near)


def _beside(schedule: Schedule, kernel: Kernel) -> IntArray:
    """How many others share the SM with each segment's CTA, those of its wave being dealt evenly.

    CTAs that return for want of KV tiles, at once or having looked, do not count.
    """
    grid, rank = schedule.grid, schedule.cta
    if schedule.num_empty_ctas and empty_ctas(schedule, kernel) in ("return", "look"):
        rank = np.cumsum(changes(schedule.cta)) - 1
    first = rank // grid.slots * grid.slots
    in_wave = np.minimum(int(rank[-1]) + 1 - first, grid.slots)
    beside: IntArray = -(-in_wave // grid.num_sms) - 1
    return beside


def drift_ps(grid: TileGrid, device: Device, cost: tile_pricing.TileCost, prologue_s: float) -> IntArray:
    """What each SM adds to the ramp of a segment: up to twice `latency_spread` of it.

    CTAs that start together drift apart over the waves, and what one loads another computes meanwhile.
    There are a few classes of SMs, so that CTAs still move in groups and few events are needed.
    """
    spread_s = 2.0 * device.latency_spread * max(0.0, prologue_s + cost.fill_s)
    return rounded_ps(spread_s * _DISTANCES)[_drift_classes(grid.num_sms)]


@cache
def _drift_classes(num_sms: int) -> IntArray:
    return np.arange(num_sms) % DRIFT_CLASSES


def tile_s(
    schedule: Schedule, kernel: Kernel, device: Device, cost: tile_pricing.TileCost, prologue_s: float
) -> float:
    """Pace of the tile loop, s a KV tile, with what else of a segment bounds or shortens it."""
    pace_s = cost.tile_s + loading_s(schedule, device) + crowding_s(schedule, kernel, device, cost)
    return pace_s - saved_s(schedule, device, cost, prologue_s)


def loading_s(schedule: Schedule, device: Device) -> float:
    """What of a segment's fixed cost its loads go on beside, s a KV tile: the mean over segments.

    It bounds the pace of the segment, and is nothing before it.
    """
    return _a_tile(schedule, schedule.grid.traits.loading_s.get(device.arch, 0.0))


def crowding_s(schedule: Schedule, kernel: Kernel, device: Device, cost: tile_pricing.TileCost) -> float:
    """What a chain waits for others on its SM, s a KV tile: the mean over segments."""
    grid = schedule.grid
    if (chain := grid.traits.chain.get(device.arch)) is None:
        return 0.0
    busy_s = tile_pricing.chain_busy_s(chain, grid, device)
    waits = pricing.queueing_s(cost.tile_s, busy_s, grid.ctas_per_sm)
    return float(np.array(waits)[_beside(schedule, kernel)].mean())


def saved_s(schedule: Schedule, device: Device, cost: tile_pricing.TileCost, prologue_s: float) -> float:
    """What the first tile of a segment takes less than the others and the prologue does not have.

    In s a KV tile: the mean over segments. Other first tiles are as long as their load.
    """
    if device.arch not in schedule.grid.traits.chain:
        return 0.0
    return _a_tile(schedule, max(0.0, -prologue_s - cost.fill_s))


def _a_tile(schedule: Schedule, segment_s: float) -> float:
    """What a segment has once, shared out over its KV tiles, s: with the mean number of them."""
    return segment_s / float((schedule.stop - schedule.start).mean()) if segment_s else 0.0


def arrival_ps(schedule: Schedule, kernel: Kernel, device: Device) -> IntArray | int:
    """How long each CTA takes to begin: a launch, or, for those fetched from a queue, finding them.

    That is an atomic, and a walk over the requests between this item and the last one of the same
    slot (about `slots` items back), `REQUESTS_PER_SCAN` at a time. CTAs without KV tiles have found that
    out by then.
    """
    idle_ps = picoseconds(_idle_s(schedule, kernel, device)) if schedule.num_empty_ctas else 0
    if not idle_ps and schedule.dispatch == "grid":
        return picoseconds(device.cta_launch_s)
    arrival = np.full(schedule.num_ctas, picoseconds(device.cta_launch_s))
    if idle_ps:
        arrival[_is_empty(schedule)] += idle_ps
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


def empty_ctas(schedule: Schedule, kernel: Kernel) -> EmptyCtas:
    """What CTAs without KV tiles do in the instance that runs."""
    return schedule.grid.traits.empty_ctas or kernel.empty_ctas


def _is_empty(schedule: Schedule) -> BoolArray:
    """Which CTAs have no KV tiles."""
    return np.equal(np.diff(schedule.segments_of_cta), 0)


def _idle_s(schedule: Schedule, kernel: Kernel, device: Device) -> float:
    """What a CTA without KV tiles does beside coming and going, s."""
    own = schedule.grid.traits.idle_s.get(device.arch)
    if own is not None:
        return own
    looks_or_prepares = empty_ctas(schedule, kernel) in ("look", "prepare")
    return pricing.prologue_s(schedule.grid, kernel, device) if looks_or_prepares else 0.0


def empty_cta_bytes(schedule: Schedule, kernel: Kernel) -> IntArray | None:
    """What a CTA without KV tiles writes: a zero partial where a combine kernel will read it."""
    writes = schedule.combine == "kernel" and empty_ctas(schedule, kernel) in ("write", "prepare")
    if not (writes and schedule.num_empty_ctas):
        return None
    row_bytes = pricing.partial_row_bytes(schedule.grid.workload, kernel)
    written: IntArray = _is_empty(schedule) * (int(schedule.grid.rows.max()) * row_bytes)
    return written


def idle_partials(schedule: Schedule, kernel: Kernel) -> IntArray | None:
    """Partials of each output tile by CTAs without KV tiles, `[output tiles]`; None for none.

    Those that prepare all the same leave one for the last CTA, which does not know them from others
    (TensorRT-LLM mha.cu); a grid launches as many CTAs for every tile.
    """
    prepares = empty_ctas(schedule, kernel) == "prepare" and kernel.combine is None
    if not (prepares and schedule.num_empty_ctas):
        return None
    return schedule.num_ctas // schedule.grid.num_output_tiles - schedule.segments_of_tile


def merge_ps(
    schedule: Schedule,
    kernel: Kernel,
    device: Device,
    partials: IntArray,
    rows: IntArray,
    sharing: IntArray,
) -> IntArray:
    """Time from the last flag to merged, without the bytes, of CTAs of which `sharing` share a merge."""
    grains = pricing.merge_grains(schedule.grid.workload, kernel, rows, sharing)
    computing_s = pricing.merge_computing_s(schedule.grid.traits.merging, partials, rows, device)
    in_flight = kernel.merge_splits_in_flight
    return rounded_ps(pricing.merge_latency_s(device, partials, in_flight, grains, computing_s))


def lone_merge_ps(
    schedule: Schedule, kernel: Kernel, device: Device, idle: IntArray | None
) -> IntArray | int:
    """What merging costs the CTA of a segment that alone has KV of its output tile.

    In a call that may be split it publishes its partial and merges that where merges are shared, and
    elsewhere, coming last, what `idle` CTAs left of its tile.
    """
    shares = kernel.shared_merge and (schedule.num_splits or 1) > 1
    if not shares and idle is None:
        return 0
    lone = schedule.segments_of_tile[schedule.output_tile] == 1
    rows, alone = np.broadcast_to(schedule.rows, lone.shape), np.ones_like(schedule.cta)
    if idle is None:
        grains = pricing.merge_grains(schedule.grid.workload, kernel, rows, alone)
        merged_ps = rounded_ps(grains * pricing.l2_latency_s(device))
    else:
        left = idle[schedule.output_tile]
        merged_ps = merge_ps(schedule, kernel, device, left, rows, alone)
        lone &= left > 0
    return np.where(lone, picoseconds(pricing.release_s(device)) + merged_ps, 0)


def store_ps(size: IntArray, device: Device) -> IntArray:
    """Time to issue stores: their bytes at the SM's rate. Nobody waits for them to land."""
    return rounded_ps(size / device.sm_load_bytes_per_s)
