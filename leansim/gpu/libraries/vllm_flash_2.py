"""vLLM's FlashAttention-2: variable lengths, paged.

Signature: vllm-project/flash-attention 617264c (vLLM 0.22 to 0.24), `_vllm_fa2_C.varlen_fwd`.
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


@dataclass(frozen=True)
class VllmFlash2:
    """The operator itself: where query heads are folded into rows it copies Q and O around it."""

    kernel: ClassVar[str] = "vllm_fa2"

    def version(self) -> str:
        """vLLM's; an error where its extension does not load."""
        operators("_vllm_fa2_C")
        return vllm_version()

    def check(self, load: Workload, device: Device) -> None:
        """Sixteen-bit KV of its own."""
        plain_decode("vLLM's FlashAttention-2", load, window=True)
        for_arch("vLLM's FlashAttention-2", device, "sm_8", "sm_9", "sm_10", "sm_12")

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:  # noqa: ARG002
        """Pages as they are."""
        module, how = operators("_vllm_fa2_C"), call_of(given)
        how["cu_seqlens_k"] = given.torch.zeros_like(how["cu_seqlens_q"])  # not read beside `seqused_k`
        tables = page_tables(given)
        return lambda buffer: called(module.varlen_fwd, {**how, "block_table": tables[buffer]})[0]
