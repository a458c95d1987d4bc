"""What CTAs and segments of a schedule cost beside their KV tiles, in picoseconds and bytes.

Arrays per segment, per CTA or per output tile, or one number where all have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from leansim.arrays import BoolArray, IntArray
from leansim.engine.program import picoseconds, rounded_ps
from leansim.schedule.schedule import Schedule, changes
from leansim.schedule.tiling import TileGrid
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.device import Device
from leansim.specs.instance import Instance, NoCombine, QueryAtOnce, QueryInParts
from leansim.timing import memory
from leansim.timing.compute import tile_work
from leansim.timing.loops import registry
from leansim.timing.loops.tile import TileCost, TileWork

DRIFT_CLASSES = 8
_DISTANCES = (np.arange(DRIFT_CLASSES) + 0.5) / DRIFT_CLASSES


@dataclass(frozen=True)
class Prices:
    """What tiles and segments of a grid cost under an instance, before any schedule.

    Made once for a call: a full KV tile (`tile`, and the `work` it is made of), the `prologue_s` before
    the first load of a segment, and the share of KV loads that hit L2.
    """

    work: TileWork
    tile: TileCost
    prologue_s: float
    hit_share: float

    @classmethod
    def of(cls, grid: TileGrid, instance: Instance, device: Device) -> Prices:
        """Price tiles and segments. Raises `PairingError` where the device has no price for one."""
        hit_share = memory.l2_hit_share(grid, device)
        work = tile_work(grid, instance, device, hit_share)
        tile = registry.make(instance.loop, instance.kernel).price(work)
        return cls(work, tile, prologue_s(grid, instance, device, tile.fill_s), hit_share)

    @property
    def once_s(self) -> float:
        """What a segment takes beyond its tiles, s; below 0 where its first is cheaper than others."""
        return self.prologue_s + self.tile.fill_s


def prologue_s(grid: TileGrid, instance: Instance, device: Device, fill_s: float = 0.0) -> float:
    """Time from the start of a segment to its first KV load, s.

    Dependent reads (sequence length, page table), then Q; all in L2, the query having just been written
    (assumed). Kernels that move whole Q and O tiles through shared memory, masked rows too, pay for them
    `q_tile_copies` times.
    """
    start, load = instance.start, grid.workload
    if isinstance(start.query, QueryAtOnce):
        reads = (start.query.loads + 1) * memory.l2_latency_s(device)
    else:
        reads = _reads_in_parts_s(start.query, grid, instance, device, fill_s)
    q_bytes = grid.tile_rows * load.head_dim * DTYPE_BYTES[instance.q_dtype]
    return start.overhead_s + reads + start.q_tile_copies * q_bytes / device.sm_load_bytes_per_s


def _reads_in_parts_s(
    query: QueryInParts, grid: TileGrid, instance: Instance, device: Device, fill_s: float
) -> float:
    """Reads before the first KV load where some warps read Q in parts while others fetch KV, s.

    The loader of KV looks up the page, and reads the new token if it is to append it. The first KV tile
    takes `fill_s`; what of Q that does not hide is added.
    """
    latency = query_latency_s(grid, instance, device)
    rows = min(grid.rows_per_head, grid.tile_rows)
    query_s = -(-rows // query.rows) * (latency + query.clk * device.clk_s)
    reads = memory.l2_latency_s(device) + (latency if instance.ctas.prepares_query else 0.0)
    return reads + max(0.0, query_s - reads - fill_s - query.beside_clk * device.clk_s)


def query_latency_s(grid: TileGrid, instance: Instance, device: Device) -> float:
    """Mean unloaded latency of a read of one row of Q, s: that of the farthest of its lines.

    A setup kernel has just written it. A kernel that prepares it itself finds in L2 what the replay
    before has left of all that it touched.
    """
    warm = memory.replay_hit_share(grid, device) if instance.ctas.prepares_query else 1.0
    reads = memory.Reads.of(device, warm)
    lines = -(-memory.query_row_bytes(grid.workload) // memory.LINE_BYTES)
    return reads.kv_s + reads.farthest_s(lines)


def queueing_s(alone_s: float, busy_s: Sequence[float], together: int) -> list[float]:
    """What each of 1, 2 .. `together` CTAs on an SM waits for what the others hold of it, s.

    Of the `alone_s` that each takes by itself the SM's units, such as its schedulers, are busy for
    `busy_s` each. Mean value analysis of a closed network of queues (Reiser and Lavenberg 1980): one
    that comes finds as many before it as there are on average with one CTA fewer.
    """
    waits, queued = [], [0.0] * len(busy_s)
    for count in range(1, together + 1):
        waiting_s = [unit_s * before for unit_s, before in zip(busy_s, queued, strict=True)]
        taken_s = alone_s + sum(waiting_s)
        queued = [count * (unit_s + s) / taken_s for unit_s, s in zip(busy_s, waiting_s, strict=True)]
        waits.append(sum(waiting_s))
    return waits


def ramp_ps(schedule: Schedule, instance: Instance, device: Device, prices: Prices) -> IntArray | int:
    """Time of each segment before its tile loop runs at its pace, on the SM nearest to memory."""
    grid, start, tile = schedule.grid, instance.start, prices.tile
    near = 1.0 - device.latency_spread
    prologue_s = prices.prologue_s - start.loading_s
    if schedule.combine == "kernel":
        prologue_s += start.split_clk * device.clk_s
    alone_s = max(0.0, prologue_s + tile.fill_s)
    if schedule.dispatch == "queue" and instance.ctas.prefetches_items:
        # Behind the first, what a queue prefetches is there when a CTA is through.
        first = schedule.cta < grid.slots
        return rounded_ps(np.maximum(prologue_s + tile.fill_s * first, 0.0) * near)
    if start.issue_clk:
        with_launch_s = device.cta_launch_s + alone_s
        waits = queueing_s(with_launch_s, (start.issue_clk * device.clk_s,), grid.ctas_per_sm)
        return rounded_ps(alone_s * near + np.array(waits)[_beside(schedule, instance)])
    if tile.tiles_at_once > 1:
        masked = (schedule.start - schedule.stop) % tile.tiles_at_once
        return rounded_ps(alone_s * near + masked * tile.compute_s)
    return picoseconds(alone_s * near)


def _beside(schedule: Schedule, instance: Instance) -> IntArray:
    """How many others share the SM with each segment's CTA, those of its wave being dealt evenly.

    CTAs that return for want of KV tiles, at once or having looked, do not count.
    """
    grid, rank = schedule.grid, schedule.cta
    if schedule.num_empty_ctas and instance.ctas.empty in ("return", "look"):
        rank = np.cumsum(changes(schedule.cta)) - 1
    first = rank // grid.slots * grid.slots
    in_wave = np.minimum(int(rank[-1]) + 1 - first, grid.slots)
    beside: IntArray = -(-in_wave // grid.num_sms) - 1
    return beside


def drift_ps(grid: TileGrid, device: Device, prices: Prices) -> IntArray:
    """What each SM adds to the ramp of a segment: up to twice `latency_spread` of it.

    CTAs that start together drift apart over the waves, and what one loads another computes meanwhile.
    There are a few classes of SMs, so that CTAs still move in groups and few events are needed.
    """
    spread_s = 2.0 * device.latency_spread * max(0.0, prices.once_s)
    return rounded_ps(spread_s * _DISTANCES)[_drift_classes(grid.num_sms)]


@cache
def _drift_classes(num_sms: int) -> IntArray:
    return np.arange(num_sms) % DRIFT_CLASSES


def tile_s(schedule: Schedule, instance: Instance, prices: Prices) -> float:
    """Pace of the tile loop, s a KV tile, with what else of a segment bounds or shortens it."""
    loading_s = _a_tile(schedule, instance.start.loading_s)
    pace_s = prices.tile.tile_s + loading_s + crowding_s(schedule, instance, prices.tile)
    return pace_s - _a_tile(schedule, max(0.0, -prices.once_s))


def crowding_s(schedule: Schedule, instance: Instance, tile: TileCost) -> float:
    """What a chain waits for others on its SM, s a KV tile: the mean over segments."""
    if not tile.busy_s:
        return 0.0
    waits = queueing_s(tile.tile_s, tile.busy_s, schedule.grid.ctas_per_sm)
    return float(np.array(waits)[_beside(schedule, instance)].mean())


def _a_tile(schedule: Schedule, segment_s: float) -> float:
    """What a segment has once, shared out over its KV tiles, s: with the mean number of them."""
    return segment_s / float((schedule.stop - schedule.start).mean()) if segment_s else 0.0


def arrival_ps(schedule: Schedule, instance: Instance, device: Device) -> IntArray | int:
    """How long each CTA takes to begin: a launch, or, for those fetched from a queue, finding them.

    That is an atomic, and a walk over the requests between this item and the last one of the same
    slot (about `slots` items back), `scan_requests` at a time. CTAs without KV tiles have found that
    out by then.
    """
    idle_ps = picoseconds(_empty_s(schedule, instance, device)) if schedule.num_empty_ctas else 0
    if not idle_ps and schedule.dispatch == "grid":
        return picoseconds(device.cta_launch_s)
    arrival = np.full(schedule.num_ctas, picoseconds(device.cta_launch_s))
    if idle_ps:
        arrival[_is_empty(schedule)] += idle_ps
    if schedule.dispatch == "queue":
        slots = schedule.grid.slots
        arrival[slots:] = picoseconds(device.atomic_s)
        request = schedule.grid.request[schedule.output_tile[changes(schedule.cta)]]
        scanned = (np.cumsum(changes(request)) - 1) // instance.ctas.scan_requests
        if scanned[-1] and len(scanned) == schedule.num_ctas:
            scanned[slots:] -= scanned[:-slots].copy()
            # A kernel built for splits looks up how many each request has as well.
            looks = 2 if schedule.combine == "kernel" else 1
            arrival += scanned * looks * picoseconds(instance.ctas.scan_s)
    return arrival


def _is_empty(schedule: Schedule) -> BoolArray:
    """Which CTAs have no KV tiles."""
    return np.equal(np.diff(schedule.segments_of_cta), 0)


def _empty_s(schedule: Schedule, instance: Instance, device: Device) -> float:
    """What a CTA without KV tiles does beside coming and going, s."""
    ctas = instance.ctas
    if not ctas.empty_prologues:
        return ctas.empty_s
    return ctas.empty_s + ctas.empty_prologues * prologue_s(schedule.grid, instance, device)


def empty_cta_bytes(schedule: Schedule, instance: Instance) -> IntArray | None:
    """What a CTA without KV tiles writes: a zero partial where a combine kernel will read it."""
    writes = schedule.combine == "kernel" and instance.ctas.empty in ("write", "prepare")
    if not (writes and schedule.num_empty_ctas):
        return None
    row_bytes = memory.partial_row_bytes(schedule.grid.workload, instance.partial_dtype)
    written: IntArray = _is_empty(schedule) * (int(schedule.grid.rows.max()) * row_bytes)
    return written


def idle_partials(schedule: Schedule, instance: Instance) -> IntArray | None:
    """Partials of each output tile by CTAs without KV tiles, `[output tiles]`; None for none.

    Those that prepare all the same leave one for the last CTA, which does not know them from others
    (TensorRT-LLM mha.cu); a grid launches as many CTAs for every tile.
    """
    prepares = instance.ctas.empty == "prepare" and isinstance(instance.combine, NoCombine)
    if not (prepares and schedule.num_empty_ctas):
        return None
    return schedule.num_ctas // schedule.grid.num_output_tiles - schedule.segments_of_tile


def store_ps(size: IntArray, device: Device) -> IntArray:
    """Time to issue stores: their bytes at the SM's rate. Nobody waits for them to land."""
    return rounded_ps(size / device.sm_load_bytes_per_s)
