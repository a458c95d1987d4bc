"""Transfers in progress on the SimPy clock: who shares with whom, and who finishes next.

Transfers that may take as much and cost the memories the same get the same rate, so they form a pool
whose service is counted once: a transfer ends when its pool has served it its bytes. Work per event is
O(log transfers + pools). What passes no memory ends in its own time: others have what they had.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import simpy
from simpy.events import NORMAL, EventPriority

from leansim.engine.program import Program, out_of_range
from leansim.engine.sharing import RESIDUE, Demand, pool_table, shared_rates, span_ps, whole_ps

_NUMBER = attrgetter("number")
# After all that happens at a picosecond (SimPy: urgent 0, normal 1) CTAs are placed, then rates settle.
PLACE = EventPriority(2)
SETTLE = EventPriority(3)


@dataclass(eq=False)
class _Pool(Demand):
    """Transfers that share a rate: `served` bytes for each since the beginning."""

    number: int = 0
    served: float = 0.0
    rate: float = 0.0
    queue: list[tuple[float, int, _Transfer]] = field(default_factory=list)

    @property
    def uses_memory(self) -> bool:
        """Whether a memory may hold its transfers back, and not their SMs alone."""
        return bool(self.dram_share or self.l2_share)

    def next_end(self) -> float | None:
        """Service at which the next transfer ends; forgets those that left for another pool."""
        while self.queue and self.queue[0][2].ticket != self.queue[0][1]:
            heapq.heappop(self.queue)
        return self.queue[0][0] if self.queue else None


@dataclass(eq=False)
class _Transfer:
    sm: int
    kind: int
    size: int
    remaining: float
    done: simpy.Event
    pool: _Pool | None = None
    target: float = 0.0
    ticket: int = -1
    since: int = 0


class Clock(simpy.Environment):
    """A SimPy environment whose time is whole picoseconds."""

    @property
    def now(self) -> int:
        """Picoseconds since the start."""
        return self._now  # type: ignore[return-value] # every delay here is an int


class At(simpy.Event):
    """An event that calls back after a delay, at a priority of its own."""

    def __init__(
        self, env: Clock, delay: int, priority: EventPriority, callback: Callable[[Any], None]
    ) -> None:
        """Schedule the callback."""
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
        self.table = pool_table(program.flows, program.max_ctas_per_sm)
        self.on_sm: list[list[_Transfer]] = [[] for _ in range(program.num_sms)]
        self.changed: set[int] = set()
        self.power: list[int] = self.table.power.tolist()
        self.pools: dict[int, _Pool] = {}
        self.active: list[_Pool] = []  # those with transfers, or that had some at the last settling
        self.clock = 0
        self.settling = False
        self.stale = False  # whether rates are to be shared anew
        self.tickets = 0
        self.wake: At | None = None
        self.served = [0] * len(program.flows)

    def transfer(self, sm: int, kind: int, size: int) -> simpy.Event:
        """Begin moving `size` bytes for a CTA on `sm`; the event returned fires when they are."""
        done = simpy.Event(self.env)
        self.on_sm[sm].append(_Transfer(sm, kind, size, float(size), done))
        self._touch(sm)
        return done

    def _touch(self, sm: int) -> None:
        """Note a change on `sm`; rates are settled once for all changes of a picosecond."""
        self.changed.add(sm)
        self._settle_soon()

    def _settle_soon(self) -> None:
        if not self.settling:
            self.settling = True
            At(self.env, 0, SETTLE, self._settle)

    def _advance(self) -> None:
        elapsed = self.env.now - self.clock
        if elapsed:
            for pool in self.active:
                pool.served += pool.rate * elapsed
            self.clock = self.env.now

    def _settle(self, _: Any) -> None:
        """Regroup what changed and, where that makes rates stale, share the bandwidth."""
        self.settling = False
        for sm in self.changed:
            self._regroup(sm)
        self.changed.clear()
        if self.stale:
            self._share()

    def _share(self) -> None:
        """Share the bandwidth, and set the next wake-up."""
        self.stale = False
        for pool in self.active:
            pool.rate = 0.0
        self.active = sorted((pool for pool in self.active if pool.count), key=_NUMBER)
        program = self.program
        rates = shared_rates(
            self.active,
            program.dram_bytes_per_ps,
            program.dram_saturation_exponent,
            program.l2_bytes_per_ps,
        )
        spans = []
        for pool, rate in zip(self.active, rates, strict=True):
            pool.rate = rate
            target = pool.next_end()
            assert target is not None
            spans.append(span_ps(target - pool.served - RESIDUE / 2, rate))
        if not spans:
            self.wake = None
            return
        wait = int(whole_ps(min(spans)))
        if not wait:
            raise out_of_range()
        self.wake = At(self.env, wait, NORMAL, self._complete)

    def _regroup(self, sm: int) -> None:
        """Move an SM's transfers to the pools of its new load."""
        transfers = self.on_sm[sm]
        code = sum([self.power[transfer.kind] for transfer in transfers])
        for transfer in transfers:
            number = self.table.of.item(code, transfer.kind)
            pool = self.pools.get(number)
            if pool is None:
                limit, dram, l2, offered = self.table.demands[:, number].tolist()
                pool = self.pools[number] = _Pool(0, limit, dram, l2, offered, number)
            if pool is not transfer.pool:
                (self._move if pool.uses_memory else self._pace)(transfer, pool)

    def _pace(self, transfer: _Transfer, pool: _Pool) -> None:
        """End a transfer that only its SM holds back in its time, at the limit of a pool."""
        if transfer.pool is not None:
            transfer.remaining -= transfer.pool.limit * (self.env.now - transfer.since)
        transfer.since = self.env.now
        ticket = self._join(transfer, pool)
        wait = int(whole_ps(span_ps(transfer.remaining - RESIDUE / 2, pool.limit)))
        if not wait:
            raise out_of_range()

        def complete(_: Any) -> None:
            if transfer.ticket == ticket:
                self._end(transfer)

        At(self.env, wait, NORMAL, complete)

    def _move(self, transfer: _Transfer, pool: _Pool) -> None:
        """Move a transfer to a pool. Rates stay where a memory, and neither limit, held it back."""
        self._advance()
        old, kept = transfer.pool, 0.0
        if old is not None:
            transfer.remaining = transfer.target - old.served
            old.count -= 1
            if old.rate < min(old.limit, pool.limit):
                kept = old.rate
        ticket = self._join(transfer, pool)
        transfer.target = pool.served + transfer.remaining
        if not pool.count and pool not in self.active:
            self.active.append(pool)
            pool.rate = kept
        if not kept:
            self.stale = True
        pool.count += 1
        heapq.heappush(pool.queue, (transfer.target, ticket, transfer))

    def _join(self, transfer: _Transfer, pool: _Pool) -> int:
        """Note a transfer's pool; returns its ticket there, which outdates those it had."""
        self.tickets += 1
        transfer.pool, transfer.ticket = pool, self.tickets
        return self.tickets

    def _complete(self, event: simpy.Event) -> None:
        """End every transfer whose bytes are served, unless rates have changed since."""
        if event is not self.wake:
            return
        self._advance()
        for pool in self.active:
            target = pool.next_end()
            while target is not None and target - pool.served <= RESIDUE:
                self._end(heapq.heappop(pool.queue)[2])
                pool.count -= 1
                target = pool.next_end()
        self.stale = True  # even if rounding left a hair to the next picosecond
        self._settle_soon()

    def _end(self, transfer: _Transfer) -> None:
        """End a transfer whose bytes are served."""
        transfer.ticket = -1
        self.served[transfer.kind] += transfer.size
        self.on_sm[transfer.sm].remove(transfer)
        self._touch(transfer.sm)
        transfer.done.succeed()
