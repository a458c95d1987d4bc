"""What segments cost beside full KV tiles: their start, and tiles that are not like the others.

Arrays per segment, or one number where all have the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from leansim.arrays import BoolArray, FloatArray, Floats, IntArray, Ints, at_least, at_most
from leansim.engine.program import out_of_range, picoseconds, rounded_ps
from leansim.schedule.schedule import Schedule, changes
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device
from leansim.specs.instance import Instance
from leansim.timing.prices import Prices, prologue_s, queueing_s

DRIFT_CLASSES = 8
_DISTANCES = (np.arange(DRIFT_CLASSES) + 0.5) / DRIFT_CLASSES


@dataclass(frozen=True, eq=False)
class SegmentCosts:
    """What segments take: `ramp_ps`, `first_bytes`, then `worked_bytes` in their loop, and `last_bytes`.

        once   = prologue - loading + split + fill
        ramp   = max(0, once) (1 - latency_spread) + queueing + masked tiles computed
        first  = first bytes of a full tile * min(1, tiles)
        worked = tile bytes * (tiles + (loading + min(0, once) + edges * edge - masked * read) / tile)
        last   = tile bytes * last of a full tile / tile, no longer in worked

    With the first bytes of segments that ask `at_once` comes all that their loop asks for. What is left
    to do when all of a segment's loads are there, its last bytes, is work that moves nothing; where its
    first are not waited for, others load meanwhile.

    Times in s. Worked bytes are those of as many full tiles as a segment's tiles take the time of. All
    together, what is left of the last ones too, are of `tiles` full tiles' time, in which SMs are busy
    for `busy_s`.
    """

    ramp_ps: IntArray | int
    first_bytes: Ints
    at_once: BoolArray | bool
    worked_bytes: IntArray
    last_bytes: IntArray | None
    tiles: float
    busy_s: float

    def total_first_bytes(self, segments: int, ahead: int) -> float:
        """Bytes that all wait for first, with `ahead` times as many where they ask at once."""
        if not isinstance(self.at_once, bool):
            return float((self.first_bytes * np.where(self.at_once, ahead, 1)).sum())
        if isinstance(self.first_bytes, int):
            return float(self.first_bytes * segments)
        return float(self.first_bytes.sum())

    @classmethod
    def of(cls, schedule: Schedule, instance: Instance, device: Device, prices: Prices) -> SegmentCosts:
        """Price all segments of a schedule."""
        grid, tile = schedule.grid, prices.tile
        starts = _Starts(schedule, instance, device, prices)
        worked = _worked_bytes(schedule, prices, starts)
        busy_s = grid.total_kv_tiles * tile.sm_s
        if prices.masks:
            busy_s += grid.num_edge_tiles * prices.edge_busy_s
        tiles = float(worked.sum()) / prices.work.tile_bytes
        ramp_ps = _ramp_ps(schedule, instance, device, prices, starts)
        read = _tiles_read(schedule, tile.ahead)
        first_bytes = _first_bytes(schedule, instance, prices, read)
        at_once = _asks_at_once(schedule, tile.ahead, read)
        last_bytes = _last_bytes(prices, first_bytes, worked)
        if last_bytes is not None:
            worked = worked - last_bytes
        return cls(ramp_ps, first_bytes, at_once, worked, last_bytes, tiles, busy_s)


class _Starts:
    """What segments take beyond their tiles, s: before the loop, and in the first tile.

    `ramp_s` is over before the loop runs at its pace. `first_s` is how much longer the first tile takes
    than the others: the loads that go on beside the fixed cost of a segment bound its pace and are
    nothing before it, and a first tile that is cheaper by more than the prologue takes is so much
    shorter. Where loads go on beside it, the transfer of the first tile is part of its fill, and no
    bytes are waited for (`_first_bytes`). Numbers, or `[batch, row blocks]`, or `[segments]`: see
    `of_segments`.
    """

    def __init__(self, schedule: Schedule, instance: Instance, device: Device, prices: Prices) -> None:
        start = instance.start
        alike = prices.fills_alike and not start.loading_s
        loaded = 1.0 if alike else first_loaded(schedule)
        fill_s: Any = prices.loop.fill_s(prices.work, loaded)
        if start.loading_s:
            fill_s = fill_s + loaded * (prices.tile.first_bytes / prices.work.load_bytes_per_s)
        if prices.masks:
            edge_s = prices.loop.fill_s(prices.edge, loaded)
            if np.count_nonzero(np.not_equal(edge_s, fill_s)):
                parts = (of_segments(schedule, part) for part in (edge_s, fill_s))
                fill_s = np.where(_ends_at_an_edge(schedule), *parts)
        before_s: Any = prologue_s(schedule.grid, instance, device, fill_s) - start.loading_s
        if schedule.combine == "kernel":
            before_s = before_s + start.split_clk * device.clk_s
        if schedule.dispatch == "queue" and instance.ctas.prefetches_items:
            # Behind the first, what a queue prefetches is there when a CTA is through.
            before_s, fill_s = (of_segments(schedule, part) for part in (before_s, fill_s))
            fill_s = fill_s * np.asarray(schedule.cta < schedule.grid.slots)
        once_s: Any = before_s + fill_s
        self.ramp_s = at_least(once_s, 0.0)
        self.first_s = start.loading_s + at_most(once_s, 0.0)


def first_loaded(schedule: Schedule) -> Floats:
    """Share of the first KV tile of each segment that is loaded, the rest being masked.

    `[segments]`, or `[batch, row blocks]` where no output tile is split, or one for all alike. It
    follows from a segment's own request: only tiles in which a context or a window ends are masked.
    """
    grid, from_end = schedule.grid, schedule.grid.tile_order == "backward"
    if grid.is_full:
        return 1.0
    if _is_whole(schedule):
        share = grid.loaded_of_last if from_end else grid.loaded_of_first
        one = float(share.flat[0])
        return one if (share == one).all() else share
    to_first = schedule.stop if from_end else schedule.start + 1
    is_last = np.equal(to_first, grid.num_kv_tiles[schedule.output_tile])
    share = np.where(is_last, of_segments(schedule, grid.loaded_of_last), 1.0)
    if grid.workload.window is not None:
        share = np.where(to_first == 1, of_segments(schedule, grid.loaded_of_first), share)
    return share


def of_segments(schedule: Schedule, values: Any) -> Any:
    """What row blocks of requests have, `[batch, row blocks]`, for each segment; others as they are."""
    if isinstance(values, float) or values.ndim < 2:
        return values
    if schedule.grid.row_blocks == 1:
        return values[:, 0][schedule.request]
    return schedule.grid.of_tiles(values)[schedule.output_tile]


def _ramp_ps(
    schedule: Schedule, instance: Instance, device: Device, prices: Prices, starts: _Starts
) -> IntArray | int:
    """Time of each segment before its tile loop runs at its pace, on the SM nearest to memory."""
    near, tile = 1.0 - device.latency_spread, prices.tile
    ramp_s: Any = starts.ramp_s * near
    if issue_clk := instance.start.issue_clk:
        ramp_s = of_segments(schedule, ramp_s)
        ramp_s = ramp_s + _queued_s(schedule, instance, device, starts, issue_clk * device.clk_s)
    if tile.tiles_at_once > 1:
        masked = (schedule.start - schedule.stop) % tile.tiles_at_once
        ramp_s = of_segments(schedule, ramp_s) + masked * tile.compute_s
    if reads := instance.start.queued_reads:
        behind_s = reads * _dram_queue_s(schedule, device, prices)
        ramp_s = of_segments(schedule, ramp_s) + behind_s * ~changes(schedule.cta)
    if isinstance(ramp_s, float):
        return picoseconds(ramp_s)
    ramp_ps: IntArray = of_segments(schedule, rounded_ps(ramp_s))
    return ramp_ps


def _dram_queue_s(schedule: Schedule, device: Device, prices: Prices) -> float:
    """What a read waits for the KV that all CTAs have asked DRAM for before it, s.

        max(0, CTAs * ahead * tile bytes * (1 - hit) / DRAM bandwidth - tile)

    Where DRAM decides the pace, `ahead` tiles of each CTA take that long, of which they are computed for
    a tile and wait in DRAM's queue for the rest. Where it does not there is no queue.
    """
    ctas = min(schedule.grid.slots, int(np.count_nonzero(changes(schedule.cta))))
    asked = ctas * prices.tile.ahead * prices.work.tile_bytes * (1.0 - prices.hit_share)
    return max(0.0, asked / device.achievable_dram_bytes_per_s - prices.tile.tile_s)


def _queued_s(
    schedule: Schedule, instance: Instance, device: Device, starts: _Starts, busy_s: float
) -> FloatArray:
    """What the start of each segment waits for the schedulers of its SM, s."""
    alone_s = device.cta_launch_s + of_segments(schedule, starts.ramp_s)
    waits = np.stack(np.broadcast_arrays(*queueing_s(alone_s, (busy_s,), schedule.grid.ctas_per_sm)))
    beside = _beside(schedule, instance)
    return waits[beside] if waits.ndim == 1 else np.take_along_axis(waits, beside[None], axis=0)[0]


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


def _worked_bytes(schedule: Schedule, prices: Prices, starts: _Starts) -> IntArray:
    """KV bytes that each segment works through.

    A tile at an edge, where scores are masked, takes more than others, one with masked tokens that are
    not read takes less, and the first what its start leaves to it.
    """
    tiles, tile = schedule.stop - schedule.start, prices.tile
    more_s: Any = starts.first_s
    if not (prices.edge_s or tile.read_s or np.count_nonzero(more_s)):
        return tiles * prices.work.tile_bytes
    more_s = of_segments(schedule, more_s)
    if prices.edge_s:
        more_s = more_s + prices.edge_s * _edges(schedule)
    if tile.read_s:
        more_s = more_s - tile.read_s * _masked_tiles(schedule)
    worked = np.rint((tiles + more_s / tile.tile_s) * prices.work.tile_bytes)
    positive: IntArray = np.maximum(1, worked).astype(np.int64)
    return positive


def _tiles_read(schedule: Schedule, enough: int) -> IntArray | FloatArray:
    """What each segment reads, in full KV tiles: what is masked is not read.

    Two tiles at most have masked tokens, so where all have two more than `enough` theirs are counted.
    """
    grid, tiles = schedule.grid, schedule.stop - schedule.start
    if grid.is_full or tiles.min() > enough + 1:
        return tiles
    return _tokens(schedule) / grid.tile_tokens


def _tokens(schedule: Schedule) -> IntArray:
    """KV tokens that each segment attends to."""
    grid = schedule.grid
    if not _is_whole(schedule):
        return grid.tokens(schedule.output_tile, schedule.start, schedule.stop)
    begin, end = grid.kv_span
    attended: IntArray = of_segments(schedule, end - begin)
    return attended


def _asks_at_once(schedule: Schedule, ahead: int, read: IntArray | FloatArray) -> BoolArray | bool:
    """Which segments ask for `ahead` tiles at the same time as all others.

    They are the first of each CTA of the first wave, of those that have as many. Later ones begin one
    after the other, beside CTAs that are at work.
    """
    if ahead == 1:
        return False
    begins = changes(schedule.cta) & (schedule.cta < schedule.grid.slots)
    asks: BoolArray = begins & (read >= ahead)
    return asks


def _first_bytes(
    schedule: Schedule, instance: Instance, prices: Prices, read: IntArray | FloatArray
) -> Ints:
    """KV bytes that each segment waits for before it works on its first tile.

    Fewer of one that has less than a tile, and none of an instance that loads them while it starts.
    Behind the first item of a queue, what is prefetched is there when a CTA is through.
    """
    first_bytes = prices.tile.first_bytes
    if not first_bytes or instance.start.loading_s:
        return 0
    queued = schedule.dispatch == "queue" and instance.ctas.prefetches_items
    if not queued and read.min() >= 1:
        return first_bytes
    first: IntArray = (first_bytes * np.minimum(1.0, read)).astype(np.int64)
    if queued:
        first[schedule.cta >= schedule.grid.slots] = 0
    return first


def _last_bytes(prices: Prices, first_bytes: Ints, worked: IntArray) -> IntArray | None:
    """What of each segment's worked bytes is left when its loads are there; None where nothing is."""
    tile = prices.tile
    if not (tile.last_s and np.count_nonzero(first_bytes)):
        return None
    share = tile.last_s / tile.tile_s
    if not math.isfinite(share):
        raise out_of_range()
    most = round(share * prices.work.tile_bytes)
    last: IntArray = np.minimum(most, worked - 1) * np.not_equal(first_bytes, 0)
    return last


def _is_whole(schedule: Schedule) -> bool:
    """Whether each segment is all of an output tile."""
    return schedule.num_segments == schedule.grid.num_output_tiles


def _at_end(schedule: Schedule) -> BoolArray:
    """Which segments have the last KV tile of their output tile."""
    return np.equal(schedule.stop, schedule.grid.num_kv_tiles[schedule.output_tile])


def _at_window(schedule: Schedule) -> BoolArray:
    """Which segments have the KV tile where a window begins."""
    begins: BoolArray = np.equal(schedule.start, 0)
    return begins if schedule.grid.workload.is_local else np.zeros_like(begins)


def _edges(schedule: Schedule) -> Ints:
    """Tiles of each segment with masked scores: the last of an output tile, of a window the first."""
    if not schedule.grid.workload.is_local:
        return 1 if _is_whole(schedule) else _at_end(schedule).astype(np.int64)
    edges = _at_end(schedule).astype(np.int64) + _at_window(schedule)
    few: IntArray = np.minimum(edges, schedule.stop - schedule.start)
    return few


def _ends_at_an_edge(schedule: Schedule) -> BoolArray:
    """Whether the tile that a segment comes to last has masked scores."""
    ends = [_at_end(schedule), _at_window(schedule)]
    if schedule.grid.tile_order == "backward":
        ends.reverse()
    only: BoolArray = np.equal(schedule.stop - schedule.start, 1)
    at_last: BoolArray = ends[0] | (ends[1] & only)
    return at_last


def _masked_tiles(schedule: Schedule) -> FloatArray:
    """What the masked tokens of each segment's KV tiles come to, in tiles."""
    masked: FloatArray = (schedule.stop - schedule.start) - _tokens(schedule) / schedule.grid.tile_tokens
    return masked


def drift_ps(grid: TileGrid, instance: Instance, device: Device, prices: Prices) -> IntArray:
    """What each SM adds to the ramp of a segment, ps, `[SMs]`: up to twice `latency_spread` of it.

        2 * latency_spread * max(0, prologue + fill) * (SM mod 8 + 1/2) / 8

    Source: `latency_spread` is fitted; that eight classes are enough is assumed. CTAs that start
    together drift apart over the waves, and what one loads another computes meanwhile. There are a few
    classes of SMs, so that CTAs still move in groups and few events are needed.
    """
    once_s = prologue_s(grid, instance, device, prices.fill_s) + prices.fill_s
    return _drift_of(2.0 * device.latency_spread * max(0.0, float(once_s)), grid.num_sms)


@lru_cache(maxsize=256)
def _drift_of(spread_s: float, num_sms: int) -> IntArray:
    return rounded_ps(spread_s * _DISTANCES)[np.arange(num_sms) % DRIFT_CLASSES]


def least_tiles(grid: TileGrid, prices: Prices) -> FloatArray:
    """What the KV tiles of each output tile take at least, however they are dealt, in full tiles.

        tiles - masked tiles * read / tile

    What a masked tile does not read it does not wait for. What tiles cost more at an edge is left out.
    """
    tiles = grid.num_kv_tiles
    masked = tiles - (grid.kv_end - grid.kv_begin) / grid.tile_tokens
    return tiles - masked * (prices.tile.read_s / prices.tile.tile_s)


def least_start_s(grid: TileGrid, instance: Instance, device: Device, prices: Prices) -> float:
    """What a segment takes at least beyond its tiles, on the SM nearest to memory, s.

        loading + (1 - latency_spread) max(0, once) + min(0, once),    once = prologue - loading + fill

    Below 0 where a first tile is cheaper than the others. One that is prefetched has filled before.
    """
    near = 1.0 - device.latency_spread
    least = np.inf
    least_loaded = min(grid.loaded_of_first.min(), grid.loaded_of_last.min())
    for share in (float(least_loaded), 1.0):
        fill_s = float(prices.loop.fill_s(prices.work, share))
        before_s = float(prologue_s(grid, instance, device, fill_s)) - instance.start.loading_s
        for once_s in (before_s + fill_s, before_s if instance.ctas.prefetches_items else np.inf):
            least = min(least, near * max(0.0, once_s) + min(0.0, once_s))
    return float(least + instance.start.loading_s)
