"""FlashInfer's decode on CUDA cores: the shortest split, in pages, whose CTAs all fit at once.

Every request is cut into splits of the same token count, the last of each ragged; nothing is cut
where the unsplit batch fills the machine. Ignores sliding windows, which this kernel masks but
reads in full, and several new tokens, which it does not take.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leansim.arrays import IntArray
from leansim.errors import PartitionerError
from leansim.partitioners._token_splits import split_schedule
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

LEAST_SPLIT_TOKENS = 128


@dataclass(frozen=True, eq=False)
class DecodePlan:
    """What the host code decides: whether partials are merged, and the splits of each request.

    `split_tokens` is the length of a split, `splits` `[batch]` how many a request has,
    `padded_batch` how many CTAs are launched for each KV head.
    """

    merged: bool
    split_tokens: int
    splits: IntArray
    padded_batch: int

    @property
    def new_batch(self) -> int:
        """Splits of all requests: the CTAs of a KV head that have work."""
        return int(self.splits.sum())


def decode_plan(
    context_lens: IntArray, page_tokens: int, columns: int, max_ctas: int, cuda_graph: bool = False
) -> DecodePlan:
    """Plan a batch for at most `max_ctas` CTAs, `columns` (KV heads) of them for each split.

    With `cuda_graph` a batch that leaves CTAs free always takes the split kernel, and is launched
    as many CTAs as the machine holds. Source: FlashInfer, include/flashinfer/attention/
    scheduler.cuh, DecodePlan and BatchDecodeWithPagedKVCacheWorkEstimationDispatched.
    """
    pages = -(-context_lens // page_tokens)
    batch = len(pages)
    if batch * columns >= max_ctas:
        whole = np.ones(batch, dtype=np.int64)
        return DecodePlan(False, int(pages.max()) * page_tokens, whole, batch)
    split_pages = shortest_split(
        pages, np.full(batch, columns), max_ctas, max(1, LEAST_SPLIT_TOKENS // page_tokens)
    )
    splits = -(-pages // split_pages)
    merged = cuda_graph or int(splits.sum()) != batch
    padded_batch = max_ctas // columns if cuda_graph else int(splits.sum())
    return DecodePlan(merged, split_pages * page_tokens, splits, padded_batch)


def shortest_split(lengths: IntArray, weights: IntArray, most: int, least: int) -> int:
    """Least split length from `least` up that cuts `lengths` into at most `most` splits, weighted.

    Splits of entry `i` count `weights[i]` times. Where no split is long enough, the longest entry.
    Source: FlashInfer, scheduler.cuh, PartitionPagedKVCacheBinarySearchMinNumPagePerBatch and
    PrefillBinarySearchKVChunkSize.
    """
    low, high = least, int(lengths.max())
    while low < high:
        middle = (low + high) // 2
        if int((weights * -(-lengths // middle)).sum()) > most:
            low = middle + 1
        else:
            high = middle
    return low


@dataclass(frozen=True)
class FlashinferDecode:
    """Splits of equal token count for all requests, as few tokens as let every CTA be resident.

    CTAs are issued request by request and split by split, one KV head after the other. `cuda_graph`
    plans as for a captured graph: a fixed count of CTAs, whose surplus return at once. One new token
    per request and no sliding window.
    """

    cuda_graph: bool = False

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Cut the requests at multiples of the split length, to the nearest KV tile."""
        workload = grid.workload
        if workload.query_len > 1 or workload.window is not None:
            raise PartitionerError(
                "flashinfer_decode takes one new token per request and no sliding window"
            )
        plan = decode_plan(
            grid.context_lens,
            workload.page_tokens,
            grid.heads * grid.row_blocks,
            grid.slots,
            self.cuda_graph,
        )
        padded_batch = plan.padded_batch * grid.row_blocks
        return split_schedule(grid, plan.split_tokens, plan.splits, plan.merged, padded_batch)
