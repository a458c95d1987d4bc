"""Deals splits to the least loaded worker, as FlashInfer's persistent kernels are planned.

A worker is a CTA, or a cluster of CTAs that share the rows of a query tile. Splits are dealt in the
order the plan lists them, longest-first or not: nothing is sorted here.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leansim.arrays import IntArray
from leansim.lazy import cached_property

EXACT = 2**24  # whole numbers below are exact in single precision


class _Load(float):
    """Cost of a worker so far. Compares by cost alone, so that ties fall as in the source's heap."""

    __slots__ = ("worker",)
    worker: int


def least_loaded(costs: Sequence[int], num_workers: int) -> IntArray:
    """Worker of each split: the one with the least cost so far, `[len(costs)]`.

    Costs add up in single precision. Python's heap and the C++ library's (std::push_heap,
    std::pop_heap) move their entries alike, so equally loaded workers come in the same order.
    Source: FlashInfer, include/flashinfer/attention/heap.h.
    """
    heap = [_Load(0.0) for _ in range(num_workers)]
    for worker, load in enumerate(heap):
        load.worker = worker
    taken = []
    for cost in costs:  # nearly all of the time of a plan
        least = heapq.heappop(heap)
        taken.append(least.worker)
        total = least + cost
        if total > EXACT:
            total = float(np.float32(total))
        load = _Load(total)
        load.worker = least.worker
        heapq.heappush(heap, load)
    return np.array(taken, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class DealtSplits:
    """Splits in the order the plan lists them; all columns `[splits]`.

    `item` says which (request, query tile) a split belongs to, `number` which split of it, counted
    from 0, `head` its KV head, `tokens` how long it is, `worker` who does it.
    """

    item: IntArray
    number: IntArray
    head: IntArray
    tokens: IntArray
    worker: IntArray
    num_workers: int

    def __len__(self) -> int:
        return len(self.item)

    @property
    def works_of_worker(self) -> IntArray:
        """Splits of each worker."""
        return np.bincount(self.worker, minlength=self.num_workers)

    @property
    def tokens_of_worker(self) -> IntArray:
        """KV tokens of each worker."""
        sums = np.bincount(self.worker, weights=self.tokens, minlength=self.num_workers)
        return sums.astype(np.int64)

    @cached_property
    def by_worker(self) -> IntArray:
        """Numbers of splits sorted by worker: the order in which they are done."""
        return np.argsort(self.worker, kind="stable")


def deal(lengths: IntArray, limit: int, heads: int, tile_rows: int, num_workers: int) -> DealtSplits:
    """Cut items of `lengths` tokens into splits of at most `limit` and deal them.

    For each item, each split and each of `heads`, innermost last; a split costs two for each row of
    the query tile and one for each of its tokens (FlashInfer, scheduler.cuh, cost_function).
    """
    splits = np.maximum(1, -(-lengths // limit))
    per_item = splits * heads
    item = np.repeat(np.arange(len(lengths)), per_item)
    within = np.arange(len(item)) - np.repeat(np.cumsum(per_item) - per_item, per_item)
    number, head = np.divmod(within, heads)
    tokens = np.minimum(limit, lengths[item] - number * limit)
    worker = least_loaded((2 * tile_rows + tokens).tolist(), num_workers)
    return DealtSplits(item, number, head, tokens, worker, num_workers)


def causal_end(
    context_lens: IntArray, query_len: int, group: int, tile_rows: int, causal: bool
) -> IntArray:
    """KV tokens that each query tile of each request reads, `[batch, query tiles]`.

    Without `causal` all rows read everything (FlashInfer, scheduler.cuh, packed_causal_kv_end).
    """
    tiles = -(-query_len * group // tile_rows)
    seen: IntArray = -(-np.arange(1, tiles + 1, dtype=np.int64) * tile_rows // group)
    seen[-1] = query_len
    seen = np.minimum(seen, query_len) if causal else np.full(tiles, query_len)
    ends: IntArray = np.maximum(0, context_lens[:, None] - query_len + seen)
    return ends
