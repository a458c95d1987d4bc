"""FlashInfer's decode wrappers: a plan for each buffer of KV, made on the host before any timed call.

Signature: flashinfer 0.6.12 to 0.6.18, `BatchDecodeWithPagedKVCacheWrapper.__init__`, `plan` and `run`.
Its modules are found under `flashinfer/data/aot`, where a wheel brought them, or compiled at `plan`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import page_starts, pages_of, scale_of, tail_lengths

WORKSPACE_BYTES = 256 * 2**20


def workspace(given: Inputs, size: int = WORKSPACE_BYTES) -> Any:
    """A zeroed buffer for partials and plans."""
    return given.torch.zeros(size, dtype=given.torch.uint8, device=given.q.device)


def planned_decode(given: Inputs, tensor_cores: bool) -> Callable[[int], Any]:
    """One wrapper for each buffer, planned as in a captured graph: page lists are buffers of their own.

    In a graph the launch is padded to what the plan of any batch of that size may take.
    """
    wrapper = import_module("flashinfer").BatchDecodeWithPagedKVCacheWrapper
    load = given.workload
    q = given.q.view(-1, load.num_q_heads, load.head_dim)
    out, room = given.torch.empty_like(q), workspace(given)
    left = -1 if load.window is None else load.window - 1
    starts, tails = page_starts(given), tail_lengths(given)
    made = []
    for buffer in range(given.buffers):
        pages = pages_of(given, buffer)
        one = wrapper(
            room,
            "NHD",
            use_cuda_graph=load.launch == "graph",
            use_tensor_cores=tensor_cores,
            paged_kv_indptr_buffer=starts.to(given.q.device),
            paged_kv_indices_buffer=given.torch.empty_like(pages),
            paged_kv_last_page_len_buffer=tails.to(given.q.device),
        )
        one.plan(
            starts,
            pages,
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
