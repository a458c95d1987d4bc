"""xFormers' Triton split-k forward, over padded contiguous KV.

Signatures: xFormers 0.0.28 to 0.0.35, `ops.fmha.memory_efficient_attention_forward`,
`triton_splitk.FwOp` and `attn_bias.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens`; 0.0.35
forwards them to mslk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import contiguous, plain_decode, scale_of, version_of
from leansim.specs.device import Device
from leansim.specs.workload import Workload


@dataclass(frozen=True)
class XformersSplitK:
    """Query heads of a KV head are a dimension of their own, over which KV is expanded, not copied."""

    kernel: ClassVar[str] = "xformers_gqa"

    def version(self) -> str:
        """xFormers'; an error where it has no such operator."""
        assert import_module("xformers.ops.fmha.triton_splitk").FwOp is not None
        return version_of("xformers")

    def check(self, load: Workload, device: Device) -> None:  # noqa: ARG002
        """Sixteen-bit KV of its own."""
        plain_decode("xFormers' split-k forward", load)

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:  # noqa: ARG002
        """Copy KV out of its pages, and describe the batch."""
        fmha, load = import_module("xformers.ops.fmha"), given.workload
        operator = import_module("xformers.ops.fmha.triton_splitk").FwOp
        mask = import_module("xformers.ops.fmha.attn_bias").BlockDiagonalCausalWithOffsetPaddedKeysMask
        longest = max(load.context_lens)
        bias = mask.from_seqlens(
            q_seqlen=[load.query_len] * load.batch_size,
            kv_padding=longest,
            kv_seqlen=list(load.context_lens),
        )
        groups = (load.num_kv_heads, load.group_size)
        q = given.q.view(1, -1, *groups, load.head_dim)
        kv = [tuple(_grouped(x, groups) for x in contiguous(given, b)) for b in range(given.buffers)]
        return lambda buffer: fmha.memory_efficient_attention_forward(
            q, *kv[buffer], attn_bias=bias, scale=scale_of(load), op=operator
        )


def _grouped(x: Any, groups: tuple[int, int]) -> Any:
    """`[batch, tokens, heads, dim]` as `[1, batch * tokens, heads, group, dim]`, without a copy."""
    flat = x.flatten(0, 1)[None, :, :, None]
    return flat.expand(1, -1, groups[0], groups[1], x.shape[-1])
