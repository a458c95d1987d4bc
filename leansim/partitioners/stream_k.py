"""Stream-K arithmetic that partitioners share: a line of KV tiles, dealt to CTAs in equal shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from leansim.arrays import IntArray
from leansim.schedule.schedule import Schedule, changes
from leansim.schedule.tiling import TileGrid

MAX_SPLITS_PER_HEAD = 32
# Row blocks of a head in the line: the first to the last, or the first, the last, the second, ...
RowBlockOrder = Literal["sequential", "ping_pong"]


@dataclass(frozen=True)
class Deal:
    """`total` KV tiles dealt to `num_ctas` CTAs: the first `high_load_ctas` take one more."""

    total: int
    num_ctas: int

    @property
    def max_tiles_per_cta(self) -> int:
        """Tiles of the CTAs with most."""
        return max(1, -(-self.total // self.num_ctas))

    @property
    def high_load_ctas(self) -> int:
        """How many CTAs have that many; the rest have one fewer."""
        return self.total - (self.max_tiles_per_cta - 1) * self.num_ctas

    @property
    def borders(self) -> IntArray:
        """`[num_ctas + 1]` positions on the line where each CTA starts."""
        cta = np.arange(self.num_ctas + 1, dtype=np.int64)
        return (self.max_tiles_per_cta - 1) * cta + np.minimum(cta, self.high_load_ctas)

    def num_splits(self, tiles_per_head: int) -> int:
        """Workspace depth the host code reserves for one head: the most CTAs it can touch.

        Source: get_num_splits_and_buffer_sizes of ONNX Runtime (lean_api.cc) and AITER.
        """
        most = self.max_tiles_per_cta
        if self.total % self.num_ctas == 0:
            return 1 + (tiles_per_head + most - 2) // most
        return 1 + (tiles_per_head + most - 3) // (most - 1) if most > 1 else 1


def reserved_splits(planned: Deal, dealt: Deal, tiles_per_head: int) -> int | None:
    """Splits that the host code reserves for one head, or `None` where its count does not hold.

    The host code counts whole contexts (`planned`). Where a window or a list leaves fewer KV tiles
    to deal (`dealt`), shares are smaller than it foresees and it would reserve too little.
    """
    return planned.num_splits(tiles_per_head) if dealt.total >= planned.total else None


def small_work_ctas(
    total: int, tiles_per_head: int, max_splits_per_head: int | None = MAX_SPLITS_PER_HEAD
) -> int:
    """CTAs when there is little work: two tiles each, and at most so many splits per head; None: any."""
    if max_splits_per_head is None:
        return (total + 1) // 2
    return min((total + 1) // 2, -(-max_splits_per_head * total // max(1, tiles_per_head)))


def line_of(grid: TileGrid, row_blocks: RowBlockOrder, heads_outermost: bool = False) -> IntArray:
    """Output tiles in the order of their tiles on the line: by request, head and row block.

    Or by head, request and row block. Where a prefill's row blocks alternate from both ends, CTAs mix
    short and long ones. Source: AITER, lean_atten.py, find_group_pingpong and find_group_sequential.
    """
    block = np.arange(grid.row_blocks)
    if row_blocks == "ping_pong":
        block = np.argsort(np.minimum(2 * block, 2 * block[::-1] + 1))
    tiles = np.arange(grid.num_output_tiles).reshape(grid.batch_size, grid.heads, grid.row_blocks)
    line: IntArray = tiles[:, :, block]
    return (line.transpose(1, 0, 2) if heads_outermost else line).ravel()


def cut(borders: IntArray, tiles: IntArray, order: IntArray) -> tuple[IntArray, ...]:
    """Cut the line of KV tiles at CTA borders and at output-tile borders.

    `tiles[i]` is the length on the line of output tile `order[i]`. Returns (cta, output_tile,
    start, stop) of the segments, in line order. Costs O(CTAs + output tiles), whatever the lengths.
    """
    ends = np.cumsum(tiles)
    # Places to cut, the ends of output tiles marked by their last bit; borders hold 0 already.
    places = np.sort(np.concatenate((2 * borders, 2 * ends + 1)), kind="stable")
    points = places >> 1
    last = np.append(np.flatnonzero(changes(points))[1:], len(points)) - 1  # of those at one place
    points = points[last]
    low, high = points[:-1], points[1:]
    position = np.cumsum(places & 1)[last[:-1]]  # output tiles that end no later than it begins
    cta = last[:-1] - position  # and borders, less the first
    begin = (ends - tiles)[position]
    return cta, order[position], low - begin, high - begin


def merged_in_launch(
    grid: TileGrid,
    segments: tuple[IntArray, ...],
    num_ctas: int,
    num_splits: int | None = None,
    merger: Literal["host", "last"] = "host",
) -> Schedule:
    """Build a schedule whose CTAs merge in the launch, where an output tile has several segments.

    `segments` are as in `Schedule.from_segments`.
    """
    _, _, start, stop = segments
    split = np.count_nonzero(start < stop) > grid.num_output_tiles
    return Schedule.from_segments(
        grid, segments, num_ctas, merger if split else "none", num_splits=num_splits
    )
