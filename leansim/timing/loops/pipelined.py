"""The loop that keeps several KV tiles in flight: loads hide behind what is computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from leansim.arrays import Floats
from leansim.timing.loops.tile import Paced, TileCost, TileWork


@dataclass(frozen=True)
class Pipelined(Paced):
    """`stages` K and V tiles are loaded ahead, by the CTA itself or by warps that do nothing else.

        tile = max(compute, load / stages, bytes / load rate, chain)
        n tiles take bytes of one at the pace of loads, n * tile, and fill
        load = latency + bytes / load rate
        fill = latency + what its own stalls are longer
        last = drained * max(compute, chain)
        offered = (bytes in flight, or stages * bytes) / latency

    compute, load, latency and `chain_s` in s; the latency of a gathered tile begins with its lookup. A
    segment works on its first tile when all of it is there. When its last load is, `drained` tiles are
    left, those worked on together. Source: the circular buffers of
    flash-attention hopper/mainloop_fwd_sm90_tma_gmma_ws.hpp and of Triton's software pipelining.
    """

    stages: int
    drained: int = field(default=1, kw_only=True)
    in_flight_bytes: float = field(default=0.0, kw_only=True)

    def price(self, work: TileWork) -> TileCost:
        """Price a full KV tile; all stages are in flight, or as many bytes as the loop says."""
        latency_s = work.lookup_s + work.reads.kv_s
        load_s = latency_s + work.transfer_s
        tile_s = max(work.compute_s, load_s / self.stages, work.transfer_s)
        offered = (self.in_flight_bytes or self.stages * work.tile_bytes) / latency_s
        last_s = self.drained * max(work.compute_s, self.chain_s)
        return self.paced(work, tile_s, offered, work.tile_bytes, self.stages, last_s)

    def fill_s(self, work: TileWork, _loaded: Floats) -> Floats:
        """The latency of the first load, and the stalls of the first tile."""
        return work.reads.kv_s + (work.first_stall_s - work.stall_s)
