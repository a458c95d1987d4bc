"""AITER's LeanAttention for AMD GPUs: stream-K over (head, request, context), inside each XCD.

An output tile never crosses XCDs when they are remapped: each XCD has its share of the heads and
of the CTAs. The number of CTAs is given; only tiny problems make it smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from leansim.errors import PartitionerError
from leansim.partitioners.stream_k import (
    Deal,
    RowBlockOrder,
    cut,
    line_of,
    merged_in_launch,
    reserved_splits,
    small_work_ctas,
)
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device


@dataclass(frozen=True)
class AiterPlan:
    """What AITER's host code decides: the CTAs of all XCDs, and the deal inside one.

    `kv_tiles` are those of one row block of a head over the whole batch.
    """

    num_ctas: int
    kv_tiles: int
    deal: Deal

    @property
    def num_splits(self) -> int:
        """Most CTAs the host code reserves for one head."""
        return self.deal.num_splits(self.kv_tiles)


def aiter_plan(
    tiles_per_head: int,
    heads: int,
    num_programs: int,
    num_xcds: int = 1,
    kv_tiles: int | None = None,
) -> AiterPlan:
    """How many CTAs AITER launches, and what they share.

    `tiles_per_head` counts the KV tiles of one head over the whole batch, `num_programs` is how many
    CTAs the caller asks for. With several XCDs the same arithmetic is done for one of them; CTAs that
    do not divide over the XCDs are launched and do nothing. In a prefill a head has several row blocks,
    of at most `kv_tiles` each over the batch. Source: AITER, lean_atten.py,
    get_num_splits_and_buffer_sizes.
    """
    kv_tiles = kv_tiles or tiles_per_head
    total = tiles_per_head * heads // num_xcds
    if total <= num_programs:
        num_programs = small_work_ctas(total, kv_tiles)
    num_ctas = max(1, num_programs)
    return AiterPlan(num_ctas, kv_tiles, Deal(total, max(1, num_ctas // num_xcds)))


@dataclass(frozen=True)
class LeanAiter:
    """AITER's stream-K: heads outermost, requests of a head one after the other.

    `num_xcds` remaps CTAs so that an output tile stays in one XCD (1: no remapping).
    `ctas_per_sm` says how many CTAs AITER is asked for. `row_blocks` is the order of a head's row
    blocks in the line, `ping_pong` in its prefill. That takes whole contexts of equal lengths only; here
    others are dealt alike.
    """

    num_xcds: Annotated[int, Field(ge=1)] = 1
    ctas_per_sm: Annotated[int, Field(ge=1)] = 1
    row_blocks: RowBlockOrder = "sequential"

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Deal each XCD's heads to its CTAs."""
        if grid.heads % self.num_xcds:
            raise PartitionerError(f"{grid.heads} heads do not divide over {self.num_xcds} XCDs")
        kv_tiles = -(-int(grid.context_lens.sum()) // grid.tile_tokens)
        prefill = grid.row_blocks > 1 and grid.workload.query_len > 1
        tiles_per_head = grid.total_kv_tiles // grid.heads if prefill else grid.row_blocks * kv_tiles
        programs = grid.num_sms * self.ctas_per_sm
        plan = aiter_plan(tiles_per_head, grid.heads, programs, self.num_xcds, kv_tiles)
        order = line_of(grid, self.row_blocks, heads_outermost=True)
        share, ctas = len(order) // self.num_xcds, plan.deal.num_ctas
        parts, least = [], plan.deal
        for xcd in range(self.num_xcds):
            mine = order[xcd * share : (xcd + 1) * share]
            tiles = grid.num_kv_tiles[mine]
            line = Deal(int(tiles.sum()), ctas)
            least = min(least, line, key=lambda deal: deal.total)
            cta, *rest = cut(line.borders, tiles, mine)
            parts.append((cta + xcd * ctas, *rest))
        columns = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
        splits = reserved_splits(plan.deal, least, kv_tiles)
        return merged_in_launch(grid, columns, max(plan.num_ctas, ctas * self.num_xcds), splits)
