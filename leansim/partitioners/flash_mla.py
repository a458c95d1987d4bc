"""FlashMLA: the concatenated KV blocks of the batch cut into equal parts, one for each group of SMs.

Requests keep their order. Each (part, request) pair counts a fixed overhead, so parts with many short
requests take fewer blocks. Ignores sparse attention and the metadata kernel, which runs once per
decoding step for all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leansim.arrays import IntArray
from leansim.errors import PartitionerError
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

OVERHEAD_BLOCKS = 5


def num_sm_parts(num_sms: int, kv_heads: int, row_blocks: int) -> int:
    """Parts the batch is cut into: one for each set of CTAs that covers all rows and KV heads.

    Source: FlashMLA, csrc/api/dense_decode.h, dense_attn_decode_interface.
    """
    return max(1, num_sms // kv_heads // row_blocks)


@dataclass(frozen=True, eq=False)
class Metadata:
    """Where each part begins and ends, as the metadata kernel writes it.

    Part `p` does blocks `begin_block[p]` of request `begin_request[p]` up to and without `end_block[p]`
    of `end_request[p]`; a part whose `begin_request` is the batch size is idle. `begin_split` says
    which split of its first request a part starts with. Those are `[parts]`; `num_splits` is `[batch]`.
    """

    total_blocks: int
    payload: int
    begin_request: IntArray
    begin_block: IntArray
    end_request: IntArray
    end_block: IntArray
    begin_split: IntArray
    num_splits: IntArray


def decoding_metadata(blocks: IntArray, parts: int) -> Metadata:
    """Cut requests of `blocks` KV blocks each, `[batch]`, into `parts` parts of equal payload.

    A part takes whole requests while they and their overhead fit into what is left of its payload,
    then as much of the next one as fits. Source: FlashMLA, csrc/smxx/decode/get_decoding_sched_meta,
    get_mla_metadata_kernel.
    """
    sizes = blocks.tolist()
    total = sum(sizes) + OVERHEAD_BLOCKS * len(sizes)
    payload = -(-total // parts) + OVERHEAD_BLOCKS
    table = []
    splits = np.zeros(len(sizes), dtype=np.int64)
    request = block = split = 0
    for _ in range(parts):
        begin, left = (request, block, split), payload
        while request < len(sizes):
            if left >= sizes[request] - block + OVERHEAD_BLOCKS:
                splits[request] = split + 1
                left -= sizes[request] - block + OVERHEAD_BLOCKS
                request, block, split = request + 1, 0, 0
                continue
            if left > OVERHEAD_BLOCKS:
                block, split = block + left - OVERHEAD_BLOCKS, split + 1
            break
        end = (request, block) if block else (request - 1, sizes[request - 1])
        table.append((*begin, *end))
    columns = np.array(table, dtype=np.int64).T
    begin_request, begin_block, begin_split, end_request, end_block = columns
    return Metadata(
        total, payload, begin_request, begin_block, end_request, end_block, begin_split, splits
    )


@dataclass(frozen=True)
class FlashMla:
    """Equal parts of the line of KV blocks, in request order; each CTA has 64 rows of one KV head.

    CTAs are issued row block first, then KV head, then part; parts beyond the end of the line are
    launched idle. A KV block is the kernel's KV tile. No sliding window.
    """

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Give the CTAs of a part its blocks."""
        if grid.workload.window is not None:
            raise PartitionerError("flash_mla has no sliding window")
        parts = num_sm_parts(grid.num_sms, grid.heads, grid.row_blocks)
        blocks = -(-grid.context_lens // grid.tile_tokens)
        plan = decoding_metadata(blocks, parts)
        part, request, start, stop = _requests_of_parts(plan, blocks)
        columns = grid.heads * grid.row_blocks
        column = np.arange(columns)
        cta = part[:, None] * columns + column
        tile = request[:, None] * columns + column
        order = np.argsort(cta.ravel(), kind="stable")
        cta, tile = cta.ravel()[order], tile.ravel()[order]
        start, stop = np.repeat(start, columns)[order], np.repeat(stop, columns)[order]
        stop = np.minimum(stop, grid.num_kv_tiles[tile])
        partials = np.where(plan.num_splits > 1, plan.num_splits, 0)[grid.request]
        return Schedule.from_segments(
            grid,
            (cta, tile, start, stop),
            parts * columns,
            "kernel",
            num_splits=int(plan.num_splits.max()),
            partials=partials,
        )


def _requests_of_parts(plan: Metadata, blocks: IntArray) -> tuple[IntArray, ...]:
    """(part, request, first block, block after the last) of all splits, part by part."""
    busy = np.flatnonzero(plan.begin_request < len(blocks))
    counts = (plan.end_request - plan.begin_request + 1)[busy]
    part = np.repeat(busy, counts)
    within = np.arange(len(part)) - np.repeat(np.cumsum(counts) - counts, counts)
    request = plan.begin_request[part] + within
    start = np.where(within == 0, plan.begin_block[part], 0)
    stop = np.where(request == plan.end_request[part], plan.end_block[part], blocks[request])
    return part, request, start, stop
