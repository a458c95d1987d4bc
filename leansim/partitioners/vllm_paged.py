"""vLLM's PagedAttention kernels: a CTA per query head, unsplit (v1) or in fixed partitions (v2).

Query heads of a group read the same KV each for itself. Ignores block-sparse attention and ALiBi.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from leansim.errors import PartitionerError
from leansim.partitioners.split_launch import Order, fixed_splits, token_borders
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

ISSUE_ORDER: Order = ("row_block", "head", "request", "split")
PARTITION_TOKENS = 512
MOST_TOKENS_OF_V1 = 8192


def takes_v1(
    max_context_len: int, sequence_heads: int, partition_tokens: int = PARTITION_TOKENS
) -> bool:
    """Whether vLLM runs v1: short contexts that have one partition, or are many.

    `max_context_len` in tokens, `sequence_heads` the requests times query heads. Source: vllm,
    attention/ops/paged_attn.py, PagedAttention.forward_decode.
    """
    partitions = -(-max_context_len // partition_tokens)
    return max_context_len <= MOST_TOKENS_OF_V1 and (partitions == 1 or sequence_heads > 512)


def _refuse(grid: TileGrid, name: str) -> None:
    """Raise `PartitionerError` for calls the kernels do not have."""
    if grid.workload.query_len > 1:
        raise PartitionerError(f"{name} decodes one new token per request")
    if grid.workload.window is not None:
        raise PartitionerError(f"{name} has no sliding window")


@dataclass(frozen=True)
class VllmPagedV1:
    """One CTA for each request and query head, heads first; it keeps all its scores in shared memory."""

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:
        """Give each CTA one whole output tile. Source: vllm, csrc/attention/paged_attention_v1.cu."""
        _refuse(grid, "vllm_paged_v1")
        pages = -(-grid.workload.call_context_len // grid.workload.page_tokens)
        scores_bytes = 4 * pages * grid.workload.page_tokens
        if scores_bytes > device.smem_bytes_per_cta_max:
            raise PartitionerError(
                f"vllm_paged_v1 keeps the scores of the whole context in shared memory: found "
                f"{scores_bytes:,} B for {grid.workload.call_context_len:,} tokens, wanted at most "
                f"{device.smem_bytes_per_cta_max:,} B"
            )
        none = np.zeros((grid.num_output_tiles, 1), dtype=np.int64)
        return fixed_splits(grid, 1, (none, grid.num_kv_tiles[:, None]), ISSUE_ORDER, "none")


@dataclass(frozen=True)
class VllmPagedV2:
    """Partitions of `partition_tokens`, as many as the call's longest context has.

    A request's partitions beyond its own length return at once. The reduce kernel always runs, and
    reads the partitions a request has.
    """

    partition_tokens: Annotated[int, Field(ge=1)] = PARTITION_TOKENS

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Cut at multiples of the partition. Source: vllm, csrc/attention/paged_attention_v2.cu."""
        _refuse(grid, "vllm_paged_v2")
        if self.partition_tokens % grid.tile_tokens:
            raise PartitionerError(
                f"vllm_paged_v2: partition_tokens is {self.partition_tokens}, wanted a multiple of "
                f"the kernel's {grid.tile_tokens}-token KV tile"
            )
        partitions = -(-grid.workload.call_context_len // self.partition_tokens)
        each = np.full(grid.num_output_tiles, self.partition_tokens, dtype=np.int64)
        partials = -(-grid.context_lens // self.partition_tokens)[grid.request]
        borders = token_borders(grid, each, partitions)
        return fixed_splits(grid, partitions, borders, ISSUE_ORDER, "kernel", partials=partials)
