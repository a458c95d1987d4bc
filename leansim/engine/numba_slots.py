"""Where each slot stands in the fast engine, and when each is due. One CTA runs on a slot at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from leansim.engine.heaps import jit, pop, push


class Slots(NamedTuple):
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
DUE, RUN, IDLE, OPEN_TIME, OPEN_SLOT = range(5)


@jit
def run_due(now: int, slots: Slots) -> None:
    """Have the slots run that are due now."""
    n = slots.n
    while n[DUE] and slots.due_times[0] == now:
        slot = slots.due_slots[0]
        n[DUE] = pop(slots.due_times, slots.due_slots, n[DUE])
        while slot >= 0:
            slots.run[n[RUN]] = slot
            n[RUN] += 1
            slot = slots.chain[slot]
    if now == n[OPEN_TIME]:
        n[OPEN_TIME] = -1


@jit
def due_at(time: int, slot: int, slots: Slots) -> None:
    """Have a slot run at a time; slots that follow one another to the same time form a chain."""
    n = slots.n
    slots.chain[slot] = -1
    if time == n[OPEN_TIME]:
        slots.chain[n[OPEN_SLOT]] = slot
    else:
        n[DUE] = push(slots.due_times, slots.due_slots, n[DUE], time, slot)
        n[OPEN_TIME] = time
    n[OPEN_SLOT] = slot


@jit
def slots_in(numbers: Any) -> Slots:
    """Slots in an array given for them, `[10, slots]`."""
    s = numbers
    return Slots(
        s[0].view(np.uint64), s[1].view(np.uint64), s[2], s[3], s[4], s[5], s[6],
        s[7].view(np.uint64), s[8].view(np.uint64), s[9],
    )  # fmt: skip


@jit
def clear(slots: Slots) -> None:
    """Make slots of zeros slots that none is due on."""
    slots.n[OPEN_TIME] = -1
