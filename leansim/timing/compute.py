"""A full KV tile in parts: what its scores take on the units of an SM, and what its loads are."""

from __future__ import annotations

from typing import NamedTuple

from leansim.errors import PairingError
from leansim.schedule.tiling import TileGrid
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.device import Device
from leansim.specs.instance import ComputeNumbers, Instance
from leansim.timing.loops.tile import TileWork
from leansim.timing.memory import Reads

# Rows one warpgroup computes; its softmax can hide behind the tensor work of another only.
WARPGROUP_ROWS = 64
# Page-table entries of 4 B in a cache line.
PAGES_PER_LINE = 32


class FullTile(NamedTuple):
    """What a full KV tile of a call is, before any device: tiles that are alike have one price.

    `gathered` says whether single tokens are, or runs of them shorter than the pages of the call.
    """

    rows: int
    tokens: int
    head_dim: int
    value_dim: int
    kv_dtype: str
    kv_bytes_per_token: int
    page_tokens: int
    gathered: bool

    @classmethod
    def of(cls, grid: TileGrid) -> FullTile:
        """That of a tiled call."""
        load = grid.workload
        return cls(
            grid.tile_rows,
            grid.tile_tokens,
            load.head_dim,
            load.value_dim,
            load.kv_dtype,
            load.kv_bytes_per_token,
            load.page_tokens,
            load.page_tokens < grid.asked.page_tokens,
        )


def tile_work(tile: FullTile, instance: Instance, device: Device, hit_share: float) -> TileWork:
    """Say what a full KV tile is made of. Raises `PairingError` for a dtype without tensor cores.

        qk      = 2 R T (d + p) / rate,    pv = 2 R T (d_v + p) / rate
        compute = max(softmax, qk + shown softmax + pv) + stall

    Times in s; `R` rows and `T` tokens of a tile, `d`, `d_v` head dims of K and V, `p` columns of
    padding, rate in FLOP/s. Tensor time counts every row of the tile, valid or not, and every column of
    the instance, padding too, at the kernel's share of the dense rate. A latent cache has no V to load.
    What pads a row in shared memory comes from nowhere, and is written all the same.
    """
    compute, rows, tokens = instance.compute, tile.rows, tile.tokens
    k_bytes = tokens * tile.head_dim * DTYPE_BYTES[tile.kv_dtype]
    rate = _tensor_flop_per_s(instance, device)
    qk_s = 2 * rows * tokens * (tile.head_dim + compute.padding) / rate
    pv_s = 2 * rows * tokens * (tile.value_dim + compute.padding) / rate
    softmax_s, shown_s = softmax_time_s(rows, tokens, compute, device)
    sm_rate, reads = device.sm_load_bytes_per_s, Reads.of(device, hit_share)
    page_lines = tokens / (tile.page_tokens * PAGES_PER_LINE)
    return TileWork(
        tokens=tokens,
        k_bytes=k_bytes,
        v_bytes=tokens * tile.kv_bytes_per_token - k_bytes,
        page_lines=page_lines,
        reads=reads,
        clk_s=device.clk_s,
        sm_bytes_per_s=sm_rate,
        load_bytes_per_s=sm_rate * tile.head_dim / (tile.head_dim + compute.padding),
        qk_s=qk_s,
        pv_s=pv_s,
        softmax_s=softmax_s,
        compute_s=max(softmax_s, qk_s + shown_s + pv_s) + compute.stall_s,
        stall_s=compute.stall_s,
        first_stall_s=compute.first_stall_s,
        lookup_s=_lookup_s(page_lines, reads) if tile.gathered else 0.0,
    )


def _lookup_s(lines: float, reads: Reads) -> float:
    """What the loads of a full KV tile that is gathered wait for the entries of a list, s.

        min(1, lines) * L2 latency + (1/2 - (1/2)^lines) (far - near)
        lines = tile tokens / (tokens of a run * 32)

    A line of 128 B has the places of 32 runs of tokens. Those of a tile are read together, each tile's
    before its tokens, from L2, as the list has just been written (assumed). A first tile's are among the
    reads of the prologue. Runs shorter than a page are gathers; that their rows of 256 B or so, whole
    sectors each, come from DRAM as fast as longer runs is assumed.
    """
    return min(1.0, lines) * reads.l2_s + reads.farthest_s(max(1.0, lines))


def softmax_time_s(
    rows: int, tokens: int, compute: ComputeNumbers, device: Device
) -> tuple[float, float]:
    """Softmax of one KV tile, and what of it no tensor work hides, s.

        softmax = R T (1 / exp per clk + fma per score / fma per clk) clk
        shown   = (1 - overlap) softmax where R > 64, else softmax

    One exp per score and `softmax_fma_per_score` FP32 operations. Two warpgroups or more take turns.
    """
    scores = rows * tokens
    exp_s = scores / device.exp_per_clk_per_sm * device.clk_s
    fma_clk = scores * compute.softmax_fma_per_score / device.fp32_fma_per_clk_per_sm
    softmax_s = exp_s + fma_clk * device.clk_s
    overlap = compute.softmax_overlap if rows > WARPGROUP_ROWS else 0.0
    return softmax_s, (1.0 - overlap) * softmax_s


def mask_s(tile: FullTile, compute: ComputeNumbers, device: Device) -> float:
    """What masking the scores of a KV tile at an edge takes, s: `R T fma per score / fma per clk * clk`.

    An instance for causal masks compares those of the last KV tile, one for windows those of the first
    as well (flash-attention hopper/mask.h); tiles between have none.
    """
    fma = tile.rows * tile.tokens * compute.mask_fma_per_score
    return fma / device.fp32_fma_per_clk_per_sm * device.clk_s


def _tensor_flop_per_s(instance: Instance, device: Device) -> float:
    """Tensor rate of one SM as the kernel's instructions reach it, FLOP/s."""
    rate = device.tensor_flop_per_s_per_sm(instance.q_dtype)
    if rate is None:
        raise PairingError(f"device {device.name!r} has no tensor throughput for {instance.q_dtype}")
    return rate * instance.compute.mma_efficiency
