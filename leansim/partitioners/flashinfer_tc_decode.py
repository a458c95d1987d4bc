"""FlashInfer's decode on tensor cores: the prefill kernel, its KV cut to fill two CTAs per SM.

The query heads of a KV head are rows of one query tile. The plan counts on two CTAs per SM whatever
fits. Ignores requests with different numbers of new tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from leansim.arrays import IntArray
from leansim.errors import PartitionerError
from leansim.partitioners._token_splits import split_schedule
from leansim.partitioners.flashinfer_decode import LEAST_SPLIT_TOKENS, shortest_split
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

CTAS_PER_SM = 2


def query_tile_rows(rows: int, head_dim: int) -> int:
    """Rows of the query tile for `rows` packed query rows (FlashInfer, FA2DetermineCtaTileQ)."""
    if rows > 64 and head_dim < 256:
        return 128
    return 64 if rows > 16 else 16


@dataclass(frozen=True, eq=False)
class TcDecodePlan:
    """What the host code decides.

    `merged` says whether results go through partials; `split_tokens` is the length of a split,
    `splits` `[batch]` how many each query tile of a request has, `row_tiles` how many query tiles a
    request has, `padded_batch` how many CTAs are launched for each KV head.
    """

    merged: bool
    split_tokens: int
    splits: IntArray
    row_tiles: int
    padded_batch: int

    @property
    def new_batch(self) -> int:
        """CTAs of a KV head that have work."""
        return self.row_tiles * int(self.splits.sum())


def tc_decode_plan(
    context_lens: IntArray,
    page_tokens: int,
    rows: int,
    tile_rows: int,
    capacity: int,
    *,
    window: int | None = None,
    cuda_graph: bool = False,
    uniform: bool = False,
    fixed_split_size: int | None = None,
    disable_split_kv: bool = False,
) -> TcDecodePlan:
    """Plan requests of `rows` packed query rows, for at most `capacity` CTAs per KV head.

    `window` is how many tokens each new token sees; splits then count from the first of them, and
    the plan takes `tile_rows` more for them all. A captured launch holds the most query tiles that so
    many rows can make, or, where the call is told that all requests are `uniform`, those they do.
    `fixed_split_size` in tokens replaces the search. Source: FlashInfer, include/flashinfer/attention/
    scheduler.cuh, PrefillSplitQOKVIndptr (which counts a fixed split in pages). Raises
    `PartitionerError` where its check of the launch fails.
    """
    pages = -(-context_lens // page_tokens)
    if window is not None:
        pages = np.minimum(pages, -(-(window - 1 + tile_rows) // page_tokens))
    row_tiles = -(-rows // tile_rows)
    longest = int(pages.max())
    if disable_split_kv:
        split_pages, merged = longest, False
    elif fixed_split_size is not None:
        split_pages = -(-fixed_split_size // page_tokens)
        merged = longest > split_pages
    else:
        least = max(1, LEAST_SPLIT_TOKENS // page_tokens)
        split_pages = shortest_split(pages, np.full(len(pages), row_tiles), capacity, least)
        merged = cuda_graph or split_pages < longest
    splits = -(-pages // split_pages)
    new_batch = row_tiles * int(splits.sum())
    padded_batch = new_batch
    if cuda_graph:
        tiles = -(-rows * len(pages) // tile_rows) + len(pages) - 1
        padded_batch = max(capacity, row_tiles * len(pages) if uniform else tiles)
        if new_batch > padded_batch:
            raise PartitionerError(
                f"flashinfer_tc_decode: {new_batch} splits in a captured launch of {padded_batch}; "
                "a fixed split needs a longer fixed_split_size or cuda_graph false"
            )
    return TcDecodePlan(merged, split_pages * page_tokens, splits, row_tiles, padded_batch)


@dataclass(frozen=True)
class FlashinferTcDecode:
    """Splits of equal token count for all requests, sized for two CTAs per SM.

    `cuda_graph` plans as for a captured graph: always through partials, and a fixed count of CTAs whose
    surplus CTAs return at once. `fixed_split_size` cuts every request at multiples of so many tokens
    whatever the batch; `disable_split_kv` cuts none. CTAs are issued request, query tile, split, one
    KV head after the other.
    """

    cuda_graph: bool = False
    fixed_split_size: Annotated[int, Field(ge=1)] | None = None
    disable_split_kv: bool = False

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Cut the requests at multiples of the split length, to the nearest KV tile."""
        workload = grid.workload
        plan = tc_decode_plan(
            grid.context_lens,
            workload.page_tokens,
            grid.rows_per_head,
            grid.tile_rows,
            CTAS_PER_SM * grid.num_sms // grid.heads,
            window=workload.window,
            cuda_graph=self.cuda_graph,
            uniform=workload.query_len > 1,  # only then does the decode call say so
            fixed_split_size=self.fixed_split_size,
            disable_split_kv=self.disable_split_kv,
        )
        split_tokens = plan.split_tokens if plan.merged else int(grid.context_lens.max())
        return split_schedule(grid, split_tokens, plan.splits, plan.merged, plan.padded_batch)
