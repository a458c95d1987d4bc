"""What a KV tile takes on one CTA: computing it, loading it, and how a kernel's loop overlaps the two.

Pure functions, as `pricing`, which says what memory, launches and merges cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from leansim.errors import PairingError
from leansim.schedule.tiling import TileGrid, is_local, per_arch
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.device import Device
from leansim.specs.kernel import Chain, Kernel
from leansim.timing.pricing import LINE_BYTES, farthest_s, kv_latency_s, query_dtype

# Rows one warpgroup computes; its softmax can hide behind the tensor work of another only.
WARPGROUP_ROWS = 64
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


def tensor_flop_per_s(grid: TileGrid, kernel: Kernel, device: Device) -> float:
    """Tensor rate of one SM as the kernel's instructions reach it, FLOP/s."""
    dtype = query_dtype(grid.workload, kernel)
    rate = device.tensor_flop_per_s_per_sm(dtype)
    if rate is None:
        raise PairingError(f"device {device.name!r} has no tensor throughput for {dtype}")
    return rate * (grid.traits.mma_efficiency or per_arch(kernel.mma_efficiency, kernel, device))


def computed_share(grid: TileGrid) -> float:
    """What a KV tile is of the tokens that a CTA computes at a time."""
    return grid.tile_tokens / (grid.traits.computed_tokens or grid.tile_tokens)


def chain_busy_s(chain: Chain, grid: TileGrid, device: Device) -> tuple[float, float]:
    """What a full KV tile of a chain takes of the schedulers and of the pipe of loads and stores, s."""
    share = computed_share(grid)
    return share * chain.issue_clk * device.clk_s, share * chain.pipe_clk * device.clk_s
