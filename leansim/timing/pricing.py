"""What things cost: pure functions from kernel, device and tile sizes to seconds and rates.

With `tile_pricing` the only place where hardware constants meet work. Each function cites its model.
Everything is steady state or a fixed latency; sharing between CTAs is the engine's job.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from leansim.arrays import FloatArray, IntArray
from leansim.errors import PairingError
from leansim.schedule.tiling import TileGrid
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.device import Device
from leansim.specs.kernel import Combine, Kernel, Merging
from leansim.specs.workload import Workload

LINE_BYTES = 128


def l2_latency_s(device: Device) -> float:
    """Mean load latency of an L2 hit, s: half the hits are in the far partition where there are two."""
    if device.l2_partitions == 1:
        return device.l2_latency_s
    return (device.l2_latency_s + device.l2_far_latency_s) / 2


def l2_hit_share(grid: TileGrid, device: Device) -> float:
    """Share of KV loads that L2 serves, 0 to 1.

    A KV head is read once per row block, and once per query head of its group where the group is
    not packed. What runs at the same time reads it from DRAM once (assumed). Query heads that do not
    all run at the same time (grids go through the batch before they come to the next head) find of it
    what L2 kept meanwhile. In a warm replay the first read finds what L2 kept of the whole.
    """
    workload = grid.workload
    heads = 1 if grid.packed else workload.group_size
    together = min(heads, max(1, grid.slots // (grid.batch_size * grid.row_blocks)))
    rounds = -(-heads // together)
    warm = replay_hit_share(grid, device)
    again = kept_share(workload.kv_bytes / workload.num_kv_heads, device)
    from_dram = (1.0 - warm) + (rounds - 1) * (1.0 - again)
    return 1.0 - min(1.0, from_dram / (grid.row_blocks * heads))


def loaded_kv_bytes(grid: TileGrid) -> float:
    """Distinct KV bytes that the batch reads, more than it attends to where whole pages are loaded."""
    return grid.workload.kv_bytes * grid.loaded_tokens / grid.total_tokens


def touched_bytes(grid: TileGrid) -> float:
    """What a replay passes through L2 before it comes back to the same byte: KV, Q and the output."""
    return loaded_kv_bytes(grid) + grid.workload.q_bytes + grid.workload.o_bytes


def replay_hit_share(grid: TileGrid, device: Device) -> float:
    """Share of what a call touches that L2 kept of the replay before, 0 to 1: of KV, Q and the output.

    Only in a warm replay is there one before (assumed).
    """
    return kept_share(touched_bytes(grid), device) if grid.workload.cache == "warm" else 0.0


def query_latency_s(grid: TileGrid, device: Device) -> float:
    """Mean unloaded latency of a read of one row of Q, s: that of the farthest of its lines.

    A setup kernel has just written it. A kernel that prepares it itself finds in L2 what the replay
    before has left of all that it touched. Each line is as likely in the near as in the far partition of
    L2, where there are two (assumed), and the way to DRAM is as much longer.
    """
    warm = 1.0
    if grid.traits.self_contained:
        warm = replay_hit_share(grid, device)
    lines = -(-query_row_bytes(grid.workload) // LINE_BYTES)
    return kv_latency_s(device, warm) + farthest_s(device, lines)


def farthest_s(device: Device, lines: float) -> float:
    """How much later than a line is on average the farthest of several is there, s."""
    far_s = device.l2_far_latency_s - device.l2_latency_s if device.l2_partitions > 1 else 0.0
    return float((0.5 - 0.5**lines) * far_s)


def kept_share(footprint_bytes: float, device: Device) -> float:
    """Share of a buffer still in L2 when it is read again after `footprint_bytes` of others.

    All of it below `l2_resident_fraction` of L2, none above `l2_lost_fraction` (twice the former where
    nothing is known), linear between (assumed shape; the fractions from replayed decode latencies or
    streams).
    """
    full = device.l2_resident_fraction
    none = device.l2_lost_fraction or 2.0 * full
    return min(1.0, max(0.0, (none - footprint_bytes / device.l2_bytes) / (none - full)))


def kv_latency_s(device: Device, hit_share: float) -> float:
    """Mean unloaded latency of a KV load, s."""
    return hit_share * l2_latency_s(device) + (1.0 - hit_share) * device.dram_latency_s


def query_dtype(workload: Workload, kernel: Kernel) -> str:
    """Element type of the query inside the kernel, and so of its tensor instructions."""
    eight_bit = workload.kv_dtype == "fp8" and kernel.quantises_query
    return "fp8" if eight_bit else workload.q_dtype


def segment_overhead_s(grid: TileGrid, kernel: Kernel, device: Device) -> float:
    """Fixed cost of a segment, s: the instance's, or else the kernel's."""
    return (kernel.segment_overhead_s | grid.traits.segment_overhead_s).get(device.arch, 0.0)


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


def prologue_s(grid: TileGrid, kernel: Kernel, device: Device, fill_s: float = 0.0) -> float:
    """Time from the start of a segment to its first KV load, s.

    `prologue_loads` dependent reads (sequence length, page table), then Q; all in L2, the query
    having just been written (assumed). Kernels that move whole Q and O tiles through shared memory,
    masked rows too, pay for them `q_tile_copies` times. Where some warps read Q in parts while others
    fetch the first KV tile, which takes `fill_s`, what of it they do not hide is added.
    """
    reads = (kernel.prologue_loads + 1) * l2_latency_s(device)
    if (parts := grid.traits.query_reads) is not None:
        latency = query_latency_s(grid, device)
        rows = min(grid.rows_per_head, grid.tile_rows)
        query_s = -(-rows // parts.rows) * (latency + parts.clk * device.clk_s)
        # The loader of KV looks up the page, and reads the new token if it is to append it.
        reads = l2_latency_s(device) + (latency if grid.traits.self_contained else 0.0)
        reads += max(0.0, query_s - reads - fill_s - parts.beside_clk * device.clk_s)
    overhead = segment_overhead_s(grid, kernel, device)
    itemsize = DTYPE_BYTES[query_dtype(grid.workload, kernel)]
    q_bytes = grid.tile_rows * grid.workload.head_dim * itemsize
    return overhead + reads + kernel.q_tile_copies * q_bytes / device.sm_load_bytes_per_s


def kernel_gap_s(device: Device, launch: str) -> float:
    """Time between the end of one kernel and the start of the next, s (small dependent kernels).

    Raises `PairingError` for a launch mode the device does not have (PDL before sm_90).
    """
    gaps: dict[str, float] = dict(device.kernel_gap_s)  # type: ignore[arg-type]
    if launch not in gaps:
        raise PairingError(
            f"device {device.name!r} ({device.arch}) has no launch mode {launch!r}; "
            f"it has {', '.join(gaps)}"
        )
    return gaps[launch]


def combine_gap_s(device: Device, launch: str, start: str) -> float:
    """Time between the last partial written and the first CTA of the combine step, s.

    A barrier of the grid costs each CTA a release and the sight of a flag; programmatic dependent
    launch falls back to the call's own launch mode on devices without it.
    """
    if start == "grid_sync":
        return release_s(device) + device.flag_latency_s
    has_pdl = start == "pdl" and "pdl" in device.kernel_gap_s
    return kernel_gap_s(device, "pdl" if has_pdl else launch)


def release_s(device: Device) -> float:
    """Time a peer needs to publish a partial: device-scope fence, then the flag's atomic, s."""
    return device.fence_s + device.atomic_s


def merge_latency_s(
    device: Device,
    partials: IntArray,
    splits_in_flight: int,
    grains: IntArray | int = 1,
    computing_s: FloatArray | float = 0.0,
) -> FloatArray:
    """Time a merging CTA needs from the last flag to merged, without the bytes, s.

    It sees the flag, then reads `splits_in_flight` partials at a time, one L2 latency each time: 1 in
    the LeanAttention kernels. Where it takes the rows in `grains`, it does so for each. It is no sooner
    done than `computing_s` after the first has come.
    """
    rounds = grains * np.ceil(np.asarray(partials, dtype=np.float64) / splits_in_flight)
    latency_s = l2_latency_s(device)
    return device.flag_latency_s + np.maximum(rounds * latency_s, latency_s + computing_s)


def merge_grains(workload: Workload, kernel: Kernel, rows: IntArray, sharing: IntArray) -> IntArray:
    """Grains of its rows that a CTA merges one after the other, where `sharing` share a merge.

    A warpgroup takes 16 B a thread of each partial at a time, its CTA every `sharing`th part of the
    rows (trtllm-gen's reducePartialO and FlashInfer's csrc/fmhaReduction.cu, which is the same loop).
    """
    if kernel.merge_grain_bytes is None:
        return np.ones_like(sharing)
    row_bytes = workload.value_dim * DTYPE_BYTES[kernel.partial_dtype]
    grains = -(-rows * row_bytes // kernel.merge_grain_bytes)
    return -(-grains // (sharing if kernel.shared_merge else 1))


def merge_computing_s(
    merging: Merging | None, partials: IntArray, rows: IntArray, device: Device
) -> FloatArray | float:
    """What a CTA computes to merge so many partials of `rows` rows, s."""
    if merging is None:
        return 0.0
    rows_of_warp = np.ceil(np.asarray(rows, dtype=np.float64) / merging.warps)
    clk: FloatArray = merging.once_clk + partials * (merging.clk + rows_of_warp * merging.row_clk)
    return clk * device.clk_s


def combine_latency_s(device: Device, combine: Combine, splits: IntArray) -> FloatArray:
    """Time of one CTA of the combine kernel, without the bytes, s.

    It reads the LSE row, then the partials with `splits_in_flight` loads outstanding: 1 in FA2's
    combine, which does not prefetch. A CTA whose rows went through no partials returns at once.
    """
    reads: FloatArray = 1.0 + np.ceil(np.asarray(splits, dtype=np.float64) / combine.splits_in_flight)
    taken = combine.overhead_s.get(device.arch, 0.0) + reads * l2_latency_s(device)
    return np.where(np.greater(splits, 0), taken, 0.0)


def query_row_bytes(workload: Workload) -> int:
    """Bytes of one row of Q."""
    return workload.head_dim * DTYPE_BYTES[workload.q_dtype]


def output_row_bytes(workload: Workload) -> int:
    """Bytes of one row of the output, in the query's dtype."""
    return workload.value_dim * DTYPE_BYTES[workload.q_dtype]


def partial_row_bytes(workload: Workload, kernel: Kernel) -> int:
    """Bytes of one row of a partial: the un-merged output and its log-sum-exp in float32."""
    return workload.value_dim * DTYPE_BYTES[kernel.partial_dtype] + 4
