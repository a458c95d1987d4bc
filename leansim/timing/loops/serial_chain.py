"""The loop that overlaps nothing: indices, K, scores, V and the product, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from leansim.arrays import Floats, at_least
from leansim.timing.loops.tile import TileCost, TileWork
from leansim.timing.memory import LINE_BYTES

# Sectors of 32 B that L2 brings from DRAM at a time: 64 B (assumed; cudaLimitMaxL2FetchGranularity, that
# nobody sets here, allows 32 to 128).
SECTORS_PER_FETCH = 2


@dataclass(frozen=True)
class SerialChain:
    """Triton's decode loop in SGLang: each KV tile waits for the addresses that a read before gave.

        tile = s * clk / f + read,    s = tile tokens / computed tokens
        read = loaded share * (s * kv_reads * kv + s * index_reads * index + bytes / load rate)
        fill = kv + index - read of the first tile

    f is the clock, kv and index the latencies of a load of KV and of an index, s. `clk` are those of the
    dependent instructions for the tokens computed at a time (`computed_tokens`; 0: a KV tile), where
    memory answers at once; in `issue_clk` of them it keeps the schedulers from others, in `pipe_clk` the
    SM's pipe of loads, stores and shuffles.

    At least one read is waited for. Where all of a tile's are waited for at once, they are issued ahead
    of it, and those of the first before the loop, its indices at once. What is waited for together is
    there with the farthest of its lines. L2 keeps indices as it keeps KV, and brings two sectors of
    them at once. What it offers memory is what it moves, as it does not load ahead. Source: the compiled
    loops followed instruction by instruction (experiments/compiled_chains).
    """

    clk: float
    issue_clk: float
    kv_reads: float
    index_reads: float
    pipe_clk: float = 0.0
    computed_tokens: int = 0

    def price(self, work: TileWork) -> TileCost:
        """Price a full KV tile; of masked tokens nothing is read."""
        share = self._share(work)
        compute_s, read_s = share * self.clk * work.clk_s, self._read_s(work)
        busy_s = tuple(share * clk * work.clk_s for clk in (self.issue_clk, self.pipe_clk))
        return TileCost(
            tile_s=compute_s + read_s,
            sm_s=max(*busy_s, work.tile_bytes / work.sm_bytes_per_s),
            compute_s=compute_s,
            offered_bytes_per_s=work.tile_bytes / (compute_s + read_s),
            read_s=read_s,
            busy_s=busy_s,
            tiles_at_once=max(1, round(1 / share)),
        )

    def fill_s(self, work: TileWork, loaded: Floats) -> Floats:
        """What the reads of the first tile take, less what they would in the loop."""
        latency_s, index_s = self._latencies_s(work)
        fill_s = latency_s + index_s - loaded * self._read_s(work)
        return fill_s if self.kv_reads <= 1.0 else at_least(fill_s, 0.0)

    def _share(self, work: TileWork) -> float:
        """What a KV tile is of the tokens that are computed at a time."""
        return work.tokens / (self.computed_tokens or work.tokens)

    def _latencies_s(self, work: TileWork) -> tuple[float, float]:
        """Of a read of KV, with the farthest of its lines, and of one of an index, s."""
        reads, waits = work.reads, max(1.0, self._share(work) * self.kv_reads)
        latency_s = reads.kv_s + reads.farthest_s(work.tile_bytes / LINE_BYTES / waits)
        return latency_s, reads.mean_s(1.0 - (1.0 - reads.hit_share) / SECTORS_PER_FETCH)

    def _read_s(self, work: TileWork) -> float:
        """What the reads of a full KV tile take, s."""
        share = self._share(work)
        latency_s, index_s = self._latencies_s(work)
        waited_s = share * self.kv_reads * latency_s + share * self.index_reads * index_s
        return waited_s + work.tile_bytes / work.sm_bytes_per_s
