"""Simulates many schedules of one workload on one kernel and device, each of them once."""

from __future__ import annotations

import math
from dataclasses import replace

from leansim.engine.execute import Engine, execute
from leansim.engine.program import Program
from leansim.engine.result import Result
from leansim.errors import OutOfRangeError
from leansim.lazy import cached_property
from leansim.partitioners.per_request_splits import PerRequestSplits
from leansim.partitioners.registry import Partitioner
from leansim.points.point import Resolved
from leansim.points.simulate import TOO_MUCH, Simulation, whole
from leansim.schedule.schedule import Schedule
from leansim.schedule.tiling import TileGrid, tile_grid
from leansim.specs.instance import Instance, instance_of
from leansim.timing.bound import Bound, packing_bound, program_floor_s
from leansim.timing.lowering import lower, lower_merge


class Bench:
    """What a partitioner comes to on a fixed workload, kernel and device.

    `simulations` counts those run; a schedule tried before, or one that cannot be fast enough to
    matter, costs none. Where a kernel has a launch of its own for shared prefixes, that and the merge
    after both are as they are, and the partitioner is that of the rest.
    """

    def __init__(self, resolved: Resolved, engine: Engine = "auto") -> None:
        """Take a resolved point's workload, kernel and device, and its partitioner as one of many."""
        self.resolved, self.engine = resolved, engine
        self.simulations = 0
        self._known: dict[str, float] = {}  # by repr: options need not be hashable

    @property
    def grid(self) -> TileGrid:
        """The tiled workload."""
        return self.resolved.grid

    @property
    def own(self) -> Partitioner:
        """The point's own partitioner."""
        return self.resolved.partitioner

    @property
    def latencies(self) -> list[float]:
        """Latency of each partitioner that was simulated, s, in the order of the first times."""
        return list(self._known.values())

    def splits(self, counts: int | tuple[int, ...], longest_first: bool = False) -> PerRequestSplits:
        """One split count, or one for each request, merged as the kernel can."""
        return PerRequestSplits(
            counts,
            "longest_first" if longest_first else "issue",
            "last" if self.resolved.kernel.combine is None else "kernel",
        )

    def simulation(self, partitioner: Partitioner) -> Simulation:
        """Simulate a partitioner. Raises a `LeansimError` where it refuses the workload."""
        resolved = replace(self.resolved, partitioner=partitioner)
        return self._executed(resolved, self._lowered(resolved))

    def latency_s(self, partitioner: Partitioner, below: float = math.inf) -> float:
        """Latency of a partitioner, s; infinite if its program's own floor shows it is not `below`.

        Raises as `simulation`.
        """
        if (label := repr(partitioner)) in self._known:
            return self._known[label]
        resolved = replace(self.resolved, partitioner=partitioner)
        program = self._lowered(resolved)
        if below < math.inf and program_floor_s(program) + self._beside_s >= below:
            return math.inf
        return self._executed(resolved, program).result.latency_s

    def bound(self) -> Bound:
        """What no schedule of this kernel can beat for this workload, whichever of its entries runs."""
        of, bounds = self.resolved, []
        for split in (True, False) if of.kernel.asks_split else (True,):
            instance = instance_of(of.kernel, of.device, of.workload, split)
            grid = tile_grid(of.workload, instance, of.device, of.grid.level)
            unsplit = self._priced(self.splits(1)(grid, of.device), instance)
            bounds.append(packing_bound(unsplit, grid, instance, of.device))
        least = min(bounds, key=lambda bound: bound.latency_s)
        return replace(least, latency_s=least.latency_s + self._beside_s)

    @cached_property
    def _beside(self) -> tuple[list[Result], list[Result]]:
        """The launch for shared prefixes, and the merge after all."""
        calls = self.resolved.calls
        if len(calls) == 1:
            return [], []
        first, _ = calls
        prefix = self._priced(first.schedule, first.instance)
        schedules = [call.schedule for call in calls]
        merge = lower_merge(schedules, self.resolved.instance, self.resolved.device)
        return [execute(prefix, self.engine)], [execute(merge, self.engine)]

    @property
    def _beside_s(self) -> float:
        """What those take, and what travels on a node, s, at least."""
        of = self.resolved
        travel_s = 0.0 if of.node is None else of.travel.least_s(of.node)
        return travel_s + sum(result.latency_s for some in self._beside for result in some)

    def _lowered(self, resolved: Resolved) -> Program:
        return self._priced(resolved.schedule, resolved.instance)

    def _priced(self, schedule: Schedule, instance: Instance) -> Program:
        try:
            return lower(schedule, instance, self.resolved.device)
        except TOO_MUCH as error:
            raise OutOfRangeError(
                f"{self.resolved.point.policy}: a number is out of range: {error}"
            ) from None

    def _executed(self, resolved: Resolved, program: Program) -> Simulation:
        self.simulations += 1
        before, after = self._beside
        result = whole(resolved, [*before, execute(program, self.engine), *after])
        simulation = Simulation(resolved, result.program, result)
        self._known[repr(resolved.partitioner)] = simulation.result.latency_s
        return simulation
