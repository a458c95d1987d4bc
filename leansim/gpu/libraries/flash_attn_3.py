"""FlashAttention-3's own package (hopper/), by the entry for a KV cache, paged.

Signature: flash_attn_3 3.0.0, `flash_attn_interface.flash_attn_with_kvcache`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import (
    for_arch,
    lengths,
    page_tables,
    plain_decode,
    queries,
    scale_of,
    version_of,
    window_of,
)
from leansim.specs.device import Device
from leansim.specs.workload import Workload


@dataclass(frozen=True)
class FlashAttn3:
    """Without scheduler metadata: a small kernel counts splits inside each call, as SGLang runs it."""

    kernel: ClassVar[str] = "sglang_fa3"

    def version(self) -> str:
        """The package's."""
        return version_of("flash_attn_interface", "flash-attn-3", "flash_attn_3")

    def check(self, load: Workload, device: Device) -> None:
        """Sixteen-bit KV of its own, on Hopper."""
        plain_decode("flash_attn 3", load, window=True)
        for_arch("flash_attn 3", device, "sm_90")

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:  # noqa: ARG002
        """Pages as they are."""
        call = import_module("flash_attn_interface").flash_attn_with_kvcache
        load, q, seen = given.workload, queries(given), lengths(given)
        tables = page_tables(given)
        return lambda buffer: call(
            q,
            given.k,
            given.v,
            cache_seqlens=seen,
            page_table=tables[buffer],
            softmax_scale=scale_of(load),
            causal=True,
            window_size=window_of(load),
        )
