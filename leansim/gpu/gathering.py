"""What work tiles read as pages: a page table of theirs for a call's pools.

A tile's tokens lie on pages of the call as its requests, prefixes and lists have it. Where they do not
begin and end with a page, or are scattered over one, the kernels read parts of pages as pages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from leansim.arrays import IntArray
from leansim.gpu.inputs import Inputs, held
from leansim.numerics.attention import kv_head_of, source_of
from leansim.schedule.tiling import TileGrid


@dataclass(frozen=True)
class Paged:
    """Pools as a grid's kernel reads them: `k`, `v [pages, page_tokens, num_kv_heads, dim]`.

    `page_table [buffers, batch or output tiles, most_pages]` int32; unused entries name a page of NaN.
    """

    k: Any
    v: Any
    page_table: Any
    page_tokens: int


def paged(inputs: Inputs, grid: TileGrid) -> Paged:
    """The inputs as they are, or where contexts are not dense with a row of pages of each work tile."""
    load, pools = inputs.workload, (inputs.k, inputs.v)
    if grid.work is None:
        return Paged(*pools, inputs.page_table, load.page_tokens)
    runs = [_runs(grid, tile) for tile in range(grid.num_output_tiles)]
    size = math.gcd(load.page_tokens, *(int(np.gcd.reduce(ends)) for ends, _ in runs))
    size = math.gcd(size, *(int(np.gcd.reduce(places)) for _, places in runs))
    counts = -(-grid.context_lens[grid.request] // size)
    source = np.zeros((len(runs), -(-int(counts.max()) // 16) * 16), dtype=np.int64)
    place = np.full_like(source, -1)
    for tile, (begins, places) in enumerate(runs):
        at = np.arange(counts[tile]) * size
        run = np.searchsorted(begins, at, side="right") - 1
        place[tile, : len(at)] = places[run] + at - begins[run]
        source[tile] = source_of(grid, tile)
    torch, table, parts = inputs.torch, inputs.page_table, load.page_tokens // size
    row, page, part, unused = (
        torch.from_numpy(values).to(table.device)
        for values in (source, place // load.page_tokens, place % load.page_tokens // size, place < 0)
    )
    found = table[:, row, page] * parts + part
    found = found.masked_fill(unused, (inputs.k.shape[0] - 1) * parts).to(torch.int32)
    k, v = (pool.view(-1, size, *pool.shape[2:]) for pool in pools)
    return Paged(k, v, found, size)


def _runs(grid: TileGrid, tile: int) -> tuple[IntArray, IntArray]:
    """Where runs of a tile's tokens begin among them, and where in what is cached of its context."""
    assert grid.work is not None
    kept = grid.work.kept(int(grid.request[tile]), kv_head_of(grid, tile))
    place = np.searchsorted(held(grid.asked, source_of(grid, tile)), kept)
    begins = np.flatnonzero(np.diff(place, prepend=-2) != 1)
    return begins, place[begins]
