"""The reference engine: SimPy, one process per slot.

Integer picoseconds, no randomness: a program always gives the same result, bit for bit. At one
picosecond everything that ends is handled first, then free slots take CTAs in slot order, then the
memory system settles.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import Any

import numpy as np
import simpy

from leansim.engine.memory import PLACE, At, Clock, Memory
from leansim.engine.program import Launch, Phase, Program
from leansim.engine.result import Result

Process = Generator[simpy.Event, Any, None]


class _Run:
    """The mutable state of one execution."""

    def __init__(self, program: Program) -> None:
        self.env = Clock(initial_time=0)
        self.memory = Memory(self.env, program)
        self.program = program
        self.counters = [0] * program.num_counters
        self.waiting: dict[int, list[tuple[int, simpy.Event]]] = {}
        self.queue: deque[int] = deque()
        self.idle: list[tuple[int, simpy.Event]] = []
        self.placing = False
        self.next_dispatch = 0
        self.end = [0] * program.num_phases
        self.ready = [0] * program.num_phases
        self.cta_begin = [0] * program.num_ctas
        self.slot = [0] * program.num_ctas
        self.launch_begin: list[int] = []
        self.launch_end: list[int] = []
        # Plain lists: indexing a NumPy array element by element is several times slower.
        self.border = program.phase_of_cta.tolist()
        self.latency = program.latency_ps.tolist()
        self.ramps = program.is_kind(Phase.RAMP).tolist()
        self.drift = [0] * program.num_sms if program.drift_ps is None else program.drift_ps.tolist()
        self.bytes = program.bytes.tolist()
        self.flow = program.flow.tolist()
        self.wait_counter = program.wait_counter.tolist()
        self.wait_target = program.wait_target.tolist()
        self.signal_counter = program.signal_counter.tolist()

    def launches(self) -> Process:
        """Run launches one after the other, each after its gap."""
        for launch in self.program.launches:
            self.launch_begin.append(self.env.now)
            if launch.gap_ps:
                yield self.env.timeout(launch.gap_ps)
            yield from self.one_launch(launch)
            self.launch_end.append(self.env.now)

    def one_launch(self, launch: Launch) -> Process:
        """Run every CTA of a launch."""
        self.next_dispatch = self.env.now
        self.queue = deque(range(launch.first_cta, launch.last_cta))
        slots = min(len(self.queue), self.program.slots(launch))
        running = [self.env.process(self.slot_process(j)) for j in range(slots)]
        yield from running

    def slot_process(self, slot: int) -> Process:
        """Run CTAs one after the other on one slot until none is left."""
        sm = slot % self.program.num_sms
        while self.queue:
            placed = self.env.event()
            self.idle.append((slot, placed))
            if not self.placing:
                self.placing = True
                At(self.env, 0, PLACE, self.place)
            cta, start = yield placed
            if cta is None:
                return
            if start > self.env.now:
                yield self.env.timeout(start - self.env.now)
            self.slot[cta], self.cta_begin[cta] = slot, self.env.now
            yield from self.cta_phases(cta, sm)

    def place(self, _: Any) -> None:
        """Give CTAs to the idle slots, in slot order.

        Slots that fall idle at the same moment are filled together; the next to fall idle may have
        to wait until the dispatcher, at one CTA per interval, has made up for them.
        """
        self.placing = False
        idle = sorted(self.idle, key=lambda pair: pair[0])
        self.idle.clear()
        start = max(self.env.now, self.next_dispatch)
        self.next_dispatch = start + min(len(idle), len(self.queue)) * self.program.dispatch_interval_ps
        for _, placed in idle:
            placed.succeed((self.queue.popleft() if self.queue else None, start))

    def cta_phases(self, cta: int, sm: int) -> Process:
        """Execute the phases of a CTA, recording when each is ready and ends."""
        env = self.env
        for phase in range(self.border[cta], self.border[cta + 1]):
            counter = self.wait_counter[phase]
            if counter >= 0 and self.counters[counter] < self.wait_target[phase]:
                yield self.reached(counter, self.wait_target[phase])
            self.ready[phase] = env.now
            delay = self.latency[phase] + (self.drift[sm] if self.ramps[phase] else 0)
            if delay:
                yield env.timeout(delay)
            if self.flow[phase] >= 0 and self.bytes[phase]:
                yield self.memory.transfer(sm, self.flow[phase], self.bytes[phase])
            self.end[phase] = env.now
            if self.signal_counter[phase] >= 0:
                self.signal(self.signal_counter[phase])

    def reached(self, counter: int, target: int) -> simpy.Event:
        """Return an event for the moment a counter reaches a target."""
        event = simpy.Event(self.env)
        self.waiting.setdefault(counter, []).append((target, event))
        return event

    def signal(self, counter: int) -> None:
        """Raise a counter and wake those it satisfies."""
        self.counters[counter] += 1
        for target, event in self.waiting.get(counter, []):
            if target == self.counters[counter]:
                event.succeed()


def execute(program: Program) -> Result:
    """Execute a program and return what happened."""
    run = _Run(program)
    run.env.run(until=run.env.process(run.launches()))
    return Result(
        program=program,
        cta_begin=np.array(run.cta_begin, dtype=np.int64),
        end=np.array(run.end, dtype=np.int64),
        reached=np.array(run.ready if program.num_counters else [], dtype=np.int64),
        slot=np.array(run.slot, dtype=np.int64),
        launch_begin=tuple(run.launch_begin),
        launch_end=tuple(run.launch_end),
        served=tuple(run.memory.served),
    )
