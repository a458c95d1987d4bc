"""The fast engine: the reference engine's rules compiled, equal to the picosecond.

Timed events wait in a heap of moments, each with the chain of slots due then; transfers in one
pairing heap per pool. An event costs O(log slots), and slots that move in step cost little more than
one. At one picosecond things happen in the reference's order: ends, then placing, then settling.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from leansim.engine.heaps import jit, sort
from leansim.engine.numba_memory import (
    NEVER,
    Memory,
    begin_transfer,
    end_transfers,
    is_settled,
    known_capacities,
    memory_system,
    serve,
    settle,
    start_idle,
)
from leansim.engine.numba_slots import DUE, IDLE, RUN, Slots, clear, due_at, run_due, slots_in
from leansim.engine.program import Phase, Program, out_of_range
from leansim.engine.result import Result
from leansim.engine.sharing import RESIDUE, pool_table

_WAITING, _LATENCY, _MOVING, _DONE = 0, 1, 2, 3  # stages of a phase
# Phases and slots are counted without sign, where none is missing: the compiled code then need not
# ask at every index whether it counts from the end. A plain 1 added to one would make a float of it.
_ONE = np.uint64(1)
MOMENTS = 2**16  # that the compiled code runs through at a time: a tenth of a second or so


class _Phases(NamedTuple):
    """What the phases of the program are; per phase but for `border`, per CTA, and `drift`, per SM."""

    border: Any
    latency: Any
    streams: Any
    drift: Any
    size: Any
    flow: Any
    wait_counter: Any
    wait_target: Any
    signal_counter: Any


class _Records(NamedTuple):
    """What happened: as in `Result`."""

    end: Any
    reached: Any
    cta_begin: Any
    slot_of: Any


class _Counters(NamedTuple):
    """Counters of the program, and the first slot that waits on each (-1: none).

    Most programs have none; that is asked before a phase's own are looked up, which costs a cache miss.
    """

    value: Any
    waiter: Any


@jit
def _end_moves(phases: _Phases, slots: Slots, memory: Memory) -> int:
    """Have the slots run whose transfers are over; returns how many bytes those moved."""
    moved = 0
    first = slots.n[RUN]
    slots.n[RUN] = end_transfers(slots.run, first, memory)
    for i in range(first, slots.n[RUN]):
        slot = slots.run[i]
        slots.stage[slot] = _DONE
        moved += phases.size[slots.phase[slot]]
    return moved


@jit
def _must_wait(slot: int, phases: _Phases, slots: Slots, counters: _Counters) -> bool:
    """Whether a slot's phase waits for a counter; then it is listed there."""
    if not len(counters.value):
        return False
    at = slots.phase[slot]
    counter = phases.wait_counter[at]
    if counter < 0 or counters.value[counter] >= phases.wait_target[at]:
        return False
    slots.next_waiter[slot] = counters.waiter[counter]
    counters.waiter[counter] = slot
    return True


@jit
def _signal(counter: int, phases: _Phases, slots: Slots, counters: _Counters) -> None:
    """Raise a counter, and have the slots run that waited for just that."""
    counters.value[counter] += 1
    host, ahead = counters.waiter[counter], -1
    while host >= 0:
        behind = slots.next_waiter[host]
        if counters.value[counter] < phases.wait_target[slots.phase[host]]:
            ahead = host
        else:
            if ahead < 0:
                counters.waiter[counter] = behind
            else:
                slots.next_waiter[ahead] = behind
            slots.run[slots.n[RUN]] = host
            slots.n[RUN] += 1
        host = behind


@jit
def _begin_latency(
    now: int, slot: int, phases: _Phases, records: _Records, slots: Slots, counters: _Counters,
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
    delay = phases.latency[at] + drift * phases.streams[at]
    if not delay:
        return False
    then = now + delay
    while at + _ONE < slots.last[slot] and (phases.flow[at] < 0 or phases.size[at] == 0):
        if has_counters:
            if phases.signal_counter[at] >= 0 or phases.wait_counter[at + _ONE] >= 0:
                break
            records.reached[at + _ONE] = then
        records.end[at] = then
        at += _ONE
        then += phases.latency[at] + drift * phases.streams[at]
    slots.phase[slot] = at
    due_at(then, slot, slots)
    return True


@jit
def _advance(
    now: int, slot: int, phases: _Phases, records: _Records, slots: Slots, counters: _Counters,
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
        records.end[at] = now
        if len(counters.value) and phases.signal_counter[at] >= 0:
            _signal(phases.signal_counter[at], phases, slots, counters)
        slots.phase[slot] = at + _ONE
        if at + _ONE == slots.last[slot]:
            slots.idle[slots.n[IDLE]] = slot
            slots.n[IDLE] += 1
            return
        slots.stage[slot] = _WAITING


@jit
def _place(
    start: int, now: int, next_cta: int, count: int, phases: _Phases, records: _Records, slots: Slots
) -> None:
    """Give the next CTAs to the idle slots, in order of the slots, to begin at `start`."""
    n = slots.n
    sort(slots.idle, n[IDLE])
    for j in range(count):
        slot, cta = slots.idle[j], next_cta + j
        slots.phase[slot], slots.last[slot] = phases.border[cta], phases.border[cta + 1]
        slots.stage[slot] = _WAITING
        records.cta_begin[cta], records.slot_of[cta] = start, slot
        if start > now:
            due_at(start, slot, slots)
        else:
            slots.run[n[RUN]] = slot
            n[RUN] += 1
    n[IDLE] = 0


# Where a run stands between two calls: numbers of an array.
_LAUNCH, _NOW, _CLOCK, _WAKE, _NEXT_CTA, _NEXT_DISPATCH, _LEFT, _MOVED = range(8)


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
    moved = 0
    while moments >= 0:
        # 1. what ends now
        run_due(now, slots)
        if wake == now:
            serve(now - clock, memory)
            clock = now
            moved += _end_moves(phases, slots, memory)
        # 2. place, and let every slot go as far as it can; placing may free slots again
        while True:
            while n[RUN]:
                n[RUN] -= 1
                _advance(now, slots.run[n[RUN]], phases, records, slots, counters, memory)
            left -= n[IDLE]
            count = min(n[IDLE], last_cta - next_cta)
            if count == 0:
                n[IDLE] = 0
                break
            start = max(now, next_dispatch)
            next_dispatch = start + count * interval
            _place(start, now, next_cta, count, phases, records, slots)
            next_cta += count
        # 3. settle the memory system
        if wake == now or not is_settled(memory):
            serve(now - clock, memory)
            clock = now
            wake = settle(now, resident, memory)
        # 4. on to the next moment
        if left == 0:
            break
        upcoming = min(wake, slots.due_times[0]) if n[DUE] else wake
        if upcoming <= now:
            raise OverflowError("no moment comes after this")
        if upcoming == NEVER:
            raise RuntimeError("every CTA waits for another")
        now = upcoming
        moments -= 1
    stand[_NOW], stand[_CLOCK], stand[_WAKE] = now, clock, wake
    stand[_NEXT_CTA], stand[_NEXT_DISPATCH], stand[_LEFT] = next_cta, next_dispatch, left
    stand[_MOVED] += moved
    return moments


@jit
def _execute(
    stand: Any,
    moments: int,
    launches: Any,  # [n, 4] first CTA, last CTA, CTAs per SM, gap
    launch_times: Any,
    interval: int,
    phases: _Phases,
    records: _Records,
    counters: _Counters,
    numbers: Any,  # [20, slots], zero at first
    memory: tuple[Any, ...],  # arguments of `memory_system` behind the first
) -> bool:
    """Run launches on, writing into the arrays of results; returns whether all are over.

    They are not if that takes more moments than are given: then this is to be called again.
    """
    num_sms = memory[0]
    system = memory_system(numbers[:10], *memory)
    slots = slots_in(numbers[10:])
    if stand[_LAUNCH] < 0:
        start_idle(system)
        clear(slots)
        stand[_LAUNCH] = 0
    while stand[_LAUNCH] < len(launches):
        i = stand[_LAUNCH]
        first_cta, last_cta, per_sm, _ = launches[i]
        resident = min(last_cta - first_cta, num_sms * per_sm)
        if stand[_LEFT] == 0:
            launch_times[i, 0] = stand[_NOW]
            _begin_launch(stand, launches[i], resident, slots)
        moments = _run(
            stand, moments, last_cta, resident, interval, phases, records, slots, counters, system
        )
        if moments < 0:
            return False
        launch_times[i, 1] = stand[_NOW]
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
    pools = pool_table(program.flows, program.max_ctas_per_sm)
    num_pools = pools.demands.shape[1]
    num_slots = max(8, program.num_sms * program.max_ctas_per_sm)
    drift = program.drift_ps
    arguments = (
        launches,
        launch_times,
        program.dispatch_interval_ps,
        _Phases(
            program.phase_of_cta,
            program.latency_ps,
            program.is_kind(Phase.RAMP),
            np.zeros(program.num_sms, np.int64) if drift is None else drift,
            program.bytes,
            program.flow,
            program.wait_counter,
            program.wait_target,
            program.signal_counter,
        ),
        _Records(end, reached, cta_begin, slot),
        _Counters(np.zeros(program.num_counters, np.int64), np.full(program.num_counters, -1, np.int64)),
        np.zeros((20, num_slots), np.int64),
        (
            program.num_sms,
            (pools.of, pools.power, pools.demands),
            (
                program.dram_bytes_per_ps,
                program.dram_saturation_exponent,
                program.l2_bytes_per_ps,
                RESIDUE,
            ),
            np.zeros((2, num_slots)),
            np.zeros((3, num_pools), np.int64),
            np.zeros((7, num_pools)),
            known_capacities(program.dram_bytes_per_ps, program.dram_saturation_exponent),
        ),
    )
    stand = np.array([-1, *(0 for _ in range(_MOVED))], np.int64)
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
        bytes_served=int(stand[_MOVED]),
    )
