"""SGLang's Triton decode: split counts per request, found by one small kernel per step.

The server's most splits are always launched; those a request does not use return at once. Ignores
MLA and its larger cap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from leansim.arrays import IntArray
from leansim.errors import PartitionerError
from leansim.partitioners.split_launch import Order, fixed_splits
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

ISSUE_ORDER: Order = ("request", "row_block", "head", "split")
HEADS_PER_CTA = 16
LEAST_SPLIT_TOKENS = 32


def head_groups(num_q_heads: int, num_kv_heads: int) -> int:
    """CTAs per request and split: query heads of one KV head share one, 16 at most.

    Source: sglang, triton_ops/decode_attention.py, grid of _decode_grouped_att_m_fwd.
    """
    return -(-num_q_heads // min(HEADS_PER_CTA, num_q_heads // num_kv_heads))


def dynamic_splits(kv_lens: IntArray, work: int, num_sms: int, max_kv_splits: int) -> IntArray:
    """`[requests]` split counts from two split lengths that hold for the whole batch.

    `kv_lens` `[requests]` are tokens, `work` the requests times head groups. One evens out
    lengths that differ by more than a quarter; the other gives each SM work, and more of it the longer
    the longest request is. Single precision. Source: sglang, get_num_kv_splits_triton.
    """
    longest, shortest = int(kv_lens.max()), int(kv_lens.min())
    if longest * 8 < shortest * 10:
        shortest = longest
    growth = np.log2(np.float32(longest) / np.float32(64.0))
    cores = int(np.float32(num_sms) * max(growth, np.float32(1.0)))
    even = -(-longest // min(-(-longest // shortest), max_kv_splits))
    full = -(-longest // min(-(-cores // work), max_kv_splits))
    return np.maximum(-(-kv_lens // even), -(-kv_lens // full))


def split_tokens(kv_lens: IntArray, splits: IntArray) -> IntArray:
    """Tokens of a split, rounded up to 32. Source: sglang, _fwd_grouped_kernel_stage1."""
    share: IntArray = -(-kv_lens // splits)
    return -(-share // LEAST_SPLIT_TOKENS) * LEAST_SPLIT_TOKENS


@dataclass(frozen=True)
class SglangTriton:
    """Equal splits of each request's own length, merged by a second kernel that always runs.

    `mode`: `dynamic` counts, `static` (every request `max_kv_splits`), or `deterministic` (one per
    `split_tile_tokens` of a request, the launch sized by the longest context of the call). With a
    window, what is cut is the last tokens of each context, into as many as the whole context would be
    (sglang 0.5.14, triton_backend.py, forward_decode passes the counts of whole contexts); that they
    may begin inside a KV tile is made up for by the last split.
    """

    split_count_option: ClassVar[str] = "max_kv_splits"

    max_kv_splits: Annotated[int, Field(ge=1)] = 8
    mode: Literal["dynamic", "static", "deterministic"] = "dynamic"
    split_tile_tokens: Annotated[int, Field(ge=1)] = 256

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Launch the most splits for every request; fill as many as each has."""
        load = grid.workload
        if load.query_len > 1:
            raise PartitionerError("sglang_triton decodes one new token per request")
        lens = load.visible_lens
        groups = head_groups(load.num_q_heads, load.num_kv_heads)
        splits, most = self._counts(load.lens, grid, groups)
        tokens = split_tokens(lens, splits)[grid.request]
        length = -(-tokens[:, None] // grid.tile_tokens)
        number = np.arange(most + 1, dtype=np.int64)
        border = np.minimum(number * length, grid.num_kv_tiles[:, None])
        used = -(-lens // split_tokens(lens, splits))[grid.request]
        border[np.arange(len(border)), used] = grid.num_kv_tiles
        borders = border[:, :-1], border[:, 1:]
        partials = np.count_nonzero(borders[0] < borders[1], axis=1)
        return fixed_splits(grid, most, borders, ISSUE_ORDER, "kernel", partials=partials)

    def _counts(self, lens: IntArray, grid: TileGrid, groups: int) -> tuple[IntArray, int]:
        """Split counts per request, and the most that are launched."""
        if self.mode == "deterministic":
            longest = grid.workload.call_context_len
            return -(-lens // self.split_tile_tokens), -(-longest // self.split_tile_tokens)
        if self.mode == "static":
            return np.full(len(lens), self.max_kv_splits, dtype=np.int64), self.max_kv_splits
        work = grid.batch_size * groups
        return dynamic_splits(lens, work, grid.num_sms, self.max_kv_splits), self.max_kv_splits
