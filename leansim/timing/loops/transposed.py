"""The pipelined loop whose loading warps transpose V of an 8-bit cache on its way."""

from __future__ import annotations

from dataclasses import dataclass, replace

from leansim.arrays import Floats
from leansim.timing.loops.pipelined import Pipelined
from leansim.timing.loops.tile import TileCost, TileWork


@dataclass(frozen=True)
class Transposed(Pipelined):
    """FlashAttention-3 with 8-bit KV: its tensor cores need V with tokens innermost.

        loader = lines * latency + V bytes / transpose rate,   lines <= 1
        tile   = max(loader, tile of the pipelined loop)
        fill   = max(0, latency - max(0, loader - compute)) + what its stalls are longer

    Times in s, rates in B/s, `lines` cache lines of the page table. The loading warps look up the tile's
    pages (a read from memory, unless the entries lie in the cache line of the tile before), wait for V,
    and pass it through registers; only then do they load more. A single tile takes what the loader takes
    and no more. Source: flash-attention hopper/mainloop_fwd_sm90_tma_gmma_ws.hpp, copy_Vt_to_V.
    """

    transpose_bytes_per_s: float

    def price(self, work: TileWork) -> TileCost:
        """Price a full KV tile."""
        plain = super().price(work)
        return replace(plain, tile_s=max(plain.tile_s, self._loader_s(work)))

    def fill_s(self, work: TileWork, _loaded: Floats) -> Floats:
        """The latency of the first load, as far as the loader has not been counted with the tiles."""
        left_s = max(0.0, work.reads.kv_s - max(0.0, self._loader_s(work) - work.compute_s))
        return left_s + (work.first_stall_s - work.stall_s)

    def _loader_s(self, work: TileWork) -> float:
        lookup_s = min(1.0, work.page_lines) * work.reads.kv_s
        return lookup_s + work.v_bytes / self.transpose_bytes_per_s
