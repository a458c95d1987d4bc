"""FlashInfer's decode wrappers: a plan for each buffer of KV, made on the host before any timed call.

Signature: flashinfer 0.6.12 to 0.6.18, `BatchDecodeWithPagedKVCacheWrapper.__init__`, `plan` and `run`.
Its modules are found under `flashinfer/data/aot`, where a wheel brought them, or compiled at `plan`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import (
    flat_queries,
    page_starts,
    pages_of,
    scale_of,
    tail_lengths,
    version_of,
)

WORKSPACE_BYTES = 256 * 2**20


def flashinfer_version() -> str:
    """FlashInfer's; raises what its import raises."""
    return version_of("flashinfer", "flashinfer", "flashinfer-python")


def workspace(given: Inputs, size: int = WORKSPACE_BYTES) -> Any:
    """A zeroed buffer for partials and plans."""
    return given.torch.zeros(size, dtype=given.torch.uint8, device=given.q.device)


def planned_decode(given: Inputs, tensor_cores: bool) -> Callable[[int], Any]:
    """One wrapper for each buffer, planned for this batch, as the kernel's file has it.

    Servers that capture a graph for any batch of a size plan otherwise (`use_cuda_graph`): their launch
    is padded. A plan for one batch can be captured all the same, as its pages stay where they are.
    """
    wrapper = import_module("flashinfer").BatchDecodeWithPagedKVCacheWrapper
    load = given.workload
    q = flat_queries(given)
    out, room = given.torch.empty_like(q), workspace(given)
    left = -1 if load.window is None else load.window - 1
    starts, tails = page_starts(given), tail_lengths(given)
    made = []
    for buffer in range(given.buffers):
        one = wrapper(room, "NHD", use_tensor_cores=tensor_cores)
        one.plan(
            starts,
            pages_of(given, buffer),
            tails,
            load.num_q_heads,
            load.num_kv_heads,
            load.head_dim,
            load.page_tokens,
            window_left=left,
            q_data_type=given.q.dtype,
            kv_data_type=given.k.dtype,
            sm_scale=scale_of(load),
        )
        made.append(one)
    pools = (given.k, given.v)
    return lambda buffer: made[buffer].run(q, pools, out=out)
