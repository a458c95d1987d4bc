"""Stream-K over a tree of prefixes: equal KV tiles for every CTA, and one kernel that merges.

LeanAttention's line of tiles with the tiles of shared prefixes in it. A row may have partials of its
prefixes and of what follows them, so hosts would not be through with it: all are merged at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from leansim.partitioners.stream_k import Deal, cut
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device


@dataclass(frozen=True)
class LeanCascade:
    """As many CTAs as run at one time, or `num_ctas`, and never more than there are tiles."""

    num_ctas: Annotated[int, Field(ge=1)] | None = None

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Deal equal shares of the line of tiles."""
        total = grid.total_kv_tiles
        deal = Deal(total, min(self.num_ctas or grid.slots, total))
        segments = cut(deal.borders, grid.num_kv_tiles, np.arange(grid.num_output_tiles))
        split = len(segments[0]) > grid.num_output_tiles
        return Schedule.from_segments(grid, segments, deal.num_ctas, "kernel" if split else "none")
