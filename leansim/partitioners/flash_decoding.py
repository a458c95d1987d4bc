"""FlashDecoding: every output tile cut into the same number of splits, merged by a second kernel.

The split count is FlashAttention-2's own heuristic, in either of its two versions, or given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from leansim.arrays import IntArray
from leansim.partitioners.flash_attention_2 import FlashAttention2
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

MAX_SPLITS = 128


def num_splits_heuristic(work: int, kv_tiles: int, slots: int, max_splits: int = MAX_SPLITS) -> int:
    """FA2's rule: the fewest splits whose waves are at least 85% as full as the fullest.

    `work` unsplit CTAs are to fill `slots`; no split when they fill 80% already. A count that gives
    no fewer tiles per split than the count before it is skipped. Single precision as in the
    source (csrc/flash_attn/flash_api.cpp, num_splits_heuristic).
    """
    if np.float32(work) >= np.float32(0.8) * np.float32(slots):
        return 1
    limit = min(max_splits, slots, kv_tiles)
    counts = np.arange(1, limit + 1)
    tiles_per_split = -(-kv_tiles // counts)
    eligible = np.r_[True, tiles_per_split[1:] != tiles_per_split[:-1]]
    waves = (work * counts).astype(np.float32) / np.float32(slots)
    efficiency = np.where(eligible, waves / np.ceil(waves), np.float32(0)).astype(np.float32)
    good = eligible & (efficiency.astype(np.float64) >= 0.85 * float(efficiency.max()))
    return int(counts[good][0])


@dataclass(frozen=True)
class FlashDecoding:
    """Equal splits of the call's longest context.

    `sms_factor` is how many CTAs per SM the heuristic aims at: 1 up to FlashAttention v2.5.6, 2
    since v2.5.7. `num_splits` overrides the heuristic. Split borders follow the longest context
    the call is told about, so a short request may leave most of its CTAs empty; they are launched
    all the same and write an empty partial. With `packed_only` a call is split only where several
    query heads share a tile: variable-length calls never split multi-head attention, windows or
    several new tokens (mha_varlen_fwd, "only if seqlenq_ngroups_swapped"). With `packed_only: ragged`
    that holds for contexts of several lengths; a host that takes its batch entry for contexts of one
    length splits those as ever.
    """

    num_splits: Annotated[int, Field(ge=1, le=MAX_SPLITS)] | None = None
    sms_factor: Literal[1, 2] = 2
    packed_only: bool | Literal["ragged"] = False

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:
        """Cut all output tiles at the same borders."""
        splits = self.split_count(grid)
        return equal_splits(grid, splits) if splits > 1 else FlashAttention2()(grid, device)

    def split_count(self, grid: TileGrid) -> int:
        """How many splits the host asks for; 1 leaves the call in one."""
        load = grid.workload
        is_varlen = self.packed_only is True or (
            self.packed_only == "ragged" and len(set(load.context_lens)) > 1
        )
        if is_varlen and not (grid.packed and load.group_size > 1):
            return 1
        if self.num_splits is not None:
            return self.num_splits
        slots = grid.num_sms * self.sms_factor
        return num_splits_heuristic(grid.num_output_tiles, grid.call_kv_tiles, slots)


def equal_splits(grid: TileGrid, splits: int) -> Schedule:
    """Cut each output tile into `splits` segments of `ceil(call tiles / splits)` KV tiles.

    CTAs are issued row block first, then split, then request and head, as FA2's launch has them.
    """
    borders = split_borders(grid, splits)
    columns = (grid.row_blocks, splits, grid.batch_size * grid.heads)
    index = np.arange(int(np.prod(columns)))
    row_block = index % grid.row_blocks
    split = index // grid.row_blocks % splits
    tile = index // (grid.row_blocks * splits) * grid.row_blocks + row_block
    first, count = grid.first_kv_tile[tile], grid.num_kv_tiles[tile]
    start = np.clip(borders[split] - first, 0, count)
    stop = np.clip(borders[split + 1] - first, 0, count)
    return Schedule.from_segments(
        grid,
        (index, tile, start, stop),
        len(index),
        "kernel",
        num_splits=splits,
        partials=np.full(grid.num_output_tiles, splits, dtype=np.int64),
    )


def split_borders(grid: TileGrid, splits: int) -> IntArray:
    """`[splits + 1]` KV-tile borders: FA2 cuts the longest context of the call, not each request."""
    tiles_per_split = -(-grid.call_kv_tiles // splits)
    borders = np.arange(splits + 1, dtype=np.int64) * tiles_per_split
    borders[-1] = max(int(borders[-1]), grid.call_kv_tiles)
    return borders
