"""The loop that overlaps nothing: indices, K, scores, V and the product, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from leansim.timing.loops.tile import TileCost, TileWork
from leansim.timing.memory import LINE_BYTES

# Sectors of 32 B that L2 brings from DRAM at a time: 64 B (assumed; cudaLimitMaxL2FetchGranularity, that
# nobody sets here, allows 32 to 128).
SECTORS_PER_FETCH = 2


@dataclass(frozen=True)
class SerialChain:
    """Triton's decode loop in SGLang: each KV tile waits for the addresses that a read before gave.

        tile = s * clk / f + loaded share * (s * kv_reads * kv + s * index_reads * index + bytes / rate)
        fill = kv + index - (what of a tile is reads),    s = tile tokens / computed tokens

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
        computed = self.computed_tokens or work.tokens
        share = work.tokens / computed
        compute_s = share * self.clk * work.clk_s
        transfer_s = work.tile_bytes / work.sm_bytes_per_s
        kv_reads, index_reads = (share * reads for reads in (self.kv_reads, self.index_reads))
        reads = work.reads
        latency_s = reads.kv_s + reads.farthest_s(work.tile_bytes / LINE_BYTES / max(1.0, kv_reads))
        index_s = reads.mean_s(1.0 - (1.0 - reads.hit_share) / SECTORS_PER_FETCH)
        read_s = work.loaded_share * (kv_reads * latency_s + index_reads * index_s + transfer_s)
        fill_s = latency_s + index_s - read_s
        busy_s = tuple(share * clk * work.clk_s for clk in (self.issue_clk, self.pipe_clk))
        return TileCost(
            tile_s=compute_s + read_s,
            fill_s=fill_s if self.kv_reads <= 1.0 else max(0.0, fill_s),
            sm_s=max(*busy_s, transfer_s),
            compute_s=compute_s,
            offered_bytes_per_s=work.tile_bytes / (compute_s + read_s),
            busy_s=busy_s,
            tiles_at_once=max(1, computed // work.tokens),
        )
