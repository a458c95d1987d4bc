"""FlashAttention-3's decode schedules: one split count for the call, or one for each request.

`FlashAttention3` is the host's rule, for batches of equal lengths. `FlashAttention3Varlen` is what
serving runs: the host's count is the most that a small kernel gives a request on the device, by the
lengths, and persistent CTAs fetch the work longest first. Not modelled there: which heads follow each
other for the sake of L2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from leansim.arrays import IntArray
from leansim.schedule.schedule import Dispatch, Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

MAX_SPLITS = 128
PREPARED_REQUESTS = 992
_L2_BYTES = 50 * 1024**2
_SECTION_BYTES = 32 * 1024**2
_LEAST_KV_TILES = 5
_AMPERE = "sm_8"


def num_splits_heuristic(
    work: int,
    kv_tiles: int,
    num_sms: int,
    row_blocks: int = 1,
    kv_head_bytes: int = 0,
    masked: bool = False,
    max_splits: int = MAX_SPLITS,
) -> int:
    """FA3's rule: the fewest splits whose waves are at least 85% as full as the fullest.

    `work` unsplit CTAs are to fill `num_sms`. No split where they fill 80% already, unless a KV head
    of `kv_head_bytes` exceeds 50 MiB, is read by `row_blocks` of two waves or more and is not `masked`
    (causal or local); none below 5 KV tiles. Single precision as in the source
    (flash-attention hopper/heuristics.h, num_splits_heuristic).
    """
    if np.float32(work) >= np.float32(0.8) * np.float32(num_sms):
        if kv_head_bytes > _L2_BYTES and row_blocks >= 2 * num_sms and not masked:
            return min(-(-kv_head_bytes // _L2_BYTES), max_splits)
        return 1
    if kv_tiles < _LEAST_KV_TILES:
        return 1
    counts = np.arange(1, min(max_splits, num_sms, kv_tiles) + 1)
    waves = (work * counts).astype(np.float32) / np.float32(num_sms)
    efficiency = (waves / np.ceil(waves)).astype(np.float64)
    return int(counts[efficiency >= 0.85 * efficiency.max()][0])


def packs_gqa(
    query_len: int,
    group_size: int,
    tile_rows: int,
    arch: str = "sm_90",
    num_splits: int = 1,
    varlen: bool = False,
    paged: bool = False,
) -> bool:
    """Whether FA3 lets the query heads of a group share a tile.

    `varlen` says that query lengths differ, `paged` that pages are gathered without TMA. For a few
    new tokens and groups of two or more the answer is always yes. Single precision as in the source
    (flash-attention hopper/flash_api.cpp, get_pack_gqa; heuristics.h, should_pack_gqa).
    """
    if arch.startswith(_AMPERE) or paged or num_splits > 1:
        return True
    if group_size == 1:
        return False
    if varlen:
        return True
    alone, together = (
        np.float32(rows) / np.float32(-(-rows // tile_rows) * tile_rows)
        for rows in (query_len, query_len * group_size)
    )
    return bool(float(alone) < 0.9 * float(together))


def loaded_kv_tiles(grid: TileGrid) -> int:
    """KV tiles that the rule counts: of the call's longest context, or of what a window can touch.

    Source: flash-attention hopper/flash_api.cpp, get_num_splits (a window of n tokens is n - 1 to
    the left and none to the right).
    """
    tokens = grid.workload.call_context_len
    if grid.workload.is_local:
        assert grid.workload.window is not None
        tokens = min(tokens, grid.workload.window + grid.tile_rows)
    return -(-tokens // grid.tile_tokens)


def call_num_splits(grid: TileGrid, batch_size: int) -> int:
    """Apply the host's rule to a call; a call with varying lengths gives 1 as `batch_size`.

    Rows are counted as packed, since a split packs them (flash-attention hopper/flash_api.cpp,
    get_num_splits).
    """
    load = grid.workload
    row_blocks = -(-load.query_len * load.group_size // grid.tile_rows)
    return num_splits_heuristic(
        work=batch_size * load.num_kv_heads * row_blocks,
        kv_tiles=loaded_kv_tiles(grid),
        num_sms=grid.num_sms,
        row_blocks=row_blocks,
        kv_head_bytes=load.call_context_len * load.kv_bytes_per_token,
        masked=load.query_len > 1 or grid.workload.is_local,
    )


def kv_tiles_per_sm(work: int, heads: int, num_sms: int) -> int:
    """KV tiles for each SM if `work` of each of `heads` heads, plus a tenth, is shared out evenly.

    Single precision as in the source (flash-attention hopper/flash_prepare_scheduler.cu,
    prepare_varlen_num_blocks_kernel).
    """
    total = np.float32(work) * np.float32(1.1) * np.float32(heads)
    return int(np.ceil(total / np.float32(num_sms)))


def dynamic_splits(
    kv_tiles: IntArray, row_blocks: int, heads: int, num_sms: int, max_splits: int
) -> IntArray:
    """`[batch]` splits of each request, as the scheduling kernel sets them on the device.

    `kv_tiles` `[batch]` are the KV tiles of each request's whole context. A request gets as many
    splits as it has times an SM's share, from 1 to `max_splits`. Above 992 requests all get 1
    (flash-attention hopper/flash_prepare_scheduler.cu, prepare_varlen_num_blocks_kernel).
    """
    if len(kv_tiles) > PREPARED_REQUESTS or max_splits == 1:
        return np.ones_like(kv_tiles)
    share = kv_tiles_per_sm(row_blocks * int(kv_tiles.sum()), heads, num_sms)
    return np.clip(-(-kv_tiles // share), 1, max_splits)


def longest_first(kv_tiles: IntArray, splits: IntArray) -> IntArray:
    """`[batch]` requests by falling KV tiles per split; equals stay in the batch's order.

    Each CTA of the scheduling kernel sorts the 992 requests it has
    (flash-attention hopper/flash_prepare_scheduler.cu, a block-wide merge sort, hence stable).
    """
    group = np.arange(len(kv_tiles)) // PREPARED_REQUESTS
    return np.lexsort((-kv_tiles // splits, group))


def is_persistent(arch: str, varlen: bool, split: bool, causal: bool) -> bool:
    """Whether CTAs stay and fetch their work (flash-attention hopper/flash_fwd_launch_template.h)."""
    if arch.startswith(_AMPERE):
        return split if varlen else causal
    return varlen or not split


def deal(
    grid: TileGrid, splits: IntArray, num_splits: int, order: IntArray, dispatch: Dispatch
) -> Schedule:
    """Cut the output tiles of each request into its own number of splits of equal KV tiles.

    `splits` is `[batch]`, `num_splits` the host's count, `order` the requests in the order of their
    work; inside a request the row block is fastest, then the split, then the head. Borders follow the
    request's own KV tiles, so its last splits may be empty. Requests with one split write their
    output; those with more leave partials, empty ones included, to the combine kernel, which runs
    whenever the host's count exceeds 1 (flash-attention hopper/tile_scheduler.hpp; block.h,
    get_n_block_min_max).
    """
    items = splits[order] * (grid.heads * grid.row_blocks)
    request = np.repeat(order, items)
    item = np.arange(len(request)) - np.repeat(np.cumsum(items) - items, items)
    head_split, row_block = np.divmod(item, grid.row_blocks)
    head, split = np.divmod(head_split, splits[request])
    tile = (request * grid.heads + head) * grid.row_blocks + row_block
    count = grid.num_kv_tiles[tile]
    length = -(-count // splits[request])
    start = np.minimum(split * length, count)
    stop = np.minimum(start + length, count)
    return Schedule.from_segments(
        grid,
        (np.arange(len(request)), tile, start, stop),
        len(request),
        "kernel" if num_splits > 1 else "none",
        num_splits=num_splits,
        partials=np.where(splits > 1, splits, 0)[grid.request],
        dispatch=dispatch,
    )


def longest_blocks_first(grid: TileGrid) -> IntArray:
    """Output tiles in the order in which CTAs fetch those of a call with a causal mask or a window.

    The last row blocks come first, which have most KV, head by head in sections whose KV stays in L2: as
    many KV heads, a power of two, as have 32 MiB of it, or one. Query heads that are not packed are in
    the section of their KV head (flash-attention hopper/tile_scheduler.hpp,
    DynamicPersistentTileScheduler).
    """
    load = grid.workload
    kv_heads = max(1, _SECTION_BYTES // (load.call_context_len * load.kv_bytes_per_token))
    section = (1 << (kv_heads.bit_length() - 1)) * (grid.heads // load.num_kv_heads)
    head, row_block = np.divmod(np.arange(grid.num_output_tiles), grid.row_blocks)
    return np.lexsort((head, -row_block, head // section))


@dataclass(frozen=True)
class FlashAttention3:
    """One split count for the whole call, from the host's rule or given.

    CTAs of a split call are issued row block first, then split, head and request; those of an unsplit
    one are persistent, and with a causal mask or a window fetch the longest row blocks first.
    """

    num_splits: Annotated[int, Field(ge=1, le=256)] | None = None

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:
        """Cut all output tiles into the same number of splits."""
        splits = self.num_splits or call_num_splits(grid, grid.batch_size)
        local = grid.workload.is_local
        causal = grid.workload.query_len > 1 and not local
        queue = is_persistent(device.arch, varlen=False, split=splits > 1, causal=causal)
        if queue and splits == 1 and (causal or local):
            order = longest_blocks_first(grid)
            whole = (np.zeros_like(order), grid.num_kv_tiles[order])
            return Schedule(grid, np.arange(len(order)), order, *whole, len(order), dispatch="queue")
        return deal(
            grid,
            np.full(grid.batch_size, splits),
            splits,
            np.arange(grid.batch_size),
            "queue" if queue else "grid",
        )


@dataclass(frozen=True)
class FlashAttention3Varlen:
    """A split count for each request from its own length, the longest work first.

    `num_splits` is the most that a request gets: given, as by a server that captures CUDA graphs (32
    in vLLM), or the host's rule for a batch of one. With a sliding window, and where `sort` is off,
    requests keep their order.
    """

    num_splits: Annotated[int, Field(ge=1, le=256)] | None = None
    sort: bool = True

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:
        """Cut each request into its own number of splits and line them up."""
        most = self.num_splits or call_num_splits(grid, batch_size=1)
        if grid.batch_size > PREPARED_REQUESTS:
            most = 1
        kv_tiles = -(-grid.context_lens // grid.tile_tokens)
        splits = dynamic_splits(kv_tiles, grid.row_blocks, grid.heads, grid.num_sms, most)
        queue = is_persistent(device.arch, varlen=True, split=most > 1, causal=False)
        order = np.arange(grid.batch_size)
        if queue and self.sort and not grid.workload.is_local:
            order = longest_first(kv_tiles, splits)
        return deal(grid, splits, most, order, "queue" if queue else "grid")
