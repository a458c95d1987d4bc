"""What things cost: pure functions from kernel, device and tile sizes to seconds and rates.

The only place where hardware constants meet work. Each function cites its model. Everything is
steady state or a fixed latency; sharing between CTAs is the engine's job.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from leansim.device import Device
from leansim.errors import PairingError
from leansim.kernel import Chain, Combine, Kernel, Merging
from leansim.spec import DTYPE_BYTES
from leansim.tiling import IntArray, TileGrid, is_local, per_arch
from leansim.workload import Workload

FloatArray = npt.NDArray[np.float64]
# Rows one warpgroup computes; its softmax can hide behind the tensor work of another only.
WARPGROUP_ROWS = 64
LINE_BYTES = 128
# Sectors of 32 B that L2 brings from DRAM at a time: 64 B (assumed; cudaLimitMaxL2FetchGranularity, that
# nobody sets here, allows 32 to 128).
SECTORS_PER_FETCH = 2
# Page-table entries of 4 B in a cache line.
PAGES_PER_LINE = 32


@dataclass(frozen=True)
class TileCost:
    """One full KV tile on one CTA that has its SM to itself.

    `tile_s` is the time per tile in a long run, `fill_s` what a run costs beyond its tiles (below 0
    where the first is cheaper than the others), `sm_s`
    the time its SM has for nothing else, `compute_s` what QK, softmax and PV take, `tensor_s` QK and
    PV. `offered_bytes_per_s` is what its loads in flight would bring from an unloaded memory (Little).
    """

    tile_bytes: int
    tile_s: float
    fill_s: float
    sm_s: float
    compute_s: float
    tensor_s: float
    offered_bytes_per_s: float

    @property
    def max_bytes_per_s(self) -> float:
        """Most a CTA can stream, alone on its SM."""
        return self.tile_bytes / self.tile_s


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


@dataclass(frozen=True)
class _Parts:
    """A full KV tile in parts: bytes, what computing takes by kind, s, and how loads come."""

    k_bytes: int
    v_bytes: int
    latency_s: float
    load_bytes_per_s: float
    qk_s: float
    pv_s: float
    softmax_s: float
    stall_s: float
    first_stall_s: float
    compute_s: float

    @property
    def tile_bytes(self) -> int:
        return self.k_bytes + self.v_bytes

    @property
    def transfer_s(self) -> float:
        return self.tile_bytes / self.load_bytes_per_s


def tile_cost(grid: TileGrid, kernel: Kernel, device: Device, hit_share: float) -> TileCost:
    """Price a full KV tile, as the kernel's loop overlaps its parts.

    A tile is never done sooner than what depends on itself is (`tile_chain_s`), which leaves the SM to
    others. A CTA with a `chain` takes all of it for each tile, the loads too.
    """
    parts = _parts(grid, kernel, device, hit_share)
    if (chain := grid.traits.chain.get(device.arch)) is not None:
        return _chained(chain, grid, device, parts, hit_share)
    if kernel.pipeline == "single_buffered":
        tile_s, fill_s, in_flight_bytes = _single_buffered(parts, grid.loaded_share)
    else:
        tile_s, fill_s, in_flight_bytes = _pipelined(parts, grid, kernel, device)
    return TileCost(
        tile_bytes=parts.tile_bytes,
        tile_s=max(tile_s, grid.traits.tile_chain_s.get(device.arch, 0.0)),
        fill_s=fill_s,
        sm_s=max(parts.compute_s, parts.transfer_s),
        compute_s=parts.compute_s,
        tensor_s=parts.qk_s + parts.pv_s,
        offered_bytes_per_s=in_flight_bytes / parts.latency_s,
    )


def _parts(grid: TileGrid, kernel: Kernel, device: Device, hit_share: float) -> _Parts:
    """What a full KV tile is made of.

    Tensor time counts every row of the tile, valid or not, and every column of the instance, padding
    too, at the kernel's share of the dense rate. A latent cache has no V to load. What pads a row in
    shared memory comes from nowhere, and is written all the same.
    """
    load = grid.workload
    rows, tokens = grid.tile_rows, grid.tile_tokens
    k_bytes = tokens * load.head_dim * DTYPE_BYTES[load.kv_dtype]
    rate = tensor_flop_per_s(grid, kernel, device)
    padding = grid.traits.padding(load.head_dim)
    qk_s = 2 * rows * tokens * (load.head_dim + padding) / rate
    pv_s = 2 * rows * tokens * (load.value_dim + padding) / rate
    softmax_s, shown_s = softmax_time_s(grid, kernel, device)
    stall_s, first_stall_s = stalls_s(grid, kernel, device)
    return _Parts(
        k_bytes=k_bytes,
        v_bytes=tokens * load.kv_bytes_per_token - k_bytes,
        latency_s=kv_latency_s(device, hit_share),
        load_bytes_per_s=device.sm_load_bytes_per_s * load.head_dim / (load.head_dim + padding),
        qk_s=qk_s,
        pv_s=pv_s,
        softmax_s=softmax_s,
        stall_s=stall_s,
        first_stall_s=first_stall_s,
        compute_s=max(softmax_s, qk_s + shown_s + pv_s) + stall_s + mask_s(grid, device),
    )


def _single_buffered(parts: _Parts, loaded_share: float) -> tuple[float, float, int]:
    """Time of a tile, of what a run takes beyond its tiles, and bytes in flight, with one buffer each.

    FA2's split-KV loop: wait K, issue V, QK, wait V, issue next K, softmax, PV. n tiles take n * (max(V
    load, QK) + max(K load, softmax + PV)) + min(K load, softmax + PV), of the first K what is not
    masked. A load is one latency plus its bytes at the SM's load rate.
    """
    rate, latency = parts.load_bytes_per_s, parts.latency_s
    k_s = latency + parts.k_bytes / rate
    v_s = latency + parts.v_bytes / rate if parts.v_bytes else 0.0
    tile_s = max(v_s, parts.qk_s) + max(k_s, parts.softmax_s + parts.pv_s)
    first_s = latency + loaded_share * parts.k_bytes / rate
    in_flight = max(parts.k_bytes, parts.v_bytes)
    return tile_s, min(first_s, parts.softmax_s + parts.pv_s), in_flight


def _pipelined(
    parts: _Parts, grid: TileGrid, kernel: Kernel, device: Device
) -> tuple[float, float, int]:
    """The same with `kv_stages` tiles in flight.

    n tiles take n * max(compute, load / stages) + load, of the last load what is not masked. The loader
    of an 8-bit cache paces the loop where it transposes more slowly than the rest computes; a single
    tile then takes what the loader takes and no more. The first tile has its own stalls.
    """
    stages = grid.traits.kv_stages or kernel.kv_stages
    load_s = parts.latency_s + parts.transfer_s
    loader_s = transpose_s(grid, kernel, device, parts.latency_s)
    tile_s = max(parts.compute_s, loader_s, load_s / stages, parts.transfer_s)
    first_s = parts.latency_s + grid.loaded_share * parts.transfer_s
    fill_s = max(0.0, first_s - max(0.0, loader_s - parts.compute_s))
    return tile_s, fill_s + parts.first_stall_s - parts.stall_s, stages * parts.tile_bytes


def _chained(chain: Chain, grid: TileGrid, device: Device, parts: _Parts, hit_share: float) -> TileCost:
    """Price a full KV tile of a CTA that overlaps nothing; of masked tokens nothing is read.

    At least one read is waited for. Where all of a tile's are waited for at once, they are issued ahead
    of it, and those of the first before the loop, its indices at once. What is waited for together is
    there with the farthest of its lines. L2 keeps indices as it keeps KV, and brings two sectors of
    them at once. What it offers memory is what it moves, as it does not load ahead.
    """
    share = computed_share(grid)
    compute_s = share * chain.clk * device.clk_s
    transfer_s = parts.tile_bytes / device.sm_load_bytes_per_s
    kv_reads, index_reads = (share * reads for reads in (chain.kv_reads, chain.index_reads))
    latency = kv_latency_s(device, hit_share)
    latency += farthest_s(device, parts.tile_bytes / LINE_BYTES / max(1.0, kv_reads))
    index_s = kv_latency_s(device, 1.0 - (1.0 - hit_share) / SECTORS_PER_FETCH)
    read_s = grid.loaded_share * (kv_reads * latency + index_reads * index_s + transfer_s)
    tile_s = compute_s + read_s
    fill_s = latency + index_s - read_s
    return TileCost(
        tile_bytes=parts.tile_bytes,
        tile_s=tile_s,
        fill_s=fill_s if chain.kv_reads <= 1.0 else max(0.0, fill_s),
        sm_s=max(*chain_busy_s(chain, grid, device), transfer_s),
        compute_s=compute_s,
        tensor_s=parts.qk_s + parts.pv_s,
        offered_bytes_per_s=parts.tile_bytes / tile_s,
    )


def softmax_time_s(grid: TileGrid, kernel: Kernel, device: Device) -> tuple[float, float]:
    """Softmax of one KV tile, and what of it no tensor work hides, s.

    One exp per score and `softmax_fma_per_score` FP32 operations, with a window `window_fma_per_score`
    more. Two warpgroups or more take turns.
    """
    scores = grid.tile_rows * grid.tile_tokens
    exp_s = scores / device.exp_per_clk_per_sm * device.clk_s
    per_score = kernel.softmax_fma_per_score
    per_score += kernel.window_fma_per_score if grid.workload.window else 0.0
    fma_clk = scores * per_score / device.fp32_fma_per_clk_per_sm
    softmax_s = exp_s + fma_clk * device.clk_s
    hides = grid.tile_rows > WARPGROUP_ROWS and grid.traits.overlaps
    overlap = kernel.softmax_overlap.get(device.arch, 0.0) if hides else 0.0
    return softmax_s, (1.0 - overlap) * softmax_s


def stalls_s(grid: TileGrid, kernel: Kernel, device: Device) -> tuple[float, float]:
    """What 8-bit output added up in two accumulators adds to any KV tile and to the first, s.

    With both and the scores there are more values than registers from head dim 128 or 192 on, and what
    does not fit moves to local memory and back; and the compiler makes every tensor instruction wait for
    the one before (vllm-project/flash-attention hopper/utils.h, gemm). While one warpgroup waits another
    moves, so the longer counts (assumed). Bytes and waits are those of an instance's compiled code.
    """
    rate = kernel.spill_bytes_per_s.get(device.arch, math.inf)
    waits_s = grid.traits.tensor_waits * kernel.tensor_wait_s.get(device.arch, 0.0)
    spilled, first = grid.traits.spilled_bytes, grid.traits.first_spilled_bytes
    return max(waits_s, spilled / rate), max(waits_s, first / rate)


def mask_s(grid: TileGrid, device: Device) -> float:
    """What masking the scores of KV tiles at an edge takes, s, mean over the tiles.

    An instance for causal masks compares those of the last KV tile, one for windows those of the first
    as well (flash-attention hopper/mask.h); tiles between have none.
    """
    if not grid.traits.mask_fma_per_score:
        return 0.0
    edges = (2 if is_local(grid.workload) else 1) * grid.num_output_tiles
    share = min(1.0, edges / max(1, grid.total_kv_tiles))
    fma = share * grid.tile_rows * grid.tile_tokens * grid.traits.mask_fma_per_score
    return fma / device.fp32_fma_per_clk_per_sm * device.clk_s


def transpose_s(grid: TileGrid, kernel: Kernel, device: Device, latency_s: float) -> float:
    """Time the loading warps need for a tile of 8-bit KV, s: 0 where they transpose nothing.

    FlashAttention-3 needs V with tokens innermost. Its loading warps look up the tile's pages (a read
    from memory, unless the entries lie in the cache line of the tile before), wait for V, and pass it
    through registers (hopper/mainloop_fwd_sm90_tma_gmma_ws.hpp, copy_Vt_to_V). Only then do they
    load more.
    """
    workload, arch = grid.workload, device.arch
    if DTYPE_BYTES[workload.kv_dtype] != 1 or arch not in kernel.transpose_bytes_per_s:
        return 0.0
    lines = grid.tile_tokens / (workload.page_tokens * PAGES_PER_LINE)
    v_bytes = grid.tile_tokens * workload.value_dim
    return min(1.0, lines) * latency_s + v_bytes / kernel.transpose_bytes_per_s[arch]


def query_dtype(workload: Workload, kernel: Kernel) -> str:
    """Element type of the query inside the kernel, and so of its tensor instructions."""
    eight_bit = workload.kv_dtype == "fp8" and kernel.quantises_query
    return "fp8" if eight_bit else workload.q_dtype


def tensor_flop_per_s(grid: TileGrid, kernel: Kernel, device: Device) -> float:
    """Tensor rate of one SM as the kernel's instructions reach it, FLOP/s."""
    dtype = query_dtype(grid.workload, kernel)
    rate = device.tensor_flop_per_s_per_sm(dtype)
    if rate is None:
        raise PairingError(f"device {device.name!r} has no tensor throughput for {dtype}")
    return rate * (grid.traits.mma_efficiency or per_arch(kernel.mma_efficiency, kernel, device))


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


def computed_share(grid: TileGrid) -> float:
    """What a KV tile is of the tokens that a CTA computes at a time."""
    return grid.tile_tokens / (grid.traits.computed_tokens or grid.tile_tokens)


def chain_busy_s(chain: Chain, grid: TileGrid, device: Device) -> tuple[float, float]:
    """What a full KV tile of a chain takes of the schedulers and of the pipe of loads and stores, s."""
    share = computed_share(grid)
    return share * chain.issue_clk * device.clk_s, share * chain.pipe_clk * device.clk_s


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
