"""FlashAttention-2 inside PyTorch, by the operator that its own attention calls.

Signature: `aten::_flash_attention_forward` of torch 2.10 to 2.13. Contexts of one length go as a batch,
others by the variable-length entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import (
    context_starts,
    contiguous,
    for_arch,
    plain_decode,
    queries,
    query_starts,
    scale_of,
    together,
    version_of,
    window_of,
)
from leansim.specs.device import Device
from leansim.specs.workload import Workload


@dataclass(frozen=True)
class TorchFlash2:
    """KV is contiguous; it splits as FlashAttention-2 has done since 2.5.7, but ragged MHA not at all.

    Of several new tokens the last sees the whole context: the operator aligns causal masks there.
    """

    kernel: ClassVar[str] = "torch_flash"

    def version(self) -> str:
        """PyTorch's; an error where this build has no such kernel."""
        has_kernel = import_module("torch")._C._dispatch_has_kernel_for_dispatch_key
        if not has_kernel("aten::_flash_attention_forward", "CUDA"):
            raise ImportError("this build of torch has no FlashAttention-2 for CUDA")
        return version_of("torch")

    def check(self, load: Workload, device: Device) -> None:
        """Sixteen-bit KV of its own, on NVIDIA GPUs."""
        plain_decode("PyTorch's FlashAttention-2", load, window=True)
        for_arch("PyTorch's FlashAttention-2", device, "sm_8", "sm_9", "sm_10", "sm_12")

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:  # noqa: ARG002
        """Copy KV out of its pages."""
        forward, load = given.torch.ops.aten._flash_attention_forward, given.workload
        longest, (left, right) = max(load.context_lens), window_of(load)
        how = {"scale": scale_of(load)}
        if load.window is not None:
            how |= {"window_size_left": left, "window_size_right": right}
        causal = load.query_len > 1
        q = queries(given)
        if len(set(load.context_lens)) == 1:
            kv = [contiguous(given, buffer) for buffer in range(given.buffers)]
            return lambda buffer: forward(
                q, *kv[buffer], None, None, load.query_len, longest, 0.0, causal, False, **how
            )[0]
        rows, starts = q.flatten(0, 1), (query_starts(given), context_starts(given))
        parts = [together(given, buffer) for buffer in range(given.buffers)]
        return lambda buffer: forward(
            rows, *parts[buffer], *starts, load.query_len, longest, 0.0, causal, False, **how
        )[0]
