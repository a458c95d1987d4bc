"""trtllm-gen's decode kernels for Blackwell: KV cut until one wave of CTAs fills the GPU.

Ignores MLA and the tuning of the query tile for several new tokens. The split merge is modelled as
done by the last CTA to arrive, whether the real one goes through a cluster's shared memory or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from leansim.partitioners.split_launch import Order, even_segments, fixed_splits
from leansim.schedule.schedule import Dispatch, Schedule
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device

ISSUE_ORDER: Order = ("row_block", "split", "head", "request")


def num_ctas_per_kv(
    context_len: int, window: int | None, work: int, num_sms: int, step: int, steps_per_cta: int
) -> int:
    """Splits of each output tile.

    `context_len` is the longest context in tokens, `work` the output tiles; a CTA loads `step` tokens
    at a time and is worth launching for `steps_per_cta` of them. A window shorter than the longest
    context counts with the step it may begin inside of. Source: FlashInfer,
    trtllm/fmha/fmhaKernels.cuh, computeCtaAndClusterConfig.
    """
    attended = context_len
    if window is not None and context_len > window:
        attended = min(context_len, window + step - 1)
    return min(-(-attended // (steps_per_cta * step)), max(1, num_sms // work))


@dataclass(frozen=True)
class TrtllmGen:
    """As many equal splits as there are idle SMs; unsplit tiles go to persistent CTAs.

    Splits follow each request's own length, in steps of `step_tokens` unless the instance has its own
    (that they are even and contiguous is assumed: the kernels are binaries). `steps_per_cta` is 1 in
    TensorRT-LLM before the factor of two came in.
    """

    step_tokens: Annotated[int, Field(ge=1)] = 256
    steps_per_cta: Annotated[int, Field(ge=1)] = 2

    def __call__(self, grid: TileGrid, device: Device) -> Schedule:  # noqa: ARG002
        """Cut every output tile into the call's count of splits."""
        load, work = grid.workload, grid.num_output_tiles
        step = grid.step_tokens or self.step_tokens
        splits = num_ctas_per_kv(
            load.call_context_len,
            load.window,
            work,
            grid.num_sms,
            step,
            self.steps_per_cta,
        )
        borders = even_segments(grid, np.full(work, splits), splits, step)
        dispatch: Dispatch = "queue" if splits == 1 else "grid"
        return fixed_splits(grid, splits, borders, ISSUE_ORDER, "last", dispatch=dispatch)
