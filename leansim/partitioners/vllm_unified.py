"""vLLM's Triton unified attention: 16 segments for small decode batches (3D), else unsplit (2D).

Ignores ALiBi, multimodal prefixes and batch-invariant mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from leansim.arrays import IntArray
from leansim.partitioners.split_launch import clipped
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

LEAST_CTAS_OF_2D = 128
CAPTURE_SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))


def most_sequences_of_3d(num_kv_heads: int, capture_sizes: tuple[int, ...] = CAPTURE_SIZES) -> int:
    """Largest batch that runs the 3D kernel: what leaves the 2D kernel below 128 CTAs.

    Moved to the nearest batch size that CUDA graphs are captured for; none without graphs. Source:
    vllm, v1/attention/backends/triton_attn.py, TritonAttentionMetadataBuilder.
    """
    threshold = LEAST_CTAS_OF_2D // num_kv_heads
    return min(capture_sizes, key=lambda size: abs(size - threshold)) if capture_sizes else threshold


def decode_tile_tokens(head_dim: int, window: int | None, kv_dtype: str) -> int:
    """Tokens of a KV tile of the 3D kernel: 16, or 32 for 8-bit KV and Gemma 3's windowed layers.

    Source: vllm, v1/attention/ops/triton_unified_attention.py, _get_tile_size.
    """
    gemma3 = window == 1024 and head_dim in (128, 256)
    return 32 if gemma3 or kv_dtype == "fp8" else 16


def query_blocks(grid: TileGrid) -> tuple[IntArray, int]:
    """`[requests]` first block index of each request, and how many are launched.

    The host does not know the query lengths and launches one block more per request than whole blocks
    of new tokens would need; a request that has no use for it leaves it empty. Source: vllm,
    unified_attention (total_num_q_blocks) and kernel_unified_attention (find_seq_idx).
    """
    tokens = grid.workload.query_len
    rows_per_token = grid.rows_per_head // tokens
    request = np.arange(grid.batch_size + 1, dtype=np.int64)
    if rows_per_token > grid.tile_rows:
        first = request * grid.row_blocks
    else:
        first = request * tokens // (grid.tile_rows // rows_per_token) + request
    return first[:-1], int(first[-1])


@dataclass(frozen=True)
class VllmUnified:
    """Segments of equal whole tiles of each request's own length; the SM count is ignored.

    Segments past the end return; those a window leaves without tokens write an empty partial that is
    read back. `cuda_graph` says whether the batch limit of the 3D kernel is moved to a captured size;
    `force_3d` picks a kernel whatever the batch, though only one new token can take the 3D one.
    """

    split_count_option: ClassVar[str] = "segments"

    segments: Annotated[int, Field(ge=1)] = 16
    cuda_graph: bool = True
    force_3d: bool | None = None

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Cut into segments, or not at all."""
        load = grid.workload
        limit = most_sequences_of_3d(load.num_kv_heads, CAPTURE_SIZES if self.cuda_graph else ())
        in_3d = load.query_len == 1 and grid.batch_size <= limit
        if self.force_3d is not None:
            in_3d = self.force_3d and load.query_len == 1
        splits = self.segments if in_3d else 1
        tile = decode_tile_tokens(load.head_dim, load.window, load.kv_dtype)
        unit = max(tile, grid.tile_tokens)
        lens = grid.context_lens[grid.request]
        tokens = -(-lens // (splits * unit)) * unit if in_3d else lens
        length = -(-tokens[:, None] // grid.tile_tokens)
        number = np.arange(splits, dtype=np.int64)
        start, stop = clipped(grid, number * length, (number + 1) * length)
        first, blocks = query_blocks(grid)
        place = first[grid.request] + grid.row_block + blocks * grid.head
        cta = place[:, None] + blocks * grid.heads * number
        order = np.argsort(cta.ravel())
        return Schedule.from_segments(
            grid,
            (cta.ravel()[order], order // splits, start.ravel()[order], stop.ravel()[order]),
            blocks * grid.heads * splits,
            "kernel" if in_3d else "none",
            num_splits=splits,
            partials=-(-lens // tokens) if in_3d else None,
        )
