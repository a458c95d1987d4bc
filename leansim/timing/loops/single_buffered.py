"""The loop with one buffer for K and one for V, which loads one while it works on the other."""

from __future__ import annotations

from dataclasses import dataclass

from leansim.arrays import Floats
from leansim.timing.loops.tile import Paced, TileCost, TileWork


@dataclass(frozen=True)
class SingleBuffered(Paced):
    """FlashAttention-2's split-KV loop: wait K, issue V, QK, wait V, issue next K, softmax, PV.

        tile = max(load V, QK) + max(load K, softmax + PV), or chain
        n tiles take K bytes at the pace of loads, n * tile, and fill
        load X = latency + X bytes / load rate
        fill   = latency - max(0, load K - softmax - PV)
        last   = max(QK + softmax + PV, chain) * (softmax + PV) / (QK + softmax + PV)

    Where tokens are gathered, K waits for their lookup first; V is found by the same entries.

    Loads, QK, softmax, PV and `chain_s` in s; no K is loaded behind the last tile, and when its V is
    there `last` is left. Source: flash-attention csrc, flash_fwd_kernel.h,
    compute_attn_1rowblock_splitkv.
    """

    stages: int = 1

    def price(self, work: TileWork) -> TileCost:
        """Price a full KV tile; the larger of its two buffers is in flight."""
        latency_s = work.reads.kv_s
        v_s = latency_s + work.v_bytes / work.load_bytes_per_s if work.v_bytes else 0.0
        tile_s = max(v_s, work.qk_s) + max(self._load_k_s(work), _after_v_s(work))
        offered = max(work.k_bytes, work.v_bytes) / latency_s
        return self.paced(work, tile_s, offered, work.k_bytes, last_s=self._last_s(work))

    def fill_s(self, work: TileWork, _loaded: Floats) -> Floats:
        """The latency of the first K, less what the last tile does not wait for the next."""
        shown_s = max(0.0, self._load_k_s(work) - work.softmax_s - work.pv_s)
        return work.reads.kv_s - shown_s

    def _last_s(self, work: TileWork) -> float:
        """What is left of the last tile when its V is there: its share of the pace."""
        after_v_s = _after_v_s(work)
        computed_s = work.qk_s + after_v_s
        return max(computed_s, self.chain_s) * after_v_s / computed_s if computed_s else 0.0

    def _load_k_s(self, work: TileWork) -> float:
        return work.lookup_s + work.reads.kv_s + work.k_bytes / work.load_bytes_per_s


def _after_v_s(work: TileWork) -> float:
    """What a tile computes when its V is there, s."""
    return work.softmax_s + work.pv_s
