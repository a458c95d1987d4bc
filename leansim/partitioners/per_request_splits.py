"""Any split count for each request: what a search over split counts, or a server of yours, would run.

No kernel's own rule. Every request is cut into equal segments of its own KV tiles, as FlashAttention-3
cuts them, and no CTA is launched for a segment that would be empty.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from leansim.arrays import IntArray
from leansim.errors import PartitionerError
from leansim.partitioners.flash_attention_3 import deal
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

Splits = Annotated[int, Field(ge=1)]


def tiles_of_request(grid: TileGrid) -> IntArray:
    """`[batch]` KV tiles of each request's longest output tile."""
    longest: IntArray = grid.num_kv_tiles.reshape(grid.batch_size, -1).max(axis=1)
    return longest


def filled_segments(tiles: IntArray, splits: IntArray) -> IntArray:
    """`[batch]` how many of `splits` equal segments of `ceil(tiles / splits)` KV tiles hold any."""
    splits = np.minimum(splits, tiles)
    filled: IntArray = -(-tiles // -(-tiles // splits))
    return filled


@dataclass(frozen=True)
class PerRequestSplits:
    """Each request cut into its own number of equal segments; `num_splits` is one count or one each.

    CTAs are issued row block first, then split, then head, then request: in the order of the batch
    (`issue`), or the requests with the longest segments first (`longest_first`). Partials are merged by
    a second `kernel`, which runs if any request is split, or by the `last` CTA of an output tile to
    arrive, for kernels that have no second one. Unsplit requests write their output at once.
    """

    chooses: ClassVar[bool] = False

    num_splits: tuple[Splits, ...] | Splits = 1
    order: Literal["issue", "longest_first"] = "issue"
    combine: Literal["kernel", "last"] = "kernel"

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Cut the requests and line up their splits. Raises `PartitionerError` for another batch."""
        tiles = tiles_of_request(grid)
        given = self.num_splits
        if isinstance(given, tuple) and len(given) != grid.batch_size:
            raise PartitionerError(
                f"per_request_splits: found {len(given)} counts for a batch of {grid.batch_size}, "
                "wanted one, or one for each request"
            )
        splits = filled_segments(tiles, np.broadcast_to(np.array(given, dtype=np.int64), tiles.shape))
        order = np.arange(grid.batch_size)
        if self.order == "longest_first":
            order = np.argsort(-tiles // splits, kind="stable")
        schedule = deal(grid, splits, int(splits.max()), order, "grid")
        if self.combine == "kernel" or schedule.combine == "none":
            return schedule
        return replace(schedule, combine="last", partials=None)
