"""The fast engine: the reference engine's rules compiled, equal to the picosecond.

Slots that are due wait in a queue of moments, those that transfer in a queue of their pool. An event
costs O(log slots), and slots that move in step cost little more than one. At one
picosecond things happen in the reference's order: ends, then placing, then settling.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from leansim.engine.numba_memory import (
    NEVER,
    Memory,
    begin_transfer,
    end_transfer,
    end_transfers,
    is_settled,
    known_capacities,
    memory_system,
    serve,
    settle,
    start_idle,
)
from leansim.engine.numba_queues import NONE, ONE, ZERO, Index, Queues, jit, make_empty, sort
from leansim.engine.numba_slots import IDLE, RUN, Slots, due_at, run_due, run_now
from leansim.engine.numba_tally import slot_time
from leansim.engine.program import Phase, Program, out_of_range
from leansim.engine.result import Result
from leansim.engine.sharing import RESIDUE, pool_table

_RAMP = np.int8(Phase.RAMP)
_WAITING, _LATENCY, _MOVING, _DONE = 0, 1, 2, 3  # stages of a phase
MOMENTS = 2**16  # that the compiled code runs through at a time: a tenth of a second or so


class _Phases(NamedTuple):
    """What the phases of the program are; per phase but for `border`, per CTA, and `drift`, per SM."""

    border: Any
    kind: Any
    latency: Any
    drift: Any
    size: Any
    flow: Any
    wait_counter: Any
    wait_target: Any
    signal_counter: Any


class _Records(NamedTuple):
    """What happened: as in `Result`; `launch_times` are begins and ends, `[launches, 2]`."""

    end: Any
    reached: Any
    cta_begin: Any
    slot_of: Any
    served: Any
    launch_times: Any


class _Counters(NamedTuple):
    """Counters of the program, and the first slot that waits on each.

    Most programs have none; that is asked before a phase's own are looked up, which costs a cache miss.
    """

    value: Any
    waiter: Any


@jit
def _end_moves(phases: _Phases, records: _Records, slots: Slots, memory: Memory) -> None:
    """Have the slots run whose transfers are over, and count what those moved."""
    first = slots.n[RUN]
    slots.n[RUN] = end_transfers(slots.run, first, memory)
    for i in range(first, slots.n[RUN]):
        slots.stage[slots.run[i]] = _DONE
        _count(slots.phase[slots.run[i]], phases, records)


@jit
def _count(at: Index, phases: _Phases, records: _Records) -> None:
    """Count what a phase has moved."""
    records.served[np.uint64(phases.flow[at])] += phases.size[at]


@jit
def _must_wait(slot: Index, phases: _Phases, slots: Slots, counters: _Counters) -> bool:
    """Whether a slot's phase waits for a counter; then it is listed there."""
    if not len(counters.value):
        return False
    at = slots.phase[slot]
    if phases.wait_counter[at] < 0:
        return False
    counter = np.uint64(phases.wait_counter[at])
    if counters.value[counter] >= phases.wait_target[at]:
        return False
    slots.next_waiter[slot] = counters.waiter[counter]
    counters.waiter[counter] = slot
    return True


@jit
def _signal(counter: Index, phases: _Phases, slots: Slots, counters: _Counters) -> None:
    """Raise a counter, and have the slots run that waited for just that."""
    counters.value[counter] += 1
    host, ahead = counters.waiter[counter], NONE
    while host != NONE:
        behind = slots.next_waiter[host]
        if counters.value[counter] < phases.wait_target[slots.phase[host]]:
            ahead = host
        else:
            if ahead == NONE:
                counters.waiter[counter] = behind
            else:
                slots.next_waiter[ahead] = behind
            run_now(host, slots)
        host = behind


@jit
def _latency(at: Index, drift: int, phases: _Phases) -> int:
    """The fixed part of a phase on an SM that adds `drift` to its ramps."""
    return phases.latency[at] + (drift if phases.kind[at] == _RAMP else 0)  # type: ignore[no-any-return]


@jit
def _begin_latency(
    now: int, slot: Index, phases: _Phases, records: _Records, slots: Slots, counters: _Counters,
    memory: Memory,
) -> bool:  # fmt: skip
    """Begin the fixed part of a slot's phase; returns whether there is one to sit out.

    Phases behind it that nothing outside can touch are recorded at once.
    """
    at = slots.phase[slot]
    drift = phases.drift[memory.flows.sm[slot]]
    has_counters = len(counters.value) > 0
    if has_counters:
        records.reached[at] = now
    slots.stage[slot] = _LATENCY
    delay = _latency(at, drift, phases)
    if not delay:
        return False
    then = now + delay
    while at + ONE < slots.last[slot] and (phases.flow[at] < 0 or phases.size[at] == 0):
        if has_counters:
            if phases.signal_counter[at] >= 0 or phases.wait_counter[at + ONE] >= 0:
                break
            records.reached[at + ONE] = then
        records.end[at] = then
        at += ONE
        then += _latency(at, drift, phases)
    slots.phase[slot] = at
    due_at(then, slot, slots)
    return True


@jit
def _advance(
    now: int, slot: Index, phases: _Phases, records: _Records, slots: Slots, counters: _Counters,
    memory: Memory,
) -> None:  # fmt: skip
    """Let a slot go as far as it can: to a wait, a latency, a transfer, or the end of its CTA."""
    while True:
        at = slots.phase[slot]
        if slots.stage[slot] == _WAITING:
            if _must_wait(slot, phases, slots, counters):
                return
            if _begin_latency(now, slot, phases, records, slots, counters, memory):
                return
        if slots.stage[slot] == _LATENCY:
            slots.stage[slot] = _MOVING
            if phases.flow[at] >= 0 and phases.size[at]:
                begin_transfer(slot, phases.flow[at], phases.size[at], memory)
                return
        elif slots.stage[slot] == _MOVING:  # what no memory serves
            end_transfer(slot, memory)
            _count(at, phases, records)
        records.end[at] = now
        if len(counters.value) and phases.signal_counter[at] >= 0:
            _signal(np.uint64(phases.signal_counter[at]), phases, slots, counters)
        slots.phase[slot] = at + ONE
        if at + ONE == slots.last[slot]:
            slots.idle[slots.n[IDLE]] = slot
            slots.n[IDLE] += ONE
            return
        slots.stage[slot] = _WAITING


@jit
def _place(
    start: int, now: int, next_cta: int, count: int, phases: _Phases, records: _Records, slots: Slots
) -> None:
    """Give the next CTAs to the idle slots, in order of the slots, to begin at `start`."""
    n = slots.n
    sort(slots.idle, n[IDLE])
    for j in range(np.uint64(count)):
        slot, cta = slots.idle[j], np.uint64(next_cta) + j
        slots.phase[slot], slots.last[slot] = phases.border[cta], phases.border[cta + ONE]
        slots.stage[slot] = _WAITING
        records.cta_begin[cta], records.slot_of[cta] = start, slot
        if start > now:
            due_at(start, slot, slots)
        else:
            run_now(slot, slots)
    n[IDLE] = ZERO


# Where a run stands between two calls: numbers of an array.
_LAUNCH, _NOW, _CLOCK, _WAKE, _NEXT_CTA, _NEXT_DISPATCH, _LEFT = range(7)


@jit
def _begin_launch(stand: Any, launch: Any, resident: int, slots: Slots) -> None:
    """Have every resident slot wait for a CTA of a launch, once its gap is over."""
    first_cta, last_cta, _, gap = launch
    stand[_NOW] += gap
    stand[_WAKE] = NEVER
    stand[_NEXT_CTA], stand[_NEXT_DISPATCH] = first_cta, stand[_NOW]
    stand[_LEFT] = last_cta - first_cta + resident  # CTAs not over, and slots that have not had any
    for slot in range(resident):
        slots.idle[slot] = slot
    slots.n[IDLE] = resident


@jit
def _run(
    stand: Any, moments: int, last_cta: int, resident: int, interval: int, phases: _Phases,
    records: _Records, slots: Slots, counters: _Counters, memory: Memory,
) -> int:  # fmt: skip
    """Run a launch on; returns how many of the `moments` are left at its end, -1 if it has not ended."""
    n = slots.n
    now, clock, wake = stand[_NOW], stand[_CLOCK], stand[_WAKE]
    next_cta, next_dispatch, left = stand[_NEXT_CTA], stand[_NEXT_DISPATCH], stand[_LEFT]
    while moments >= 0:
        # 1. what ends now
        run_due(now, slots)
        if wake == now:
            serve(now - clock, memory)
            clock = now
            _end_moves(phases, records, slots, memory)
        # 2. place, and let every slot go as far as it can; placing may free slots again
        while True:
            while n[RUN]:
                n[RUN] -= ONE
                _advance(now, slots.run[n[RUN]], phases, records, slots, counters, memory)
            idle = np.int64(n[IDLE])
            left -= idle
            count = min(idle, last_cta - next_cta)
            if count == 0:
                n[IDLE] = ZERO
                break
            start = max(now, next_dispatch)
            next_dispatch = start + count * interval
            _place(start, now, next_cta, count, phases, records, slots)
            next_cta += count
        # 3. settle the memory system
        if wake == now or not is_settled(memory):
            clock, wake = settle(now, clock, wake, resident, memory, slots.due)
        # 4. on to the next moment
        if left == 0:
            break
        upcoming = min(wake, slots.due.key[0]) if slots.due.size[0] else wake
        if upcoming <= now:
            raise OverflowError("no moment comes after this")
        if upcoming == NEVER:
            raise RuntimeError("every CTA waits for another")
        now = upcoming
        moments -= 1
    stand[_NOW], stand[_CLOCK], stand[_WAKE] = now, clock, wake
    stand[_NEXT_CTA], stand[_NEXT_DISPATCH], stand[_LEFT] = next_cta, next_dispatch, left
    return moments


@jit
def _slots_in(s: Any, transfers: Queues) -> Slots:
    """Slots in an array given for them; those that are due are in the links of none that transfers."""
    entries, of_queue = (s[0].view(np.int64), s[1]), s[2]
    key_of = transfers.key_of.view(np.int64)
    due = Queues(
        entries[0], entries[1], of_queue[:1], of_queue[1:2], key_of, transfers.place, transfers.after,
        transfers.before, transfers.width,
    )  # fmt: skip
    return Slots(s[3], s[4], s[5].view(np.int64), s[6], due, s[7], s[8], of_queue[2:])


@jit
def _execute(
    stand: Any,
    moments: int,
    launches: Any,  # [n, 4] first CTA, last CTA, CTAs per SM, gap
    interval: int,
    phases: _Phases,
    records: _Records,
    counters: _Counters,
    of_slots: Any,  # [9, slots]
    memory: tuple[Any, ...],  # arguments of `memory_system`
) -> bool:
    """Run launches on, writing into the arrays of results; returns whether all are over.

    They are not if that takes more moments than are given: then this is to be called again.
    """
    num_sms = memory[0]
    system = memory_system(*memory)
    slots = _slots_in(of_slots, system.queues)
    if stand[_LAUNCH] < 0:
        start_idle(system)
        make_empty(slots.due)
        slots.n[RUN] = slots.n[IDLE] = ZERO
        stand[_LAUNCH] = 0
    while stand[_LAUNCH] < len(launches):
        i = stand[_LAUNCH]
        first_cta, last_cta, per_sm, _ = launches[i]
        resident = min(last_cta - first_cta, num_sms * per_sm)
        if stand[_LEFT] == 0:
            records.launch_times[i, 0] = stand[_NOW]
            _begin_launch(stand, launches[i], resident, slots)
        moments = _run(
            stand, moments, last_cta, resident, interval, phases, records, slots, counters, system
        )
        if moments < 0:
            return False
        records.launch_times[i, 1] = stand[_NOW]
        stand[_LAUNCH] += 1
    return True


def execute(program: Program) -> Result:
    """Execute a program and return what happened."""
    end = np.empty(program.num_phases, np.int64)
    reached = np.empty(program.num_phases if program.num_counters else 0, np.int64)
    cta_begin, slot = np.empty((2, program.num_ctas), np.int64)
    launches = np.array(
        [(one.first_cta, one.last_cta, one.ctas_per_sm, one.gap_ps) for one in program.launches],
        np.int64,
    )
    launch_times = np.empty((len(launches), 2), np.int64)
    served = np.zeros(len(program.flows), np.int64)
    pools = pool_table(program.flows, program.max_ctas_per_sm)
    num_pools = pools.demands.shape[1]
    num_slots = max(8, program.num_sms * program.max_ctas_per_sm)
    drift = program.drift_ps
    arguments = (
        launches,
        program.dispatch_interval_ps,
        _Phases(
            program.phase_of_cta,
            program.kind,
            program.latency_ps,
            np.zeros(program.num_sms, np.int64) if drift is None else drift,
            program.bytes,
            program.flow,
            program.wait_counter,
            program.wait_target,
            program.signal_counter,
        ),
        _Records(end, reached, cta_begin, slot, served, launch_times),
        _Counters(np.zeros(program.num_counters, np.int64), np.full(program.num_counters, NONE)),
        np.empty((9, num_slots), np.uint64),
        (
            program.num_sms,
            (pools.of, pools.power, pools.demands),
            (
                program.dram_bytes_per_ps,
                program.dram_saturation_exponent,
                program.l2_bytes_per_ps,
                RESIDUE,
            ),
            known_capacities(program.dram_bytes_per_ps, program.dram_saturation_exponent),
            np.empty((13, num_slots), np.uint64),
            np.empty((13, num_pools), np.uint64),
            np.empty((2, num_pools * num_slots), np.uint64),
        ),
    )
    stand = np.array([-1, *(0 for _ in range(_LEFT))], np.int64)
    try:
        while not _execute(stand, MOMENTS, *arguments):  # where Python looks whether it is interrupted
            pass
    except OverflowError:
        raise out_of_range() from None
    return Result(
        program=program,
        cta_begin=cta_begin,
        end=end,
        reached=reached,
        slot=slot,
        launch_begin=tuple(launch_times[:, 0].tolist()),
        launch_end=tuple(launch_times[:, 1].tolist()),
        served=tuple(served.tolist()),
        spent=slot_time,
    )
