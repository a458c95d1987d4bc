"""What merging takes: by a CTA in the launch, or by a kernel after it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from leansim.arrays import FloatArray, IntArray
from leansim.engine.program import picoseconds, rounded_ps
from leansim.errors import PairingError
from leansim.schedule.schedule import Schedule
from leansim.specs.base import DTYPE_BYTES
from leansim.specs.device import Device
from leansim.specs.instance import CombineNumbers, Instance, MergeNumbers
from leansim.specs.workload import Workload
from leansim.timing.memory import l2_latency_s


def kernel_gap_s(device: Device, launch: str) -> float:
    """Time between the end of one kernel and the start of the next, s (small dependent kernels).

    Raises `PairingError` for a launch mode the device does not have (PDL before sm_90).
    """
    gaps: dict[str, float] = dict(device.kernel_gap_s)  # type: ignore[arg-type]
    if launch not in gaps:
        raise PairingError(
            f"device {device.name!r} ({device.arch}) has no launch mode {launch!r}; "
            f"it has {', '.join(gaps)}"
        )
    return gaps[launch]


def combine_gap_s(device: Device, launch: str, combine: CombineNumbers, launches: int = 1) -> float:
    """Time between the last partial written and the first CTA of the (last) combine kernel, s.

        gap + (launches - 1) * (launch + overhead + L2 latency + gap)
        gap = kernel_gap_s of the launch mode, or of `pdl`; fence + atomic + flag behind a `grid_sync`

    A barrier of the grid costs each CTA a release and the sight of a flag; programmatic dependent
    launch falls back to the call's own launch mode on devices without it. Of `launches` kernels those
    before the last read log-sum-exps, and no partials.
    """
    if combine.start == "grid_sync":
        gap_s = release_s(device) + device.flag_latency_s
    else:
        has_pdl = combine.start == "pdl" and "pdl" in device.kernel_gap_s
        gap_s = kernel_gap_s(device, "pdl" if has_pdl else launch)
    small_s = device.cta_launch_s + combine.overhead_s + l2_latency_s(device)
    return gap_s + (launches - 1) * (small_s + gap_s)


def combine_latency_s(device: Device, combine: CombineNumbers, splits: IntArray) -> FloatArray:
    """Time of one CTA of the combine kernel, without the bytes, s.

        overhead + L2 latency + ceil(splits / splits_in_flight) * max(L2 latency, round)

    It reads the LSE row, then the partials with `splits_in_flight` loads outstanding (1 in FA2's
    combine, which does not prefetch), and takes `round_s` at least with so many. A CTA whose rows went
    through no partials returns at once.
    """
    rounds: FloatArray = np.ceil(splits / combine.splits_in_flight)
    latency_s = l2_latency_s(device)
    taken_s = combine.overhead_s + latency_s + rounds * max(latency_s, combine.round_s)
    return np.where(splits > 0, taken_s, 0.0)


@dataclass(frozen=True)
class Handover:
    """How partials get to the CTA that merges them, s.

    A peer publishes its own in `release_s`; that is seen in `seen_s`; a round of reads takes `read_s`,
    whatever the bytes, with what is computed before the next.
    """

    release_s: float
    seen_s: float
    read_s: float


def handover(device: Device, merge: MergeNumbers, splits: int | None) -> Handover:
    """How an output tile's partials are handed over where a call has so many splits, if any.

        through L2:    release = fence + atomic,  seen = flag,     read = latency of L2 + round
        in a cluster:  release = barrier,         seen = barrier,  read = of shared memory + round

    CTAs of a cluster wait for each other twice: nobody reads before all have written, nobody leaves
    before all have read. That all clusters run at once is assumed. Source: FlashInfer,
    trtllm/fmha/fmhaKernels.cuh, computeCtaAndClusterConfig, CgaSmemReduction; csrc/fmhaReduction.cu,
    whose loop reads no more partials while it computes with the last.
    """
    round_s = merge.round_clk * device.clk_s
    if device.clusters is not None and 1 < (splits or 1) <= merge.cluster_ctas:
        sync_s = device.clusters.sync_s
        return Handover(sync_s, sync_s, device.clusters.read_s + round_s)
    return Handover(release_s(device), device.flag_latency_s, l2_latency_s(device) + round_s)


def release_s(device: Device) -> float:
    """Time a peer needs to publish a partial, s: `fence_s` of a device, then the flag's `atomic_s`."""
    return device.fence_s + device.atomic_s


def merge_latency_s(
    way: Handover,
    partials: IntArray,
    splits_in_flight: int,
    grains: IntArray | int = 1,
    computing_s: FloatArray | float = 0.0,
) -> FloatArray:
    """Time a merging CTA needs from the last flag to merged, without the bytes, s.

        seen + max(grains * ceil(partials / splits_in_flight) * read, read + computing)

    It sees the flag, then reads `splits_in_flight` partials at a time: 1 in the LeanAttention kernels.
    Where it takes the rows in `grains`, it does so for each. It is no sooner done than `computing_s`
    after the first has come.
    """
    rounds = grains * np.ceil(np.asarray(partials, dtype=np.float64) / splits_in_flight)
    return way.seen_s + np.maximum(rounds * way.read_s, way.read_s + computing_s)


def merge_grains(workload: Workload, instance: Instance, rows: IntArray, sharing: IntArray) -> IntArray:
    """Grains of its rows that a CTA merges one after the other, where `sharing` share a merge.

        ceil(ceil(rows * value dim * bytes / grain_bytes) / sharing)

    A warpgroup takes some bytes a thread of each partial at a time, its CTA every `sharing`th part of
    the rows (trtllm-gen's reducePartialO and FlashInfer's csrc/fmhaReduction.cu, the same loop).
    """
    merge = instance.merge
    if math.isinf(merge.grain_bytes):
        return np.ones_like(sharing)
    row_bytes = workload.value_dim * DTYPE_BYTES[instance.partial_dtype]
    grains = -(-rows * row_bytes // int(merge.grain_bytes))
    return -(-grains // (sharing if merge.shared else 1))


def merge_computing_s(
    merge: MergeNumbers, partials: IntArray, rows: IntArray, device: Device
) -> FloatArray:
    """What a CTA computes to merge so many partials of `rows` rows, s.

        (once + partials * (clk + ceil(rows / warps) * row)) * clk_s

    `once`, `clk` and `row` in clocks. Source: instruction schedules of XQA (experiments/xqa_instances).
    """
    rows_of_warp = np.ceil(np.asarray(rows, dtype=np.float64) / merge.warps)
    clk: FloatArray = merge.once_clk + partials * (merge.clk + rows_of_warp * merge.row_clk)
    return clk * device.clk_s


def merge_ps(
    schedule: Schedule,
    instance: Instance,
    device: Device,
    partials: IntArray,
    rows: IntArray,
    sharing: IntArray,
) -> IntArray:
    """Time from the last flag to merged, without the bytes, of CTAs of which `sharing` share a merge."""
    merge = instance.merge
    grains = merge_grains(schedule.grid.workload, instance, rows, sharing)
    computing_s = merge_computing_s(merge, partials, rows, device)
    way = handover(device, merge, schedule.num_splits)
    taken_s = merge_latency_s(way, partials, merge.splits_in_flight, grains, computing_s)
    return rounded_ps(taken_s)


def lone_merge_ps(
    schedule: Schedule, instance: Instance, device: Device, idle: IntArray | None
) -> IntArray | int:
    """What merging costs the CTA of a segment that alone has KV of its output tile.

    In a call that may be split it publishes its partial and merges that where merges are shared, and
    elsewhere, coming last, what `idle` CTAs left of its tile.
    """
    shares = instance.merge.shared and (schedule.num_splits or 1) > 1
    if not shares and idle is None:
        return 0
    way = handover(device, instance.merge, schedule.num_splits)
    lone = schedule.segments_of_tile[schedule.output_tile] == 1
    rows, alone = np.broadcast_to(schedule.rows, lone.shape), np.ones_like(schedule.cta)
    if idle is None:
        grains = merge_grains(schedule.grid.workload, instance, rows, alone)
        merged_ps = rounded_ps(grains * way.read_s)
    else:
        left = idle[schedule.output_tile]
        merged_ps = merge_ps(schedule, instance, device, left, rows, alone)
        lone &= left > 0
    return np.where(lone, picoseconds(way.release_s) + merged_ps, 0)
