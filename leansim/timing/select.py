"""The launch that chooses what a list keeps, before the one that attends to it.

It reads the index of the contexts that are not read whole, and writes their lists. Ignores what scores
cost where they come no faster than they are read: the arithmetic, and 4 bytes in L2 for each entry.
"""

from __future__ import annotations

import numpy as np

from leansim.arrays import IntArray
from leansim.engine.program import Phase, picoseconds
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device
from leansim.timing import ctas, memory, merges
from leansim.timing.launches import ROWS, Columns, Unfilled

LEAST_BYTES = 4096  # a CTA reads so much at least (assumed: a page of 16 tokens of Quest's is 512)


def select_launch(grid: TileGrid, device: Device, gap_ps: int) -> Unfilled:
    """LAUNCH, STREAM (an equal share of the index) and WRITE (of the lists) per CTA, one on each SM.

        read  = L2 latency + mean latency of an index line + share of the index, as rows move
        write = release + flag + L2 latency + share of the lists

    The length and the place of the index are read first. The best scores are known when those of all
    CTAs are: each publishes its own, sees the others' and reads them. All assumed: Quest
    (mit-han-lab/Quest, csrc: an estimate kernel, then a top-k kernel) and DSA's indexer (DeepGEMM's
    logits, then a top-k kernel) launch twice, which costs a gap more, and find the best in several
    passes. DSA's 64 index heads take 124 FLOP for each byte of the index, which 8-bit tensor cores
    hide. `cache` warm finds in L2 what a replay left, as of KV.
    """
    load = grid.asked
    num_ctas = max(1, min(grid.num_sms, load.index_bytes // LEAST_BYTES))

    def fill(columns: Columns) -> None:
        kind, latency_ps, size = columns["kind"], columns["latency_ps"], columns["bytes"]
        kind[0::3], kind[1::3], kind[2::3] = Phase.LAUNCH, Phase.STREAM, Phase.WRITE
        size[1::3], size[2::3] = _dealt(load.index_bytes, num_ctas), _dealt(load.list_bytes, num_ctas)
        columns["flow"][1::3] = ROWS
        reads = memory.Reads.of(device, memory.replay_hit_share(grid, device))
        seen_s = merges.release_s(device) + device.flag_latency_s + reads.l2_s
        latency_ps[0::3] = picoseconds(device.cta_launch_s)
        latency_ps[1::3] = picoseconds(reads.l2_s + reads.kv_s)
        latency_ps[2::3] = picoseconds(seen_s) + ctas.store_ps(size[2::3], device)

    return Unfilled("select", 1, gap_ps, np.arange(num_ctas + 1) * 3, fill)


def _dealt(total: int, parts: int) -> IntArray:
    """So many bytes in parts that differ by one at most."""
    shares: IntArray = np.diff(np.arange(parts + 1) * total // parts)
    return shares
