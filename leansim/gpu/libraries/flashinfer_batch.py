"""FlashInfer's BatchAttention: one cooperative launch of persistent CTAs.

Signature: flashinfer 0.6.18, `attention.BatchAttention.plan` and `run`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import (
    flat_queries,
    lengths,
    page_starts,
    pages_of,
    plain_decode,
    query_starts,
    scale_of,
)
from leansim.gpu.libraries.flashinfer_wrapper import flashinfer_version
from leansim.specs.device import Device
from leansim.specs.workload import Workload


@dataclass(frozen=True)
class FlashinferBatch:
    """Paged; its plan is made on the host, outside the timed calls."""

    kernel: ClassVar[str] = "flashinfer_batch"

    def version(self) -> str:
        """FlashInfer's; an error where it has no BatchAttention."""
        assert import_module("flashinfer").BatchAttention is not None
        return flashinfer_version()

    def check(self, load: Workload, device: Device) -> None:  # noqa: ARG002
        """Sixteen-bit KV of its own."""
        plain_decode("FlashInfer's BatchAttention", load)

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:  # noqa: ARG002
        """Plan for each buffer."""
        attention, load = import_module("flashinfer").BatchAttention, given.workload
        q = flat_queries(given)
        out = given.torch.empty_like(q)
        lse = given.torch.empty(q.shape[:2], dtype=given.torch.float32, device=q.device)
        starts = page_starts(given).to(q.device)
        made: list[Any] = []
        for buffer in range(given.buffers):
            one = attention(kv_layout="NHD", device=str(q.device))
            if made:  # 384 MB of partials, which no two calls have at a time
                one.float_workspace_buffer = made[0].float_workspace_buffer
            one.plan(
                query_starts(given),
                starts,
                pages_of(given, buffer),
                lengths(given),
                load.num_q_heads,
                load.num_kv_heads,
                load.head_dim,
                load.value_dim,
                load.page_tokens,
                causal=load.query_len > 1,
                sm_scale=scale_of(load),
                q_data_type=q.dtype,
                kv_data_type=given.k.dtype,
            )
            made.append(one)
        pools = (given.k, given.v)

        def call(buffer: int) -> Any:
            made[buffer].run(q, pools, out=out, lse=lse)
            return out

        return call
