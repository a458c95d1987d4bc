"""Splits of one size for every request, whatever else is in the batch: batch-invariant.

No kernel's own rule; FlashInfer's `fixed_split_size` and SGLang's deterministic mode cut like this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from leansim.partitioners.split_launch import clipped
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device


@dataclass(frozen=True)
class FixedSplitSize:
    """Cuts at multiples of `split_tokens`, rounded up to whole KV tiles; the last split is what is left.

    A request is cut and merged alike alone and in any batch. CTAs are issued row block first, then
    split, then head, then request; none is empty. A second kernel merges if any request is split.
    """

    chooses: ClassVar[bool] = False

    split_tokens: Annotated[int, Field(ge=1)] = 2048

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Cut every request at the same places."""
        length = -(-self.split_tokens // grid.tile_tokens)
        last_tile = grid.first_kv_tile + grid.num_kv_tiles
        number = np.arange(-(-int(last_tile.max()) // length), dtype=np.int64)
        start, stop = clipped(grid, number * length, (number + 1) * length)
        shape = (grid.batch_size, grid.heads, grid.row_blocks, len(number))
        order = np.arange(start.size).reshape(shape).transpose(0, 1, 3, 2).ravel()
        order = order[(start < stop).ravel()[order]]
        tile = order // len(number)
        return Schedule(
            grid=grid,
            cta=np.arange(len(order)),
            output_tile=tile,
            start=start.ravel()[order],
            stop=stop.ravel()[order],
            num_ctas=len(order),
            combine="kernel" if len(order) > grid.num_output_tiles else "none",
        )
