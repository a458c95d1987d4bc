"""PyTorch FlexDecoding: a split count fixed at compile time from batch, KV heads and SMs alone.

Ignores score modifiers and sparse masks other than a window. With fewer than 128 new tokens no block of
`create_block_mask` is whole (its 128 rows are padded with masked ones), so that all KV is in one list of
blocks, in order, and a mask is computed for each tile. Not modelled: the second tile of a block that a
context ends in the first of is gone through too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from leansim.errors import PartitionerError
from leansim.partitioners.split_launch import Order, fixed_splits
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

ISSUE_ORDER: Order = ("row_block", "head", "request", "split")
MOST_QUERY_TOKENS = 127


def split_k(work: int, num_sms: int) -> int:
    """Splits for `work` requests times KV heads: about two CTAs per SM, whatever the context.

    The division comes before the doubling: 2 for anything between half the SMs and all of them.
    Source: pytorch, torch/_inductor/kernel/flex/flex_decoding.py, get_split_k.
    """
    return max(num_sms // max(work, 1) * 2, 1)


@dataclass(frozen=True)
class FlexDecoding:
    """Equal splits of the call's longest context; inductor's kernels merge all of them.

    All rows of a KV head are one CTA's. Splits past a request's last KV tile write an empty partial.
    With a window the splits count the blocks the mask leaves, so that the first get them all.
    """

    num_splits: Annotated[int, Field(ge=1)] | None = None

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Cut all output tiles alike."""
        load = grid.workload
        if load.query_len > MOST_QUERY_TOKENS:
            raise PartitionerError(
                f"flex_decoding takes at most {MOST_QUERY_TOKENS} new tokens, found {load.query_len}"
            )
        splits = self.num_splits or split_k(grid.batch_size * load.num_kv_heads, grid.num_sms)
        share = -(-load.call_context_len // splits)
        length = -(-share // grid.tile_tokens)
        number = np.arange(splits + 1, dtype=np.int64)
        border = np.minimum(number * length, grid.num_kv_tiles[:, None])
        return fixed_splits(
            grid,
            splits,
            (border[:, :-1], border[:, 1:]),
            ISSUE_ORDER,
            "kernel",
            partials=np.full(grid.num_output_tiles, splits, dtype=np.int64),
        )
