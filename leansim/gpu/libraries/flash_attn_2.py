"""FlashAttention-2's own package, by the entry for a KV cache.

Signature: flash_attn 2.8, `flash_attn_interface.flash_attn_with_kvcache` (2.5.7 and later have it too).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import (
    contiguous,
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

_PAGE = 256


@dataclass(frozen=True)
class FlashAttn2:
    """Paged in blocks of 256 tokens, the least that the package takes, or contiguous otherwise."""

    kernel: ClassVar[str] = "flash_decoding"

    def version(self) -> str:
        """The package's; an error for one that is another generation."""
        found = version_of("flash_attn", "flash-attn", "flash_attn")
        if not found.split()[1].startswith("2."):
            raise ImportError(f"found {found}; wanted FlashAttention-2")
        return found

    def check(self, load: Workload, device: Device) -> None:
        """Sixteen-bit KV of its own."""
        plain_decode("flash_attn 2", load, window=True)
        for_arch("flash_attn 2", device, "sm_8", "sm_9", "sm_10", "sm_12")

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:  # noqa: ARG002
        """Read pages as they are where they are long enough, else a contiguous copy."""
        call = import_module("flash_attn").flash_attn_with_kvcache
        load, q, seen = given.workload, queries(given), lengths(given)
        how = {
            "cache_seqlens": seen,
            "softmax_scale": scale_of(load),
            "causal": True,
            "window_size": window_of(load),
        }
        if load.page_tokens % _PAGE == 0:
            tables = page_tables(given)
            return lambda buffer: call(q, given.k, given.v, block_table=tables[buffer], **how)
        kv = [contiguous(given, buffer) for buffer in range(given.buffers)]
        return lambda buffer: call(q, *kv[buffer], **how)
