"""Puts chunks of tokens, which FlashInfer's plans cut, on the KV tiles of a kernel.

A chunk need not be a whole number of KV tiles: its borders then move to the nearest tile border,
so that no chunk of the plan is lost while chunks are at least a tile long.
"""

from __future__ import annotations

import numpy as np

from leansim.arrays import IntArray
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid


def chunk_span(
    grid: TileGrid, output_tile: IntArray, chunk: IntArray, chunk_tokens: int
) -> tuple[IntArray, IntArray]:
    """Start and stop, in KV tiles of their output tiles, of the given chunks.

    `output_tile` and `chunk` are `[n]`; chunks of an output tile count from its first visible token
    and are `chunk_tokens` long, the last what is left. Starts and stops meet, each chunk that holds
    tokens has a KV tile wherever there are as many tiles as chunks, and a chunk past the end of the
    output tile is empty: start and stop are equal.
    """
    start = _border(grid, output_tile, chunk, chunk_tokens)
    return start, _border(grid, output_tile, chunk + 1, chunk_tokens)


def _border(grid: TileGrid, output_tile: IntArray, number: IntArray, chunk_tokens: int) -> IntArray:
    """KV tile at which chunk `number` starts: the nearest one that leaves each neighbour a tile."""
    begin, tiles = grid.kv_begin[output_tile], grid.num_kv_tiles[output_tile]
    chunks = -(-(grid.kv_end[output_tile] - begin) // chunk_tokens)
    hidden = begin - grid.tiling_begin[output_tile] - grid.first_kv_tile[output_tile] * grid.tile_tokens
    middle = hidden + number * chunk_tokens
    nearest = (2 * middle + grid.tile_tokens) // (2 * grid.tile_tokens)
    enough = tiles >= chunks
    low = np.where(enough, number, 0)
    high = np.where(enough, tiles - chunks + number, tiles)
    border = np.minimum(np.maximum(nearest, low), high)
    return np.where(number == 0, 0, np.where(number >= chunks, tiles, border))


def chunked_schedule(
    grid: TileGrid, chunk_tokens: int, chunks: IntArray, merged: bool, padded_batch: int
) -> Schedule:
    """Build the schedule of a grid of (request, row block, chunk) by head, heads outermost.

    `chunks` is the chunk count of each request, `[batch]`; every row block of a request has that
    many. `padded_batch` CTAs are launched for each head, those without work return at once. Where
    `merged`, all results go through partials and a second kernel, those of a lone chunk as well.
    """
    per_request = grid.row_blocks * chunks
    request = np.repeat(np.arange(grid.batch_size), per_request)
    within = np.arange(len(request)) - np.repeat(np.cumsum(per_request) - per_request, per_request)
    row_block, chunk = np.divmod(within, chunks[request])
    head = np.arange(grid.heads)[:, None]
    output_tile = ((request * grid.heads + head) * grid.row_blocks + row_block).ravel()
    cta = (np.arange(len(request)) + head * padded_batch).ravel()
    start, stop = chunk_span(grid, output_tile, np.tile(chunk, grid.heads), chunk_tokens)
    return Schedule.from_segments(
        grid,
        (cta, output_tile, start, stop),
        padded_batch * grid.heads,
        "kernel" if merged else "none",
        num_splits=int(chunks.max()),
        partials=chunks[grid.request] if merged else None,
    )
