"""Puts splits of tokens, which FlashInfer's plans cut, on the KV tiles of a kernel.

A split need not be a whole number of KV tiles: its borders then move to the nearest tile border,
so that no split of the plan is lost while splits are at least a tile long.
"""

from __future__ import annotations

import numpy as np

from leansim.arrays import IntArray
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid


def split_span(
    grid: TileGrid, output_tile: IntArray, split: IntArray, split_tokens: int
) -> tuple[IntArray, IntArray]:
    """Start and stop, in KV tiles of their output tiles, of the given splits.

    `output_tile` and `split` are `[n]`; splits of an output tile count from its first visible token
    and are `split_tokens` long, the last what is left. Starts and stops meet, each split that holds
    tokens has a KV tile wherever there are as many tiles as splits, and a split past the end of the
    output tile is empty: start and stop are equal.
    """
    start = _border(grid, output_tile, split, split_tokens)
    return start, _border(grid, output_tile, split + 1, split_tokens)


def _border(grid: TileGrid, output_tile: IntArray, number: IntArray, split_tokens: int) -> IntArray:
    """KV tile at which split `number` starts: the nearest one that leaves each neighbour a tile."""
    begin, tiles = grid.kv_begin[output_tile], grid.num_kv_tiles[output_tile]
    splits = -(-(grid.kv_end[output_tile] - begin) // split_tokens)
    hidden = begin - grid.tiling_begin[output_tile] - grid.first_kv_tile[output_tile] * grid.tile_tokens
    middle = hidden + number * split_tokens
    nearest = (2 * middle + grid.tile_tokens) // (2 * grid.tile_tokens)
    enough = tiles >= splits
    low = np.where(enough, number, 0)
    high = np.where(enough, tiles - splits + number, tiles)
    border = np.minimum(np.maximum(nearest, low), high)
    return np.where(number == 0, 0, np.where(number >= splits, tiles, border))


def split_schedule(
    grid: TileGrid, split_tokens: int, splits: IntArray, merged: bool, padded_batch: int
) -> Schedule:
    """Build the schedule of a launch over (request, row block, split) by head, heads outermost.

    `splits` is the split count of each request, `[batch]`; every row block of a request has that
    many. `padded_batch` CTAs are launched for each head, those without work return at once. Where
    `merged`, all results go through partials and a second kernel, those of a lone split as well.
    """
    per_request = grid.row_blocks * splits
    request = np.repeat(np.arange(grid.batch_size), per_request)
    within = np.arange(len(request)) - np.repeat(np.cumsum(per_request) - per_request, per_request)
    row_block, split = np.divmod(within, splits[request])
    head = np.arange(grid.heads)[:, None]
    output_tile = ((request * grid.heads + head) * grid.row_blocks + row_block).ravel()
    cta = (np.arange(len(request)) + head * padded_batch).ravel()
    start, stop = split_span(grid, output_tile, np.tile(split, grid.heads), split_tokens)
    return Schedule.from_segments(
        grid,
        (cta, output_tile, start, stop),
        padded_batch * grid.heads,
        "kernel" if merged else "none",
        num_splits=int(splits.max()),
        partials=splits[grid.request] if merged else None,
    )
