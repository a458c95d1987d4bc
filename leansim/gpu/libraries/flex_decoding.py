"""PyTorch's FlexDecoding: compiled once for each batch size and head shape, or uncompiled on a CPU.

Signatures: torch 2.10 to 2.13, `nn.attention.flex_attention.flex_attention` and `create_block_mask`.

Inductor counts splits from batch size and heads, and takes FlexDecoding only where both are plain
numbers (`_use_flex_decoding`). With a symbolic batch it takes FlexAttention's general kernel, one CTA
for each query head: some 300 GB/s on a card, at every batch above 1. So only lengths are symbolic here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import contiguous, lengths, plain_decode, scale_of, version_of
from leansim.specs.device import Device
from leansim.specs.workload import Workload

_MODULE = "torch.nn.attention.flex_attention"
_MOST_SHAPES = 1024


@dataclass(frozen=True)
class FlexDecoding:
    """KV is contiguous and padded to the longest context; a mask of blocks says where each one ends."""

    kernel: ClassVar[str] = "flex_decoding"

    def version(self) -> str:
        """PyTorch's; an error where it has no FlexAttention."""
        import_module(_MODULE)
        return version_of("torch")

    def check(self, load: Workload, device: Device) -> None:  # noqa: ARG002
        """Sixteen-bit KV of its own, one new token."""
        plain_decode("FlexDecoding", load, query_lens=False)

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:  # noqa: ARG002
        """Copy KV out of its pages, and compile where this batch size and head shape have not been."""
        load, seen, longest = given.workload, lengths(given), max(given.workload.context_lens)
        where = given.q.device.type

        def inside(request: Any, _head: Any, _query: Any, token: Any) -> Any:
            return token < seen[request]

        mask = import_module(_MODULE).create_block_mask(
            inside, load.batch_size, None, 1, longest, device=where
        )
        call = _attention(where)
        q = given.q.view(load.batch_size, 1, load.num_q_heads, load.head_dim).transpose(1, 2)
        kv = [
            tuple(x.transpose(1, 2) for x in contiguous(given, buffer))
            for buffer in range(given.buffers)
        ]
        _static(given.torch, q, (0, 1, 2, 3))
        for x in (x for pair in kv for x in pair):
            _static(given.torch, x, (0, 1, 3))
        for x in (seen, *mask.as_tuple()):
            if isinstance(x, given.torch.Tensor):
                _static(given.torch, x, (0,))
        return lambda buffer: call(
            q,
            *kv[buffer],
            block_mask=mask,
            scale=scale_of(load),
            enable_gqa=load.group_size > 1,
        ).transpose(1, 2)


def _static(torch: Any, x: Any, dims: tuple[int, ...]) -> None:
    """Have sizes of these dimensions compiled in."""
    for dim in dims:
        torch._dynamo.mark_static(x, dim)


@cache
def _attention(where: str) -> Callable[..., Any]:
    """FlexAttention, compiled for any lengths; an error where it cannot be compiled."""
    plain = import_module(_MODULE).flex_attention
    if where == "cpu":
        return plain  # type: ignore[no-any-return]
    # All batch sizes and head shapes count together.
    limits = import_module("torch._dynamo").config
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(limits, name, max(getattr(limits, name), _MOST_SHAPES))
    return import_module("torch").compile(plain, dynamic=True, fullgraph=True)  # type: ignore[no-any-return]
