"""AITER's LeanAttention over a paged KV cache: stream-K with as many CTAs as the caller asks for.

Heads outermost as in `lean_aiter`, but KV heads are counted, nothing is remapped to XCDs, and little
work makes for no fewer CTAs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from leansim.errors import PartitionerError
from leansim.partitioners.stream_k import Deal, cut, merged_in_launch, reserved_splits
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device


def paged_deal(tiles_per_head: int, heads: int, num_programs: int) -> Deal:
    """Deal of AITER's paged variant (lean_atten_paged.py, get_num_splits_and_buffer_sizes).

    `tiles_per_head` counts the KV tiles of one KV head over the whole batch. Raises
    `PartitionerError` where the host code divides by zero: when some CTAs get one KV tile and others
    none. `lean_atten.py` halves its CTAs for so little work; the paged variant does not.
    """
    deal = Deal(tiles_per_head * heads, num_programs)
    if deal.total % num_programs and deal.max_tiles_per_cta == 1:
        raise PartitionerError(
            f"AITER's paged host code divides by zero with fewer KV tiles ({deal.total}) than CTAs "
            f"({num_programs})"
        )
    return deal


@dataclass(frozen=True)
class LeanAiterPaged:
    """Paged stream-K: KV heads outermost, requests of a head one after the other.

    `ctas_per_sm` says how many CTAs AITER is asked for; no more than fit, since CTAs wait for each
    other.
    """

    ctas_per_sm: Annotated[int, Field(ge=1)] = 1

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Deal the line of all KV tiles; the plan counts the batch as one context, as the host code."""
        tokens = int(grid.context_lens.sum())
        tiles_per_head = grid.row_blocks * -(-tokens // grid.tile_tokens)
        num_programs = grid.num_sms * self.ctas_per_sm
        if num_programs > grid.slots:
            raise PartitionerError(
                f"{num_programs} CTAs that wait for each other need as many slots, found {grid.slots}"
            )
        plan = paged_deal(tiles_per_head, grid.heads, num_programs)
        order = np.lexsort((grid.row_block, grid.request, grid.head))
        line = Deal(grid.total_kv_tiles, plan.num_ctas)
        segments = cut(line.borders, grid.num_kv_tiles[order], order)
        splits = reserved_splits(plan, line, tiles_per_head)
        return merged_in_launch(grid, segments, plan.num_ctas, splits)
