"""The fast engine: the reference engine's rules compiled, equal to the picosecond.

Timed events wait in a heap of moments, each with the chain of slots due then; transfers in one
pairing heap per pool. An event costs O(log slots), and slots that move in step cost little more than
one. At one picosecond things happen in the reference's order: ends, then placing, then settling.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from leansim.engine.heaps import jit, pop, push, sort
from leansim.engine.memory import RESIDUE
from leansim.engine.numba_memory import (
    CACHED,
    NEVER,
    Memory,
    begin_transfer,
    end_transfers,
    is_settled,
    new_memory,
    serve,
    settle,
)
from leansim.engine.program import Phase, Program
from leansim.engine.result import Result
from leansim.engine.sharing import sm_limits

_WAITING, _LATENCY, _MOVING, _DONE = 0, 1, 2, 3  # stages of a phase
# Phases and slots are counted without sign, where none is missing: the compiled code then need not
# ask at every index whether it counts from the end. A plain 1 added to one would make a float of it.
_ONE = np.uint64(1)


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
    """What happened: per phase, and the slot of each CTA."""

    begin: Any
    ready: Any
    moving: Any
    end: Any
    slot_of: Any


class _Counters(NamedTuple):
    """Counters of the program, and the first slot that waits on each (-1: none).

    Most programs have none; that is asked before a phase's own are looked up, which costs a cache miss.
    """

    value: Any
    waiter: Any


class _Slots(NamedTuple):
    """Where each slot stands, and lists of slots, linked or in a row."""

    phase: Any
    last: Any
    stage: Any
    next_waiter: Any  # behind a slot that waits on a counter
    chain: Any  # behind a slot due at a moment
    due_times: Any  # a binary heap of moments,
    due_slots: Any  # and the first slot due then
    run: Any  # a stack of those whose next step is due now; their order is of no consequence
    idle: Any
    n: Any  # how much of these lists is in use


# Places in `n`; the last two are the moment last pushed, and the end of its chain.
_DUE, _RUN, _IDLE, _OPEN_TIME, _OPEN_SLOT = range(5)


@jit
def _run_due(now: int, slots: _Slots) -> None:
    """Have the slots run that are due now."""
    n = slots.n
    while n[_DUE] and slots.due_times[0] == now:
        slot = slots.due_slots[0]
        n[_DUE] = pop(slots.due_times, slots.due_slots, n[_DUE])
        while slot >= 0:
            slots.run[n[_RUN]] = slot
            n[_RUN] += 1
            slot = slots.chain[slot]
    if now == n[_OPEN_TIME]:
        n[_OPEN_TIME] = -1


@jit
def _due_at(time: int, slot: int, slots: _Slots) -> None:
    """Have a slot run at a time; slots that follow one another to the same time form a chain."""
    n = slots.n
    slots.chain[slot] = -1
    if time == n[_OPEN_TIME]:
        slots.chain[n[_OPEN_SLOT]] = slot
    else:
        n[_DUE] = push(slots.due_times, slots.due_slots, n[_DUE], time, slot)
        n[_OPEN_TIME] = time
    n[_OPEN_SLOT] = slot


@jit
def _end_moves(phases: _Phases, slots: _Slots, memory: Memory) -> int:
    """Have the slots run whose transfers are over; returns how many bytes those moved."""
    moved = 0
    first = slots.n[_RUN]
    slots.n[_RUN] = end_transfers(slots.run, first, memory)
    for i in range(first, slots.n[_RUN]):
        slot = slots.run[i]
        slots.stage[slot] = _DONE
        moved += phases.size[slots.phase[slot]]
    return moved


@jit
def _must_wait(slot: int, phases: _Phases, slots: _Slots, counters: _Counters) -> bool:
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
def _signal(counter: int, phases: _Phases, slots: _Slots, counters: _Counters) -> None:
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
            slots.run[slots.n[_RUN]] = host
            slots.n[_RUN] += 1
        host = behind


@jit
def _begin_latency(
    now: int, slot: int, phases: _Phases, records: _Records, slots: _Slots, counters: _Counters,
    memory: Memory,
) -> bool:  # fmt: skip
    """Begin the fixed part of a slot's phase; returns whether there is one to sit out.

    Phases behind it that nothing outside can touch are recorded at once.
    """
    at = slots.phase[slot]
    drift = phases.drift[memory.flows.sm[slot]]
    records.ready[at] = now
    slots.stage[slot] = _LATENCY
    delay = phases.latency[at] + drift * phases.streams[at]
    if not delay:
        return False
    then = now + delay
    while at + _ONE < slots.last[slot] and (phases.flow[at] < 0 or phases.size[at] == 0):
        if len(counters.value) and (
            phases.signal_counter[at] >= 0 or phases.wait_counter[at + _ONE] >= 0
        ):
            break
        records.moving[at] = records.end[at] = then
        at += _ONE
        records.begin[at] = records.ready[at] = then
        then += phases.latency[at] + drift * phases.streams[at]
    slots.phase[slot] = at
    _due_at(then, slot, slots)
    return True


@jit
def _advance(
    now: int, slot: int, phases: _Phases, records: _Records, slots: _Slots, counters: _Counters,
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
            records.moving[at] = now
            slots.stage[slot] = _MOVING
            if phases.flow[at] >= 0 and phases.size[at]:
                begin_transfer(slot, phases.flow[at], phases.size[at], memory)
                return
        records.end[at] = now
        if len(counters.value) and phases.signal_counter[at] >= 0:
            _signal(phases.signal_counter[at], phases, slots, counters)
        slots.phase[slot] = at + _ONE
        if at + _ONE == slots.last[slot]:
            slots.idle[slots.n[_IDLE]] = slot
            slots.n[_IDLE] += 1
            return
        records.begin[at + _ONE] = now
        slots.stage[slot] = _WAITING


@jit
def _place(
    start: int, now: int, next_cta: int, count: int, phases: _Phases, records: _Records, slots: _Slots
) -> None:
    """Give the next CTAs to the idle slots, in order of the slots, to begin at `start`."""
    n = slots.n
    sort(slots.idle, n[_IDLE])
    for j in range(count):
        slot, cta = slots.idle[j], next_cta + j
        first = phases.border[cta]
        slots.phase[slot], slots.last[slot] = first, phases.border[cta + 1]
        slots.stage[slot] = _WAITING
        records.begin[first] = start
        records.slot_of[cta] = slot
        if start > now:
            _due_at(start, slot, slots)
        else:
            slots.run[n[_RUN]] = slot
            n[_RUN] += 1
    n[_IDLE] = 0


@jit
def _launch(
    now: int, clock: int, first_cta: int, last_cta: int, per_sm: int, interval: int, phases: _Phases,
    records: _Records, slots: _Slots, counters: _Counters, memory: Memory,
) -> tuple[Any, Any, int]:  # fmt: skip
    """Run a launch from `now`; returns its end, when rates were last settled, and the bytes moved."""
    n = slots.n
    next_cta, next_dispatch = first_cta, now
    resident = min(last_cta - first_cta, len(memory.flows.load) * per_sm)
    for slot in range(resident):
        slots.idle[slot] = slot
    n[_IDLE] = resident
    left = last_cta - first_cta + resident  # CTAs not over, and slots that have not had any
    moved = 0
    wake: Any = NEVER
    while True:
        # 1. what ends now
        _run_due(now, slots)
        if wake == now:
            serve(now - clock, memory)
            clock = now
            moved += _end_moves(phases, slots, memory)
        # 2. place, and let every slot go as far as it can; placing may free slots again
        while True:
            while n[_RUN]:
                n[_RUN] -= 1
                _advance(now, slots.run[n[_RUN]], phases, records, slots, counters, memory)
            left -= n[_IDLE]
            count = min(n[_IDLE], last_cta - next_cta)
            if count == 0:
                n[_IDLE] = 0
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
            return now, clock, moved
        upcoming = min(wake, slots.due_times[0]) if n[_DUE] else wake
        if upcoming == NEVER:
            raise RuntimeError("every CTA waits for another")
        now = upcoming


@jit
def _execute(
    launches: Any,  # [n, 4] first CTA, last CTA, CTAs per SM, gap
    launch_times: Any,
    interval: int,
    phases: _Phases,
    records: _Records,
    counters: _Counters,
    numbers: Any,  # [20, slots], zero
    memory: tuple[Any, ...],  # arguments of `new_memory`
) -> int:
    """Run every launch, writing into the arrays of results; returns the bytes moved."""
    num_sms, limits, power, kinds, paces, slot_bytes, pool_numbers, pool_rates, known = memory
    system = new_memory(
        num_sms, limits, power, kinds, paces, numbers[:10], slot_bytes, pool_numbers, pool_rates, known
    )
    s = numbers[10:]
    slots = _Slots(
        s[0].view(np.uint64), s[1].view(np.uint64), s[2], s[3], s[4], s[5], s[6],
        s[7].view(np.uint64), s[8].view(np.uint64), s[9],
    )  # fmt: skip
    slots.n[_OPEN_TIME] = -1
    now = clock = moved = 0
    for i in range(launches.shape[0]):
        first_cta, last_cta, per_sm, gap = launches[i]
        launch_times[i, 0] = now
        now, clock, served = _launch(
            now + gap, clock, first_cta, last_cta, per_sm, interval, phases, records, slots, counters,
            system,
        )  # fmt: skip
        launch_times[i, 1] = now
        moved += served
    return moved


def execute(program: Program) -> Result:
    """Execute a program and return what happened."""
    times = np.empty((4, program.num_phases), np.int64)
    slot = np.empty(program.num_ctas, np.int64)
    launches = np.array(
        [(one.first_cta, one.last_cta, one.ctas_per_sm, one.gap_ps) for one in program.launches],
        np.int64,
    )
    launch_times = np.empty((len(launches), 2), np.int64)
    limits, power = sm_limits(program.flows, program.max_ctas_per_sm)
    kinds = [(flow.dram_share, flow.l2_share, flow.offered_bytes_per_ps) for flow in program.flows]
    num_slots = max(8, program.num_sms * program.max_ctas_per_sm)
    drift = program.drift_ps
    moved = _execute(
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
        _Records(times[0], times[1], times[2], times[3], slot),
        _Counters(np.zeros(program.num_counters, np.int64), np.full(program.num_counters, -1, np.int64)),
        np.zeros((20, num_slots), np.int64),
        (
            program.num_sms,
            limits,
            power,
            np.array(kinds).T.copy(),
            (
                program.dram_bytes_per_ps,
                program.dram_saturation_exponent,
                program.l2_bytes_per_ps,
                RESIDUE,
            ),
            np.zeros((2, num_slots)),
            np.zeros((3, limits.size), np.int64),
            np.zeros((11, limits.size)),
            np.full((2, CACHED), -1.0),
        ),
    )
    return Result(
        program=program,
        begin=times[0],
        ready=times[1],
        moving=times[2],
        end=times[3],
        slot=slot,
        launch_begin=tuple(launch_times[:, 0].tolist()),
        launch_end=tuple(launch_times[:, 1].tolist()),
        bytes_served=int(moved),
    )
