"""vLLM's FlashAttention-3 as its captured decode runs it: at most 32 splits, metadata once a step.

Signatures: vllm-project/flash-attention 617264c (vLLM 0.22 to 0.24), `_vllm_fa3_C.fwd` and
`get_scheduler_metadata`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import for_arch, page_tables, plain_decode
from leansim.gpu.libraries.vllm_extensions import call_of, called, operators, vllm_version
from leansim.specs.device import Device
from leansim.specs.workload import Workload

MOST_SPLITS = 32


@dataclass(frozen=True)
class VllmFlash3:
    """Paged; the metadata kernel runs before the timed calls, as it does once for all layers."""

    kernel: ClassVar[str] = "vllm_fa3"

    def version(self) -> str:
        """vLLM's; an error where its extension does not load."""
        operators("_vllm_fa3_C")
        return vllm_version()

    def check(self, load: Workload, device: Device) -> None:
        """Sixteen-bit KV of its own, on Hopper."""
        plain_decode("vLLM's FlashAttention-3", load, window=True)
        for_arch("vLLM's FlashAttention-3", device, "sm_90")

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:  # noqa: ARG002
        """Make the scheduler's metadata."""
        module, load = operators("_vllm_fa3_C"), given.workload
        how = {**call_of(given), "num_splits": MOST_SPLITS, "is_rotary_interleaved": True}
        shape = {
            "batch_size": load.batch_size,
            "num_heads": load.num_q_heads,
            "num_heads_k": load.num_kv_heads,
            "headdim": load.head_dim,
            "headdim_v": load.value_dim,
            "qkv_dtype": given.q.dtype,
            "page_size": load.page_tokens,
        }
        how["scheduler_metadata"] = called(module.get_scheduler_metadata, {**how, **shape})
        tables = page_tables(given)
        return lambda buffer: called(module.fwd, {**how, "page_table": tables[buffer]})[0]
