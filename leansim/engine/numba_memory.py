"""Transfers in progress in the fast engine: what `memory` does, in arrays. One transfer per slot."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from leansim.arrays import FloatArray
from leansim.engine.heaps import Nodes, jit, meld, remove, take_reached
from leansim.engine.sharing import fill_rates, loaded_capacity, wait_ps

_fill_rates = jit(fill_rates)
_loaded_capacity = jit(loaded_capacity)
_wait_ps = jit(wait_ps)
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
    """Transfers: per slot its SM, kind, pool (-1: none) and bytes to move; per SM what runs on it."""

    sm: Any
    kind: Any
    pool: Any
    remaining: Any
    load: Any
    is_changed: Any
    changed: Any


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
    root: Any
    count: Any
    active: Any


class Memory(NamedTuple):
    """The memory system. `power` is what a transfer of each kind adds to the load of its SM."""

    flows: Flows
    pools: Pools
    nodes: Nodes
    power: Any
    dram_peak: float
    dram_exponent: float
    l2_peak: float
    residue: float
    known: Any  # as `known_capacities`
    n: Any  # how much of `changed` and `active` is in use


_CHANGED, _ACTIVE = range(2)


@jit
def is_settled(memory: Memory) -> bool:
    """Whether nothing has changed since rates were settled."""
    return bool(memory.n[_CHANGED] == 0)


@jit
def _touch(sm: int, memory: Memory) -> None:
    """Note that what runs on an SM has changed."""
    flows, n = memory.flows, memory.n
    if not flows.is_changed[sm]:
        flows.is_changed[sm] = True
        flows.changed[n[_CHANGED]] = sm
        n[_CHANGED] += 1


@jit
def begin_transfer(slot: int, kind: int, size: int, memory: Memory) -> None:
    """Begin moving bytes for the CTA in a slot; `settle` gives it a rate."""
    flows = memory.flows
    sm = flows.sm[slot]
    flows.kind[slot] = kind
    flows.remaining[slot] = float(size)
    flows.load[sm] += memory.power[kind]
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
def end_transfers(ended: Any, num_ended: int, memory: Memory) -> int:
    """End the transfers whose bytes are served: append their slots; returns how many `ended` holds."""
    flows, pools, nodes = memory.flows, memory.pools, memory.nodes
    for i in range(memory.n[_ACTIVE]):
        pool = pools.active[i]
        root, served = pools.root[pool], pools.served[pool]
        if root < 0 or nodes.target[root] - served > memory.residue:
            continue
        first = num_ended
        root, num_ended = take_reached(root, served, memory.residue, nodes, ended, first)
        pools.root[pool] = root
        pools.count[pool] -= num_ended - first
        for j in range(first, num_ended):
            slot = ended[j]
            sm = flows.sm[slot]
            flows.load[sm] -= memory.power[flows.kind[slot]]
            flows.kind[slot] = flows.pool[slot] = -1
            _touch(sm, memory)
    return num_ended


@jit
def _activate(pool: int, memory: Memory) -> None:
    """Put a pool on the list of active ones, which is sorted, unless it is there."""
    active, n = memory.pools.active, memory.n
    place = n[_ACTIVE]
    while place > 0 and active[place - 1] > pool:
        place -= 1
    if place == 0 or active[place - 1] != pool:
        for k in range(n[_ACTIVE], place, -1):
            active[k] = active[k - 1]
        active[place] = pool
        n[_ACTIVE] += 1


@jit
def _regroup(resident: int, memory: Memory) -> None:
    """Move the transfers of SMs whose load has changed to the pools they belong in now."""
    flows, pools, nodes = memory.flows, memory.pools, memory.nodes
    num_sms = len(flows.load)
    for c in range(memory.n[_CHANGED]):
        sm = flows.changed[c]
        flows.is_changed[sm] = False
        for slot in range(sm, resident, num_sms):
            if flows.kind[slot] < 0:
                continue
            pool = pools.of[flows.load[sm], flows.kind[slot]]
            old = flows.pool[slot]
            if pool == old:
                continue
            if old >= 0:
                flows.remaining[slot] = nodes.target[slot] - pools.served[old]
                pools.root[old] = remove(slot, pools.root[old], nodes)
                pools.count[old] -= 1
            nodes.target[slot] = pools.served[pool] + flows.remaining[slot]
            flows.pool[slot] = pool
            if pools.count[pool] == 0 and pools.rate[pool] == 0.0:
                _activate(pool, memory)
            pools.count[pool] += 1
            pools.root[pool] = meld(pools.root[pool], slot, nodes)
    memory.n[_CHANGED] = 0


@jit
def _capacity(offered: float, memory: Memory) -> float:
    """Bandwidth of DRAM under an offer: `sharing.loaded_capacity`, remembered.

    The same loads come back, and two powers are slow.
    """
    peak, exponent, known = memory.dram_peak, memory.dram_exponent, memory.known
    line = np.int64(min(offered, _MOST_OFFERED) * 65536.0) & (_CACHED - 1)
    if known[0, line] != offered:
        known[0, line] = offered
        known[1, line] = _loaded_capacity(offered, peak, exponent)
    return float(known[1, line])


@jit
def settle(now: int, resident: int, memory: Memory) -> Any:
    """Regroup what changed and share the bandwidth; returns when the first transfer ends.

    Where one never does, that is `now`. `resident` is how many slots have been in use in this launch.
    """
    _regroup(resident, memory)
    pools, nodes = memory.pools, memory.nodes
    kept = 0
    offered = 0.0
    for i in range(memory.n[_ACTIVE]):
        pool = pools.active[i]
        pools.rate[pool] = 0.0
        if pools.count[pool] == 0:
            continue
        pools.active[kept] = pool
        pools.a_count[kept] = pools.count[pool]
        pools.a_limit[kept] = pools.limit[pool]
        pools.a_share[kept] = pools.share[pool]
        pools.a_l2_share[kept] = pools.l2_share[pool]
        offered += pools.a_count[kept] * pools.a_share[kept] * pools.offer[pool]
        kept += 1
    memory.n[_ACTIVE] = kept
    capacity = _capacity(offered, memory)
    _fill_rates(
        kept, pools.a_count, pools.a_limit, pools.a_share, pools.a_l2_share, capacity, memory.l2_peak,
        pools.a_rate,
    )  # fmt: skip
    wake: Any = NEVER
    for i in range(kept):
        pool, rate = pools.active[i], pools.a_rate[i]
        pools.rate[pool] = rate
        left = nodes.target[pools.root[pool]] - pools.served[pool] - memory.residue / 2
        wait: Any = np.int64(_wait_ps(left, rate))
        wake = min(wake, now + wait)
    return wake


@jit
def memory_system(
    slot_numbers: Any,
    num_sms: int,
    pools: tuple[Any, Any, Any],
    paces: tuple[float, float, float, float],
    slot_bytes: Any,
    pool_numbers: Any,
    pool_rates: Any,
    known: Any,
) -> Memory:
    """A memory system in arrays given for it; where they are new it is to `start_idle`.

    `pools` are the arrays of a `PoolTable`; `paces` are DRAM's peak and exponent, L2's peak, and the
    residue.
    """
    s, p = slot_numbers, pool_rates
    of, power, d = pools
    flows = Flows(s[0].view(np.uint64), s[1], s[2], slot_bytes[0], s[3][:num_sms], s[4], s[5])
    nodes = Nodes(slot_bytes[1], s[6], s[7], s[8])
    shared = Pools(
        of, d[0], d[1], d[2], d[3], p[0], p[1], p[2], p[3], p[4], p[5], p[6],
        pool_numbers[0], pool_numbers[1], pool_numbers[2],
    )  # fmt: skip
    dram_peak, exponent, l2_peak, residue = paces
    return Memory(flows, shared, nodes, power, dram_peak, exponent, l2_peak, residue, known, s[9])


@jit
def start_idle(memory: Memory) -> None:
    """Make a memory system of zeros one in which nothing moves."""
    flows, pools, nodes = memory.flows, memory.pools, memory.nodes
    for slot in range(len(flows.sm)):
        flows.sm[slot] = slot % len(flows.load)
        flows.kind[slot] = flows.pool[slot] = -1
        nodes.child[slot] = nodes.after[slot] = nodes.before[slot] = -1
    for pool in range(len(pools.root)):
        pools.root[pool] = -1
