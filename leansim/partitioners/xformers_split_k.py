"""xFormers' Triton split-k decode: a split count from batch and context that knows no SM count.

Ignores the AMD branch of the rule and page-size limits of the autotuner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from leansim.errors import PartitionerError
from leansim.partitioners.split_launch import Order, fixed_splits, token_borders
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

ISSUE_ORDER: Order = ("row_block", "head", "request", "split")
MOST_SPLITS = 64


def split_k(
    batch_size: int, kv_heads: int, heads_per_kv_head: int, context_len: int, query_len: int
) -> int:
    """Splits of each output tile.

    `context_len` is the longest in tokens. `kv_heads` and `heads_per_kv_head` are G and H of xFormers'
    BMGHK layout, so that G * H are the query heads. Source: xformers, ops/fmha/triton_splitk.py,
    FwOp.get_split_k, CUDA branch.
    """
    if query_len > 1 and batch_size * kv_heads * heads_per_kv_head > MOST_SPLITS:
        return 1
    work = batch_size * heads_per_kv_head
    splits = max(context_len, 1024) // work
    least_tokens = 64 if context_len <= 512 and work <= 64 else 128
    while splits > context_len / least_tokens:
        splits //= 2
    return max(1, min(splits, MOST_SPLITS))


@dataclass(frozen=True)
class XformersSplitK:
    """Equal splits of the call's longest context in whole KV tiles, merged by a second kernel.

    Splits past a request's end write an empty partial, and the merge reads it. `expanded` says that
    the heads of a group are one KV head expanded without a copy: then xFormers swaps them into rows of
    queries, and its rule sees one head (`mqa_swap_seqlen_head`).
    """

    num_splits: Annotated[int, Field(ge=1)] | None = None
    expanded: bool = False

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Cut all output tiles at the same borders."""
        load = grid.workload
        if load.window is not None:
            raise PartitionerError("xformers_split_k has no sliding window")
        splits = self.num_splits or split_k(
            grid.batch_size,
            load.num_kv_heads,
            1 if self.expanded else load.group_size,
            load.call_context_len,
            load.query_len,
        )
        share = np.full(grid.num_output_tiles, -(-load.call_context_len // splits), dtype=np.int64)
        partials = np.full(grid.num_output_tiles, splits, dtype=np.int64) if splits > 1 else None
        borders = token_borders(grid, share, splits)
        return fixed_splits(grid, splits, borders, ISSUE_ORDER, "kernel", partials=partials)
