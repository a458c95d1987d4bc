"""LeanAttention: stream-K over the KV tiles of the whole batch, merged inside the one launch.

Tiles stand in a line (request, head, context) and each CTA takes an equal share. The CTA with the
first tiles of an output tile is its host: it waits for its peers and merges their partials.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from leansim.arrays import IntArray
from leansim.errors import PartitionerError
from leansim.partitioners.stream_k import (
    MAX_SPLITS_PER_HEAD,
    Deal,
    RowBlockOrder,
    cut,
    line_of,
    merged_in_launch,
    small_work_ctas,
)
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device


def ort_deal(
    total: int,
    tiles_per_head: int,
    heads: int,
    num_sms: int,
    ctas_per_sm: int = 2,
    max_splits_per_head: int | None = MAX_SPLITS_PER_HEAD,
) -> Deal:
    """How many CTAs the paper authors' CUDA code launches (lean_api.cc).

    `total` KV tiles over `heads` output tiles of at most `tiles_per_head` each: up to four tiles
    per SM one for two tiles, above that `ctas_per_sm` on every SM; an output tile is never cut into
    more than about `max_splits_per_head` splits (None: into any number).
    """
    if total <= 4 * num_sms:
        num_ctas = small_work_ctas(total, tiles_per_head, max_splits_per_head)
    else:
        num_ctas = ctas_per_sm * num_sms
        if max_splits_per_head is not None:
            num_ctas = min(num_ctas, max_splits_per_head * heads)
    return Deal(total, max(1, min(num_ctas, total)))


def padded_kv_tiles(grid: TileGrid) -> IntArray:
    """KV tiles of each output tile if every request were the longest that the call is told about.

    Causal among the new tokens: of a whole context block `i` has `ceil((i + 1) rows / tokens)`
    (lean_api.cc, tiles_per_head).
    """
    missing = grid.workload.call_context_len - grid.context_lens
    padded: IntArray = -(-(grid.kv_end + missing[grid.request]) // grid.tile_tokens)
    return padded


@dataclass(frozen=True)
class LeanAttention:
    """Equal KV tiles for every CTA.

    `lengths` says whose tiles stand in the line: `actual`, each request's own (the prefix-sum order
    of AITER and SGLang; equal to `longest` for equal lengths), or `longest`, every request padded to the
    longest context of the call as in ONNX Runtime, so that ragged batches are not balanced.
    `ctas_per_sm` overrides how many CTAs per SM are launched: by default those that fit, and
    never more; ONNX Runtime takes 2 for granted. `max_splits_per_head` is about how many CTAs may share
    an output tile, as ONNX Runtime has it; None for as many as there are. `num_ctas` says how many
    CTAs there are instead. `row_blocks` is the order of a head's row blocks in the line, `sequential`
    in ONNX Runtime.
    """

    lengths: Literal["actual", "longest"] = "actual"
    ctas_per_sm: Annotated[int, Field(ge=1)] | None = None
    num_ctas: Annotated[int, Field(ge=1)] | None = None
    max_splits_per_head: Annotated[int, Field(ge=1)] | None = MAX_SPLITS_PER_HEAD
    row_blocks: RowBlockOrder = "sequential"

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Deal equal shares of the line of tiles."""
        if self.lengths == "longest" and grid.workload.window is not None:
            raise PartitionerError("lean_attention with lengths='longest' has no sliding window")
        tiles = padded_kv_tiles(grid) if self.lengths == "longest" else grid.num_kv_tiles
        deal = self._deal(int(tiles.sum()), int(tiles.max()), grid)
        if deal.num_ctas > grid.slots == 1:
            raise PartitionerError(
                f"{deal.num_ctas} CTAs that wait for each other need two slots, found 1"
            )
        line = line_of(grid, self.row_blocks)
        cta, tile, start, stop = cut(deal.borders, tiles[line], line)
        stop = np.minimum(stop, grid.num_kv_tiles[tile])
        planned = deal.num_splits(grid.call_kv_tiles) if self.lengths == "longest" else None
        return merged_in_launch(grid, (cta, tile, start, stop), deal.num_ctas, planned)

    def _deal(self, total: int, tiles_per_head: int, grid: TileGrid) -> Deal:
        if self.num_ctas is not None:
            return Deal(total, min(self.num_ctas, total))
        per_sm = self.ctas_per_sm or grid.ctas_per_sm
        deal = ort_deal(
            total, tiles_per_head, grid.num_output_tiles, grid.num_sms, per_sm, self.max_splits_per_head
        )
        if self.ctas_per_sm is not None:
            return deal
        return Deal(total, min(deal.num_ctas, grid.slots))
