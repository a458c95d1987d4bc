"""The loop with one buffer for K and one for V, which loads one while it works on the other."""

from __future__ import annotations

from dataclasses import dataclass

from leansim.arrays import Floats, at_most
from leansim.timing.loops.tile import TileCost, TileWork


@dataclass(frozen=True)
class SingleBuffered:
    """FlashAttention-2's split-KV loop: wait K, issue V, QK, wait V, issue next K, softmax, PV.

        tile = max(load V, QK) + max(load K, softmax + PV), or chain;    n tiles take n * tile + fill
        load X = latency + X bytes / load rate
        fill   = min(load of what is not masked of the first K, softmax + PV)

    Loads, QK, softmax and PV in s. However fast its SM is, a CTA takes `chain_s` from one tile to the
    next, as what it does with one depends on itself. Source: flash-attention csrc,
    flash_fwd_kernel.h, compute_attn_1rowblock_splitkv.
    """

    stages: int = 1
    chain_s: float = 0.0

    def price(self, work: TileWork) -> TileCost:
        """Price a full KV tile; the larger of its two buffers is in flight."""
        latency_s, rate = work.reads.kv_s, work.load_bytes_per_s
        k_s = latency_s + work.k_bytes / rate
        v_s = latency_s + work.v_bytes / rate if work.v_bytes else 0.0
        tile_s = max(v_s, work.qk_s) + max(k_s, work.softmax_s + work.pv_s)
        return TileCost(
            tile_s=max(tile_s, self.chain_s),
            sm_s=max(work.compute_s, work.transfer_s),
            compute_s=work.compute_s,
            offered_bytes_per_s=max(work.k_bytes, work.v_bytes) / latency_s,
        )

    def fill_s(self, work: TileWork, loaded: Floats) -> Floats:
        """The first K, or softmax and PV of the last tile, behind which no K is loaded."""
        first_s = work.reads.kv_s + loaded * work.k_bytes / work.load_bytes_per_s
        return at_most(first_s, work.softmax_s + work.pv_s)
