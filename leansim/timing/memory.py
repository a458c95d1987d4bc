"""What memory takes and what L2 keeps: latencies, shares of loads that hit, in an otherwise idle device.

Pure functions; sharing of bandwidth is the engine's.
"""

from __future__ import annotations

from dataclasses import dataclass

from leansim.schedule.tiling import TileGrid
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.device import Device
from leansim.specs.workload import Workload

LINE_BYTES = 128


@dataclass(frozen=True)
class Reads:
    """Unloaded latencies of reads, s: of a hit and a miss in L2, and how much `far_s` is beyond near.

    `hit_share` of the KV loads hit.
    """

    hit_share: float
    l2_s: float
    dram_s: float
    far_s: float

    @classmethod
    def of(cls, device: Device, hit_share: float) -> Reads:
        """Those of a device. Half the hits are in the far partition where L2 has two (assumed)."""
        near, far = device.l2_latency_s, device.l2_far_latency_s
        if device.l2_partitions == 1:
            return cls(hit_share, near, device.dram_latency_s, 0.0)
        return cls(hit_share, (near + far) / 2, device.dram_latency_s, far - near)

    def mean_s(self, hit_share: float) -> float:
        """Mean latency where so many hit, s."""
        return hit_share * self.l2_s + (1.0 - hit_share) * self.dram_s

    @property
    def kv_s(self) -> float:
        """Mean latency of a KV load, s."""
        return self.mean_s(self.hit_share)

    def farthest_s(self, lines: float) -> float:
        """How much later than a line is on average the farthest of several is there, s.

            (1/2 - (1/2)^lines) (far - near)

        Each is as likely in the near as in the far partition of L2, and the way to DRAM is as much
        longer (assumed).
        """
        return float((0.5 - 0.5**lines) * self.far_s)


def l2_latency_s(device: Device) -> float:
    """Mean latency of a load that hits L2, s."""
    return Reads.of(device, 1.0).l2_s


def kept_share(footprint_bytes: float, device: Device) -> float:
    """Share of a buffer still in L2 when it is read again after `footprint_bytes` of others, 0 to 1.

        (none - footprint / L2) / (none - full), clipped to 0 and 1

    `full` is the device's `l2_resident_fraction`, `none` its `l2_lost_fraction` (twice the former where
    nothing is known). Source: the shape is assumed, the fractions are from replayed decode latencies or
    streams.
    """
    full = device.l2_resident_fraction
    none = device.l2_lost_fraction or 2.0 * full
    return min(1.0, max(0.0, (none - footprint_bytes / device.l2_bytes) / (none - full)))


def l2_hit_share(grid: TileGrid, device: Device) -> float:
    """Share of KV loads that L2 serves, 0 to 1.

        1 - min(1, (1 - warm + again) / (row blocks * heads))
        again = (rounds - 1) (1 - kept(KV bytes / KV heads))
                + rounds (waves - 1) (1 - kept(KV bytes / KV heads / requests))

    A KV head is read once per row block, and once per query head of its group where the group is
    not packed. What runs at the same time reads it from DRAM once (assumed). Query heads that do not
    all run at the same time (grids go through the batch before they come to the next head) find of it
    what L2 kept meanwhile, in `rounds`. So do row blocks of a head of which there are several `waves`:
    between them KV of that head alone passes (assumed, of persistent CTAs too). Work items that attend
    to the same tokens read them from DRAM once, as row blocks do. In a warm replay the first read finds
    what L2 kept of the whole. That early row blocks of a prefill attend to less KV is not counted: what
    of its loads comes from DRAM may be twice as much.
    """
    workload = grid.workload
    heads = 1 if grid.packed else workload.group_size
    together = min(heads, max(1, grid.slots // (grid.batch_size * grid.row_blocks)))
    rounds, waves = -(-heads // together), -(-grid.row_blocks // grid.slots)
    warm = replay_hit_share(grid, device)
    again = 0.0
    if rounds > 1 or waves > 1:
        of_head = grid.asked.kv_bytes / workload.num_kv_heads
        again = (rounds - 1) * (1.0 - kept_share(of_head, device))
        again += rounds * (waves - 1) * (1.0 - kept_share(of_head / grid.batch_size, device))
    from_dram = (1.0 - warm) + again
    once = read_share(grid, device) if grid.work is None else grid.work.distinct_share
    return 1.0 - min(1.0, once * from_dram / (grid.row_blocks * heads))


def read_share(grid: TileGrid, device: Device) -> float:
    """Share of a batch's KV that comes from DRAM where requests have pages in common, 0 to 1.

        1 - sum over prefixes of tokens (requests - 1 - again) / tokens of all
        again = (waves - 1) (1 - kept(KV bytes / KV heads)),    waves = requests * row blocks / slots

    Requests that run at the same time read a page from DRAM once (assumed): a grid goes through the
    batch before it comes to the next head, and all begin at the same end. Those of a later wave find
    of a head's KV what L2 kept meanwhile.
    """
    load = grid.workload
    if load.in_common is None:
        return 1.0
    lost = 1.0 - kept_share(load.distinct_kv_bytes / load.num_kv_heads, device)
    spared = 0.0
    for prefix in load.in_common.tree:
        requests = len(prefix.requests)
        waves = -(-requests * grid.row_blocks // grid.slots)
        spared += (prefix.end - prefix.begin) * (requests - 1 - (waves - 1) * lost)
    return 1.0 - spared / int(load.lens.sum())


def replay_hit_share(grid: TileGrid, device: Device) -> float:
    """Share of what a call touches, KV, Q and output, that L2 kept of the replay before, 0 to 1."""
    workload = grid.workload
    if workload.cache != "warm":  # what it touches need not be counted
        return 0.0
    return replay_kept_share(workload, touched_bytes(grid), device)


def replay_kept_share(workload: Workload, touched: float, device: Device) -> float:
    """Share of the bytes that a call touches that L2 kept of the replay before, 0 to 1.

        kept(KV + Q + output) with `cache` warm, else 0

    Only in a warm replay is there one before (assumed).
    """
    return kept_share(touched, device) if workload.cache == "warm" else 0.0


def evicted_start_s(grid: TileGrid, device: Device) -> float:
    """How much later a launch begins as the KV of the call before has pushed out what it reads first, s.

        evicted_start (1 - kept(KV + Q + output))

    Its code, its arguments, its page table and the GPU's own entries for those pages come from DRAM
    then, whether KV is new to L2 (`cold`) or not: calls of a kernel follow each other (assumed).
    """
    return device.evicted_start_s * (1.0 - kept_share(touched_bytes(grid), device))


def touched_bytes(grid: TileGrid) -> float:
    """What a replay passes through L2 before it comes back to the same byte: KV, Q and the output.

    And the index that lists are chosen by.
    """
    load = grid.asked
    return loaded_kv_bytes(grid) + load.index_bytes + load.q_bytes + load.o_bytes


def loaded_kv_bytes(grid: TileGrid) -> float:
    """Distinct KV bytes that the batch reads, more than it attends to where whole pages are loaded."""
    return grid.asked.distinct_kv_bytes * grid.loaded_tokens / grid.total_tokens


def query_row_bytes(workload: Workload) -> int:
    """Bytes of one row of Q."""
    return workload.head_dim * DTYPE_BYTES[workload.q_dtype]


def output_row_bytes(workload: Workload) -> int:
    """Bytes of one row of the output, in the query's dtype."""
    return workload.value_dim * DTYPE_BYTES[workload.q_dtype]


def partial_row_bytes(workload: Workload, partial_dtype: str) -> int:
    """Bytes of one row of a partial: the un-merged output and its log-sum-exp in float32."""
    return workload.value_dim * DTYPE_BYTES[partial_dtype] + 4
