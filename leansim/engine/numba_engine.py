"""The fast engine: the reference engine's rules as one compiled loop, equal to the picosecond.

Timed events wait in a heap of moments, each with the chain of slots due then; transfers in one
pairing heap per pool. An event costs O(log slots), and slots that move in step cost little more than
one. At one picosecond things happen in the reference's order: ends, then placing, then settling.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from leansim.engine.memory import RESIDUE
from leansim.engine.sharing import fill_rates, sm_limits
from leansim.program import Phase, Program
from leansim.result import Result

_jit = numba.njit(cache=True, error_model="numpy")
_fill_rates = _jit(fill_rates)
_NEVER = np.int64(2**62)
_WAITING, _LATENCY, _MOVING, _DONE = 0, 1, 2, 3  # stages of a phase


# -- a binary heap of (moment, first slot due then) -----------------------------------------------------


@_jit
def _push(times: Any, slots: Any, size: int, time: int, slot: int) -> int:
    """Add an entry; returns the new size."""
    at = size
    while at > 0:
        parent = (at - 1) // 2
        if times[parent] <= time:
            break
        times[at], slots[at] = times[parent], slots[parent]
        at = parent
    times[at], slots[at] = time, slot
    return size + 1


@_jit
def _pop(times: Any, slots: Any, size: int) -> int:
    """Drop the first entry; returns the new size."""
    size -= 1
    time, slot = times[size], slots[size]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and times[child + 1] < times[child]:
            child += 1
        if times[child] >= time:
            break
        times[at], slots[at] = times[child], slots[child]
        at = child
    times[at], slots[at] = time, slot
    return size


# -- pairing heaps of transfers: one node per slot, one root per pool ---------------------------------


@_jit
def _meld(a: int, b: int, target: Any, child: Any, after: Any, before: Any) -> int:
    """Join two heaps; the root is the transfer that ends first."""
    if a < 0:
        return b
    if b < 0:
        return a
    if target[b] < target[a]:
        a, b = b, a
    after[b] = child[a]
    if child[a] >= 0:
        before[child[a]] = b
    before[b] = a
    child[a] = b
    return a


@_jit
def _meld_list(at: int, target: Any, child: Any, after: Any, before: Any) -> int:
    """Meld heaps in a list linked by `after`: in pairs left to right, then all right to left."""
    paired = -1
    while at >= 0:
        first, second = at, after[at]
        at = after[second] if second >= 0 else -1
        after[first] = -1
        if second >= 0:
            after[second] = -1
            first = _meld(first, second, target, child, after, before)
        after[first] = paired
        paired = first
    root = -1
    while paired >= 0:
        rest = after[paired]
        after[paired] = -1
        root = _meld(root, paired, target, child, after, before)
        paired = rest
    if root >= 0:
        before[root] = after[root] = -1
    return root


@_jit
def _remove(node: int, root: int, target: Any, child: Any, after: Any, before: Any) -> int:
    """Take a node out of a heap and return the new root."""
    below = child[node]
    child[node] = -1
    orphan = _meld_list(below, target, child, after, before)
    if node == root:
        return orphan
    left = before[node]
    if child[left] == node:
        child[left] = after[node]
    else:
        after[left] = after[node]
    if after[node] >= 0:
        before[after[node]] = left
    after[node] = before[node] = -1
    return _meld(root, orphan, target, child, after, before)


# -- the loop -----------------------------------------------------------------------------------------


@_jit
def _execute(  # noqa: PLR0912, PLR0915 - one loop over local arrays: passing them costs more than the work
    launches: Any,  # [n, 4] first CTA, last CTA, CTAs per SM, gap
    border: Any,
    latency: Any,
    streams: Any,
    drift: Any,
    size: Any,
    flow: Any,
    wait_counter: Any,
    wait_target: Any,
    signal_counter: Any,
    counters: Any,
    num_sms: int,
    interval: int,
    limits: Any,
    power: Any,
    share: Any,
    l2_share: Any,
    offer: Any,
    dram_peak: float,
    exponent: float,
    l2_peak: float,
    residue: float,
    begin: Any,
    ready: Any,
    moving: Any,
    end: Any,
    slot_of: Any,
    launch_times: Any,
) -> int:
    """Run every launch, writing into the arrays of results; returns the bytes moved."""
    num_kinds = len(share)
    num_pools = limits.shape[0] * num_kinds
    num_slots = num_sms * launches[:, 2].max()
    waiter = np.full(len(counters), -1, np.int64)  # first slot that waits on each counter
    next_waiter = np.full(num_slots, -1, np.int64)  # and the one behind each
    phase = np.zeros(num_slots, np.int64)
    last = np.zeros(num_slots, np.int64)
    stage = np.zeros(num_slots, np.int8)
    times = np.zeros(num_slots + 1, np.int64)
    slots = np.zeros(num_slots + 1, np.int64)
    timed = 0
    # transfers
    pool_of = np.full(num_slots, -1, np.int64)
    kind_of = np.full(num_slots, -1, np.int64)
    remaining = np.zeros(num_slots)
    target = np.zeros(num_slots)
    child = np.full(num_slots, -1, np.int64)
    after = np.full(num_slots, -1, np.int64)
    before = np.full(num_slots, -1, np.int64)
    sm_of = np.arange(num_slots) % num_sms
    load = np.zeros(num_sms, np.int64)
    changed = np.zeros(num_sms, np.int64)
    is_changed = np.zeros(num_sms, np.bool_)
    num_changed = 0
    # pools: number = load * kinds + kind
    limit_of = limits.ravel()
    share_of = np.array([share[k % num_kinds] for k in range(num_pools)])
    root = np.full(num_pools, -1, np.int64)
    count = np.zeros(num_pools, np.int64)
    served = np.zeros(num_pools)
    rate = np.zeros(num_pools)
    active = np.zeros(num_pools, np.int64)
    num_active = 0
    # capacities already worked out: the same loads come back, and two powers are slow
    known_offer = np.full(256, -1.0)
    known_capacity = np.zeros(256)
    a_count = np.zeros(num_pools)
    a_limit = np.zeros(num_pools)
    a_share = np.zeros(num_pools)
    a_l2_share = np.zeros(num_pools)
    l2_share_of = np.array([l2_share[k % num_kinds] for k in range(num_pools)])
    offer_of = np.array([offer[k % num_kinds] for k in range(num_pools)])
    a_rate = np.zeros(num_pools)
    idle = np.zeros(num_slots, np.int64)
    run = np.zeros(num_slots, np.int64)  # a ring of slots whose next step is due now
    chain = np.full(num_slots, -1, np.int64)  # slots due at the same moment, behind the first
    open_time = np.int64(-1)
    open_slot = np.int64(-1)
    clock = 0
    wake: Any = _NEVER
    now: Any = 0
    moved = 0

    for number in range(launches.shape[0]):
        first_cta, last_cta, per_sm, gap = launches[number]
        launch_times[number, 0] = now
        now += gap
        next_cta = first_cta
        next_dispatch = now
        resident = min(last_cta - first_cta, num_sms * per_sm)
        num_idle = resident
        for j in range(resident):
            idle[j] = j
        busy = 0
        settle = False
        while True:
            # 1. what ends now
            num_run = 0
            while timed and times[0] == now:
                slot = slots[0]
                timed = _pop(times, slots, timed)
                while slot >= 0:
                    run[num_run % num_slots] = slot
                    num_run += 1
                    slot = chain[slot]
            if now == open_time:
                open_time = np.int64(-1)
            if wake == now:
                elapsed = now - clock
                if elapsed:
                    for i in range(num_active):
                        served[active[i]] += rate[active[i]] * elapsed
                    clock = now
                for i in range(num_active):
                    pool = active[i]
                    todo = root[pool]
                    if todo < 0 or target[todo] - served[pool] > residue:
                        continue
                    left = -1
                    after[todo] = -1
                    while todo >= 0:  # a list, linked by `after`, of heaps still to look into
                        slot = todo
                        todo = after[slot]
                        if target[slot] - served[pool] > residue:
                            after[slot] = left
                            left = slot
                            continue
                        after[slot] = before[slot] = -1
                        below = child[slot]
                        child[slot] = -1
                        while below >= 0:
                            following = after[below]
                            after[below] = todo
                            todo = below
                            below = following
                        count[pool] -= 1
                        pool_of[slot] = -1
                        sm = sm_of[slot]
                        load[sm] -= power[kind_of[slot]]
                        kind_of[slot] = -1
                        if not is_changed[sm]:
                            is_changed[sm] = True
                            changed[num_changed] = sm
                            num_changed += 1
                        moved += size[phase[slot]]
                        stage[slot] = _DONE
                        run[num_run % num_slots] = slot
                        num_run += 1
                    root[pool] = _meld_list(left, target, child, after, before)
                settle = True
            # 2. place, and let every slot go as far as it can; placing may free slots again
            while True:
                turn = 0
                while turn < num_run:
                    slot = run[turn % num_slots]  # a slot is due at most once at a time
                    turn += 1
                    while True:
                        at = phase[slot]
                        if stage[slot] == _WAITING:
                            counter = wait_counter[at]
                            if counter >= 0 and counters[counter] < wait_target[at]:
                                next_waiter[slot] = waiter[counter]
                                waiter[counter] = slot
                                break
                            ready[at] = now
                            stage[slot] = _LATENCY
                            delay = latency[at] + drift[sm_of[slot]] * streams[at]
                            if delay:
                                # Run ahead through phases that nothing outside can touch.
                                then = now + delay
                                while (
                                    (flow[at] < 0 or size[at] == 0)
                                    and signal_counter[at] < 0
                                    and at + 1 < last[slot]
                                    and wait_counter[at + 1] < 0
                                ):
                                    moving[at] = end[at] = then
                                    at += 1
                                    begin[at] = ready[at] = then
                                    then += latency[at] + drift[sm_of[slot]] * streams[at]
                                phase[slot] = at
                                chain[slot] = -1
                                if then == open_time:
                                    chain[open_slot] = slot
                                else:
                                    timed = _push(times, slots, timed, then, slot)
                                    open_time = then
                                open_slot = slot
                                break
                        if stage[slot] == _LATENCY:
                            moving[at] = now
                            stage[slot] = _MOVING
                            if flow[at] >= 0 and size[at]:
                                sm = sm_of[slot]
                                kind_of[slot] = flow[at]
                                remaining[slot] = float(size[at])
                                load[sm] += power[flow[at]]
                                if not is_changed[sm]:
                                    is_changed[sm] = True
                                    changed[num_changed] = sm
                                    num_changed += 1
                                settle = True
                                break
                        end[at] = now
                        counter = signal_counter[at]
                        if counter >= 0:
                            counters[counter] += 1
                            host, ahead = waiter[counter], -1
                            while host >= 0:
                                behind = next_waiter[host]
                                if counters[counter] < wait_target[phase[host]]:
                                    ahead = host
                                else:
                                    if ahead < 0:
                                        waiter[counter] = behind
                                    else:
                                        next_waiter[ahead] = behind
                                    run[num_run % num_slots] = host
                                    num_run += 1
                                host = behind
                        phase[slot] = at + 1
                        if at + 1 == last[slot]:
                            idle[num_idle] = slot
                            num_idle += 1
                            busy -= 1
                            break
                        begin[at + 1] = now
                        stage[slot] = _WAITING
                num_run = 0
                if num_idle == 0:
                    break
                taken = min(num_idle, last_cta - next_cta)
                if taken == 0:
                    num_idle = 0
                    break
                if num_idle > 1:
                    idle[:num_idle] = np.sort(idle[:num_idle])
                start = max(now, next_dispatch)
                next_dispatch = start + taken * interval
                for j in range(taken):
                    slot = idle[j]
                    phase[slot], last[slot] = border[next_cta], border[next_cta + 1]
                    stage[slot] = _WAITING
                    begin[phase[slot]] = start
                    slot_of[next_cta] = slot
                    next_cta += 1
                    busy += 1
                    if start > now:
                        chain[slot] = -1
                        timed = _push(times, slots, timed, start, slot)
                    else:
                        run[num_run % num_slots] = slot
                        num_run += 1
                num_idle = 0
            # 3. settle the memory system
            if settle:
                settle = False
                elapsed = now - clock
                if elapsed:
                    for i in range(num_active):
                        served[active[i]] += rate[active[i]] * elapsed
                    clock = now
                for c in range(num_changed):
                    sm = changed[c]
                    is_changed[sm] = False
                    for slot in range(sm, resident, num_sms):
                        if kind_of[slot] < 0:
                            continue
                        pool = load[sm] * num_kinds + kind_of[slot]
                        old = pool_of[slot]
                        if pool == old:
                            continue
                        if old >= 0:
                            remaining[slot] = target[slot] - served[old]
                            root[old] = _remove(slot, root[old], target, child, after, before)
                            count[old] -= 1
                        target[slot] = served[pool] + remaining[slot]
                        pool_of[slot] = pool
                        if count[pool] == 0 and rate[pool] == 0.0:
                            place = num_active
                            while place > 0 and active[place - 1] > pool:
                                place -= 1
                            if place == 0 or active[place - 1] != pool:
                                for k in range(num_active, place, -1):
                                    active[k] = active[k - 1]
                                active[place] = pool
                                num_active += 1
                        count[pool] += 1
                        root[pool] = _meld(root[pool], slot, target, child, after, before)
                num_changed = 0
                kept = 0
                offered = 0.0
                for i in range(num_active):
                    pool = active[i]
                    rate[pool] = 0.0
                    if count[pool] == 0:
                        continue
                    active[kept] = pool
                    a_count[kept] = count[pool]
                    a_limit[kept] = limit_of[pool]
                    a_share[kept] = share_of[pool]
                    a_l2_share[kept] = l2_share_of[pool]
                    offered += a_count[kept] * a_share[kept] * offer_of[pool]
                    kept += 1
                num_active = kept
                capacity = dram_peak
                if offered > 0.0:
                    line = np.int64(offered * 65536.0) & 255
                    if known_offer[line] != offered:
                        known_offer[line] = offered
                        known_capacity[line] = offered / (1.0 + (offered / dram_peak) ** exponent) ** (
                            1.0 / exponent
                        )
                    capacity = known_capacity[line]
                _fill_rates(num_active, a_count, a_limit, a_share, a_l2_share, capacity, l2_peak, a_rate)
                wake = _NEVER
                for i in range(num_active):
                    pool = active[i]
                    rate[pool] = a_rate[i]
                    left = target[root[pool]] - served[pool] - residue / 2
                    wake = min(wake, now + max(1, np.int64(math.ceil(left / a_rate[i]))))
            # 4. on to the next moment
            if busy == 0 and next_cta == last_cta:
                break
            upcoming = wake
            if timed:
                upcoming = min(upcoming, times[0])
            if upcoming == _NEVER:
                raise RuntimeError("every CTA waits for another")
            now = upcoming
        launch_times[number, 1] = now
    return moved


def execute(program: Program) -> Result:
    """Execute a program and return what happened."""
    n = program.num_phases
    begin, ready, moving, end = (np.zeros(n, np.int64) for _ in range(4))
    slot = np.zeros(program.num_ctas, np.int64)
    launches = np.array(
        [(one.first_cta, one.last_cta, one.ctas_per_sm, one.gap_ps) for one in program.launches],
        np.int64,
    )
    launch_times = np.zeros((len(launches), 2), np.int64)
    limits, power = sm_limits(program.flows, program.max_ctas_per_sm)
    moved = _execute(
        launches,
        program.phase_of_cta,
        program.latency_ps,
        program.kind == Phase.STREAM,
        np.zeros(program.num_sms, np.int64) if program.drift_ps is None else program.drift_ps,
        program.bytes,
        program.flow,
        program.wait_counter,
        program.wait_target,
        program.signal_counter,
        np.zeros(program.num_counters, np.int64),
        program.num_sms,
        program.dispatch_interval_ps,
        limits,
        power,
        np.array([flow.dram_share for flow in program.flows]),
        np.array([flow.l2_share for flow in program.flows]),
        np.array([flow.offered_bytes_per_ps for flow in program.flows]),
        program.dram_bytes_per_ps,
        program.dram_saturation_exponent,
        program.l2_bytes_per_ps,
        RESIDUE,
        begin,
        ready,
        moving,
        end,
        slot,
        launch_times,
    )
    return Result(
        program=program,
        begin=begin,
        ready=ready,
        moving=moving,
        end=end,
        slot=slot,
        launch_begin=tuple(launch_times[:, 0].tolist()),
        launch_end=tuple(launch_times[:, 1].tolist()),
        bytes_served=int(moved),
    )
