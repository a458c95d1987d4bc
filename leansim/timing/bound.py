"""What no schedule of a kernel can beat in the simulator's own prices, and what one schedule cannot.

The bound of a kernel packs bins: each output tile is cut into as few runs as meet a deadline, and
the slots must hold all of them. Bandwidth and each SM's throughput bound it too. Ignores placing
order, contention, and what partials add to traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from leansim.arrays import FloatArray, IntArray
from leansim.engine.program import PS_PER_S, Launch, Phase, Program
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device
from leansim.specs.instance import Instance, NoCombine
from leansim.timing import merges, segments

_ROUNDING = 1.0 - 1e-6  # engines round each phase to a picosecond
_STEPS = 48  # halvings of the interval that the deadline lies in: far below a picosecond


def program_floor_s(program: Program) -> float:
    """Least latency of a program, s: every launch at its slots', memories' and SMs' full throughput.

    Nothing waits for anything but the launch before, and a CTA moves bytes at its own pace.
    """
    flows = [*program.flows, None]
    pace = np.array([np.inf if flow is None else flow.max_bytes_per_ps for flow in flows])
    work = np.array([0.0 if flow is None else flow.sm_ps_per_byte for flow in flows])
    dram = np.array([0.0 if flow is None else flow.dram_share for flow in flows])
    l2 = np.array([0.0 if flow is None else flow.l2_share for flow in flows])
    alone = program.latency_ps + program.bytes / pace[program.flow]
    per_cta = np.add.reduceat(alone, program.phase_of_cta[:-1])
    total = float(program.launch_ps)
    for launch in program.launches:
        at = slice(
            int(program.phase_of_cta[launch.first_cta]), int(program.phase_of_cta[launch.last_cta])
        )
        moved, flow = program.bytes[at], program.flow[at]
        mine = per_cta[launch.first_cta : launch.last_cta]
        total += launch.gap_ps + max(
            float(mine.max()),
            float(mine.sum()) / program.slots(launch),
            float((moved * work[flow]).sum()) / program.num_sms,
            float((moved * dram[flow]).sum()) / program.dram_bytes_per_ps,
            float((moved * l2[flow]).sum()) / program.l2_bytes_per_ps,
        )
    return total / PS_PER_S


@dataclass(frozen=True)
class Bound:
    """Least latency of any schedule, s, and what sets it: `bandwidth`, `sm`, `slots` or `run`.

    `slots`: all runs share the slots. `run`: the shortest time in which one output tile can be cut,
    streamed and merged.
    """

    latency_s: float
    cause: str


@dataclass(frozen=True, eq=False)
class _Prices:
    """What a run of KV tiles costs at least, ps; read off the program of the unsplit schedule."""

    launch_ps: float
    ramp_ps: float
    tile_ps: float
    slots: int
    tiles: IntArray  # [distinct lengths]
    count: IntArray  # output tiles of each length

    def slot_ps(self, runs: IntArray | int) -> float:
        """Time of the slots if each output tile of a length is cut into so many runs."""
        streamed = float((self.tiles * self.count).sum()) * self.tile_ps
        return (streamed + float((self.count * runs).sum()) * self.ramp_ps) / self.slots

    def whole_ps(self) -> float:
        """The longest output tile in one run."""
        return self.launch_ps + self.ramp_ps + float(self.tiles.max()) * self.tile_ps


def packing_bound(program: Program, grid: TileGrid, instance: Instance, device: Device) -> Bound:
    """Bound every schedule of a kernel for a workload, from the program of the unsplit one.

    Holds for schedules that merge in a second kernel and for those that merge in the launch.
    """
    attention = program.attention
    before_ps = float(program.launch_ps + attention.gap_ps)
    for launch in program.launches[: program.launches.index(attention)]:
        before_ps += launch.gap_ps + float(program.latency_ps[_phases(program, launch)].min())
    prices = _prices(program, grid, instance, device)
    kv, stream_bytes = program.flows[0], float(program.bytes_of(Phase.STREAM))
    ways = [max(prices.whole_ps(), prices.slot_ps(1))]

    def in_launch_ps(runs: IntArray) -> FloatArray:
        peers = np.maximum(runs - 1, 1)
        return PS_PER_S * merges.merge_latency_s(device, peers, instance.merge.splits_in_flight)

    ways.append(_deadline(prices, in_launch_ps, 0.0))
    if not isinstance(combine := instance.combine, NoCombine):
        gap_s = merges.combine_gap_s(device, grid.workload.launch, combine.start)

        def kernel_ps(runs: IntArray) -> FloatArray:
            taken_s = merges.combine_latency_s(device, combine, runs)
            return PS_PER_S * (device.cta_launch_s + taken_s)

        ways.append(_deadline(prices, kernel_ps, PS_PER_S * gap_s))
    packed = min(ways)
    spread = prices.slot_ps(1)
    causes = {
        "bandwidth": max(
            program.dram_bytes / program.dram_bytes_per_ps,
            stream_bytes * kv.l2_share / program.l2_bytes_per_ps,
        ),
        "sm": stream_bytes * kv.sm_ps_per_byte / program.num_sms,
        "slots" if spread > 0.9 * packed else "run": packed,
    }
    cause = max(causes, key=lambda name: causes[name])
    return Bound(_ROUNDING * (before_ps + causes[cause]) / PS_PER_S, cause)


def _phases(program: Program, launch: Launch) -> slice:
    border = program.phase_of_cta
    return slice(int(border[launch.first_cta]), int(border[launch.last_cta]))


def _prices(program: Program, grid: TileGrid, instance: Instance, device: Device) -> _Prices:
    attention = _phases(program, program.attention)
    kind, latency = program.kind[attention], program.latency_ps[attention]
    tiles, count = np.unique(grid.num_kv_tiles, return_counts=True)
    cost = segments.Prices.of(grid, instance, device).tile
    ramp_ps = float(latency[kind == Phase.STREAM].min())
    if instance.ctas.prefetches_items:  # a persistent CTA loads its next item's first tiles meanwhile
        prologue_s = segments.prologue_s(grid, instance, device)
        ramp_ps = min(ramp_ps, PS_PER_S * prologue_s * (1.0 - device.latency_spread))
    return _Prices(
        launch_ps=float(latency[kind == Phase.LAUNCH].min()),
        ramp_ps=ramp_ps,
        tile_ps=PS_PER_S * cost.tile_s,
        slots=program.slots(program.attention),
        tiles=tiles,
        count=count,
    )


def _deadline(prices: _Prices, merge_ps: Callable[[IntArray], FloatArray], gap_ps: float) -> float:
    """Earliest end, ps, by which every output tile can be cut, streamed and merged in the slots.

    A merge of n runs takes `merge_ps(n)` after the last of them, `gap_ps` more if it is a kernel.
    """
    low, high = 0.0, gap_ps + float(merge_ps(np.array([2]))[0]) + prices.whole_ps() + prices.slot_ps(2)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _meets(prices, middle - gap_ps, merge_ps, serial=gap_ps > 0.0):
            high = middle
        else:
            low = middle
    return low


def _meets(
    prices: _Prices, end_ps: float, merge_ps: Callable[[IntArray], FloatArray], serial: bool
) -> bool:
    """Whether slots hold the fewest runs that end in time; a `serial` merge begins when all have."""
    least = float(merge_ps(np.array([2]))[0]) if serial else 0.0
    fixed = prices.launch_ps + prices.ramp_ps
    whole = fixed + prices.tiles * prices.tile_ps + least <= end_ps
    runs = np.where(whole, 1, 2)
    while True:  # more runs take longer to merge, which asks for more runs
        left = (end_ps - fixed - merge_ps(np.maximum(runs, 2))) // prices.tile_ps
        if np.any(~whole & (left < 1)):
            return False
        wanted = np.where(whole, 1, np.maximum(runs, -(-prices.tiles // np.maximum(left, 1))))
        if np.array_equal(wanted, runs):
            break
        runs = wanted.astype(np.int64)
    return bool(prices.slot_ps(runs) <= end_ps - least)
