"""Transfers in progress on the SimPy clock: who shares with whom, and who finishes next.

Transfers with the same limit get the same rate, so they form a pool whose service is counted once:
a transfer ends when its pool has served it its bytes. Work per event is O(log transfers + pools).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import simpy
from simpy.events import NORMAL, EventPriority

from leansim.engine.sharing import Demand, level, shared_rates
from leansim.program import FlowKind, Program

# After everything else that happens at the same picosecond (SimPy: urgent 0, normal 1).
_LAST = EventPriority(2)
# Bytes below which a transfer is done; wake-ups are rounded up to a picosecond, so what is left at
# one is floating-point residue.
_RESIDUE = 1e-3


@dataclass(eq=False)
class _Pool:
    """Transfers of equal limit and DRAM share: `served` bytes for each since the beginning."""

    limit: float
    dram_share: float
    served: float = 0.0
    rate: float = 0.0
    count: int = 0
    queue: list[tuple[float, int, _Transfer]] = field(default_factory=list)

    def next_end(self) -> float | None:
        """Service at which the next transfer ends; forgets those that left for another pool."""
        while self.queue and self.queue[0][2].ticket != self.queue[0][1]:
            heapq.heappop(self.queue)
        return self.queue[0][0] if self.queue else None


@dataclass(eq=False)
class _Transfer:
    sm: int
    kind: FlowKind
    remaining: float
    done: simpy.Event
    pool: _Pool | None = None
    target: float = 0.0
    ticket: int = -1


class Clock(simpy.Environment):
    """A SimPy environment whose time is whole picoseconds."""

    @property
    def now(self) -> int:
        """Picoseconds since the start."""
        return self._now  # type: ignore[return-value] # every delay here is an int


class _At(simpy.Event):
    """An event that calls back after a delay, at a priority of its own."""

    def __init__(
        self, env: Clock, delay: int, priority: EventPriority, callback: Callable[[Any], None]
    ) -> None:
        super().__init__(env)
        self.callbacks = [callback]
        self._ok = True
        self._value = None
        env.schedule(self, priority=priority, delay=delay)


class Memory:
    """The memory system of one device while a program runs on it."""

    def __init__(self, env: Clock, program: Program) -> None:
        """Start idle."""
        self.env = env
        self.program = program
        self.on_sm: list[list[_Transfer]] = [[] for _ in range(program.num_sms)]
        self.changed: set[int] = set()
        self.pools: dict[tuple[float, float], _Pool] = {}
        self.clock = 0
        self.settling = False
        self.tickets = 0
        self.wake: _At | None = None
        self.bytes_served = 0
        self.events = 0

    def transfer(self, sm: int, kind: FlowKind, size: int) -> simpy.Event:
        """Begin moving `size` bytes for a CTA on `sm`; the event returned fires when they are."""
        done = simpy.Event(self.env)
        self.on_sm[sm].append(_Transfer(sm, kind, float(size), done))
        self.bytes_served += size
        self._touch(sm)
        return done

    def _touch(self, sm: int) -> None:
        """Note a change on `sm`; rates are settled once for all changes of a picosecond."""
        self.changed.add(sm)
        if not self.settling:
            self.settling = True
            _At(self.env, 0, _LAST, self._settle)

    def _advance(self) -> None:
        elapsed = self.env.now - self.clock
        if elapsed:
            for pool in self.pools.values():
                pool.served += pool.rate * elapsed
            self.clock = self.env.now

    def _settle(self, _: Any) -> None:
        self._advance()
        self.events += 1
        self.settling = False
        for sm in sorted(self.changed):
            self._regroup(sm)
        self.changed.clear()
        for key in [key for key, pool in self.pools.items() if pool.count == 0]:
            del self.pools[key]
        pools = [self.pools[key] for key in sorted(self.pools)]
        program = self.program
        rates = shared_rates(
            [Demand(pool.count, pool.limit, pool.dram_share) for pool in pools],
            program.dram_bytes_per_ps,
            program.dram_saturation_exponent,
            program.l2_bytes_per_ps,
        )
        waits = []
        for pool, rate in zip(pools, rates, strict=True):
            pool.rate = rate
            target = pool.next_end()
            if target is not None:
                waits.append(math.ceil(max(0.0, target - pool.served - _RESIDUE / 2) / rate))
        self.wake = _At(self.env, max(1, min(waits)), NORMAL, self._complete) if waits else None

    def _regroup(self, sm: int) -> None:
        """Recompute the limits of an SM's transfers and move those whose limit changed."""
        transfers = self.on_sm[sm]
        kinds = [(t.kind.max_bytes_per_ps, t.kind.sm_ps_per_byte) for t in transfers]
        sm_level = level(kinds, 1.0)
        for transfer in transfers:
            limit = min(transfer.kind.max_bytes_per_ps, sm_level)
            key = (limit, transfer.kind.dram_share)
            pool = self.pools.get(key)
            if pool is None:
                pool = self.pools[key] = _Pool(*key)
            if pool is not transfer.pool:
                self._move(transfer, pool)

    def _move(self, transfer: _Transfer, pool: _Pool) -> None:
        old = transfer.pool
        if old is not None:
            transfer.remaining = transfer.target - old.served
            old.count -= 1
        self.tickets += 1
        transfer.pool, transfer.ticket = pool, self.tickets
        transfer.target = pool.served + transfer.remaining
        pool.count += 1
        heapq.heappush(pool.queue, (transfer.target, transfer.ticket, transfer))

    def _complete(self, event: simpy.Event) -> None:
        """End every transfer whose bytes are served, unless rates have changed since."""
        if event is not self.wake:
            return
        self._advance()
        for pool in self.pools.values():
            target = pool.next_end()
            while target is not None and target - pool.served <= _RESIDUE:
                transfer = heapq.heappop(pool.queue)[2]
                pool.count -= 1
                transfer.ticket = -1
                self.on_sm[transfer.sm].remove(transfer)
                self._touch(transfer.sm)
                transfer.done.succeed()
                target = pool.next_end()
        if not self.settling:  # rounding left a hair: settle again
            self.settling = True
            _At(self.env, 0, _LAST, self._settle)
