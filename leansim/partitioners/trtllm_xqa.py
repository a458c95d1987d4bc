"""TensorRT-LLM's XQA decode: one CTA per sub-sequence and KV head, merged by the last to arrive.

FlashInfer ships the same kernels and counts sub-sequences by a rule of its own.

Ignores beam search, MLA and the draft-token count rule of Hopper's speculative kernel: every call
is cut by the rule of plain decode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from leansim.errors import PartitionerError
from leansim.partitioners.split_launch import Order, even_segments, fixed_splits
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

ISSUE_ORDER: Order = ("split", "row_block", "head", "request")
MOST_WAVES = 8
MOST_SUB_SEQUENCES = 6000
MOST_QUERY_HEADS = 32


def multi_block_count(
    history: int, work: int, batch_size: int, num_sms: int, tokens_per_block: int = 128
) -> int:
    """Sub-sequences of each output tile.

    `history` is the longest context the call is told, in tokens (max_past_kv_length), `work` the
    requests times KV heads. One sub-sequence per `tokens_per_block` tokens, no more than about the
    square root of eight times that, nor than fills `MOST_WAVES` CTAs per SM, nor than the workspace
    holds. Source: TensorRT-LLM, decoderXQAImplCommon.h, computeMultiBlockCount (single precision
    under the root).
    """
    count = history // tokens_per_block
    root = np.sqrt(np.float32(count) * np.float32(8.0))
    count = max(1, min(count, math.floor(float(root) + 0.5)))
    excess = float(work) * count / num_sms / MOST_WAVES
    if excess > 1.0:
        count = max(1, math.floor(count / excess))
    return max(1, min(count, MOST_SUB_SEQUENCES // batch_size))


def one_wave_count(longest: int, work: int, num_sms: int, arch: str, kv_dtype: str) -> int:
    """Sub-sequences of each output tile where FlashInfer launches the kernel.

    As many as fill one wave, rounded down to whole ones for each of `work` output tiles, and no more
    than the CTA tiles of `longest`, the tokens that a row of the page table has room for. The wave is
    one CTA per SM. In the Hopper kernel for 8-bit KV three CTAs per SM are shared out in whole numbers,
    and a quarter of what each output tile gets is rounded, halves up. Source: FlashInfer 0.6.12,
    csrc/xqa/mha.cu, launchMHAFlashInfer, and mha_sm90.cu, launchHopperF8MHAFlashInfer.
    """
    tiles = max(1, -(-longest // cta_tile_tokens(arch, kv_dtype)))
    is_hopper_8_bit = arch == "sm_90" and kv_dtype == "fp8"
    wave = (3 * num_sms // work + 2) // 4 if is_hopper_8_bit else num_sms // work
    return min(max(1, wave), tiles)


def cta_tile_tokens(arch: str, kv_dtype: str) -> int:
    """Tokens a CTA takes at a time: 64 in the Hopper kernel for 8-bit KV, else 256.

    Source: TensorRT-LLM, mha_sm90.cu (gemm0CtaTileNbTokens) and mha.cu (ctaTile); which of the two
    runs is supportConfigQGMMA in kernelUtils.cpp.
    """
    return 64 if arch == "sm_90" and kv_dtype == "fp8" else 256


@dataclass(frozen=True)
class TrtllmXqa:
    """Sub-sequences of equal length in whole CTA tiles, counted by the longest context of the call.

    The kernels deal tiles to sub-sequences like cards; here each has as many tiles, but next to each
    other. Sub-sequences beyond a request's tiles are launched and do nothing (on the 256-thread
    kernel they also write a partial, which is not counted). `num_splits` overrides the count, as
    TRTLLM_XQA_BLOCKS_PER_SEQUENCE does; `tokens_per_block` was 512 until 2024. `rule` says whose host
    code counts: TensorRT-LLM's (`multi_block_count`) or FlashInfer's (`one_wave_count`), which knows no
    `tokens_per_block`.

    Calls of 16-bit KV whose blocks, one per `tokens_per_block` tokens and no fewer than one, would
    occupy less than `min_wave` of the SMs are refused: TensorRT-LLM hands those to a kernel that knows
    no 16-bit query with an 8-bit cache (decoderXQAImplJIT.cpp, shouldUse and mayHavePerfGain: a
    quarter).
    """

    num_splits: Annotated[int, Field(ge=1)] | None = None
    tokens_per_block: Annotated[int, Field(ge=1)] = 128
    min_wave: Annotated[float, Field(ge=0)] = 0.0
    rule: Literal["tensorrt_llm", "flashinfer"] = "tensorrt_llm"

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:
        """Cut every output tile into the call's count of sub-sequences."""
        load = grid.workload
        if load.group_size > MOST_QUERY_HEADS:
            raise PartitionerError(
                f"trtllm_xqa takes at most {MOST_QUERY_HEADS} query heads per KV head, "
                f"found {load.group_size}"
            )
        splits = self.num_splits or self._counted(grid, device.arch)
        blocks = max(1, load.call_context_len // self.tokens_per_block) * grid.num_output_tiles
        if blocks < self.min_wave * grid.num_sms and load.kv_dtype != "fp8":
            raise PartitionerError(
                f"trtllm_xqa is not used where its blocks fill less than {self.min_wave:g} of the SMs"
            )
        unit = cta_tile_tokens(device.arch, load.kv_dtype)
        wanted = np.full(grid.num_output_tiles, splits, dtype=np.int64)
        borders = even_segments(grid, wanted, splits, unit)
        return fixed_splits(grid, splits, borders, ISSUE_ORDER, "last")

    def _counted(self, grid: TileGrid, arch: str) -> int:
        """Sub-sequences of each output tile, by the rule."""
        load, num_sms = grid.workload, grid.num_sms
        longest, work = load.call_context_len, grid.batch_size * load.num_kv_heads
        if self.rule == "flashinfer":
            in_pages = -(-longest // load.page_tokens) * load.page_tokens
            return one_wave_count(in_pages, work, num_sms, arch, load.kv_dtype)
        return multi_block_count(longest, work, grid.batch_size, num_sms, self.tokens_per_block)
