"""XQA of TensorRT-LLM, as FlashInfer ships it.

Signature: flashinfer 0.6.18, `decode.xqa_batch_decode_with_kv_cache`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import (
    flat_queries,
    for_arch,
    lengths,
    page_tables,
    plain_decode,
    scale_of,
)
from leansim.gpu.libraries.flashinfer_wrapper import flashinfer_version, workspace
from leansim.specs.device import Device
from leansim.specs.workload import Workload


@dataclass(frozen=True)
class FlashinferXqa:
    """Paged; without the kernel that TensorRT-LLM runs before each call to append the new token."""

    kernel: ClassVar[str] = "flashinfer_xqa"
    rounding: ClassVar[float] = 2.0  # rows up to 0.7% off were seen, on an H200

    def version(self) -> str:
        """FlashInfer's; an error where it has no XQA."""
        assert import_module("flashinfer.decode").xqa_batch_decode_with_kv_cache is not None
        return flashinfer_version()

    def check(self, load: Workload, device: Device) -> None:
        """Sixteen-bit KV of its own, one new token."""
        plain_decode("FlashInfer's XQA", load, window=True, query_lens=False)
        for_arch("FlashInfer's XQA", device, "sm_9", "sm_10", "sm_12")

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:  # noqa: ARG002
        """Room for partials, zeroed: it holds semaphores too."""
        call = import_module("flashinfer.decode").xqa_batch_decode_with_kv_cache
        load, room = given.workload, workspace(given)
        q = flat_queries(given)
        out, seen = given.torch.empty_like(q), lengths(given)
        left = -1 if load.window is None else load.window - 1
        tables, pools = page_tables(given), (given.k, given.v)
        return lambda buffer: call(
            q,
            pools,
            room,
            tables[buffer],
            seen,
            max(load.context_lens),
            bmm1_scale=scale_of(load),
            window_left=left,
            out=out,
            kv_layout="NHD",
        )
