"""What an engine recorded: when each phase of each CTA began, and ended. Flat and immutable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from leansim.arrays import IntArray
from leansim.engine.program import PS_PER_S, Launch, Phase, Program, over_flows
from leansim.lazy import cached_property

_EXACT = 2**53  # up to where floating-point sums of whole numbers are exact
_MOST_COUNTED = 2**63  # and those of whole numbers
_PHASES = tuple(phase.name.lower() for phase in Phase)


@dataclass(frozen=True, eq=False)
class Result:
    """Times in picoseconds since the first launch reached the device.

    Per phase, in the program's phase order: its `end`, and when its wait was over, `reached`, which is
    empty where the program has no counters. Per CTA: `cta_begin`, when it was placed, and its `slot`;
    slot `j` of a launch is on SM `j % num_sms`. `launch_begin` and `launch_end` are per launch, the gap
    before it included. `served` is what transfers of each flow moved, bytes. `spent`, where the engine
    has its own way, adds up the slot time of a launch by kind of phase, and last what was waited for
    others.
    """

    program: Program
    cta_begin: IntArray
    end: IntArray
    reached: IntArray
    slot: IntArray
    launch_begin: tuple[int, ...]
    launch_end: tuple[int, ...]
    served: tuple[int, ...]
    spent: Callable[[Result, Launch], IntArray] | None = None

    @property
    def makespan_ps(self) -> int:
        """Last end minus first start on the device."""
        return self.launch_end[-1]

    @property
    def makespan_s(self) -> float:
        """The same, in seconds."""
        return self.makespan_ps * 1e-12

    @property
    def latency_s(self) -> float:
        """Makespan plus the boundary to whatever ran before, in seconds."""
        return (self.makespan_ps + self.program.launch_ps) * 1e-12

    @property
    def bytes_served(self) -> int:
        """What all transfers moved."""
        return sum(self.served)

    @property
    def dram_bytes(self) -> float:
        """What came from DRAM of that."""
        return over_flows([flow.dram_share for flow in self.program.flows], self.served)

    @property
    def l2_bytes(self) -> float:
        """What passed L2 of it, and what was stored."""
        stored = self.program.total_bytes - self.bytes_served
        return stored + over_flows([flow.l2_share for flow in self.program.flows], self.served)

    @property
    def tensor_s(self) -> float:
        """Work of the tensor cores on all KV tiles, padding included, s on one SM."""
        shares = [flow.tensor_ps_per_byte for flow in self.program.flows]
        return over_flows(shares, self.served) / PS_PER_S

    @cached_property
    def cta_of_phase(self) -> IntArray:
        """CTA of each phase."""
        return np.repeat(np.arange(self.program.num_ctas), np.diff(self.program.phase_of_cta))

    @cached_property
    def begin(self) -> IntArray:
        """When each phase began: with its CTA, or as the phase before it ended."""
        begin = np.empty_like(self.end)
        begin[1:] = self.end[:-1]
        begin[self.program.phase_of_cta[:-1]] = self.cta_begin
        return begin

    @property
    def ready(self) -> IntArray:
        """When the wait of each phase was over."""
        return self.reached if self.program.num_counters else self.begin

    @cached_property
    def moving(self) -> IntArray:
        """When the latency of each phase was over, with what its SM adds to that of a RAMP."""
        program = self.program
        moving: IntArray = self.ready + program.latency_ps
        if program.drift_ps is not None:
            drift = program.drift_ps[self.slot % program.num_sms][self.cta_of_phase]
            moving += np.where(program.is_kind(Phase.RAMP), drift, 0)
        return moving

    @cached_property
    def cta_end(self) -> IntArray:
        """When each CTA left its slot."""
        return self.end[self.program.phase_of_cta[1:] - 1]

    def launch_of(self, launch: Launch) -> slice:
        """Phases of one launch."""
        border = self.program.phase_of_cta
        return slice(int(border[launch.first_cta]), int(border[launch.last_cta]))

    def spent_ps(self, launch: Launch) -> dict[str, int]:
        """Slot time of a launch by what it was spent on; the parts and `idle` sum to slots x window.

        Phases count under their own names; waiting for another CTA is `wait`; a slot without a CTA, and
        the gap before the launch, are `idle`.
        """
        index = self.program.launches.index(launch)
        window = self.launch_end[index] - self.launch_begin[index]
        held = window * self.program.slots(launch)
        if self.spent is not None and held < _MOST_COUNTED:
            sums = self.spent(self, launch).tolist()
        else:
            sums = self._sums(launch, held)
        spent = dict(zip((*_PHASES, "wait"), sums, strict=True))
        spent["idle"] = held - sum(spent.values())
        return spent

    def _sums(self, launch: Launch, held: int) -> list[int]:
        """Slot time of a launch by kind of phase, and last what was waited for others."""
        at = self.launch_of(launch)
        kind, ready = self.program.kind[at], self.ready[at]
        took = self.end[at] - ready
        waited = ready - self.begin[at] if self.program.num_counters else np.zeros(1, np.int64)
        if held < _EXACT:
            sums = np.bincount(kind, weights=took, minlength=len(_PHASES)).tolist()
        else:  # whole numbers without end, which take their time
            took, waited = took.astype(object), waited.astype(object)
            sums = [took[kind == phase].sum() for phase in range(len(_PHASES))]
        return [*map(int, sums), int(waited.sum())]
