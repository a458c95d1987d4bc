"""FlashAttention-2's unsplit decode: one CTA for each output tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leansim.arrays import IntArray
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device


def issue_order(grid: TileGrid) -> IntArray:
    """Output tiles in the order of FA2's unsplit launch (row blocks, batch, heads): heads slowest."""
    tiles = np.arange(grid.num_output_tiles).reshape(grid.batch_size, grid.heads, grid.row_blocks)
    return tiles.transpose(1, 0, 2).ravel()


@dataclass(frozen=True)
class FlashAttention2:
    """One CTA per output tile, issued row block first, then request, then head."""

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Give each CTA one whole output tile."""
        order = issue_order(grid)
        n = len(order)
        return Schedule(
            grid=grid,
            cta=np.arange(n),
            output_tile=order,
            start=np.zeros(n, dtype=np.int64),
            stop=grid.num_kv_tiles[order],
            num_ctas=n,
        )
