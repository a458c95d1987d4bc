"""Which numbers of a kernel are its own times on a device: the few that a certification fits.

They follow from what the kernel's file describes: the pace of its tile loop, what a segment or a CTA
takes before it, and what merging takes. Nothing here knows a kernel or a loop by name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from leansim.points.point import Point, Resolved, resolve
from leansim.silicon.fit import Free
from leansim.silicon.targets import Target, defining, value_at, with_bases
from leansim.specs.kernel import Kernel, Tile
from leansim.specs.tile_choice import tile_for
from leansim.timing.loops.registry import loops

# Rows that an own time must have to itself: with fewer, fewer are free.
ROWS_PER_TIME = 1
# A call is never shorter than what it has spent on one thing; clocks and timers differ by a tenth.
_SLACK = 1.1
# Shares of it that a fit is begun from, beside what the files say, which may lead nowhere.
_BEGUN_AT = (0.25, 0.5, 0.9)


@dataclass(frozen=True)
class OwnTime:
    """A free number of one instance: where it stands, and the most that a row's time leaves for it.

    In the unit of the number, seconds or clocks.
    """

    target: Target
    most: float


@dataclass
class _Seen:
    """What the rows of one instance say: how many they are, and the most for each of its times."""

    rows: int = 0
    most: dict[Target, float] = field(default_factory=dict)
    rank: dict[Target, int] = field(default_factory=dict)

    @property
    def kept(self) -> set[Target]:
        """As many as there are rows for, those of the lowest rank first."""
        return set(sorted(self.most, key=lambda one: self.rank[one])[: self.rows // ROWS_PER_TIME])


def own_times(points: Sequence[Point], measured_s: Sequence[float]) -> list[tuple[OwnTime, ...]]:
    """The own times that each point's time depends on, as many as its instance has rows for.

    Instances are told by kernel and tile; numbers of the whole kernel, such as its start, belong to
    several. The first of an instance are those of its tile loop, then its start, then merging.
    """
    asked = [_times(point) for point in points]
    seen: dict[tuple[str, int], _Seen] = {}
    for (instance, times), seconds in zip(asked, measured_s, strict=True):
        mine = seen.setdefault(instance, _Seen())
        mine.rows += 1
        for target, (rank, of_one_s) in times.items():
            mine.rank[target] = rank
            left = _SLACK * seconds / of_one_s
            mine.most[target] = min(mine.most.get(target, math.inf), left)
    most: dict[Target, float] = {}
    for mine in seen.values():
        for target in mine.kept:
            most[target] = min(most.get(target, math.inf), mine.most[target])
    return [
        tuple(OwnTime(target, most[target]) for target in times if target in seen[instance].kept)
        for instance, times in asked
    ]


def kernel_name(point: Point) -> str:
    """The kernel of a point, without the partitioner that it may run under."""
    return point.policy.partition("+")[0]


def free(times: Iterable[Iterable[OwnTime]]) -> list[Free]:
    """What a fit of these times may change: from 0 to the most of each.

    It is begun from what the files say, and from several places within the bounds.
    """
    most = {one.target: one.most for some in times for one in some}
    found = []
    for target, high in most.items():
        usual = min(value_at(target) or 0.0, high)  # none said: as if it took no time
        starts = (usual, *(share * high for share in _BEGUN_AT))
        found.append(Free(target, (0.0, high), starts, usual))
    return found


def instance_of_point(point: Point) -> tuple[str, int]:
    """The kernel that a point runs, and the position of its tile in the kernel's file."""
    resolved = resolve(point)
    tile = tile_for(resolved.workload, resolved.kernel, resolved.device, resolved.is_split)
    return kernel_name(point), next(i for i, one in enumerate(resolved.kernel.tiles) if one is tile)


def _times(point: Point) -> tuple[tuple[str, int], dict[Target, tuple[int, float]]]:
    """A point's instance, and its own times: their rank, and what one of their unit takes, s."""
    resolved = resolve(point)
    device, schedule = resolved.device, resolved.schedule
    name, position = instance_of_point(point)
    tile = resolved.kernel.tiles[position]
    place = _Place(name, resolved.kernel, position, tile, device.arch)
    # The last tile of a CTA may be masked. Work of an SM is what no distribution makes less.
    longest = max(1.0, float(schedule.tiles_of_cta.max(initial=1)) - 1.0)
    on_an_sm = max(1.0, float(schedule.tiles_of_cta.sum()) / device.num_sms)
    found = {place.start(): (2, 1.0)}
    found |= {target: (3, least) for target, least in _merging(place, resolved)}
    for i, (number, clk) in enumerate(_paces(place)):
        least = (on_an_sm if i else longest) * (device.clk_s if clk else 1.0)
        found[place.loop(number)] = (1 if i else 0, least)
    return (name, position), found


@dataclass(frozen=True)
class _Place:
    """A tile of a kernel on an architecture, and where its numbers stand."""

    name: str
    kernel: Kernel
    position: int
    tile: Tile
    arch: str

    def loop(self, number: str) -> Target:
        """A number of the tile's loop, said for the tile."""
        _, said = self.kernel.loop(self.tile)
        return self._target(("tiles", str(self.position), "loop", number), said.get(number))

    def start(self) -> Target:
        """What precedes a tile loop: the tile's own, else that which the nearest file says.

        A segment and a CTA have a start each, which rows of one segment on each CTA cannot tell apart.
        """
        own = self.tile.start.get("overhead_s")
        if own is not None and (not isinstance(own, dict) or self.arch in own):
            return self._target(("tiles", str(self.position), "start", "overhead_s"), own)
        names = with_bases(self.name)
        ways = [(part, "overhead_s") for part in ("start", "ctas")]
        homes = {way: defining(self.name, (*way, self.arch)) for way in ways}
        said = [way for way in ways if homes[way] is not None]
        nearest = min(said, key=lambda way: names.index(str(homes[way])), default=ways[0])
        return self.mechanism(*nearest)

    def mechanism(self, part: str, number: str) -> Target:
        """A number of the whole kernel."""
        return self._target((part, number), getattr(getattr(self.kernel, part), number))

    def _target(self, keys: tuple[str, ...], now: Any) -> Target:
        """The place of a number: that of the architecture, unless one stands for all of them."""
        one_for_all = bool(now) and not isinstance(now, dict)
        said = keys if one_for_all else (*keys, self.arch)
        return Target("kernel", defining(self.name, said) or self.name, said)


def _paces(place: _Place) -> Iterator[tuple[str, bool]]:
    """Names of a loop's times, by their units, and whether they are clocks."""
    name, _ = place.kernel.loop(place.tile)
    for one in dataclasses.fields(loops()[name]):  # type: ignore[arg-type]
        clk = one.name == "clk" or one.name.endswith("_clk")
        seconds = one.name.endswith("_s") and not one.name.endswith("_per_s")
        if str(one.type) == "float" and (clk or seconds):
            yield one.name, clk


def _merging(place: _Place, resolved: Resolved) -> Iterator[tuple[Target, float]]:
    """What merging takes, in a kernel of its own or in the launch, where the call merges."""
    schedule, kernel = resolved.schedule, place.kernel
    if schedule.combine == "kernel" and kernel.combine is not None:
        splits = int(schedule.splits_of_request.max(initial=1))
        yield place.mechanism("combine", "overhead_s"), 1.0
        if kernel.combine.round_s:
            rounds = max(1, -(-splits // kernel.combine.splits_in_flight))
            yield place.mechanism("combine", "round_s"), float(rounds)
    elif schedule.merges.any():
        yield place.mechanism("merge", "clk"), resolved.device.clk_s
