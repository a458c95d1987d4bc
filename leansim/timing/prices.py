"""What tiles and the start of a segment cost, whatever the schedule and what else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from leansim.arrays import Floats, at_least
from leansim.lazy import cached_property
from leansim.schedule.tiling import TileGrid
from leansim.specs.base import DTYPE_BYTES, Same
from leansim.specs.device import Device
from leansim.specs.instance import Instance, QueryAtOnce, QueryInParts
from leansim.timing import compute, memory
from leansim.timing.loops import registry
from leansim.timing.loops.tile import TileCost, TileLoop, TileWork


@dataclass(frozen=True)
class Prices:
    """A full KV tile, `tile`, and the `work` it is made of; and one at an `edge`, with masked scores.

    That takes `edge_s` longer, and keeps its SM busy for `edge_busy_s` longer. `hit_share` of the KV
    loads hit L2: that much is the memory's state.
    """

    loop: TileLoop
    work: TileWork
    tile: TileCost
    edge: TileWork
    edge_s: float
    edge_busy_s: float
    hit_share: float

    @classmethod
    def of(cls, grid: TileGrid, instance: Instance, device: Device) -> Prices:
        """Price tiles. Raises `PairingError` where the device has no price for one."""
        tile, hit_share = compute.FullTile.of(grid), memory.l2_hit_share(grid, device)
        return _priced(tile, Same(instance), Same(device), hit_share)

    @property
    def masks(self) -> bool:
        """Whether tiles at an edge are not like the others."""
        return self.edge is not self.work

    @cached_property
    def fill_s(self) -> float:
        """What a segment takes beyond its tiles where all of the first is loaded, s."""
        return float(self.loop.fill_s(self.work, 1.0))

    @cached_property
    def fills_alike(self) -> bool:
        """Whether it takes that whatever is loaded of its first tile."""
        return bool(self.loop.fill_s(self.work, 0.0) == self.fill_s)


@lru_cache(maxsize=4096)
def _priced(
    tile: compute.FullTile, instance: Same[Instance], device: Same[Device], hit_share: float
) -> Prices:
    """Kept, as calls of a sweep differ in their batches mostly."""
    numbers, gpu = instance.it, device.it
    work = compute.tile_work(tile, numbers, gpu, hit_share)
    loop = registry.make(numbers.loop, numbers.kernel)
    cost = loop.price(work)
    mask_s = compute.mask_s(tile, numbers.compute, gpu)
    if not mask_s:
        return Prices(loop, work, cost, work, 0.0, 0.0, hit_share)
    edge = replace(work, compute_s=work.compute_s + mask_s)
    at_edge = loop.price(edge)
    more_s, busy_s = at_edge.tile_s - cost.tile_s, at_edge.sm_s - cost.sm_s
    return Prices(loop, work, cost, edge, more_s, busy_s, hit_share)


def prologue_s(grid: TileGrid, instance: Instance, device: Device, fill_s: Floats) -> Floats:
    """Time from the start of a segment to its first KV load, s.

        overhead + q_tile_copies * Q tile bytes / load rate + (loads + 1) * L2 latency

    Dependent reads (sequence length, page table), then Q; all in L2, the query having just been written
    (assumed). Kernels that move whole Q and O tiles through shared memory, masked rows too, pay for
    them `q_tile_copies` times. Where Q is read in parts, others fetch the first KV tile meanwhile,
    which takes `fill_s`.
    """
    start, load = instance.start, grid.workload
    q_bytes = grid.tile_rows * load.head_dim * DTYPE_BYTES[instance.q_dtype]
    fixed_s = start.overhead_s + start.q_tile_copies * q_bytes / device.sm_load_bytes_per_s
    if isinstance(start.query, QueryAtOnce):
        return fixed_s + (start.query.loads + 1) * memory.l2_latency_s(device)
    return fixed_s + _reads_in_parts_s(start.query, grid, instance, device, fill_s)


def _reads_in_parts_s(
    query: QueryInParts, grid: TileGrid, instance: Instance, device: Device, fill_s: Floats
) -> Floats:
    """Reads before the first KV load where some warps read Q in parts while others fetch KV, s.

        reads + max(0, ceil(rows / part) * (latency + clk) - reads - fill - beside)

    The loader of KV looks up the page, and reads the new token if it is to append it. What of Q does not
    hide behind that and the first KV tile is added.
    """
    latency_s = query_latency_s(grid, instance, device)
    rows = min(grid.rows_per_head, grid.tile_rows)
    query_s = -(-rows // query.rows) * (latency_s + query.clk * device.clk_s)
    reads_s = memory.l2_latency_s(device) + (latency_s if instance.ctas.prepares_query else 0.0)
    return reads_s + at_least(query_s - reads_s - fill_s - query.beside_clk * device.clk_s, 0.0)


def query_latency_s(grid: TileGrid, instance: Instance, device: Device) -> float:
    """Mean unloaded latency of a read of one row of Q, s: that of the farthest of its lines.

        hit * L2 + (1 - hit) * DRAM + (1/2 - (1/2)^lines) (far - near)

    A setup kernel has just written it. A kernel that prepares it itself finds in L2 what the replay
    before has left of all that it touched.
    """
    warm = memory.replay_hit_share(grid, device) if instance.ctas.prepares_query else 1.0
    reads = memory.Reads.of(device, warm)
    lines = -(-memory.query_row_bytes(grid.workload) // memory.LINE_BYTES)
    return reads.kv_s + reads.farthest_s(lines)


@lru_cache(maxsize=1024)
def paces_s(alone_s: float, busy_s: tuple[float, ...], together: int) -> tuple[float, ...]:
    """What `queueing_s` gives of one that takes `alone_s`: kept, as a sweep asks for few."""
    return tuple(float(wait_s) for wait_s in queueing_s(alone_s, busy_s, together))


def queueing_s(alone_s: Floats, busy_s: Sequence[float], together: int) -> list[Floats]:
    """What each of 1, 2 .. `together` CTAs on an SM waits for what the others hold of it, s.

        wait(n) = sum over units of busy * queued(n - 1),    queued(0) = 0
        queued(n) = n * (busy + busy * queued(n - 1)) / (alone + wait(n)),    for each unit

    Of the `alone_s` that each takes by itself the SM's units, such as its schedulers, are busy for
    `busy_s` each. Mean value analysis of a closed network of queues (Reiser and Lavenberg 1980): one
    that comes finds as many before it as there are on average with one CTA fewer.
    """
    waits: list[Floats] = []
    queued: list[Any] = [0.0] * len(busy_s)
    for count in range(1, together + 1):
        waiting_s = [unit_s * before for unit_s, before in zip(busy_s, queued, strict=True)]
        taken_s = alone_s + sum(waiting_s)
        queued = [count * (unit_s + s) / taken_s for unit_s, s in zip(busy_s, waiting_s, strict=True)]
        waits.append(sum(waiting_s))
    return waits
