"""The loop that keeps several KV tiles in flight: loads hide behind what is computed."""

from __future__ import annotations

from dataclasses import dataclass

from leansim.arrays import Floats
from leansim.timing.loops.tile import TileCost, TileWork


@dataclass(frozen=True)
class Pipelined:
    """`stages` K and V tiles are loaded ahead, by the CTA itself or by warps that do nothing else.

        tile = max(compute, load / stages, bytes / load rate, chain),    n tiles take n * tile + fill
        load = latency + bytes / load rate
        fill = load of what is not masked of the first tile + what its own stalls are longer

    compute, load, latency and `chain_s` in s. However fast its SM is, a CTA takes `chain_s` from one
    tile to the next, as what it does with one depends on itself. Source: the circular buffers of
    flash-attention hopper/mainloop_fwd_sm90_tma_gmma_ws.hpp and of Triton's software pipelining.
    """

    stages: int
    chain_s: float = 0.0

    def price(self, work: TileWork) -> TileCost:
        """Price a full KV tile; all stages are in flight."""
        latency_s = work.reads.kv_s
        load_s = latency_s + work.transfer_s
        tile_s = max(work.compute_s, load_s / self.stages, work.transfer_s)
        return TileCost(
            tile_s=max(tile_s, self.chain_s),
            sm_s=max(work.compute_s, work.transfer_s),
            compute_s=work.compute_s,
            offered_bytes_per_s=self.stages * work.tile_bytes / latency_s,
        )

    def fill_s(self, work: TileWork, loaded: Floats) -> Floats:
        """The load of the first tile, and its stalls."""
        return work.reads.kv_s + loaded * work.transfer_s + (work.first_stall_s - work.stall_s)
