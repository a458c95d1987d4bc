"""AITER's LeanAttention kernel, on AMD GPUs.

Signature: ROCm/aiter 2038b2d, `ops.triton.attention.lean_atten.persistent_lean_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from leansim.errors import PairingError
from leansim.gpu.inputs import Inputs
from leansim.gpu.libraries.calls import (
    flat_queries,
    for_arch,
    plain_decode,
    scale_of,
    together,
    version_of,
)
from leansim.specs.device import Device
from leansim.specs.workload import Workload

_MODULE = "aiter.ops.triton.attention.lean_atten"
BLOCK_M, BLOCK_N = 16, 64


@dataclass(frozen=True)
class AiterLean:
    """KV of all requests one after another; whole KV tiles only, as the kernel masks no part of one.

    Locks are zeroed in each call, whether or not the kernel leaves them set.
    """

    kernel: ClassVar[str] = "lean_aiter"

    def version(self) -> str:
        """AITER's; an error where its kernel does not load."""
        import_module(_MODULE)
        return version_of("aiter", "aiter", "amd-aiter")

    def check(self, load: Workload, device: Device) -> None:
        """Sixteen-bit KV of its own, one new token, contexts that are whole KV tiles, on AMD GPUs."""
        plain_decode("AITER's LeanAttention", load, query_lens=False)
        for_arch("AITER's LeanAttention", device, "gfx")
        if any(n % BLOCK_N for n in load.context_lens):
            raise PairingError(
                f"AITER's LeanAttention takes contexts of whole tiles of {BLOCK_N} tokens"
            )

    def prepare(self, given: Inputs, device: Device) -> Callable[[int], Any]:
        """Copy KV out of its pages, and make room for partials of one CTA on each compute unit."""
        call, load, torch = import_module(_MODULE).persistent_lean_attention, given.workload, given.torch
        where, programs = given.q.device, device.num_sms
        q = flat_queries(given)
        floats = {"dtype": torch.float32, "device": where}
        maxima, sums = (torch.empty((programs, BLOCK_M), **floats) for _ in range(2))
        partial = torch.empty((programs, load.query_len, load.head_dim), **floats)
        locks = torch.zeros(programs, dtype=torch.int32, device=where)
        ends = np.cumsum(load.lens // BLOCK_N).astype(np.int32)
        blocks = torch.from_numpy(ends).to(where)
        config = {
            "BLOCK_SIZE_M": BLOCK_M,
            "BLOCK_SIZE_N": BLOCK_N,
            "SM_CNT_FACTOR": 1,
            "XCD_REMAP": False,
            "num_warps": 4,
            "waves_per_eu": 2,
        }
        parts = [together(given, buffer) for buffer in range(given.buffers)]

        def enqueue(buffer: int) -> Any:
            locks.zero_()
            return call(
                q,
                *parts[buffer],
                maxima,
                sums,
                partial,
                locks,
                blocks,
                load.batch_size,
                scale_of(load),
                causal=False,
                RAGGED_BATCH=len(set(load.context_lens)) > 1,
                config=dict(config),
                program_count=programs,
            )[0]

        return enqueue
