"""CUTLASS's split of MLA decode on Blackwell: as many splits as fill the SMs, no more than help.

Ignores that its two CTAs of an output row share KV loads as a cluster: here the second reads L2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from leansim.errors import PartitionerError
from leansim.partitioners.split_launch import Order, fixed_splits
from leansim.schedule.schedule import CombineKind, Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

SPLIT_TOKENS = 128


def set_split_kv(batch: int, context_len: int, num_sms: int, fused_reduction: bool = False) -> int:
    """Splits of every request: an SM each, then the fewest that take as many rounds of 128 tokens.

    A reduction inside the launch takes at most half the SMs. Source: CUTLASS, examples/
    77_blackwell_fmha/device/sm100_mla.hpp, set_split_kv.
    """
    tiles = -(-context_len // SPLIT_TOKENS)
    rounds = -(-tiles // min(tiles, max(1, num_sms // batch)))
    splits = -(-tiles // rounds)
    return min(splits, num_sms // 2) if fused_reduction and splits > 1 else splits


@dataclass(frozen=True)
class CutlassMla:
    """Every request cut into the same number of equal segments of its own KV tiles.

    The count follows the longest context the call is told about; the borders follow each request's
    own length, so a short one leaves CTAs empty. With `fused_reduction` the last CTA of an output
    tile merges in the launch (assumed: CUTLASS's order of arrival is not known), else a second
    kernel does, reading the splits that hold tokens. `num_splits` overrides the rule. CTAs are
    issued row block first, then request, then split. One new token and no window, as in CUTLASS.
    Only the count is held by golden vectors; borders and order are assumed to be CUTLASS's.
    """

    fused_reduction: bool = False
    num_splits: Annotated[int, Field(ge=1)] | None = None

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Cut each output tile at its own equal borders."""
        workload = grid.workload
        if workload.query_len > 1 or workload.window is not None:
            raise PartitionerError("cutlass_mla takes one new token per request and no sliding window")
        batch = grid.batch_size * grid.heads
        splits = self.num_splits or set_split_kv(
            batch, workload.call_context_len, grid.num_sms, self.fused_reduction
        )
        length = grid.num_kv_tiles[:, None]
        longest = -(-length // splits)
        number = np.arange(splits, dtype=np.int64)
        borders = np.minimum(number * longest, length), np.minimum((number + 1) * longest, length)
        partials = None
        if splits > 1 and not self.fused_reduction:
            partials = np.count_nonzero(borders[0] < borders[1], axis=1)
        combine: CombineKind = "last" if self.fused_reduction else "kernel"
        order: Order = ("row_block", "head", "request", "split")
        return fixed_splits(grid, splits, borders, order, combine, partials=partials)
