"""Transfers in progress in the fast engine: what `memory` does, in arrays. One transfer per slot."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from leansim.arrays import FloatArray
from leansim.engine.numba_queues import (
    NONE,
    ONE,
    ZERO,
    Index,
    Queues,
    add,
    jit,
    make_empty,
    remove,
    take_first,
)
from leansim.engine.sharing import fill_rates, loaded_capacity, span_ps, whole_ps

_fill_rates = jit(fill_rates)
_loaded_capacity = jit(loaded_capacity)
_span_ps = jit(span_ps)
_whole_ps = jit(whole_ps)
NEVER: Any = np.int64(2**62)
_CACHED = 4096  # capacities remembered
_MOST_OFFERED = 2.0**40  # of which a place among them is worked out


@lru_cache(maxsize=16)
def known_capacities(*_of_dram: float) -> FloatArray:
    """Offers to a DRAM of such a peak and exponent, and its bandwidth under them: see `_capacity`.

    They are kept from one run to the next.
    """
    return np.full((2, _CACHED), -1.0)


class Flows(NamedTuple):
    """Transfers: per slot its SM, kind (-1: none), pool and bytes to move; per SM what runs on it.

    `since` is when a slot's `remaining` was so, where no memory serves it.
    """

    sm: Any
    kind: Any
    pool: Any
    remaining: Any
    load: Any
    is_changed: Any
    changed: Any
    since: Any


class Pools(NamedTuple):
    """Transfers that share a rate; which they are is `of[load of their SM, kind]`, as in `PoolTable`.

    The next four are what one of its transfers may take; `a_*` are columns of the active pools.
    """

    of: Any
    limit: Any
    share: Any
    l2_share: Any
    offer: Any
    served: Any
    rate: Any
    a_count: Any
    a_limit: Any
    a_share: Any
    a_l2_share: Any
    a_rate: Any
    count: Any
    queue: Any  # of a pool that is active
    active: Any
    free: Any  # a stack of queues that no pool has; those used last are used first


class Memory(NamedTuple):
    """The memory system. `power` is what a transfer of each kind adds to the load of its SM."""

    flows: Flows
    pools: Pools
    queues: Queues  # of pools, by the bytes of its service at which each transfer ends
    power: Any
    dram_peak: float
    dram_exponent: float
    l2_peak: float
    residue: float
    known: Any  # as `known_capacities`
    n: Any  # how much of `changed`, `active` and `free` is in use; whether rates are to be shared anew


_CHANGED, _ACTIVE, _FREE, _STALE = range(4)


@jit
def is_settled(memory: Memory) -> bool:
    """Whether nothing has changed since rates were settled."""
    return bool(memory.n[_CHANGED] == ZERO)


@jit
def _touch(sm: Index, memory: Memory) -> None:
    """Note that what runs on an SM has changed."""
    flows, n = memory.flows, memory.n
    if not flows.is_changed[sm]:
        flows.is_changed[sm] = True
        flows.changed[n[_CHANGED]] = sm
        n[_CHANGED] += ONE


@jit
def begin_transfer(slot: Index, kind: int, size: int, memory: Memory) -> None:
    """Begin moving bytes for the CTA in a slot; `settle` gives it a rate."""
    flows = memory.flows
    sm = flows.sm[slot]
    flows.kind[slot] = kind
    flows.remaining[slot] = float(size)
    flows.load[sm] += memory.power[np.uint64(kind)]
    _touch(sm, memory)


@jit
def serve(elapsed: int, memory: Memory) -> None:
    """Move what the active pools move in a time."""
    pools = memory.pools
    if elapsed:
        for i in range(memory.n[_ACTIVE]):
            pool = pools.active[i]
            pools.served[pool] += pools.rate[pool] * elapsed


@jit
def end_transfers(ended: Any, num_ended: Index, memory: Memory) -> Index:
    """End the transfers whose bytes are served: append their slots; returns how many `ended` holds."""
    pools, queues = memory.pools, memory.queues
    for i in range(memory.n[_ACTIVE]):
        pool = pools.active[i]
        first, queue = num_ended, pools.queue[pool]
        while _is_served(queue, pools.served[pool], memory):
            num_ended = take_first(queue, queues, ended, num_ended)
        pools.count[pool] -= np.int64(num_ended - first)
        for j in range(first, num_ended):
            end_transfer(ended[j], memory)
    return num_ended


@jit
def end_transfer(slot: Index, memory: Memory) -> None:
    """Have a slot move nothing more."""
    flows = memory.flows
    sm = flows.sm[slot]
    flows.load[sm] -= memory.power[np.uint64(flows.kind[slot])]
    flows.kind[slot] = -1
    flows.pool[slot] = NONE
    _touch(sm, memory)


@jit
def _is_served(queue: Index, served: float, memory: Memory) -> bool:
    """Whether the first transfer of a queue is over."""
    queues = memory.queues
    return bool(queues.size[queue] and queues.key[queue * queues.width] - served <= memory.residue)


@jit
def _activate(pool: Index, memory: Memory) -> None:
    """Give a pool a queue and put it on the list of active ones, which is sorted, unless it is there."""
    pools, active, n = memory.pools, memory.pools.active, memory.n
    place = n[_ACTIVE]
    while place > ZERO and active[place - ONE] > pool:
        place -= ONE
    if place == ZERO or active[place - ONE] != pool:
        k = n[_ACTIVE]
        while k > place:
            active[k] = active[k - ONE]
            k -= ONE
        active[place] = pool
        n[_ACTIVE] += ONE
        n[_FREE] -= ONE
        pools.queue[pool] = pools.free[n[_FREE]]


@jit
def _regroup(now: int, clock: int, resident: int, memory: Memory, due: Queues) -> int:
    """Move the transfers of SMs whose load has changed to the pools they belong in now.

    Returns until when pools are served: `now` where any of them changes, which may make rates stale.
    """
    flows, pools, n = memory.flows, memory.pools, memory.n
    num_sms = np.uint64(len(flows.load))
    for c in range(n[_CHANGED]):
        sm = flows.changed[c]
        flows.is_changed[sm] = False
        of = pools.of[np.uint64(flows.load[sm])]
        for slot in range(sm, np.uint64(resident), num_sms):
            if flows.kind[slot] < 0:
                continue
            pool = np.uint64(of[np.uint64(flows.kind[slot])])
            if pool == flows.pool[slot]:
                continue
            if pools.share[pool] == 0.0 and pools.l2_share[pool] == 0.0:
                _pace(slot, pool, now, memory, due)
                continue
            serve(now - clock, memory)
            clock = now
            _move(slot, pool, memory)
    n[_CHANGED] = ZERO
    return clock


@jit
def _pace(slot: Index, pool: Index, now: int, memory: Memory, due: Queues) -> None:
    """Have a slot be due when the work is over that only its SM holds back, at the limit of a pool."""
    flows, pools = memory.flows, memory.pools
    old = flows.pool[slot]
    if old != NONE:
        flows.remaining[slot] -= pools.limit[old] * (now - flows.since[slot])
        remove(ZERO, slot, due)
    flows.pool[slot], flows.since[slot] = pool, now
    span = _span_ps(flows.remaining[slot] - memory.residue / 2, pools.limit[pool])
    add(ZERO, slot, now + np.int64(_whole_ps(span)), due)


@jit
def _move(slot: Index, pool: Index, memory: Memory) -> None:
    """Move a transfer to a pool. Rates stay where a memory, and neither limit, held it back."""
    flows, pools, queues = memory.flows, memory.pools, memory.queues
    old, kept = flows.pool[slot], 0.0
    if old != NONE:
        flows.remaining[slot] = queues.key_of[slot] - pools.served[old]
        remove(pools.queue[old], slot, queues)
        pools.count[old] -= 1
        if pools.rate[old] < min(pools.limit[old], pools.limit[pool]):
            kept = pools.rate[old]
    flows.pool[slot] = pool
    if pools.count[pool] == 0 and pools.rate[pool] == 0.0:
        _activate(pool, memory)
        pools.rate[pool] = kept
    if kept == 0.0:
        memory.n[_STALE] = ONE
    pools.count[pool] += 1
    add(pools.queue[pool], slot, pools.served[pool] + flows.remaining[slot], queues)


@jit
def _capacity(offered: float, memory: Memory) -> float:
    """Bandwidth of DRAM under an offer: `sharing.loaded_capacity`, remembered.

    The same loads come back, and two powers are slow.
    """
    peak, exponent, known = memory.dram_peak, memory.dram_exponent, memory.known
    line = np.uint64(np.int64(min(offered, _MOST_OFFERED) * 65536.0) & (_CACHED - 1))
    if known[0, line] != offered:
        known[0, line] = offered
        known[1, line] = _loaded_capacity(offered, peak, exponent)
    return float(known[1, line])


@jit
def settle(
    now: int, clock: int, wake: Any, resident: int, memory: Memory, due: Queues
) -> tuple[int, Any]:
    """Regroup what changed and share the bandwidth; returns until when pools are served, and `wake`.

    That is when the first transfer of a pool ends, before as after; where one never does, `now`. Work
    that no memory serves has its slot `due`: it takes nothing from others, whose rates stay.
    `resident` is how many slots have been in use in this launch.
    """
    clock = _regroup(now, clock, resident, memory, due)
    if wake != now and memory.n[_STALE] == ZERO:
        return clock, wake
    memory.n[_STALE] = ZERO
    pools, queues = memory.pools, memory.queues
    kept = ZERO
    offered = 0.0
    for i in range(memory.n[_ACTIVE]):
        pool = pools.active[i]
        pools.rate[pool] = 0.0
        if pools.count[pool] == 0:
            pools.free[memory.n[_FREE]] = pools.queue[pool]
            memory.n[_FREE] += ONE
            continue
        pools.active[kept] = pool
        pools.a_count[kept] = pools.count[pool]
        pools.a_limit[kept] = pools.limit[pool]
        pools.a_share[kept] = pools.share[pool]
        pools.a_l2_share[kept] = pools.l2_share[pool]
        offered += pools.a_count[kept] * pools.a_share[kept] * pools.offer[pool]
        kept += ONE
    memory.n[_ACTIVE] = kept
    capacity = _capacity(offered, memory)
    _fill_rates(
        kept, pools.a_count, pools.a_limit, pools.a_share, pools.a_l2_share, capacity, memory.l2_peak,
        pools.a_rate,
    )  # fmt: skip
    soonest = math.inf
    for i in range(kept):
        pool, rate = pools.active[i], pools.a_rate[i]
        pools.rate[pool] = rate
        left = queues.key[pools.queue[pool] * queues.width] - pools.served[pool] - memory.residue / 2
        soonest = min(soonest, _span_ps(left, rate))
    return now, (now + np.int64(_whole_ps(soonest)) if kept else NEVER)


@jit
def memory_system(
    num_sms: int,
    pools: tuple[Any, Any, Any],
    paces: tuple[float, float, float, float],
    known: Any,
    of_slots: Any,
    of_pools: Any,
    entries: Any,
) -> Memory:
    """A memory system in arrays given for it, which is to `start_idle`.

    `pools` are the arrays of a `PoolTable`; `paces` are DRAM's peak and exponent, L2's peak, and the
    residue. `of_slots` is `[13, slots]`, `of_pools` `[13, pools]`, and `entries` have two numbers for
    each pool and slot, most of which are never touched.
    """
    s, p = of_slots, of_pools
    of, power, d = pools
    flows = Flows(
        s[0],
        s[1].view(np.int64),
        s[2],
        s[3].view(np.float64),
        s[4][:num_sms].view(np.int64),
        s[5],
        s[6],
        s[12].view(np.int64),
    )
    shared = Pools(
        of, d[0], d[1], d[2], d[3], p[0].view(np.float64), p[1].view(np.float64), p[2].view(np.float64),
        p[3].view(np.float64), p[4].view(np.float64), p[5].view(np.float64), p[6].view(np.float64),
        p[7].view(np.int64), p[8], p[9], p[10],
    )  # fmt: skip
    queues = Queues(
        entries[0].view(np.float64), entries[1], p[11], p[12], s[7].view(np.float64), s[8], s[9], s[10],
        np.uint64(s.shape[1]),
    )  # fmt: skip
    dram_peak, exponent, l2_peak, residue = paces
    return Memory(flows, shared, queues, power, dram_peak, exponent, l2_peak, residue, known, s[11])


@jit
def start_idle(memory: Memory) -> None:
    """Have nothing move in a memory system."""
    flows, pools = memory.flows, memory.pools
    num_sms = len(flows.load)
    for slot in range(len(flows.sm)):
        flows.sm[slot] = slot % num_sms
        flows.kind[slot], flows.pool[slot] = -1, NONE
    for sm in range(num_sms):
        flows.load[sm], flows.is_changed[sm] = 0, False
    for pool in range(len(pools.count)):
        pools.count[pool], pools.served[pool], pools.rate[pool] = 0, 0.0, 0.0
        pools.free[pool] = len(pools.count) - 1 - pool
    make_empty(memory.queues)
    memory.n[_CHANGED] = memory.n[_ACTIVE] = memory.n[_STALE] = ZERO
    memory.n[_FREE] = len(pools.count)
