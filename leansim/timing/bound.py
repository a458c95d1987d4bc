"""What no schedule of a kernel can beat in the simulator's own prices, and what one schedule cannot.

The bound of a kernel packs bins: each output tile is cut into as few segments as meet a deadline, and
the slots must hold all of them. Bandwidth and each SM's throughput bound it too. Ignores placing
order, contention, and what partials add to traffic.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from leansim.arrays import FloatArray, IntArray
from leansim.engine.program import PS_PER_S, Launch, Phase, Program
from leansim.schedule.tiling import TileGrid
from leansim.specs.device import Device
from leansim.specs.instance import Instance, NoCombine
from leansim.timing import merges
from leansim.timing.prices import Prices
from leansim.timing.segments import least_start_s, least_tiles

_ROUNDING = 1.0 - 1e-6  # engines round each phase to a picosecond
_STEPS = 48  # halvings of the interval that the deadline lies in: far below a picosecond


def program_floor_s(program: Program) -> float:
    """Least latency of a program, s: every launch at its slots', memories' and SMs' full throughput.

        launch + sum over launches of gap + max(longest CTA, all CTAs / slots, SM work / SMs,
                                                DRAM bytes / bandwidth, L2 bytes / bandwidth)

    Nothing waits for anything but the launch before, and a CTA moves bytes at its own pace.
    """
    return (program.launch_ps + sum(_floors_ps(program, program.launches))) / PS_PER_S


def _floors_ps(program: Program, launches: Sequence[Launch]) -> Iterator[float]:
    """Least time of each launch from the end of the one before, ps."""
    flows = [*program.flows, None]
    pace = np.array([np.inf if flow is None else flow.max_bytes_per_ps for flow in flows])
    work = np.array([0.0 if flow is None else flow.sm_ps_per_byte for flow in flows])
    dram = np.array([0.0 if flow is None else flow.dram_share for flow in flows])
    l2 = np.array([0.0 if flow is None else flow.l2_share for flow in flows])
    for launch in launches:
        at, ctas = _phases(program, launch), slice(launch.first_cta, launch.last_cta)
        moved, flow = program.bytes[at], program.flow[at]
        alone = program.latency_ps[at] + moved / pace[flow]
        mine = np.add.reduceat(alone, program.phase_of_cta[ctas] - at.start)
        yield launch.gap_ps + max(
            float(mine.max()),
            float(mine.sum()) / program.slots(launch),
            float((moved * work[flow]).sum()) / program.num_sms,
            float((moved * dram[flow]).sum()) / program.dram_bytes_per_ps,
            float((moved * l2[flow]).sum()) / program.l2_bytes_per_ps,
        )


@dataclass(frozen=True)
class Bound:
    """Least latency of any schedule, s, and what sets it: `bandwidth`, `sm`, `slots` or `run`.

    `slots`: all segments share the slots. `run`: the shortest time in which one output tile can be cut,
    streamed and merged.
    """

    latency_s: float
    cause: str


@dataclass(frozen=True, eq=False)
class _Least:
    """What segments of a kernel's output tiles cost at least, ps, however they are cut.

    Output tiles of a kind have `tiles` KV tiles, which take the time of `work` full ones; there are
    `count` of each. A segment costs `start_ps` once, below 0 where its first tile is cheaper.
    """

    launch_ps: float
    start_ps: float
    tile_ps: float
    slots: int
    tiles: IntArray
    work: FloatArray
    count: IntArray

    @classmethod
    def of(cls, program: Program, grid: TileGrid, prices: Prices, start_s: float) -> _Least:
        """From the prices of a call, and the placing of the CTAs of its unsplit program."""
        at = _phases(program, program.attention)
        launched = program.latency_ps[at][program.kind[at] == Phase.LAUNCH]
        alike = np.stack([grid.num_kv_tiles, least_tiles(grid, prices)])
        (tiles, work), count = np.unique(alike, axis=1, return_counts=True)
        return cls(
            launch_ps=float(launched.min()),
            start_ps=PS_PER_S * start_s,
            tile_ps=PS_PER_S * prices.tile.tile_s,
            slots=program.slots(program.attention),
            tiles=tiles.astype(np.int64),
            work=work,
            count=count,
        )

    def busy_tiles(self) -> float:
        """Time that KV tiles take of all slots, in full tiles, with as many cheap first ones as may."""
        cheaper = min(0.0, self.start_ps / self.tile_ps) * float((self.tiles * self.count).sum())
        return float((self.work * self.count).sum()) + cheaper

    def slot_ps(self, segments: IntArray | int) -> float:
        """Time of the slots if the output tiles of each kind are cut into so many segments."""
        started = max(0.0, self.start_ps) * float((self.count * segments).sum())
        return (self.busy_tiles() * self.tile_ps + started) / self.slots

    def whole_ps(self) -> float:
        """The longest output tile in one segment."""
        return self.launch_ps + self.start_ps + float(self.work.max()) * self.tile_ps


def packing_bound(program: Program, grid: TileGrid, instance: Instance, device: Device) -> Bound:
    """Bound every schedule of a kernel for a workload, from the program of the unsplit one.

        what comes before + max(DRAM, L2, SM work / SMs, min over ways of merging of the packed end)

    An end E can be packed if each output tile, cut into the fewest segments that are streamed and merged
    by E, leaves the slots with no more than E of work each: (tiles * tile + segments * start) / slots.
    Holds for schedules that merge in a second kernel and for those that merge in the launch.
    """
    before_ps = float(program.launch_ps + program.attention.gap_ps)
    before = program.launches[: program.launches.index(program.attention)]
    before_ps += sum(_floors_ps(program, before))
    dram_bytes = program.dram_bytes - sum(_dram_bytes(program, launch) for launch in before)
    prices = Prices.of(grid, instance, device)
    least = _Least.of(program, grid, prices, least_start_s(grid, instance, device, prices))
    packed = _packed_ps(least, grid, instance, device)
    causes = {
        "bandwidth": max(
            dram_bytes / program.dram_bytes_per_ps, program.kv_bytes / program.l2_bytes_per_ps
        ),
        "sm": PS_PER_S * prices.tile.sm_s * least.busy_tiles() / program.num_sms,
        "slots" if least.slot_ps(1) > 0.9 * packed else "run": packed,
    }
    cause = max(causes, key=lambda name: causes[name])
    return Bound(_ROUNDING * (before_ps + causes[cause]) / PS_PER_S, cause)


def _dram_bytes(program: Program, launch: Launch) -> float:
    """Bytes of a launch that come from DRAM."""
    at = _phases(program, launch)
    share = np.array([*(flow.dram_share for flow in program.flows), 0.0])
    return float((program.bytes[at] * share[program.flow[at]]).sum())


def _phases(program: Program, launch: Launch) -> slice:
    border = program.phase_of_cta
    return slice(int(border[launch.first_cta]), int(border[launch.last_cta]))


def _packed_ps(least: _Least, grid: TileGrid, instance: Instance, device: Device) -> float:
    """Earliest end of the attention launch and its merges, unsplit or split and merged, ps."""
    ways = [max(least.whole_ps(), least.slot_ps(1))]
    handovers = {merges.handover(device, instance.merge, splits) for splits in (2, sys.maxsize)}

    def in_launch_ps(segments: IntArray) -> FloatArray:
        peers, in_flight = np.maximum(segments - 1, 1), instance.merge.splits_in_flight
        taken = [merges.merge_latency_s(way, peers, in_flight) for way in handovers]
        fewest: FloatArray = PS_PER_S * np.minimum.reduce(taken)
        return fewest

    ways.append(_deadline(least, in_launch_ps, 0.0))
    if not isinstance(combine := instance.combine, NoCombine):
        fewest = min(count for _, count in combine.launches)
        gap_s = merges.combine_gap_s(device, grid.workload.launch, combine, fewest)

        def kernel_ps(segments: IntArray) -> FloatArray:
            taken_s = merges.combine_latency_s(device, combine, segments)
            return PS_PER_S * (device.cta_launch_s + taken_s)

        ways.append(_deadline(least, kernel_ps, PS_PER_S * gap_s))
    return min(ways)


def _deadline(least: _Least, merge_ps: Callable[[IntArray], FloatArray], gap_ps: float) -> float:
    """Earliest end, ps, by which every output tile can be cut, streamed and merged in the slots.

    A merge of n segments takes `merge_ps(n)` after the last of them, `gap_ps` more if it is a kernel.
    """
    low, high = 0.0, gap_ps + float(merge_ps(np.array([2]))[0]) + least.whole_ps() + least.slot_ps(2)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _meets(least, middle - gap_ps, merge_ps, serial=gap_ps > 0.0):
            high = middle
        else:
            low = middle
    return low


def _meets(
    least: _Least, end_ps: float, merge_ps: Callable[[IntArray], FloatArray], serial: bool
) -> bool:
    """Whether slots hold the fewest segments that end in time; a `serial` merge begins after all."""
    merged_ps = float(merge_ps(np.array([2]))[0]) if serial else 0.0
    fixed = least.launch_ps + least.start_ps
    whole = fixed + least.work * least.tile_ps + merged_ps <= end_ps
    segments = np.where(whole, 1, 2)
    while True:  # more segments take longer to merge, which asks for more segments
        left = np.maximum(0.0, end_ps - fixed - merge_ps(np.maximum(segments, 2))) / least.tile_ps
        if np.array_equal(least.work, least.tiles):
            left = np.floor(left)
        with np.errstate(divide="ignore"):
            cut = np.ceil(least.work / left)
        if np.any(~whole & (cut > least.tiles)):
            return False
        wanted = np.where(whole, 1, np.maximum(segments, cut)).astype(np.int64)
        if np.array_equal(wanted, segments):
            break
        segments = wanted
    return bool(least.slot_ps(segments) <= end_ps - merged_ps)
