"""Launches of a fixed number of splits per output tile, as most serving kernels have them.

One CTA per output tile and split, in the order of the kernel's block indices; splits that get no
KV tiles are launched all the same and declared empty.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from leansim.arrays import IntArray
from leansim.schedule.schedule import CombineKind, Dispatch, Schedule
from leansim.schedule.tiling import TileGrid

Axis = Literal["request", "head", "row_block", "split"]
Order = tuple[Axis, Axis, Axis, Axis]
_AXES: Order = ("request", "head", "row_block", "split")


def issue_order(grid: TileGrid, splits: int, fastest_first: Order) -> IntArray:
    """`[output tiles * splits]` numbers `output_tile * splits + split`, in the order of their CTAs.

    `fastest_first` names the four axes as the launch counts them, blockIdx.x first.
    """
    shape = (grid.batch_size, grid.heads, grid.row_blocks, splits)
    numbers: IntArray = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    return numbers.transpose([_AXES.index(axis) for axis in reversed(fastest_first)]).ravel()


def fixed_splits(
    grid: TileGrid,
    splits: int,
    borders: tuple[IntArray, IntArray],
    fastest_first: Order,
    combine: CombineKind,
    *,
    partials: IntArray | None = None,
    dispatch: Dispatch = "grid",
) -> Schedule:
    """Build the schedule of a launch of `splits` CTAs for every output tile.

    `borders` are the starts and stops of the splits, `[output tiles, splits]` each, in KV tiles
    counted from the tile's first; a split whose start is not below its stop is empty. `partials` is
    as in `Schedule`. Without a split output tile and without given partials nothing is combined.
    """
    order = issue_order(grid, splits, fastest_first)
    start, stop = (border.ravel()[order] for border in borders)
    split = np.count_nonzero(start < stop) > grid.num_output_tiles
    return Schedule.from_segments(
        grid,
        (np.arange(len(order)), order // splits, start, stop),
        len(order),
        combine if split or partials is not None else "none",
        num_splits=splits,
        partials=partials,
        dispatch=dispatch,
    )


def clipped(grid: TileGrid, low: IntArray, high: IntArray) -> tuple[IntArray, IntArray]:
    """Starts and stops from borders in KV tiles of the whole context, `[output tiles, splits]`.

    Cuts off what lies before the first KV tile of an output tile (a sliding window) or past its last.
    """
    first, count = grid.first_kv_tile[:, None], grid.num_kv_tiles[:, None]
    return np.clip(low - first, 0, count), np.clip(high - first, 0, count)


def token_borders(grid: TileGrid, tokens: IntArray, splits: int) -> tuple[IntArray, IntArray]:
    """Starts and stops of splits `tokens` long each, counted from the first token of the context.

    `tokens` is `[output tiles]`, rounded up to whole KV tiles: a border inside a tile would have both
    neighbours work on that tile, which no kernel here does.
    """
    length = -(-tokens[:, None] // grid.tile_tokens)
    number = np.arange(splits, dtype=np.int64)
    return clipped(grid, number * length, (number + 1) * length)


def even_segments(
    grid: TileGrid, splits: IntArray, most: int, unit_tokens: int
) -> tuple[IntArray, IntArray]:
    """Starts and stops of segments as equal as whole units allow: the first take one unit more.

    A unit is `unit_tokens` of the context, never less than a KV tile; `splits` says per output tile,
    `[output tiles]`, into how many segments its units are cut, at most `most`; those beyond are empty.
    """
    unit = max(1, unit_tokens // grid.tile_tokens)
    first = grid.first_kv_tile // unit
    units = -(-(grid.first_kv_tile + grid.num_kv_tiles) // unit) - first
    counts = np.maximum(1, np.minimum(splits, units))[:, None]
    whole, extra = units[:, None] // counts, units[:, None] % counts
    number = np.minimum(np.arange(most + 1, dtype=np.int64), counts)
    border = first[:, None] + number * whole + np.minimum(number, extra)
    return clipped(grid, border[:, :-1] * unit, border[:, 1:] * unit)
