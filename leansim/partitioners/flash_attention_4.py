"""FlashAttention-4's decode schedule: as many splits as the SMs hold side by side, for the whole call.

Not modelled: its schedulers for prefill, and the order of heads it picks for the sake of L2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from leansim.partitioners.flash_attention_3 import MAX_SPLITS, deal, loaded_kv_tiles
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

_LEAST_KV_TILES = 5


def num_splits_heuristic(work: int, kv_tiles: int, num_sms: int, max_splits: int = MAX_SPLITS) -> int:
    """FA4's rule: one wave at most, so `num_sms // work` splits; none below 5 KV tiles.

    0, where `work` CTAs exceed the SMs, means no split just as 1 does
    (flash-attention flash_attn/cute/interface.py, num_splits_heuristic).
    """
    if kv_tiles < _LEAST_KV_TILES:
        return 1
    return min(num_sms // work, max_splits, kv_tiles)


@dataclass(frozen=True)
class FlashAttention4:
    """One split count for the whole call, from the host's rule or given; no CTA is persistent.

    CTAs are issued row block first, then split, then head and request.
    """

    num_splits: Annotated[int, Field(ge=1, le=MAX_SPLITS)] | None = None

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Cut all output tiles into the same number of splits."""
        load = grid.workload
        row_blocks = -(-load.query_len * load.group_size // grid.tile_rows)
        work = grid.batch_size * load.num_kv_heads * row_blocks
        splits = self.num_splits
        if splits is None:
            splits = max(1, num_splits_heuristic(work, loaded_kv_tiles(grid), grid.num_sms))
        every = np.full(grid.batch_size, splits)
        return deal(grid, every, splits, np.arange(grid.batch_size), "grid")
