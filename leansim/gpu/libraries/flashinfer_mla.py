"""FlashInfer's MLA decode over a latent cache.

Signature: flashinfer 0.6.18, `mla.BatchMLAPagedAttentionWrapper`.
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
from leansim.gpu.libraries.flashinfer_wrapper import flashinfer_version, workspace
from leansim.specs.device import Device
from leansim.specs.workload import Workload


@dataclass(frozen=True)
class FlashinferMla:
    """Latent and rotary part are two views of one cache, as servers lay it out."""

    kernel: ClassVar[str] = "flashinfer_mla"

    def version(self) -> str:
        """FlashInfer's; an error where it has no MLA wrapper."""
        assert import_module("flashinfer.mla").BatchMLAPagedAttentionWrapper is not None
        return flashinfer_version()

    def check(self, load: Workload, device: Device) -> None:  # noqa: ARG002
        """A latent cache of one KV head."""
        plain_decode("FlashInfer's MLA decode", load, latent=True)

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:  # noqa: ARG002
        """Plan for each buffer."""
        wrapper = import_module("flashinfer.mla").BatchMLAPagedAttentionWrapper
        load = given.workload
        q = flat_queries(given)
        latent = load.value_dim
        cache = given.k[:, :, 0]
        parts = (q[..., :latent], q[..., latent:], cache[..., :latent], cache[..., latent:])
        out = q.new_empty((*q.shape[:2], latent))
        starts, seen = page_starts(given).to(q.device), lengths(given)
        made, room = [], workspace(given)
        for buffer in range(given.buffers):
            one = wrapper(room, backend="auto")
            one.plan(
                query_starts(given),
                starts,
                pages_of(given, buffer),
                seen,
                load.num_q_heads,
                latent,
                load.head_dim - latent,
                load.page_tokens,
                load.query_len > 1,
                scale_of(load),
                q.dtype,
                cache.dtype,
            )
            made.append(one)
        return lambda buffer: made[buffer].run(*parts, out=out)
