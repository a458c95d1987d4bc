"""SGLang's Triton decode attention.

Signature: sgl-project/sglang 03cd2ec (0.5.x),
`layers.attention.triton_ops.decode_attention.decode_attention_fwd`. As the server of 0.5.12 has it, the
second kernel begins early where the GPU can do so (`use_pdl`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any, ClassVar

import numpy as np

from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import (
    context_starts,
    flat_queries,
    plain_decode,
    scale_of,
    version_of,
)
from leansim.partitioners.sglang_triton import dynamic_splits, head_groups
from leansim.specs.device import Device
from leansim.specs.workload import Workload

MOST_SPLITS = 8
_MODULE = "sglang.srt.layers.attention.triton_ops.decode_attention"


@dataclass(frozen=True)
class SglangTriton:
    """Pages of one token. Split counts are set outside the calls, by the rule of the server's kernel."""

    kernel: ClassVar[str] = "sglang_triton"
    # Without groups it multiplies Q and K in sixteen bits: a row 3.01% off was seen, on an H100.
    rounding: ClassVar[float] = 8.0

    def version(self) -> str:
        """SGLang's; an error where its kernels do not load."""
        import_module(_MODULE)
        return version_of("sglang")

    def check(self, load: Workload, device: Device) -> None:  # noqa: ARG002
        """Sixteen-bit KV of its own, one new token."""
        plain_decode("SGLang's Triton decode", load, query_lens=False)

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:
        """List the tokens of each buffer, and count splits."""
        call, load, torch = import_module(_MODULE).decode_attention_fwd, given.workload, given.torch
        where = given.q.device
        q = flat_queries(given)
        out = q.new_empty((*q.shape[:2], load.value_dim))
        shape = (*q.shape[:2], MOST_SPLITS)
        partial = torch.empty((*shape, load.value_dim), dtype=torch.float32, device=where)
        lse = torch.empty(shape, dtype=torch.float32, device=where)
        work = load.batch_size * head_groups(load.num_q_heads, load.num_kv_heads)
        counts = dynamic_splits(load.lens, work, device.num_sms, MOST_SPLITS)
        splits = torch.from_numpy(counts.astype(np.int32)).to(where)
        k, v = given.k.flatten(0, 1), given.v.flatten(0, 1)
        starts = context_starts(given)
        places = [_tokens(given, buffer) for buffer in range(given.buffers)]
        early = {}
        if "use_pdl" in signature(call).parameters:
            early["use_pdl"] = not device.arch.startswith("sm_8")

        def enqueue(buffer: int) -> Any:
            call(
                q,
                k,
                v,
                out,
                starts,
                places[buffer],
                partial,
                lse,
                splits,
                MOST_SPLITS,
                scale_of(load),
                1.0,  # k_scale
                1.0,  # v_scale
                **early,
            )
            return out

        return enqueue


def _tokens(given: Inputs, buffer: int) -> Any:
    """Where each token of each request is in the pools, int64 `[all tokens]`."""
    load, table = given.workload, given.page_table[buffer].long()
    inside = given.torch.arange(load.page_tokens, device=table.device)
    places = (table[:, :, None] * load.page_tokens + inside).flatten(1)
    return given.torch.cat([places[i, :n] for i, n in enumerate(load.context_lens)])
