"""PyTorch's FlexDecoding: compiled once for each head shape, or uncompiled on a CPU.

Signatures: torch 2.10 to 2.13, `nn.attention.flex_attention.flex_attention` and `create_block_mask`.
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
_MOST_SHAPES = 256


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
        """Copy KV out of its pages, and compile where this head shape has not been."""
        load, seen, longest = given.workload, lengths(given), max(given.workload.context_lens)
        where = given.q.device.type

        def inside(request: Any, _head: Any, _query: Any, token: Any) -> Any:
            return token < seen[request]

        mask = import_module(_MODULE).create_block_mask(
            inside, load.batch_size, None, 1, longest, device=where
        )
        call = _attention(where, load.num_q_heads, load.num_kv_heads, load.head_dim)
        q = given.q.view(load.batch_size, 1, load.num_q_heads, load.head_dim).transpose(1, 2)
        kv = [
            tuple(x.transpose(1, 2) for x in contiguous(given, buffer))
            for buffer in range(given.buffers)
        ]
        return lambda buffer: call(
            q,
            *kv[buffer],
            block_mask=mask,
            scale=scale_of(load),
            enable_gqa=load.group_size > 1,
        ).transpose(1, 2)


@cache
def _attention(where: str, *_head_shape: int) -> Callable[..., Any]:
    """FlexAttention, compiled for lengths and batches of any size; kept for each head shape."""
    plain = import_module(_MODULE).flex_attention
    if where == "cpu":
        return plain  # type: ignore[no-any-return]
    # All head shapes count together there, and past the limit nothing is compiled.
    limits = import_module("torch._dynamo").config
    limits.recompile_limit = max(limits.recompile_limit, _MOST_SHAPES)
    return import_module("torch").compile(plain, dynamic=True)  # type: ignore[no-any-return]
